"""Sums over modes without a grid by numba, on all the cores that PyTorch uses."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sog_longrange.summation.blocks import running_sum
from sog_longrange.summation.multipoles import monomials, order_of, raised
from sog_longrange.summation.rows import ModeRows

from .numba_modes import direct_loops
from .numba_threads import launch, split, threads_for
from .numba_vectors import ROW


class NumbaDirect:
    """Sums over modes as compiled loops, on all the cores that PyTorch uses.

    Parameters
    ----------
    rows : ModeRows
    phases : Tensor, shape (n_atoms, 3)
    batch : Tensor, shape (n_atoms,), sorted
    """

    def __init__(self, rows: ModeRows, phases: Tensor, batch: Tensor) -> None:
        self.rows = rows
        angles = phases.numpy().T.astype(np.float64)
        self.waves = np.stack((np.cos(angles), np.sin(angles)))
        self.dtype = phases.numpy().dtype
        num_graphs = len(rows.row_starts) - 1
        self.atom_starts = np.searchsorted(batch.numpy(), np.arange(num_graphs + 1))
        self.loops = direct_loops(self.dtype.name)

    def spread(self, sources: Tensor) -> Tensor:
        """Implement :meth:`Spreader.spread`."""
        rows, terms = self.rows, _terms(order_of(sources.shape[1]))
        out = sources.new_zeros(sources.shape[2], rows.total, dtype=sources.dtype.to_complex())
        own = np.ascontiguousarray(sources.numpy().transpose(2, 1, 0))
        shared = (
            (rows.graphs, rows.first, rows.starts, rows.reach),
            *(self.atom_starts, self.waves, own, terms, torch.view_as_real(out).numpy()),
        )
        shares = self._shares(sources.shape[2]).rows
        launch(self.loops.spread, [(share, *shared) for share in shares])
        return out

    def interpolate(self, field: Tensor, order: int) -> Tensor:
        """Implement :meth:`Spreader.interpolate`."""
        out = field.real.new_empty(self.waves.shape[2], len(monomials(order)), len(field))
        self._interpolate(field, order, out.numpy())
        return out

    def interpolate_gradient(self, field: Tensor, weights: Tensor) -> Tensor:
        """Implement :meth:`Spreader.interpolate_gradient`."""
        order = order_of(weights.shape[1])
        out = field.real.new_zeros(self.waves.shape[2], 3)
        higher = np.empty(
            (self.waves.shape[2], len(monomials(order + 1)), len(field)), out.numpy().dtype
        )
        self._interpolate(field, order + 1, higher)
        own = weights.contiguous().numpy()
        self.loops.contract(own, higher, np.array(raised(order)), out.numpy())
        return out

    def _interpolate(self, field: Tensor, order: int, out: np.ndarray) -> None:
        rows, terms = self.rows, _terms(order)
        psi = torch.view_as_real(field.resolve_conj().contiguous()).numpy()
        geometry = (rows.row_starts, rows.first, rows.starts, rows.reach)
        shared = (geometry, self.waves, psi, terms, out)
        shares = self._shares(len(field)).atoms
        launch(self.loops.interpolate, [(share, *shared) for share in shares])

    def _shares(self, channels: int) -> _Shares:
        """Work of each thread, which is kept with the rows."""
        rows, starts = self.rows, self.atom_starts
        key = ("shares", starts.tobytes(), channels, torch.get_num_threads())
        return rows.memory.once(key, lambda: _share_out(rows, starts, channels))


class _Shares(NamedTuple):
    """Tasks of each thread.

    Attributes
    ----------
    rows : list of array, shape (n_tasks, 2)
        First and last row of one structure.
    atoms : list of array, shape (n_tasks, 3)
        Structure, first and last atom.
    """

    rows: list[np.ndarray]
    atoms: list[np.ndarray]


def _share_out(rows: ModeRows, atom_starts: np.ndarray, channels: int) -> _Shares:
    counts = np.diff(atom_starts)
    work = np.diff(rows.starts) * counts[rows.graphs]
    threads = threads_for(int(work.sum()) * channels)
    by_rows = _row_tasks(rows, work, threads)
    by_atoms = _atom_tasks(rows, atom_starts, threads)
    return _Shares(split(*by_rows, threads), split(*by_atoms, threads))


def _row_tasks(rows: ModeRows, work: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranges of rows of one structure each, cut where the work of threads ends, and their work."""
    total = running_sum(work)
    cuts = np.searchsorted(total, total[-1] * np.arange(1, threads) / threads)
    ends = np.union1d(rows.row_starts, cuts)
    tasks = np.stack((ends[:-1], ends[1:]), 1)
    return tasks, total[ends[1:]] - total[ends[:-1]]


def _atom_tasks(
    rows: ModeRows, atom_starts: np.ndarray, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Structure, first and last atom of each task, and its work."""
    modes = np.diff(rows.starts[rows.row_starts])
    blocks = -(-np.diff(atom_starts) // ROW)
    total = running_sum(blocks * modes)
    share = max(1, -(-int(total[-1]) // threads))
    parts = np.maximum(1, np.minimum(blocks, -(-blocks * modes // share)))
    graphs = np.repeat(np.arange(len(blocks)), parts)
    number = np.arange(len(graphs)) - running_sum(parts)[graphs]
    size = (-(-blocks // parts) * ROW)[graphs]
    begin = atom_starts[graphs] + number * size
    end = np.minimum(begin + size, atom_starts[graphs + 1])
    kept = begin < end
    tasks = np.stack((graphs, begin, end), 1)[kept]
    return tasks, ((end - begin) * modes[graphs])[kept]


@lru_cache(maxsize=8)
def _terms(order: int) -> np.ndarray:
    """Powers along the axes of all derivatives up to an order, that with most along z last."""
    return np.array(monomials(order), np.int64)
