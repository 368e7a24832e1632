"""The accuracy rule: from a tolerance to the wave numbers, the grid and the padding of a sum.

The forces of random sources of order n in a kernel of Gaussians of one width s have the power
spectrum k^(4n + 4) exp(-s^2 k^2). What a cutoff K leaves out of them is, relative and in l2,

    error^2 = Gamma(2n + 5/2, s^2 K^2) / Gamma(2n + 5/2),

the largest that there can be if no width is below s: wider Gaussians end earlier.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from sog_longrange.geometry import TAPER

from .windows import MAX_WINDOW

_ALLOWED = (3.6, 2.9)
"""What the cutoff may cost, by order, of the five tolerances that are promised."""

_TAPERED = 1.02
"""Ratio to the start of the taper of the cutoff that would cost as much."""

_HALVINGS = 60


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
    def of(
        cls, min_width: float, tolerance: float, order: int = 0, *, padded: bool = False
    ) -> Resolution:
        """Resolution with which forces of sources up to an order keep a tolerance.

        Parameters
        ----------
        min_width : float
            Smallest width of the kernel, in Å.
        tolerance : float
            Relative l2 error of forces, of which five times is reached at most, over all atoms of
            structures of random sources; that of a small single one scatters by a factor of two.
        order : int
            Highest order of the sources: 0 for charges, 1 for dipoles.
        padded : bool
            Whether the kernel is cut off along non-periodic directions: the edges of its
            windows cost as much as the cutoff.

        Returns
        -------
        Resolution
        """
        tolerance = 0.5 * tolerance if padded else tolerance
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
    """Find the cutoff, times the smallest width, at which forces lack what is allowed."""
    low, high = 0.0, 20.0
    allowed = _ALLOWED[min(order, len(_ALLOWED) - 1)] * tolerance
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if math.sqrt(_tail(2 * order + 2, (_TAPERED * middle) ** 2)) > allowed:
            low = middle
        else:
            high = middle
    return high


def _tail(m: int, x: float) -> float:
    """Gamma(m + 1/2, x) / Gamma(m + 1/2), in closed form."""
    terms = [math.pow(x, j - 0.5) / math.gamma(j + 0.5) for j in range(1, m + 1)]
    return math.erfc(math.sqrt(x)) + math.exp(-x) * math.fsum(terms)


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
    # Measured on grids with no point more than the cutoff needs, all widths at the smallest.
    slack = 0.5 if order == 0 else 0.1
    return min(MAX_WINDOW, max(7, math.ceil(-1.2 * math.log10(tolerance) - slack) + 3))
