"""Grids as the Triton kernels read them, and the order in which atoms meet them."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from sog_longrange.errors import SizeError
from sog_longrange.summation.blocks import running_sum
from sog_longrange.summation.grids import Grids
from sog_longrange.summation.windows import make_window

from .triton_launch import launch, on_device

_BLOCK = 8
_ATOMS = 128


class Geometry(NamedTuple):
    """Grids, one row for each structure.

    Attributes
    ----------
    sizes : Tensor of int32, shape (n_graphs, 3)
    starts : Tensor of int64, shape (n_graphs,)
    scales : Tensor, shape (n_graphs, 3)
        Grid points per radian.
    first_blocks : Tensor of int32, shape (n_graphs,)
        Numbers of the first block of points of each grid.
    """

    sizes: Tensor
    starts: Tensor
    scales: Tensor
    first_blocks: Tensor


@lru_cache(maxsize=32)
def geometry(grids: Grids, dtype: torch.dtype, device: torch.device) -> Geometry:
    """Copy grids to a device.

    Parameters
    ----------
    grids : Grids
    dtype : torch.dtype
    device : torch.device

    Returns
    -------
    Geometry

    Raises
    ------
    SizeError
        If a window is wider than a grid.
    """
    sizes = np.array(grids.shapes, np.int64).reshape(-1, 3)
    if (sizes < grids.width).any():
        raise SizeError(
            f"Every grid needs at least as many points along each axis as its window of "
            f"{grids.width} points, got a grid of {min(grids.shapes, key=min)} points."
        )
    blocks = (-(-sizes // _BLOCK)).prod(1)
    return Geometry(
        on_device(sizes, device, torch.int32),
        on_device(np.array(grids.starts[:-1], np.int64), device),
        on_device(sizes / (2.0 * math.pi), device, dtype),
        on_device(running_sum(blocks)[:-1], device, torch.int32),
    )


@lru_cache(maxsize=32)
def coefficients(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copy window polynomials to a device.

    Parameters
    ----------
    width : int
    dtype : torch.dtype
    device : torch.device

    Returns
    -------
    Tensor, shape (degree + 1, width)
        One row for each power from the highest down to zero.
    """
    return on_device(make_window(width).coefficients.T[::-1], device, dtype)


def block_numbers(own: Geometry, phases: Tensor, batch: Tensor) -> Tensor:
    """Find the block of points that each atom is in.

    Parameters
    ----------
    own : Geometry
    phases : Tensor, shape (n_atoms, 3)
    batch : Tensor, shape (n_atoms,)

    Returns
    -------
    Tensor of int32, shape (n_atoms,)
        Numbers through all structures, in the order of grid points.
    """
    numbers = phases.new_empty(len(phases), dtype=torch.int32)
    launch(
        *(_number, (triton.cdiv(len(phases), _ATOMS),), phases, batch, own.sizes, own.scales),
        *(own.first_blocks, numbers, len(phases)),
        BLOCK=_BLOCK,
        ATOMS=_ATOMS,
        num_warps=4,
    )
    return numbers


@triton.jit(do_not_specialize=["n_atoms"])
def _number(
    phases: tl.tensor,
    batch: tl.tensor,
    sizes: tl.tensor,
    scales: tl.tensor,
    first_blocks: tl.tensor,
    numbers: tl.tensor,
    n_atoms: tl.tensor,
    BLOCK: tl.constexpr,
    ATOMS: tl.constexpr,
) -> None:
    """Store the number of the block of each atom; those along z come one after another."""
    atom = tl.program_id(0).to(tl.int64) * ATOMS + tl.arange(0, ATOMS)
    present = atom < n_atoms
    graph = tl.load(batch + atom, present, 0)
    number = tl.zeros((ATOMS,), tl.int32)
    for axis in tl.static_range(3):
        scale = tl.load(scales + graph * 3 + axis, present, 0.0)
        place = tl.load(phases + atom * 3 + axis, present, 0.0) * scale
        blocks = (tl.load(sizes + graph * 3 + axis, present, 1) + BLOCK - 1) // BLOCK
        number = number * blocks + place.to(tl.int32) // BLOCK
    tl.store(numbers + atom, number + tl.load(first_blocks + graph, present, 0), present)
