"""Sums over modes without a grid on GPUs: exact, one launch for all structures of a batch.

Where structures leave a GPU idle, the atoms of a structure factor and the rows of a potential
are split among programs, whose sums add atomically and repeat to rounding errors only.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sog_longrange.summation.blocks import running_sum
from sog_longrange.summation.multipoles import monomials, order_of, phase_gradient
from sog_longrange.summation.rows import ModeRows

from .torch_direct import TorchDirect
from .triton_launch import launch, on_device, power_of_two, row_tiles
from .triton_modes import interpolate, spread, tabulate

MAX_ORDER: int = 3
"""Highest order of the derivatives that are compiled; higher ones are PyTorch's."""

_TILE = 256
_ROWS = 32
_UNROLL = 2
_ENOUGH = 2048
"""Number of programs that fills a GPU."""

_SPLIT = 32
"""Fewest atoms of the average structure that are worth a program of their own."""

_SPANS = (8, 64)
"""Fewest and most rows that one program sums over for its atoms."""

_REGISTERS = 2**13
"""Bytes of the sums of each kind, real and imaginary, that a warp holds."""

_ATOMS = (4, 32)
"""Fewest and most atoms of a program."""

# A tile is one warp's, which adds up its lanes without a barrier.
_OPTIONS = {"num_warps": 1}


class TritonDirect:
    """Sums over modes as Triton kernels, on the device of the phases.

    Parameters
    ----------
    rows : ModeRows
    phases : Tensor, shape (n_atoms, 3)
    batch : Tensor, shape (n_atoms,), sorted
    """

    def __init__(self, rows: ModeRows, phases: Tensor, batch: Tensor) -> None:
        self.rows = rows
        self.phases = phases.contiguous()
        self.batch = batch.contiguous()
        self.num_graphs = len(rows.row_starts) - 1
        # Factors along each axis are there for the modes from zero.
        self.counts = rows.memory.once("counts", lambda: (rows.reach.max(0) + 1).tolist())
        self.columns = sum(self.counts)
        # Twice, in the order of the axes' modes and in the order of atoms.
        self.by_axis, self.by_atom = phases.new_empty(2, 2 * self.columns * len(phases))
        self.ends = batch.new_zeros(2, self.num_graphs)
        self._tabulate()

    def spread(self, sources: Tensor) -> Tensor:
        """Implement :meth:`Spreader.spread`."""
        order, channels = order_of(sources.shape[1]), sources.shape[2]
        if order > MAX_ORDER:
            return TorchDirect(self.rows, self.phases, self.batch).spread(sources)
        tasks = self._tasks()
        mean = len(self.phases) // (self.num_graphs * _SPLIT)
        splits = max(1, min(mean, _ENOUGH // len(tasks)))
        make = sources.new_zeros if splits > 1 else sources.new_empty
        out = make(channels, self.rows.total, dtype=sources.dtype.to_complex())
        own = self.rows.tensors(sources.dtype, sources.device)
        launch(
            *(spread, (len(tasks), splits, channels), tasks, self.ends, own.first, own.starts),
            *(self.by_atom, sources.contiguous(), torch.view_as_real(out)),
            *(self.num_graphs, self.rows.total, *self.counts),
            ORDER=order,
            ROWS=_ROWS,
            LANES=_TILE // _ROWS,
            IS_SPLIT=splits > 1,
            UNROLL=_UNROLL,
            **_OPTIONS,
        )
        return out

    def interpolate(self, field: Tensor, order: int) -> Tensor:
        """Implement :meth:`Spreader.interpolate`."""
        n_atoms, channels = len(self.phases), len(field)
        if order > MAX_ORDER:
            return TorchDirect(self.rows, self.phases, self.batch).interpolate(field, order)
        out = self.phases.new_zeros(n_atoms, len(monomials(order)), channels)
        terms = power_of_two((order + 1) * (order + 2) // 2)
        height, lanes = self._atom_tile(terms)
        blocks, most = -(-n_atoms // height), int(np.diff(self.rows.row_starts).max())
        span = min(max(blocks * most // _ENOUGH, _SPANS[0]), _SPANS[1])
        own = self.rows.tensors(out.dtype, out.device)
        starts = self.rows.memory.once(
            ("row_starts", out.device),
            lambda: on_device(self.rows.row_starts, out.device),
        )
        launch(
            *(interpolate, (blocks * -(-most // span), channels), starts, self.batch),
            *(own.first, own.starts, self.by_axis, self.by_atom),
            *(torch.view_as_real(field.resolve_conj().contiguous()), out),
            *(n_atoms, self.rows.total, *self.counts, blocks, span),
            ORDER=order,
            TERMS=terms,
            ATOMS=height,
            LANES=lanes,
            ROWS=power_of_two(_SPANS[1]),
            **_OPTIONS,
        )
        return out

    def interpolate_gradient(self, field: Tensor, weights: Tensor) -> Tensor:
        """Implement :meth:`Spreader.interpolate_gradient`."""
        higher = self.interpolate(field, order_of(weights.shape[1]) + 1)
        return phase_gradient(weights, higher)

    def _tabulate(self) -> None:
        """Launch the kernel that makes the tables of phase factors."""
        atoms, lanes = 16, 16
        grid = (-(-len(self.phases) // atoms), -(-self.columns // lanes))
        launch(
            *(tabulate, grid, self.phases, self.batch, self.by_axis, self.by_atom, self.ends),
            *(len(self.phases), self.num_graphs, *self.counts),
            ATOMS=atoms,
            LANES=lanes,
            **_OPTIONS,
        )

    def _tasks(self) -> Tensor:
        """Tiles of rows, each with a window along the third axis."""
        device = self.phases.device
        tasks: Tensor = self.rows.memory.once(
            ("windows", device),
            lambda: on_device(_windows(self.rows, _ROWS, _TILE // _ROWS), device),
        )
        return tasks

    def _atom_tile(self, terms: int) -> tuple[int, int]:
        """Return the number of atoms of a program, and of modes along the third axis."""
        mean = max(1, -(-len(self.phases) // self.num_graphs))
        fewest, most = _ATOMS
        atoms = min(max(power_of_two(mean), fewest), most)
        size = min(_TILE, _REGISTERS // (terms * self.phases.element_size()))
        return atoms, max(1, size // atoms)


def _windows(rows: ModeRows, height: int, lanes: int) -> NDArray[np.int64]:
    """Tiles of rows in windows along the third axis: ends of rows, structure, first mode."""
    tiles = row_tiles(rows, height)
    first = rows.first[:, 2]
    low = np.minimum.reduceat(first, tiles[:, 0])
    high = np.maximum.reduceat(first + np.diff(rows.starts), tiles[:, 0])
    windows = -(-(high - low) // lanes)
    own = np.repeat(np.arange(len(tiles)), windows)
    number = np.arange(len(own)) - running_sum(windows)[own]
    begin: NDArray[np.int64] = low[own] + lanes * number
    return np.concatenate((tiles[own], begin[:, None]), 1)
