"""What the time of a sum is made of: counts that a structure's size determines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .resolution import Resolution

OVERHEAD = "overhead"
"""The term of an evaluation of nothing, which all structures of a batch share."""

OTHER = 25
"""Gaussians whose memory another kernel takes for each pair, measured for Ewald's."""

_LARGE_ARRAY = 2e6
_EMPTY = 1000.0
_ABSURD = 1e60


Number = float | NDArray[Any]
"""A number, or one for each structure."""


class Size(NamedTuple):
    """What the cost of one periodic structure depends on, or that of each of several.

    Attributes
    ----------
    n_atoms : int, or array of shape (n_graphs,)
    n_channels : int
    lengths : sequence of 3 floats, or array of shape (n_graphs, 3)
        Lengths of the lattice vectors, in Å.
    resolution : Resolution
    dtype : torch.dtype
    compiled : bool
        Whether compiled code runs the inner loops of the sums.
    device : str
        Type of the device.
    n_gaussians : int
        Gaussians of all kernels together, which sums over pairs evaluate for each of them;
        :data:`OTHER` for each kernel that is no sum of them.
    """

    n_atoms: int | NDArray[np.int64]
    n_channels: int
    lengths: Sequence[float] | NDArray[np.float64]
    resolution: Resolution
    dtype: torch.dtype
    compiled: bool
    device: str = "cpu"
    n_gaussians: int = 12

    @property
    def reach(self) -> NDArray[np.float64]:
        """Cutoff in units of the three reciprocal lattice vectors; (3,) or (3, n_graphs)."""
        lengths = np.minimum(np.asarray(self.lengths, np.float64).T, _ABSURD)
        return lengths * (self.resolution.cutoff / (2.0 * math.pi))

    @property
    def modes(self) -> Number:
        """Number of modes inside the cutoff, of two that mirror each other one."""
        modes: Number = 2.0 / 3.0 * math.pi * (self.reach + 0.5).prod(0)
        return modes

    @property
    def half_modes(self) -> Number:
        """Number of modes in half of the box."""
        a, b, c = np.floor(self.reach)
        modes: Number = (a + 1.0) * (2.0 * b + 1.0) * (2.0 * c + 1.0)
        return modes

    @property
    def is_empty(self) -> bool | NDArray[np.bool_]:
        """Whether there are a thousand nodes of the mesh for each atom, or more."""
        return self.nodes > _EMPTY * np.maximum(1, self.n_atoms)

    @property
    def window(self) -> int:
        """Width of the mesh's window."""
        return self.resolution.window

    @property
    def nodes(self) -> Number:
        """Smallest number of nodes of the mesh, before the search for fast transforms."""
        nodes: Number = np.maximum(2.0 * np.floor(self.reach) + 1.0, self.window + 1.0).prod(0)
        return nodes

    @property
    def pairs(self) -> Number:
        """Number of pairs of atoms."""
        atoms = np.asarray(self.n_atoms, np.float64)
        return 0.5 * atoms * (atoms - 1.0)

    @property
    def number(self) -> int:
        """Bytes of a number."""
        return 4 if self.dtype == torch.float32 else 8


def table_key(kind: str, size: Size) -> tuple[str, str, str, str]:
    """Key of the coefficients: sum, engine, type of the device and dtype.

    Parameters
    ----------
    kind, size
        As in :func:`~sog_longrange.summation.cost_model.predict_memory`.

    Returns
    -------
    tuple of 4 str
    """
    kind = _SAME.get(kind, kind)
    compiled = size.compiled and kind in ("mesh", "finufft", "dense")
    engine = ("triton" if size.device == "cuda" else "numba") if compiled else "torch"
    return kind, engine, size.device, "float32" if size.dtype == torch.float32 else "float64"


def terms(kind: str, size: Size) -> dict[str, Number]:
    """Count what the time of an energy and force evaluation of one structure is made of.

    Parameters
    ----------
    kind, size
        As in :func:`~sog_longrange.summation.cost_model.predict_memory`.

    Returns
    -------
    dict of str to float or array
        The terms that :mod:`~sog_longrange.summation.cost_coefficients` explains.
    """
    return {OVERHEAD: 1.0, **_TERMS[_SAME.get(kind, kind)](size)}


def _pair_terms(size: Size) -> dict[str, Number]:
    return {"pairs": size.pairs, "products": size.pairs * size.n_channels}


def _dense_terms(size: Size) -> dict[str, Number]:
    modes = size.modes
    return {"products": size.n_atoms * modes * size.n_channels, "modes": modes}


def _mesh_terms(size: Size) -> dict[str, Number]:
    nodes = size.nodes
    points = nodes * size.n_channels
    return {
        "touched": 1.0 * size.n_atoms * size.n_channels * size.window**3,
        "points": points,
        "modes": 0.5 * nodes,
        # Fresh pages of memory for each large array take longer than what is done with them.
        "pages": np.maximum(0.0, points - _LARGE_ARRAY),
    }


def _finufft_terms(size: Size) -> dict[str, Number]:
    digits, modes = -math.log10(10.0 * size.resolution.accuracy), size.half_modes
    return {
        "touched": size.n_atoms * size.n_channels * (digits + 2) ** 3,
        "points": modes * size.n_channels,
        "modes": modes,
    }


_TERMS: dict[str, Callable[[Size], dict[str, Number]]] = {
    "mesh": _mesh_terms,
    "dense": _dense_terms,
    "finufft": _finufft_terms,
    "pairs": _pair_terms,
}

_SAME = {"padded": "mesh"}
