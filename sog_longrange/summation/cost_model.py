"""Choice of the fastest backend, by models of time and memory.

The times are fitted from ``benchmarks/speed.py``, the memory from ``benchmarks/memory.py``. What
fits into no memory is refused by them, before any of it is taken.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from sog_longrange.errors import ConfigError, PerformanceWarning, SizeError, explain
from sog_longrange.geometry import MAX_ELEMENTS, MAX_NODES, largest_mode
from sog_longrange.hosts import is_installed

from .resolution import Resolution

BACKENDS = ("auto", "dense", "mesh", "finufft")

_OVERHEAD = 1.5
"""Time of an evaluation of nothing, in ms."""

_LARGE_ARRAY = 2e6
WORTH_A_LOOK: float = 2.0**27
"""Memory, in bytes, below which an evaluation is not looked at."""

_SLOW = 2000.0
_MUCH = 2e9
_EMPTY = 1000.0
_CGROUPS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


class Size(NamedTuple):
    """What the cost of one periodic structure depends on.

    Attributes
    ----------
    n_atoms, n_channels : int
    lengths : sequence of 3 floats
        Lengths of the lattice vectors, in Å.
    resolution : Resolution
    dtype : torch.dtype
    compiled : bool
        Whether compiled code runs the inner loops of the mesh.
    device : str
        Type of the device.
    """

    n_atoms: int
    n_channels: int
    lengths: Sequence[float]
    resolution: Resolution
    dtype: torch.dtype
    compiled: bool
    device: str = "cpu"

    @property
    def half_widths(self) -> tuple[int, ...]:
        """Largest mode number along each axis."""
        return _half_widths(tuple(self.lengths), self.resolution.cutoff)

    @property
    def half_modes(self) -> int:
        """Number of modes in half of the box."""
        a, b, c = self.half_widths
        return (a + 1) * (2 * b + 1) * (2 * c + 1)

    @property
    def is_empty(self) -> bool:
        """Whether there are a thousand nodes of the mesh for each atom, or more."""
        return self.nodes > _EMPTY * max(1, self.n_atoms)

    @property
    def window(self) -> int:
        """Width of the mesh's window."""
        return self.resolution.window

    @property
    def nodes(self) -> int:
        """Smallest number of nodes of the mesh, before the search for fast transforms."""
        a, b, c = self.half_widths
        least = self.window + 1
        return max(2 * a + 1, least) * max(2 * b + 1, least) * max(2 * c + 1, least)

    @property
    def number(self) -> int:
        """Bytes of a number."""
        return 4 if self.dtype == torch.float32 else 8


class Choice(NamedTuple):
    """A backend and why it was chosen.

    Attributes
    ----------
    backend : str
    costs : dict of str to float
        Predicted time of an energy and force evaluation by each backend, in ms on two CPU
        cores; infinite where a backend cannot be used.
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
    costs = {name: _OVERHEAD + cost(size) for name, cost in _COSTS.items()}
    memory = {name: predict_memory(name, size) for name in costs}
    return Choice(min(costs, key=lambda name: costs[name]), costs, memory)


def predict_memory(kind: str, size: Size) -> float:
    """Predict the peak memory of an energy and force evaluation of one structure.

    Parameters
    ----------
    kind : {"mesh", "padded", "dense", "finufft", "pairs"}
    size : Size
        For "padded" with the lengths of the padded mesh; of no meaning for "pairs".

    Returns
    -------
    float
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


@lru_cache(maxsize=4096)
def _half_widths(lengths: tuple[float, ...], cutoff: float) -> tuple[int, ...]:
    return tuple(largest_mode(a, cutoff) for a in lengths)


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
    pairs = _pairs_cost(size)
    return math.isfinite(pairs) and pairs <= _OVERHEAD + _mesh_cost(size)


def predict_time(kind: str, size: Size) -> float:
    """Predict what one structure of a batch adds to the time of an energy and force evaluation.

    Parameters
    ----------
    kind, size
        As in :func:`predict_memory`.

    Returns
    -------
    float
        In ms on two CPU cores.
    """
    return _pairs_cost(size) if kind == "pairs" else _COSTS[_SAME.get(kind, kind)](size)


