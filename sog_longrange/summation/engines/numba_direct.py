"""Sums over modes without a grid, compiled by numba: exact, and fast for few atoms or modes.

The structure factor is summed over atoms with the modes of a row in vector lanes; potentials
are summed over modes with atoms in the lanes. Phase factors are products of those of the three
axes, which are tabulated, so that no array is larger than atoms times the modes of an axis.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from sog_longrange.summation.multipoles import monomials, order_of, phase_gradient
from sog_longrange.summation.rows import ModeRows, running_sum

from .numba_threads import launch, split, threads_for
from .numba_vectors import ROW, address, axpy, fill, jit, scratch


class DirectLoops(NamedTuple):
    """Compiled loops over the modes of rows and over blocks of atoms."""

    spread: Callable[..., None]
    interpolate: Callable[..., None]


@lru_cache(maxsize=2)
def direct_loops(dtype: str) -> DirectLoops:
    """Compile the loops.

    Parameters
    ----------
    dtype : str
        "float32" or "float64".

    Returns
    -------
    DirectLoops
    """
    return DirectLoops(_make_spread(dtype), _make_interpolate(dtype))


@jit
def _fill_powers(phases: Any, table: Any, reach: Any, is_signed: Any) -> None:
    """Tabulate exp(i m theta) for m = -reach..reach, or from 0; (2, modes, atoms)."""
    offset = reach if is_signed else 0
    for j in range(phases.shape[0]):
        cosine, sine = np.cos(np.float64(phases[j])), np.sin(np.float64(phases[j]))
        real, imaginary = 1.0, 0.0
        for m in range(reach + 1):
            table[0, offset + m, j] = real
            table[1, offset + m, j] = imaginary
            if is_signed:
                table[0, offset - m, j] = real
                table[1, offset - m, j] = -imaginary
            # In double precision: errors grow with the power.
            real, imaginary = real * cosine - imaginary * sine, real * sine + imaginary * cosine


def _make_spread(dtype: str) -> Callable[..., None]:
    real = np.dtype(dtype).type

    @jit
    def weigh(sources: Any, terms: Any, m_x: Any, m_y: Any, x: Any, y: Any, out: Any) -> None:
        """Sum of the sources of each atom that have one power along z, times exp(i m theta)."""
        out[:] = real(0.0)
        n = x.shape[1]
        for power in range(out.shape[0]):
            re, im = out[power, 0], out[power, 1]
            for t in range(terms.shape[0]):
                if terms[t, 2] != power:
                    continue
                degree = terms[t, 0] + terms[t, 1] + power
                factor = real(m_x ** terms[t, 0] * m_y ** terms[t, 1])
                if degree % 4 > 1:
                    factor = -factor
                part = im if degree % 2 else re
                own = sources[t]
                for j in range(n):
                    part[j] += factor * own[j]
            for j in range(n):
                e_re = x[0, j] * y[0, j] - x[1, j] * y[1, j]
                e_im = x[0, j] * y[1, j] + x[1, j] * y[0, j]
                a, b = re[j], im[j]
                re[j] = a * e_re - b * e_im
                im[j] = a * e_im + b * e_re

    @jit
    def sum_row(weights: Any, z: Any, first: Any, count: Any, m_z: Any, out: Any) -> None:
        """Structure factor on a row of modes; out (count, 2)."""
        zero = real(0.0)
        re_0, im_0 = scratch(ROW, zero), scratch(ROW, zero)
        re_1, im_1 = scratch(ROW, zero), scratch(ROW, zero)
        a, b = numba.carray(re_0, ROW), numba.carray(im_0, ROW)
        c, d = numba.carray(re_1, ROW), numba.carray(im_1, ROW)
        n, stride = z.shape[1], z.shape[2]
        flat = z.reshape(-1)
        for block in range(0, count, ROW):
            length = min(ROW, count - block)
            for power in range(weights.shape[0]):
                re, im = weights[power, 0], weights[power, 1]
                fill(ROW, re_0, zero)
                fill(ROW, im_0, zero)
                fill(ROW, re_1, zero)
                fill(ROW, im_1, zero)
                for j in range(n):
                    at = j * stride + first + block
                    z_re, z_im = address(flat, at), address(flat, n * stride + at)
                    # Sums of products with either part are apart, for shorter chains.
                    axpy(ROW, re_0, re[j], z_re)
                    axpy(ROW, im_0, re[j], z_im)
                    axpy(ROW, re_1, im[j], z_im)
                    axpy(ROW, im_1, im[j], z_re)
                for k in range(length):
                    scale = real((m_z + block + k) ** power)
                    out[block + k, 0] += scale * (a[k] - c[k])
                    out[block + k, 1] -= scale * (b[k] + d[k])

    @jit
    def spread(tasks: Any, rows: Any, atom_starts: Any, phases: Any, sources: Any, *rest: Any) -> None:
        graphs, firsts, starts, reach = rows
        terms, out = rest
        powers = 1 + terms[-1, 2]
        for task in range(tasks.shape[0]):
            g = graphs[tasks[task, 0]]
            begin, end = atom_starts[g], atom_starts[g + 1]
            n, n_x, n_y, n_z = end - begin, reach[g, 0], reach[g, 1], reach[g, 2]
            x = np.empty((2, n_x + 1, n), phases.dtype)
            y = np.empty((2, 2 * n_y + 1, n), phases.dtype)
            columns = np.empty((2, 2 * n_z + 1, n), phases.dtype)
            _fill_powers(phases[begin:end, 0], x, n_x, False)
            _fill_powers(phases[begin:end, 1], y, n_y, True)
            _fill_powers(phases[begin:end, 2], columns, n_z, True)
            z = np.zeros((2, n, 2 * n_z + 1 + ROW), phases.dtype)
            z[:, :, : 2 * n_z + 1] = columns.transpose(0, 2, 1)
            weights = np.empty((powers, 2, n), phases.dtype)
            for r in range(tasks[task, 0], tasks[task, 1]):
                m_x, m_y, m_z = firsts[r, 0], firsts[r, 1], firsts[r, 2]
                count = starts[r + 1] - starts[r]
                for p in range(sources.shape[0]):
                    own = sources[p, :, begin:end]
                    weigh(own, terms, m_x, m_y, x[:, m_x], y[:, n_y + m_y], weights)
                    place = out[p, starts[r] : starts[r + 1]]
                    sum_row(weights, z, n_z + m_z, count, m_z, place)

    return spread


def _make_interpolate(dtype: str) -> Callable[..., None]:
    real = np.dtype(dtype).type

    @jit
    def sum_row(psi: Any, z: Any, first: Any, m_z: Any, powers: Any, out: Any) -> None:
        """sum_m m^power psi_m exp(i m theta) over a row, for the atoms of a block."""
        zero = real(0.0)
        re_0, im_0 = scratch(ROW, zero), scratch(ROW, zero)
        re_1, im_1 = scratch(ROW, zero), scratch(ROW, zero)
        a, b = numba.carray(re_0, ROW), numba.carray(im_0, ROW)
        c, d = numba.carray(re_1, ROW), numba.carray(im_1, ROW)
        flat = z.reshape(-1)
        half = z.shape[1] * ROW
        for power in range(powers):
            fill(ROW, re_0, zero)
            fill(ROW, im_0, zero)
            fill(ROW, re_1, zero)
            fill(ROW, im_1, zero)
            for k in range(psi.shape[0]):
                scale = real((m_z + k) ** power)
                re, im = scale * psi[k, 0], scale * psi[k, 1]
                at = (first + k) * ROW
                z_re, z_im = address(flat, at), address(flat, half + at)
                axpy(ROW, re_0, re, z_re)
                axpy(ROW, im_0, re, z_im)
                axpy(ROW, re_1, im, z_im)
                axpy(ROW, im_1, im, z_re)
            for v in range(ROW):
                out[power, 0, v] = a[v] - c[v]
                out[power, 1, v] = b[v] + d[v]

    @jit
    def add_terms(sums: Any, terms: Any, m_x: Any, m_y: Any, x: Any, y: Any, out: Any) -> None:
        """Add the derivatives of a row to those of the atoms of a block; out (terms, ROW)."""
        for power in range(sums.shape[0]):
            re, im = sums[power, 0], sums[power, 1]
            for v in range(ROW):
                e_re = x[0, v] * y[0, v] - x[1, v] * y[1, v]
                e_im = x[0, v] * y[1, v] + x[1, v] * y[0, v]
                a, b = re[v], im[v]
                re[v] = a * e_re - b * e_im
                im[v] = a * e_im + b * e_re
        for t in range(terms.shape[0]):
            degree = terms[t, 0] + terms[t, 1] + terms[t, 2]
            factor = real(m_x ** terms[t, 0] * m_y ** terms[t, 1])
            # Re(i^degree z) is Re z, -Im z, -Re z, Im z.
            if degree % 4 == 1 or degree % 4 == 2:
                factor = -factor
            part = sums[terms[t, 2], degree % 2]
            own = out[t]
            for v in range(ROW):
                own[v] += factor * part[v]

    @jit
    def interpolate(tasks: Any, rows: Any, phases: Any, psi: Any, terms: Any, out: Any) -> None:
        row_starts, firsts, starts, reach = rows
        powers = 1 + terms[-1, 2]
        block = np.zeros((3, ROW), phases.dtype)
        sums = np.empty((powers, 2, ROW), phases.dtype)
        totals = np.empty((psi.shape[0], terms.shape[0], ROW), phases.dtype)
        for task in range(tasks.shape[0]):
            g, begin, end = tasks[task, 0], tasks[task, 1], tasks[task, 2]
            n_x, n_y, n_z = reach[g, 0], reach[g, 1], reach[g, 2]
            block[:, : end - begin] = phases[begin:end].T
            x = np.empty((2, n_x + 1, ROW), phases.dtype)
            y = np.empty((2, 2 * n_y + 1, ROW), phases.dtype)
            z = np.empty((2, 2 * n_z + 1, ROW), phases.dtype)
            _fill_powers(block[0], x, n_x, False)
            _fill_powers(block[1], y, n_y, True)
            _fill_powers(block[2], z, n_z, True)
            totals[:] = real(0.0)
            for r in range(row_starts[g], row_starts[g + 1]):
                m_x, m_y, m_z = firsts[r, 0], firsts[r, 1], firsts[r, 2]
                for p in range(psi.shape[0]):
                    own = psi[p, starts[r] : starts[r + 1]]
                    sum_row(own, z, n_z + m_z, m_z, powers, sums)
                    add_terms(sums, terms, m_x, m_y, x[:, m_x], y[:, n_y + m_y], totals[p])
            for p in range(psi.shape[0]):
                for t in range(terms.shape[0]):
                    for j in range(begin, end):
                        out[j, t, p] = totals[p, t, j - begin]

    return interpolate


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
        self.phases = phases.contiguous().numpy()
        num_graphs = len(rows.row_starts) - 1
        self.atom_starts = np.searchsorted(batch.numpy(), np.arange(num_graphs + 1))
        self.counts = np.diff(self.atom_starts)
        self.reach = rows.reach
        self.loops = direct_loops(self.phases.dtype.name)

    def spread(self, sources: Tensor) -> Tensor:
        """Implement :meth:`Spreader.spread`."""
        rows, terms = self.rows, _terms(order_of(sources.shape[1]))
        kind = sources.dtype.to_complex()
        out = torch.zeros(sources.shape[2], rows.total, dtype=kind)
        work = np.diff(rows.starts) * self.counts[rows.graphs]
        threads = threads_for(int(work.sum()) * out.shape[0])
        own = sources.permute(2, 1, 0).contiguous().numpy()
        shared = (
            (rows.graphs, rows.first, rows.starts, self.reach),
            *(self.atom_starts, self.phases, own, terms, torch.view_as_real(out).numpy()),
        )
        shares = split(*self._row_tasks(work, threads), threads)
        launch(self.loops.spread, [(share, *shared) for share in shares])
        return out

    def interpolate(self, field: Tensor, order: int) -> Tensor:
        """Implement :meth:`Spreader.interpolate`."""
        rows, terms = self.rows, _terms(order)
        out = field.real.new_empty(len(self.phases), len(terms), len(field))
        tasks, sizes = self._atom_tasks()
        threads = threads_for(ROW * int(sizes.sum()) * len(field))
        psi = torch.view_as_real(field.resolve_conj().contiguous()).numpy()
        geometry = (rows.row_starts, rows.first, rows.starts, self.reach)
        shared = (geometry, self.phases, psi, terms, out.numpy())
        shares = split(tasks, sizes, threads)
        launch(self.loops.interpolate, [(share, *shared) for share in shares])
        return out

    def interpolate_gradient(self, field: Tensor, weights: Tensor) -> Tensor:
        """Implement :meth:`Spreader.interpolate_gradient`."""
        higher = self.interpolate(field, order_of(weights.shape[1]) + 1)
        return phase_gradient(weights, higher)

    def _row_tasks(self, work: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """Ranges of rows of one structure each, cut where the work of threads ends."""
        total = running_sum(work)
        cuts = np.searchsorted(total, total[-1] * np.arange(1, threads) / threads)
        ends = np.union1d(self.rows.row_starts, cuts)
        tasks = np.stack((ends[:-1], ends[1:]), 1)
        return tasks, total[ends[1:]] - total[ends[:-1]]

    def _atom_tasks(self) -> tuple[np.ndarray, np.ndarray]:
        """Structure, first and last atom of each block of atoms, and its number of modes."""
        blocks = -(-self.counts // ROW)
        graphs = np.repeat(np.arange(len(blocks)), blocks)
        begin = self.atom_starts[graphs]
        begin += ROW * (np.arange(len(graphs)) - running_sum(blocks)[graphs])
        end = np.minimum(begin + ROW, self.atom_starts[graphs + 1])
        modes = np.diff(self.rows.starts[self.rows.row_starts])
        return np.stack((graphs, begin, end), 1), modes[graphs]


@lru_cache(maxsize=8)
def _terms(order: int) -> np.ndarray:
    """Powers along the axes of all derivatives up to an order, that with most along z last."""
    return np.array(monomials(order), np.int64)
