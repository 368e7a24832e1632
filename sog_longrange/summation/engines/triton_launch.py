"""What the Triton kernels share: how they are launched, and which program takes which rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sog_longrange.summation.blocks import running_sum
from sog_longrange.summation.rows import ModeRows


def launch(kernel: Any, grid: tuple[int, ...], /, *args: object, **options: object) -> None:
    """Launch a Triton kernel on the device of its tensors.

    Parameters
    ----------
    kernel : triton.JITFunction
    grid : tuple of int
        Number of programs along each axis; without any, nothing is launched.
    *args, **options : object
        Of the kernel, a tensor first.
    """
    if 0 in grid:
        return
    with torch.cuda.device_of(args[0]):
        # Triton's versions differ in the default of fusion.
        kernel[grid](*args, enable_fp_fusion=True, **options)


def on_device(
    array: NDArray[Any], device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """Copy numbers of the host to a device, without waiting for it.

    Parameters
    ----------
    array : array
    device : torch.device
    dtype : torch.dtype, optional

    Returns
    -------
    Tensor
        For inference and for training, whatever mode this call is in.
    """
    with torch.inference_mode(False):
        own = torch.from_numpy(np.ascontiguousarray(array))
        return own.to(dtype or own.dtype).to(device, non_blocking=True)


def power_of_two(count: int) -> int:
    """Round a positive number up to a power of two, as Triton wants it of lanes.

    Parameters
    ----------
    count : int
    """
    return 1 << (count - 1).bit_length()


def row_tiles(rows: ModeRows, size: int) -> NDArray[np.int64]:
    """Tiles of consecutive rows, each of one structure.

    Parameters
    ----------
    rows : ModeRows
    size : int
        Largest number of rows of a tile.

    Returns
    -------
    array of int, shape (n_tiles, 3)
        Where the rows of the tile begin and end, and the number of its structure.
    """
    tiles = -(-np.diff(rows.row_starts) // size)
    graphs = np.repeat(np.arange(len(tiles)), tiles)
    number = np.arange(len(graphs)) - running_sum(tiles)[graphs]
    first = rows.row_starts[graphs] + size * number
    return np.stack((first, np.minimum(first + size, rows.row_starts[graphs + 1]), graphs), 1)