def _pairs_cost(size: Size) -> float:
    n_pairs = size.n_atoms * (size.n_atoms - 1) // 2
    return math.inf if n_pairs > MAX_ELEMENTS else 1.7e-4 * n_pairs * size.n_channels


def _dense_cost(size: Size) -> float:
    a, b, c = size.half_widths
    plane = (2 * b + 1) * (2 * c + 1)
    if max(size.n_atoms * plane, size.half_modes) > MAX_ELEMENTS:
        return math.inf
    factor = 1.0 if size.dtype == torch.float32 else 2.0
    products = size.n_atoms * size.half_modes * size.n_channels
    phases = size.n_atoms * plane
    cost = 2.6e-7 * products + 1.2e-5 * phases + 1.5e-4 * size.half_modes
    return factor * cost


def _mesh_cost(size: Size) -> float:
    # Below this the window runs out of digits.
    if size.nodes > MAX_NODES or size.resolution.accuracy < 1e-14:
        return math.inf
    factor = 1.0 if size.dtype == torch.float32 else 1.7
    touched = size.n_atoms * size.n_channels * size.window**3
    nodes = size.nodes * size.n_channels
    # Fresh pages of memory for each large array take longer than what is done with them.
    pages = 1.5e-5 * max(0.0, nodes - _LARGE_ARRAY)
    if size.compiled:
        return factor * (0.05 + 1.7e-6 * touched + 7.0e-6 * nodes + pages)
    return factor * (0.6 + 8.0e-6 * touched + 1.5e-5 * nodes + pages)


def _finufft_cost(size: Size) -> float:
    if not _has_finufft(size.device) or 8 * size.half_modes > MAX_NODES:
        return math.inf
    factor = 1.0 if size.dtype == torch.float32 else 1.7
    digits = -math.log10(10.0 * size.resolution.accuracy)
    touched = size.n_atoms * size.n_channels * (digits + 2) ** 3
    modes = size.half_modes * size.n_channels
    return factor * (0.5 + 1.2e-5 * touched + 1.5e-4 * modes)


_COSTS: dict[str, Callable[[Size], float]] = {
    "mesh": _mesh_cost,
    "dense": _dense_cost,
    "finufft": _finufft_cost,
}


_SAME = {"padded": "mesh"}


def _mesh_memory(size: Size) -> float:
    n, channels = size.n_atoms, size.n_channels
    if size.compiled:
        numbers = 5.2 * size.nodes * channels + n * (24 + 9 * channels)
    else:
        touched = min(2**19, n * size.window**3)
        numbers = 7.0 * size.nodes * channels + n * (24 + 9 * channels) + 3 * touched
    return size.number * numbers


def _dense_memory(size: Size) -> float:
    _, b, c = size.half_widths
    phases = size.n_atoms * (2 * b + 1) * (2 * c + 1)
    kept = (4 + 4 * size.n_channels) * phases
    return float(size.number * (kept + (25 + 5 * size.n_channels) * size.half_modes))


def _finufft_memory(size: Size) -> float:
    atoms = size.n_atoms * (24 + 9 * size.n_channels)
    return float(size.number * (42 * size.half_modes * size.n_channels + atoms))


def _pairs_memory(size: Size) -> float:
    n_pairs = size.n_atoms * (size.n_atoms - 1) // 2
    # Numbers of atoms are integers of 8 bytes in any dtype.
    return float(n_pairs * (100 + 30 * size.number))


_MEMORY: dict[str, Callable[[Size], float]] = {
    "mesh": _mesh_memory,
    "padded": _mesh_memory,
    "dense": _dense_memory,
    "finufft": _finufft_memory,
    "pairs": _pairs_memory,
}


def _has_finufft(device: str) -> bool:
    return is_installed("cufinufft" if device == "cuda" else "finufft")
