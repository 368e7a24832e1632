"""Blocks of flat arrays, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def running_sum(sizes: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Places where consecutive blocks begin, and where the last one ends.

    Parameters
    ----------
    sizes : sequence of int, of length n

    Returns
    -------
    array of int, shape (n + 1,)
    """
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    return starts


def blocks(starts: Sequence[int]) -> list[slice]:
    """Consecutive blocks as slices.

    Parameters
    ----------
    starts : sequence of int
        Where each block begins, and where the last one ends.

    Returns
    -------
    list of slice
    """
    return [slice(*ends) for ends in pairwise(starts)]
