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

from .numba_vectors import ROW, address, axpy, fill, inlined, jit, scratch

_FEW = 8
"""Lanes for short rows."""


class DirectLoops(NamedTuple):
    """Compiled loops over the modes of rows and over blocks of atoms."""

    spread: Callable[..., None]
    interpolate: Callable[..., None]
    contract: Callable[..., None]


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
    return DirectLoops(_make_spread(dtype), _make_interpolate(dtype), _contract)


@jit
def _fill_powers(cosines: Any, sines: Any, table: Any, reach: Any, is_signed: Any) -> None:
    """Tabulate cos and sin of m theta for m = -reach..reach, or from 0; (2, modes, atoms)."""
    offset = reach if is_signed else 0
    for j in range(cosines.shape[0]):
        cosine, sine = cosines[j], sines[j]
        real, imaginary = 1.0, 0.0
        for m in range(reach + 1):
            table[0, offset + m, j] = real
            table[1, offset + m, j] = imaginary
            if is_signed:
                table[0, offset - m, j] = real
                table[1, offset - m, j] = -imaginary
            # In double precision: errors grow with the power.
            real, imaginary = real * cosine - imaginary * sine, real * sine + imaginary * cosine


@jit
def _contract(weights: Any, higher: Any, raised: Any, out: Any) -> None:
    """Add up weights times derivatives of the next order along each axis; out (atoms, 3)."""
    for j in range(weights.shape[0]):
        for axis in range(3):
            for place in range(weights.shape[1]):
                for p in range(weights.shape[2]):
                    out[j, axis] += weights[j, place, p] * higher[j, raised[axis, place], p]


@inlined
def _turn(part: Any, x: Any, y: Any, m_x: Any, m_y: Any) -> None:
    """Multiply complex numbers of all atoms by exp(i (m_x theta_x + m_y theta_y))."""
    for j in range(part.shape[1]):
        e_re = x[0, m_x, j] * y[0, m_y, j] - x[1, m_x, j] * y[1, m_y, j]
        e_im = x[0, m_x, j] * y[1, m_y, j] + x[1, m_x, j] * y[0, m_y, j]
        a, b = part[0, j], part[1, j]
        part[0, j] = a * e_re - b * e_im
        part[1, j] = a * e_im + b * e_re


def _make_weigh(dtype: str) -> Callable[..., Any]:
    real = np.dtype(dtype).type

    @inlined
    def weigh(sources: Any, terms: Any, m_x: Any, m_y: Any, out: Any) -> None:
        """Add up the sources of each atom with one power along z: sum_a (i m)^a W_a."""
        out[:] = real(0.0)
        for t in range(terms.shape[0]):
            power = terms[t, 2]
            degree = terms[t, 0] + terms[t, 1] + power
            factor = real(m_x ** terms[t, 0] * m_y ** terms[t, 1])
            if degree % 4 > 1:
                factor = -factor
            for j in range(sources.shape[1]):
                out[power, degree % 2, j] += factor * sources[t, j]

    compiled: Callable[..., Any] = weigh
    return compiled


