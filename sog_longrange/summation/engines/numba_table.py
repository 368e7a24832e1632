"""Loops over modes, compiled by numba: the kernel's table and its derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .numba_vectors import inlined, jit, reinterpret


class SamplerLoops(NamedTuple):
    """Compiled loops over modes; see :class:`~sog_longrange.summation.kernel_table.Sampler`."""

    values: Callable[..., None]
    gradients: Callable[..., None]


@lru_cache(maxsize=8)
def sampler_loops(dtype: str, degree: int, bits: int, *, directed: bool) -> SamplerLoops:
    """Compile the loops over modes.

    Parameters
    ----------
    dtype : str
        "float32" or "float64".
    degree : int
        Of the polynomials.
    bits : int
        Each factor of two in k^2 has 2^bits intervals.
    directed : bool
        Whether a direction and a second set of coefficients are given.

    Returns
    -------
    SamplerLoops
    """
    locate = _make_locate(dtype, bits)
    return SamplerLoops(
        _make_values(dtype, degree, directed, locate),
        _make_gradients(dtype, degree, directed, locate),
    )


def _make_locate(dtype: str, bits: int) -> Callable[..., Any]:
    """Row of the interval that holds k^2, place from its middle and the inverse of its width."""
    real = np.dtype(dtype).type
    integer = np.int32 if dtype == "float32" else np.int64
    mantissa = integer(np.finfo(dtype).nmant)
    shift = integer(mantissa - bits)
    low_bits = integer((1 << int(shift)) - 1)
    scale, per_octave = real(2.0 ** -int(shift)), real(2.0**bits)

    @inlined
    def locate(k2: Any, base: Any, rows: Any) -> Any:
        number = reinterpret(k2, integer(0))
        row = np.int64(number >> shift) - (base - 1)
        row = min(max(row, 0), rows - 1)
        t = real(integer(number & low_bits)) * scale - real(0.5)
        power = reinterpret(integer((number >> mantissa) << mantissa), real(0.0))
        inverse = per_octave / power if k2 > real(0.0) else real(0.0)
        return row, t, inverse

    return locate


def _make_polynomial(dtype: str, degree: int, order: int) -> Callable[..., Any]:
    """Differentiate a polynomial of given degree in k^2."""
    real = np.dtype(dtype).type
    scales = tuple(real(math.perm(power, order)) for power in range(degree + 1))

    @inlined
    def polynomial(c: Any, at: Any, t: Any, inverse: Any) -> Any:
        value = real(0.0)
        for power in range(degree, order - 1, -1):
            value = value * t + scales[power] * c[at + power]
        for _ in range(order):
            value *= inverse
        return value

    return polynomial


@inlined
def _combine(m_x: Any, m_y: Any, m_z: Any, rows: Any) -> Any:
    """Vector m . rows of a 3x3 matrix."""
    return (
        m_x * rows[0, 0] + m_y * rows[1, 0] + m_z * rows[2, 0],
        m_x * rows[0, 1] + m_y * rows[1, 1] + m_z * rows[2, 1],
        m_x * rows[0, 2] + m_y * rows[1, 2] + m_z * rows[2, 2],
    )


def _make_values(
    dtype: str, degree: int, directed: bool, locate: Callable[..., Any]
) -> Callable[..., None]:
    real = np.dtype(dtype).type
    value_of, slope_of = (_make_polynomial(dtype, degree, order) for order in (0, 1))
    stride = degree + 1

    @jit
    def values(begin: Any, end: Any, geometry: Any, point: Any, out: Any) -> None:
        base, graphs, first, starts, factors, along, places = geometry
        b, u, c, direction = point
        channels, rows = u.shape[0], u.shape[1]
        flat_u, flat_c = u.reshape(-1), c.reshape(-1)
        for r in range(begin, end):
            g, at, factor, place = graphs[r], starts[r], factors[r], places[r]
            m_x, m_y = real(first[r, 0]), real(first[r, 1])
            for i in range(starts[r + 1] - at):
                m_z = real(first[r, 2] + i)
                x, y, z = _combine(m_x, m_y, m_z, b[g])
                row, t, inverse = locate(x * x + y * y + z * z, base, rows)
                if row == rows - 1:
                    for p in range(channels):
                        out[p, at + i] = real(0.0)
                    continue
                change = real(0.0)
                if directed:
                    e_x, e_y, e_z = _combine(m_x, m_y, m_z, direction[g])
                    change = real(2.0) * (x * e_x + y * e_y + z * e_z)
                for p in range(channels):
                    entry = (p * rows + row) * stride
                    value = value_of(flat_u, entry, t, inverse)
                    if directed:
                        value += slope_of(flat_c, entry, t, inverse) * change
                    out[p, at + i] = factor * along[place + i] * value

    return values


def _make_gradients(
    dtype: str, degree: int, directed: bool, locate: Callable[..., Any]
) -> Callable[..., None]:
    real = np.dtype(dtype).type
    two = real(2.0)
    one_mode = _make_mode_gradient(dtype, degree, directed)

    @jit
    def gradients(begin: Any, end: Any, geometry: Any, point: Any, grad: Any, *sums: Any) -> None:
        base, graphs, first, starts, factors, along, places = geometry
        b, u, c, direction = point
        by_coefficients, by_cell = sums
        rows = u.shape[1]
        flats = (u.reshape(-1), c.reshape(-1), by_coefficients.reshape(-1))
        for r in range(begin, end):
            g, at, factor, place = graphs[r], starts[r], factors[r], places[r]
            m_x, m_y = real(first[r, 0]), real(first[r, 1])
            # Sums over the row of modes: of vectors, and of m_z times them.
            s_x = s_y = s_z = w_x = w_y = w_z = real(0.0)
            for i in range(starts[r + 1] - at):
                m_z = real(first[r, 2] + i)
                x, y, z = _combine(m_x, m_y, m_z, b[g])
                where = locate(x * x + y * y + z * z, base, rows)
                if where[0] == rows - 1:
                    continue
                e_x = e_y = e_z = real(0.0)
                if directed:
                    e_x, e_y, e_z = _combine(m_x, m_y, m_z, direction[g])
                change = two * (x * e_x + y * e_y + z * e_z)
                weight = two * factor * along[place + i]
                one, other = one_mode(grad, at + i, weight, change, where, rows, flats)
                h_x, h_y, h_z = one * x + other * e_x, one * y + other * e_y, one * z + other * e_z
                s_x, s_y, s_z = s_x + h_x, s_y + h_y, s_z + h_z
                w_x, w_y, w_z = w_x + m_z * h_x, w_y + m_z * h_y, w_z + m_z * h_z
            for axis, h in enumerate((s_x, s_y, s_z)):
                by_cell[g, 0, axis] += m_x * h
                by_cell[g, 1, axis] += m_y * h
            for axis, h in enumerate((w_x, w_y, w_z)):
                by_cell[g, 2, axis] += h

    return gradients


def _make_mode_gradient(dtype: str, degree: int, directed: bool) -> Callable[..., Any]:
    """Weights of k and of its direction in the cell's gradient; adds to the coefficients'."""
    real = np.dtype(dtype).type
    slope_of, curvature_of = (_make_polynomial(dtype, degree, order) for order in (1, 2))
    stride = degree + 1

    @inlined
    def one_mode(
        grad: Any, mode: Any, weight: Any, along: Any, place: Any, rows: Any, flats: Any
    ) -> Any:
        row, t, inverse = place
        u, c, by_coefficients = flats
        first = second = real(0.0)
        for p in range(grad.shape[0]):
            entry = (p * rows + row) * stride
            scaled = weight * grad[p, mode]
            first += scaled * slope_of(u, entry, t, inverse)
            # The weight is that of d(k^2) = 2 k.dk; the coefficients get half of it.
            term = real(0.5) * scaled
            if directed:
                first += scaled * curvature_of(c, entry, t, inverse) * along
                second += scaled * slope_of(c, entry, t, inverse)
                term *= along * inverse
                for power in range(1, stride):
                    by_coefficients[entry + power] += power * term
                    term *= t
            else:
                for power in range(stride):
                    by_coefficients[entry + power] += term
                    term *= t
        return first, second

    return one_mode
