"""Choice of the fastest backend, by models of time and memory.

Times are sums of terms, each a count of operations times a coefficient that
``benchmarks/fit_costs.py`` fits. The coefficients of memory were measured by
``benchmarks/memory.py``. What fits into no memory is refused, before any of it is taken.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sog_longrange.errors import ConfigError, PerformanceWarning, SizeError, explain
from sog_longrange.geometry import MAX_ELEMENTS, MAX_NODES
from sog_longrange.hosts import is_installed

from .cost_coefficients import COEFFICIENTS
from .cost_terms import OVERHEAD, Number, Size, table_key, terms
from .rows import most_modes

BACKENDS = ("auto", "dense", "mesh", "finufft")

WORTH_A_LOOK: float = 2.0**27
"""Memory, in bytes, below which an evaluation is not looked at."""

_SLOW = 2000.0
_MUCH = 2e9
_CGROUPS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


class Choice(NamedTuple):
    """A backend and why it was chosen.

    Attributes
    ----------
    backend : str
    costs : dict of str to float
        Predicted time of an energy and force evaluation by each backend, in ms; infinite where
        a backend cannot be used.
    memory : dict of str to float
        Predicted peak memory of that, in bytes.
    """

    backend: str
    costs: dict[str, float]
    memory: dict[str, float]

    def __str__(self) -> str:
        costs = ", ".join(f"{name} {cost:.3g} ms" for name, cost in self.costs.items())
        memory = _readable(self.memory[self.backend])
        return f"{self.backend} (predicted: {costs}; {memory} of memory)"


def check_backend(name: str) -> None:
    """Raise `ConfigError` unless there is such a backend and its library is installed.

    Parameters
    ----------
    name : str
    """
    if name not in BACKENDS:
        raise ConfigError(explain("backend", "one of " + ", ".join(BACKENDS), repr(name)))
    if name == "finufft" and not (_has_finufft("cpu") or _has_finufft("cuda")):
        expected = "one whose library is installed"
        raise ConfigError(explain("backend", expected, repr(name), "pip install finufft"))


def choose_backend(size: Size) -> Choice:
    """Choose the backend with the smallest predicted cost for one structure.

    A structure's backend depends on nothing but the structure itself, so that its energy
    is the same, to rounding, in every batch.

    Parameters
    ----------
    size : Size

    Returns
    -------
    Choice
    """
    costs = {name: float(_time(name, size)) for name in BACKENDS[1:]}
    memory = {name: float(predict_memory(name, size)) for name in costs}
    return Choice(min(costs, key=lambda name: costs[name]), costs, memory)


def fastest_backends(size: Size) -> list[str]:
    """Name what :func:`choose_backend` chooses for each of several structures.

    Parameters
    ----------
    size : Size
        Of arrays.

    Returns
    -------
    list of str
    """
    names = BACKENDS[1:]
    costs = np.stack([np.broadcast_to(_time(name, size), np.shape(size.n_atoms)) for name in names])
    return [names[place] for place in costs.argmin(0).tolist()]


def predict_memory(kind: str, size: Size) -> Number:
    """Predict the peak memory of an energy and force evaluation of each structure.

    Parameters
    ----------
    kind : {"mesh", "padded", "dense", "finufft", "pairs"}
    size : Size
        For "padded" with the lengths of the padded mesh; of no meaning for "pairs".

    Returns
    -------
    float or array
        In bytes.
    """
    return _MEMORY[kind](size)


def check_cost(memory: float, wasted: float, device: torch.device) -> None:
    """Refuse an evaluation that fits into no memory; warn once of one that is expensive.

    Parameters
    ----------
    memory : float
        Predicted peak memory, in bytes.
    wasted : float
        Predicted time, in ms, of structures that are nearly empty; see :meth:`Size.is_empty`.
    device : torch.device

    Raises
    ------
    SizeError
        If the device has less memory.
    """
    if memory < WORTH_A_LOOK and wasted < _SLOW:
        return
    remedy = "Use a larger `tolerance` or `min_width`, smaller structures or a smaller batch."
    if wasted > 0.0:
        remedy += (
            " A mesh fills all of a periodic box, also where it is empty: set `pbc` to False along "
            "empty axes, or take a smaller box."
        )
    available = memory_of(device)
    if memory > available:
        got = f"{_readable(memory)}, as predicted"
        expected = f"at most the {_readable(available)} of {device}"
        raise SizeError(explain("memory of the long-range sum", expected, got, remedy))
    # Times are those of CPUs.
    is_slow = wasted > _SLOW and device.type == "cpu"
    if memory > _MUCH or is_slow:
        time = f" and {1e-3 * wasted:.2g} s for energy and forces" if is_slow else ""
        taken = f"{_readable(memory)} of memory{time}"
        _warn_once(f"A long-range sum takes {taken}, as predicted. {remedy}")


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    warnings.warn(message, PerformanceWarning, stacklevel=2)


def memory_of(device: torch.device) -> float:
    """Memory that an evaluation can have at most.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    float
        In bytes: of CPUs what the machine has, or the process may have; of CUDA devices what is
        free; infinite where it is not known.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(free + unused)
    return _memory_of_cpu() if device.type == "cpu" else math.inf