def _make_sum_atoms(dtype: str, lanes: int) -> Callable[..., Any]:
    real = np.dtype(dtype).type

    @inlined
    def sum_atoms(weights: Any, z: Any, first: Any, count: Any, out: Any, at: Any) -> None:
        """Structure factor on a row of modes, added to its places (at + i, 2)."""
        zero = real(0.0)
        p_0, p_1, p_2, p_3 = (
            scratch(lanes, zero),
            scratch(lanes, zero),
            scratch(lanes, zero),
            scratch(lanes, zero),
        )
        cos_re, cos_im = numba.carray(p_0, lanes), numba.carray(p_1, lanes)
        sin_re, sin_im = numba.carray(p_2, lanes), numba.carray(p_3, lanes)
        n = weights.shape[2]
        stride = z.shape[0] // (2 * n) if n > 0 else 0
        last = first + count - 1
        reach = max(abs(first), abs(last))
        # Modes m and -m of a row share the sums with the cosine and with the sine.
        for block in range(0, reach + 1, lanes):
            for power in range(weights.shape[0]):
                fill(lanes, p_0, zero)
                fill(lanes, p_1, zero)
                fill(lanes, p_2, zero)
                fill(lanes, p_3, zero)
                for j in range(n):
                    place = j * stride + block
                    cosine, sine = address(z, place), address(z, n * stride + place)
                    a, b = weights[power, 0, j], weights[power, 1, j]
                    axpy(lanes, p_0, a, cosine)
                    axpy(lanes, p_1, b, cosine)
                    axpy(lanes, p_2, a, sine)
                    axpy(lanes, p_3, b, sine)
                for k in range(min(lanes, reach + 1 - block)):
                    m = block + k
                    scale = real(m**power)
                    if first <= m <= last:
                        out[at + m - first, 0] += scale * (cos_re[k] - sin_im[k])
                        out[at + m - first, 1] -= scale * (cos_im[k] + sin_re[k])
                    if m > 0 and first <= -m <= last:
                        if power % 2:
                            scale = -scale
                        out[at - m - first, 0] += scale * (cos_re[k] + sin_im[k])
                        out[at - m - first, 1] -= scale * (cos_im[k] - sin_re[k])

    compiled: Callable[..., Any] = sum_atoms
    return compiled


