"""The accuracy rule: from a tolerance to the wave numbers, the grid and the padding of a sum."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from sog_longrange.geometry import TAPER

from .windows import MAX_WINDOW


class Resolution(NamedTuple):
    """What the sums over modes of all structures have in common.

    Attributes
    ----------
    min_width : float
        Smallest width of the kernel, in Å.
    taper_start : float
        Wave number from which the kernel is tapered to zero, in 1/Å.
    window : int
        Number of grid points along each axis that an atom touches.
    accuracy : float
        Relative accuracy of the sums over atoms, for libraries that take one.
    """

    min_width: float
    taper_start: float
    window: int
    accuracy: float

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, min_width: float, tolerance: float, order: int = 0) -> Resolution:
        """Resolution with which forces of sources up to an order keep a tolerance.

        Parameters
        ----------
        min_width : float
            Smallest width of the kernel, in Å.
        tolerance : float
            Relative l2 error of forces, of which five times is reached at most.
        order : int
            Highest order of the sources: 0 for charges, 1 for dipoles.

        Returns
        -------
        Resolution
        """
        start = _reach(tolerance, order) / min_width
        return cls(min_width, start, window_width(tolerance, order), 0.1 * tolerance)

    @property
    def cutoff(self) -> float:
        """Largest wave number, in 1/Å."""
        return TAPER * self.taper_start

    @property
    def padding(self) -> float:
        """Distance from the middle of an edge at which the edge is below the tolerance, in Å."""
        return self.taper_start * self.min_width**2


def _reach(tolerance: float, order: int) -> float:
    return math.sqrt(-2.0 * math.log(tolerance))


def window_width(tolerance: float, order: int = 0) -> int:
    """Width of the window whose error in forces stays below a few times the tolerance.

    Parameters
    ----------
    tolerance : float
    order : int
        Highest order of the sources.

    Returns
    -------
    int
        About three grid points and 1.2 for each digit, at least 7 and at most `MAX_WINDOW`.
    """
    width = max(7, math.ceil(-1.2 * math.log10(tolerance) - 0.5) + 3)
    return min(MAX_WINDOW, width)