@lru_cache(maxsize=1)
def _memory_of_cpu() -> float:
    limits = [math.inf]
    if {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(getattr(os, "sysconf_names", {})):
        limits.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    # A container or a batch system may allow less.
    for path in _CGROUPS:
        with suppress(OSError, ValueError):
            limits.append(float(Path(path).read_text(encoding="ascii")))
    return min(limit for limit in limits if limit > 0.0)


def _readable(memory: float) -> str:
    return f"{1e-9 * memory:.3g} GB" if memory >= 1e8 else f"{1e-6 * memory:.3g} MB"


def pairs_are_faster(size: Size) -> bool:
    """Tell whether the pair sum of an open structure beats its padded mesh.

    Parameters
    ----------
    size : Size
        With the lengths of the padded mesh.

    Returns
    -------
    bool
    """
    pairs = float(_time("pairs", size))
    return math.isfinite(pairs) and pairs <= float(_time("padded", size))


def predict_time(kind: str, size: Size) -> Number:
    """Predict what each structure of a batch adds to the time of an energy and force evaluation.

    Parameters
    ----------
    kind, size
        As in :func:`predict_memory`.

    Returns
    -------
    float or array
        In ms.
    """
    return _time(kind, size) - coefficients(kind, size)[OVERHEAD]


def _time(kind: str, size: Size) -> Number:
    """Time of an energy and force evaluation, in ms; infinite where it is not possible."""
    own = coefficients(kind, size)
    total = sum((own[name] * count for name, count in terms(kind, size).items()), start=0.0)
    time: Number = np.where(is_possible(kind, size), total, math.inf)
    return time


def coefficients(kind: str, size: Size) -> dict[str, float]:
    """Return the times of the terms of a sum, in ms each.

    Parameters
    ----------
    kind, size
        As in :func:`predict_memory`.

    Returns
    -------
    dict of str to float
        Those of CPUs for devices that have none of their own.
    """
    own = COEFFICIENTS.get(table_key(kind, size))
    return COEFFICIENTS[table_key(kind, size._replace(device="cpu"))] if own is None else own


def is_possible(kind: str, size: Size) -> bool | NDArray[np.bool_]:
    """Tell whether a sum has the memory, the digits and the library for each structure.

    Parameters
    ----------
    kind, size
        As in :func:`predict_memory`.

    Returns
    -------
    bool or array
    """
    if kind == "pairs":
        return size.pairs <= MAX_ELEMENTS
    if kind == "dense":
        return size.modes <= MAX_ELEMENTS
    if kind == "finufft":
        return (8 * size.half_modes <= MAX_NODES) & _has_finufft(size.device)
    # Below this the window runs out of digits.
    return (size.nodes <= MAX_NODES) & (size.resolution.accuracy >= 1e-14)


# Numbers that are alive at the peak, measured by benchmarks/memory.py.
def _mesh_memory(size: Size) -> Number:
    n, channels, nodes = size.n_atoms, size.n_channels, size.nodes
    numbers = n * (24.0 + 9 * channels)
    if size.compiled:
        return size.number * (5.2 * nodes * channels + numbers)
    touched = np.minimum(2**19, n * size.window**3)
    return size.number * (7.0 * nodes * channels + numbers + 3 * touched)


def _dense_memory(size: Size) -> Number:
    atoms = size.n_atoms * (24.0 + 9 * size.n_channels)
    # Beyond these the modes are summed in parts.
    modes = np.minimum(size.modes, most_modes(size.device))
    return size.number * (6 * modes * size.n_channels + atoms)


def _finufft_memory(size: Size) -> Number:
    atoms = size.n_atoms * (24.0 + 9 * size.n_channels)
    return size.number * (42 * size.half_modes * size.n_channels + atoms)


def _pairs_memory(size: Size) -> Number:
    # Numbers of atoms are integers of 8 bytes in any dtype.
    return size.pairs * (100 + 4 * size.number * size.n_gaussians)


_MEMORY: dict[str, Callable[[Size], Number]] = {
    "mesh": _mesh_memory,
    "padded": _mesh_memory,
    "dense": _dense_memory,
    "finufft": _finufft_memory,
    "pairs": _pairs_memory,
}


def _has_finufft(device: str) -> bool:
    return is_installed("cufinufft" if device == "cuda" else "finufft")