def _make_spread(dtype: str) -> Callable[..., None]:
    weigh = _make_weigh(dtype)
    few, many = _make_sum_atoms(dtype, _FEW), _make_sum_atoms(dtype, ROW)

    @jit
    def spread(
        tasks: Any, rows: Any, atom_starts: Any, waves: Any, sources: Any, *rest: Any
    ) -> None:
        graphs, firsts, starts, reach = rows
        terms, out = rest
        for task in range(tasks.shape[0]):
            if tasks[task, 0] == tasks[task, 1]:
                continue
            g = graphs[tasks[task, 0]]
            begin, end = atom_starts[g], atom_starts[g + 1]
            n, n_x, n_y, n_z = end - begin, reach[g, 0], reach[g, 1], reach[g, 2]
            x = np.empty((2, 2 * n_x + 1, n), sources.dtype)
            y = np.empty((2, 2 * n_y + 1, n), sources.dtype)
            columns = np.empty((2, n_z + 1, n), sources.dtype)
            _fill_powers(waves[0, 0, begin:end], waves[1, 0, begin:end], x, n_x, True)
            _fill_powers(waves[0, 1, begin:end], waves[1, 1, begin:end], y, n_y, True)
            _fill_powers(waves[0, 2, begin:end], waves[1, 2, begin:end], columns, n_z, False)
            z = np.zeros((2, n, (n_z // ROW + 1) * ROW), sources.dtype)
            # Loops: expressions of arrays take seconds to compile.
            for part in range(2):
                for j in range(n):
                    for m in range(n_z + 1):
                        z[part, j, m] = columns[part, m, j]
            lanes = z.reshape(-1)
            weights = np.empty((1 + terms[-1, 2], 2, n), sources.dtype)
            for p in range(sources.shape[0]):
                own, place = sources[p, :, begin:end], out[p]
                for r in range(tasks[task, 0], tasks[task, 1]):
                    m_x, m_y, m_z = firsts[r, 0], firsts[r, 1], firsts[r, 2]
                    weigh(own, terms, m_x, m_y, weights)
                    for power in range(weights.shape[0]):
                        _turn(weights[power], x, y, n_x + m_x, n_y + m_y)
                    count = starts[r + 1] - starts[r]
                    if n_z < _FEW:
                        few(weights, lanes, m_z, count, place, starts[r])
                    else:
                        many(weights, lanes, m_z, count, place, starts[r])

    compiled: Callable[..., None] = spread
    return compiled


def _make_fold(dtype: str) -> Callable[..., Any]:
    real = np.dtype(dtype).type

    @inlined
    def fold(psi: Any, at: Any, first: Any, count: Any, out: Any) -> Any:
        """Sum and difference of modes m and -m times powers of m; returns the number of m."""
        last = first + count - 1
        reach = max(abs(first), abs(last))
        for m in range(reach + 1):
            a = b = c = d = real(0.0)
            if first <= m <= last:
                a, b = psi[at + m - first, 0], psi[at + m - first, 1]
            if m > 0 and first <= -m <= last:
                c, d = psi[at - m - first, 0], psi[at - m - first, 1]
            scale = real(1.0)
            for power in range(out.shape[0]):
                out[power, m, 0] = scale * (a + c)
                out[power, m, 1] = scale * (b + d)
                out[power, m, 2] = scale * (a - c)
                out[power, m, 3] = scale * (b - d)
                scale *= real(m)
                c, d = -c, -d
        return reach + 1

    compiled: Callable[..., Any] = fold
    return compiled


def _make_sum_modes(dtype: str) -> Callable[..., Any]:
    real = np.dtype(dtype).type

    @inlined
    def sum_modes(folded: Any, power: Any, modes: Any, z: Any, block: Any, out: Any) -> None:
        """sum_m m^power psi_m exp(i m theta) over a row, for the atoms of a block."""
        zero = real(0.0)
        p_0, p_1 = scratch(ROW, zero), scratch(ROW, zero)
        p_2, p_3 = scratch(ROW, zero), scratch(ROW, zero)
        fill(ROW, p_0, zero)
        fill(ROW, p_1, zero)
        fill(ROW, p_2, zero)
        fill(ROW, p_3, zero)
        stride, half = out.shape[2], z.shape[0] // 2
        for m in range(modes):
            place = m * stride + block
            cosine, sine = address(z, place), address(z, half + place)
            axpy(ROW, p_0, folded[power, m, 0], cosine)
            axpy(ROW, p_1, folded[power, m, 1], cosine)
            axpy(ROW, p_2, folded[power, m, 2], sine)
            axpy(ROW, p_3, folded[power, m, 3], sine)
        a, b = numba.carray(p_0, ROW), numba.carray(p_1, ROW)
        c, d = numba.carray(p_2, ROW), numba.carray(p_3, ROW)
        for v in range(ROW):
            out[power, 0, block + v] = a[v] - d[v]
            out[power, 1, block + v] = b[v] + c[v]

    compiled: Callable[..., Any] = sum_modes
    return compiled


def _make_sum_two(dtype: str) -> Callable[..., Any]:
    real = np.dtype(dtype).type

    @inlined
    def sum_two(folded: Any, power: Any, modes: Any, z: Any, block: Any, out: Any) -> None:
        """Sum as `sum_modes` for two powers, which share what they read."""
        zero = real(0.0)
        p_0, p_1 = scratch(ROW, zero), scratch(ROW, zero)
        p_2, p_3 = scratch(ROW, zero), scratch(ROW, zero)
        q_0, q_1 = scratch(ROW, zero), scratch(ROW, zero)
        q_2, q_3 = scratch(ROW, zero), scratch(ROW, zero)
        fill(ROW, p_0, zero)
        fill(ROW, p_1, zero)
        fill(ROW, p_2, zero)
        fill(ROW, p_3, zero)
        fill(ROW, q_0, zero)
        fill(ROW, q_1, zero)
        fill(ROW, q_2, zero)
        fill(ROW, q_3, zero)
        stride, half = out.shape[2], z.shape[0] // 2
        for m in range(modes):
            place = m * stride + block
            cosine, sine = address(z, place), address(z, half + place)
            axpy(ROW, p_0, folded[power, m, 0], cosine)
            axpy(ROW, p_1, folded[power, m, 1], cosine)
            axpy(ROW, p_2, folded[power, m, 2], sine)
            axpy(ROW, p_3, folded[power, m, 3], sine)
            axpy(ROW, q_0, folded[power + 1, m, 0], cosine)
            axpy(ROW, q_1, folded[power + 1, m, 1], cosine)
            axpy(ROW, q_2, folded[power + 1, m, 2], sine)
            axpy(ROW, q_3, folded[power + 1, m, 3], sine)
        a, b = numba.carray(p_0, ROW), numba.carray(p_1, ROW)
        c, d = numba.carray(p_2, ROW), numba.carray(p_3, ROW)
        e, f = numba.carray(q_0, ROW), numba.carray(q_1, ROW)
        g, h = numba.carray(q_2, ROW), numba.carray(q_3, ROW)
        for v in range(ROW):
            out[power, 0, block + v] = a[v] - d[v]
            out[power, 1, block + v] = b[v] + c[v]
            out[power + 1, 0, block + v] = e[v] - h[v]
            out[power + 1, 1, block + v] = f[v] + g[v]

    compiled: Callable[..., Any] = sum_two
    return compiled


def _make_add_terms(dtype: str) -> Callable[..., Any]:
    real = np.dtype(dtype).type

    @inlined
    def add_terms(sums: Any, terms: Any, m_x: Any, m_y: Any, out: Any) -> None:
        """Add the derivatives of a row to those of the atoms."""
        for t in range(terms.shape[0]):
            power = terms[t, 2]
            degree = terms[t, 0] + terms[t, 1] + power
            factor = real(m_x ** terms[t, 0] * m_y ** terms[t, 1])
            # Re(i^degree z) is Re z, -Im z, -Re z, Im z.
            if degree % 4 == 1 or degree % 4 == 2:
                factor = -factor
            for j in range(out.shape[1]):
                out[t, j] += factor * sums[power, degree % 2, j]

    compiled: Callable[..., Any] = add_terms
    return compiled


def _make_interpolate(dtype: str) -> Callable[..., None]:
    real = np.dtype(dtype).type
    fold, add_terms = _make_fold(dtype), _make_add_terms(dtype)
    sum_modes, sum_two = _make_sum_modes(dtype), _make_sum_two(dtype)

    @jit
    def interpolate(tasks: Any, rows: Any, waves: Any, psi: Any, terms: Any, out: Any) -> None:
        row_starts, firsts, starts, reach = rows
        powers = 1 + terms[-1, 2]
        for task in range(tasks.shape[0]):
            g, begin, end = tasks[task, 0], tasks[task, 1], tasks[task, 2]
            n_x, n_y, n_z = reach[g, 0], reach[g, 1], reach[g, 2]
            n = (end - begin + ROW - 1) // ROW * ROW
            own = np.zeros((2, 3, n), waves.dtype)
            for part in range(2):
                for axis in range(3):
                    for j in range(begin, end):
                        own[part, axis, j - begin] = waves[part, axis, j]
            x = np.empty((2, 2 * n_x + 1, n), psi.dtype)
            y = np.empty((2, 2 * n_y + 1, n), psi.dtype)
            z = np.empty((2, n_z + 1, n), psi.dtype)
            _fill_powers(own[0, 0], own[1, 0], x, n_x, True)
            _fill_powers(own[0, 1], own[1, 1], y, n_y, True)
            _fill_powers(own[0, 2], own[1, 2], z, n_z, False)
            lanes = z.reshape(-1)
            folded = np.empty((powers, n_z + 1, 4), psi.dtype)
            sums = np.empty((powers, 2, n), psi.dtype)
            total = np.empty((terms.shape[0], n), psi.dtype)
            for p in range(psi.shape[0]):
                total[:] = real(0.0)
                for r in range(row_starts[g], row_starts[g + 1]):
                    m_x, m_y, m_z = firsts[r, 0], firsts[r, 1], firsts[r, 2]
                    count = starts[r + 1] - starts[r]
                    modes = fold(psi[p], starts[r], m_z, count, folded)
                    for block in range(0, n, ROW):
                        for power in range(0, powers - 1, 2):
                            sum_two(folded, power, modes, lanes, block, sums)
                        if powers % 2:
                            sum_modes(folded, powers - 1, modes, lanes, block, sums)
                    for power in range(powers):
                        _turn(sums[power], x, y, n_x + m_x, n_y + m_y)
                    add_terms(sums, terms, m_x, m_y, total)
                for t in range(terms.shape[0]):
                    for j in range(begin, end):
                        out[j, t, p] = total[t, j - begin]

    compiled: Callable[..., None] = interpolate
    return compiled
