"""Grids of structures, large enough for all modes of the kernel."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from sog_longrange.geometry import box_shapes, largest_mode

from .blocks import running_sum

_SHORT = 24


class Grids(NamedTuple):
    """Grids of a batch of structures, one after another in flat arrays.

    Attributes
    ----------
    shapes : tuple of 3-tuples of int
        Number of points of each structure's grid along its three lattice vectors.
    width : int
        Number of points along each axis that an atom touches.
    """

    shapes: tuple[tuple[int, int, int], ...]
    width: int

    @property
    def starts(self) -> list[int]:
        """Where each grid begins in a flat array, and where the last one ends."""
        starts: list[int] = running_sum([math.prod(shape) for shape in self.shapes]).tolist()
        return starts

    @property
    def half_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Shapes of the spectra: a real density needs half of the last axis."""
        return tuple((a, b, c // 2 + 1) for a, b, c in self.shapes)


def choose_grids(lengths: list[list[float]], cutoff: float, width: int) -> Grids:
    """Smallest grids with fast transforms that hold every |k| <= cutoff.

    Parameters
    ----------
    lengths : list of 3 floats for each structure
        Lengths of the lattice vectors, in Å.
    cutoff : float
        Largest wave number, in 1/Å.
    width : int
        Of the window, in grid points.

    Returns
    -------
    Grids

    Raises
    ------
    SizeError
        If the grids have more points than any memory holds.
    """
    box_shapes(lengths, cutoff)
    shapes = [tuple(grid_points(a, cutoff, width) for a in row) for row in lengths]
    return Grids(tuple(shapes), width)  # type: ignore[arg-type]


def grid_points(length: float, cutoff: float, width: int) -> int:
    """Smallest number of points along an axis that holds |k| <= cutoff, with a fast transform.

    No alias of a mode up to the cutoff is closer to k = 0 than the cutoff.

    Parameters
    ----------
    length : float
        Of the lattice vector, in Å.
    cutoff : float
        Largest wave number, in 1/Å.
    width : int
        Of the window, in grid points.

    Returns
    -------
    int
    """
    return fast_length(points_needed(length, cutoff, width))


def points_needed(length: float, cutoff: float, width: int) -> int:
    """Smallest number of points along an axis that holds |k| <= cutoff, also in TorchScript.

    Parameters
    ----------
    length, cutoff, width
        As in :func:`grid_points`.

    Returns
    -------
    int
    """
    modes = 2 * largest_mode(length, cutoff) + 1
    return max(max(modes, math.ceil(length * cutoff / math.pi)), width + 1)


@lru_cache(maxsize=4096)
def fast_length(n: int) -> int:
    """Smallest length of at least n whose prime factors are 2, 3, 5 and 7, even if it is long.

    Real transforms of long odd lengths take up to 1.8 times as long.

    Parameters
    ----------
    n : int

    Returns
    -------
    int
    """
    step = 2 if n > _SHORT else 1
    n += n % step
    while True:
        rest = n
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += step
