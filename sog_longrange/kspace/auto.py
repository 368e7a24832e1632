"""Choice of the fastest backend, by a cost model fitted from the benchmark."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from sog_longrange.errors import ConfigError, explain
from sog_longrange.geometry import (
    MAX_ELEMENTS,
    MAX_NODES,
    TAPER,
    largest_mode,
    wave_number_onset,
)

from .windows import window_width

BACKENDS = ("auto", "direct", "mesh", "finufft")


class Size(NamedTuple):
    """What the cost of one periodic structure depends on.

    Attributes
    ----------
    n_atoms, n_channels : int
    lengths : sequence of 3 floats
        Lengths of the lattice vectors, in Å.
    min_width : float
        Of the kernel, in Å.
    tolerance : float
    dtype : torch.dtype
    accelerated : bool
        Whether compiled code runs the inner loops of the mesh.
    device : str
        Type of the device.
    """

    n_atoms: int
    n_channels: int
    lengths: Sequence[float]
    min_width: float
    tolerance: float
    dtype: torch.dtype
    accelerated: bool
    device: str = "cpu"

    @property
    def half_widths(self) -> tuple[int, ...]:
        """Largest mode number along each axis."""
        cutoff = TAPER * wave_number_onset(self.min_width, self.tolerance)
        return tuple(largest_mode(a, cutoff) for a in self.lengths)

    @property
    def half_modes(self) -> int:
        """Number of modes in half of the box."""
        a, b, c = self.half_widths
        return (a + 1) * (2 * b + 1) * (2 * c + 1)

    @property
    def window(self) -> int:
        """Width of the mesh's window."""
        return window_width(self.tolerance)

    @property
    def nodes(self) -> int:
        """Smallest number of nodes of the mesh, before the search for fast transforms."""
        return math.prod(max(2 * m + 1, self.window + 1) for m in self.half_widths)


class Choice(NamedTuple):
    """A backend and why it was chosen.

    Attributes
    ----------
    backend : str
    costs : dict of str to float
        Predicted time of an energy and force evaluation by each backend, in ms on two CPU
        cores; infinite where a backend cannot be used.
    """

    backend: str
    costs: dict[str, float]

    def __str__(self) -> str:
        costs = ", ".join(f"{name} {cost:.3g} ms" for name, cost in self.costs.items())
        return f"{self.backend} (predicted: {costs})"


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
    costs = {name: cost(size) for name, cost in _COSTS.items()}
    return Choice(min(costs, key=lambda name: costs[name]), costs)


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
    n_pairs = size.n_atoms * (size.n_atoms - 1) // 2
    if n_pairs > MAX_ELEMENTS:
        return False
    return 1.7e-4 * n_pairs * size.n_channels <= 1.5 + _mesh_cost(size)


def _direct_cost(size: Size) -> float:
    a, b, c = size.half_widths
    plane = (2 * b + 1) * (2 * c + 1)
    if max(size.n_atoms * plane, size.half_modes) > MAX_ELEMENTS:
        return math.inf
    factor = 1.0 if size.dtype == torch.float32 else 2.0
    products = size.n_atoms * size.half_modes * size.n_channels
    phases = size.n_atoms * plane
    return factor * (2.6e-7 * products + 1.2e-5 * phases + 1.5e-4 * size.half_modes)


def _mesh_cost(size: Size) -> float:
    # Below this the window runs out of digits.
    if size.nodes > MAX_NODES or size.tolerance < 1e-13:
        return math.inf
    factor = 1.0 if size.dtype == torch.float32 else 1.7
    touched = size.n_atoms * size.n_channels * size.window**3
    nodes = size.nodes * size.n_channels
    if size.accelerated:
        return factor * (0.05 + 1.7e-6 * touched + 7.0e-6 * nodes)
    return factor * (0.6 + 8.0e-6 * touched + 1.5e-5 * nodes)


def _finufft_cost(size: Size) -> float:
    if not _has_finufft(size.device) or 8 * size.half_modes > MAX_NODES:
        return math.inf
    factor = 1.0 if size.dtype == torch.float32 else 1.7
    digits = -math.log10(size.tolerance)
    touched = size.n_atoms * size.n_channels * (digits + 2) ** 3
    return factor * (0.5 + 1.2e-5 * touched + 1.5e-4 * size.half_modes * size.n_channels)


_COSTS: dict[str, Callable[[Size], float]] = {
    "mesh": _mesh_cost,
    "direct": _direct_cost,
    "finufft": _finufft_cost,
}


@lru_cache(maxsize=8)
def _has_finufft(device: str) -> bool:
    library = "cufinufft" if device == "cuda" else "finufft"
    return importlib.util.find_spec(library) is not None
