"""Boxes of integer modes, and blocks of flat arrays."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor


class ModeBoxes(NamedTuple):
    """Boxes of integer modes, one for each structure, one after another.

    Attributes
    ----------
    shapes : tuple of 3-tuples of int
        Number of modes of each box along each axis.
    modes : Tensor, shape (sum of all axis lengths,)
        Mode numbers: three axes of the first box, three of the second, ...
    factors : Tensor, shape of `modes`
        The value at a mode is multiplied by the factors of its three axes.
    """

    shapes: tuple[tuple[int, int, int], ...]
    modes: Tensor
    factors: Tensor

    @property
    def starts(self) -> list[int]:
        """Where each box begins in a flat table, and where the last one ends."""
        return running_sum([math.prod(shape) for shape in self.shapes])

    def axes(self, values: Tensor) -> list[tuple[Tensor, ...]]:
        """`modes` or `factors` of the three axes of each box, in shapes that broadcast to it."""
        axes = iter(values.split([n for shape in self.shapes for n in shape]))
        boxes = zip(axes, axes, axes, strict=True)
        return [(x[:, None, None], y[:, None], z) for x, y, z in boxes]


def running_sum(sizes: list[int]) -> list[int]:
    """Places where consecutive blocks begin, and where the last one ends.

    Parameters
    ----------
    sizes : list of int

    Returns
    -------
    list of int
        One more than there are blocks.
    """
    total, sums = 0, [0]
    for size in sizes:
        total += size
        sums.append(total)
    return sums


def blocks(starts: list[int]) -> list[slice]:
    """Consecutive blocks as slices.

    Parameters
    ----------
    starts : list of int
        From :func:`running_sum`.

    Returns
    -------
    list of slice
    """
    return [slice(*ends) for ends in pairwise(starts)]
