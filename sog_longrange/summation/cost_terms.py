"""What the time of a sum is made of: counts that a structure's size determines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from sog_longrange.geometry import largest_mode

from .resolution import Resolution

OVERHEAD = "overhead"
"""The term of an evaluation of nothing, which all structures of a batch share."""

_LARGE_ARRAY = 2e6
_EMPTY = 1000.0


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
    def modes(self) -> float:
        """Number of modes inside the cutoff, of two that mirror each other one."""
        a, b, c = (length * self.resolution.cutoff / (2.0 * math.pi) for length in self.lengths)
        return 2.0 / 3.0 * math.pi * (a + 0.5) * (b + 0.5) * (c + 0.5)

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
    def pairs(self) -> int:
        """Number of pairs of atoms."""
        return self.n_atoms * (self.n_atoms - 1) // 2

    @property
    def number(self) -> int:
        """Bytes of a number."""
        return 4 if self.dtype == torch.float32 else 8


@lru_cache(maxsize=4096)
def _half_widths(lengths: tuple[float, ...], cutoff: float) -> tuple[int, ...]:
    return tuple(largest_mode(a, cutoff) for a in lengths)


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


def terms(kind: str, size: Size) -> dict[str, float]:
    """Count what the time of an energy and force evaluation of one structure is made of.

    Parameters
    ----------
    kind, size
        As in :func:`~sog_longrange.summation.cost_model.predict_memory`.

    Returns
    -------
    dict of str to float
        The terms that :mod:`~sog_longrange.summation.cost_coefficients` explains.
    """
    return {OVERHEAD: 1.0, **_TERMS[_SAME.get(kind, kind)](size)}


def _pair_terms(size: Size) -> dict[str, float]:
    return {"pairs": float(size.pairs), "products": float(size.pairs * size.n_channels)}


def _dense_terms(size: Size) -> dict[str, float]:
    return {
        "products": size.n_atoms * size.modes * size.n_channels,
        "modes": size.modes,
    }


def _mesh_terms(size: Size) -> dict[str, float]:
    points = size.nodes * size.n_channels
    return {
        "touched": float(size.n_atoms * size.n_channels * size.window**3),
        "points": float(points),
        "modes": 0.5 * size.nodes,
        # Fresh pages of memory for each large array take longer than what is done with them.
        "pages": max(0.0, points - _LARGE_ARRAY),
    }


def _finufft_terms(size: Size) -> dict[str, float]:
    digits = -math.log10(10.0 * size.resolution.accuracy)
    return {
        "touched": size.n_atoms * size.n_channels * (digits + 2) ** 3,
        "points": float(size.half_modes * size.n_channels),
        "modes": float(size.half_modes),
    }


_TERMS: dict[str, Callable[[Size], dict[str, float]]] = {
    "mesh": _mesh_terms,
    "dense": _dense_terms,
    "finufft": _finufft_terms,
    "pairs": _pair_terms,
}

_SAME = {"padded": "mesh"}
