"""The kernel's table and its derivatives on GPUs: one launch for all modes of all structures.

The lanes of a program are the modes of a few consecutive rows of one structure, side by side
where rows are short; longer rows are stepped through. Gradients of the coefficients are added
atomically in double precision, neighbouring lanes to copies of their own: most modes lie
in a few intervals, and neighbours often in the same one.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sog_longrange.summation.kernel_table import MANTISSA as MANTISSAS
from sog_longrange.summation.kernel_table import Intervals
from sog_longrange.summation.rows import ModeRows

from .triton_launch import launch, on_device, power_of_two, row_tiles

_TILE = 512
_COPIES = 32
_LANES = (8, 128)
"""Fewest and most modes of a row at a time: whole cache lines, and no tile of one row."""


class TritonSampler:
    """Sampler as Triton kernels, on the device of the reciprocal cells.

    Parameters
    ----------
    intervals : Intervals
    rows : ModeRows
    """

    def __init__(self, intervals: Intervals, rows: ModeRows) -> None:
        self.intervals = intervals
        self.rows = rows
        # As long as the average row: of the rows in a sphere few are much longer.
        mean = -(-rows.total // len(rows.graphs))
        self.lanes = min(max(power_of_two(mean), _LANES[0]), _LANES[1])

    def values(
        self,
        u: Tensor,
        reciprocal: Tensor,
        c: Tensor | None = None,
        direction: Tensor | None = None,
    ) -> Tensor:
        """Implement :meth:`Sampler.values`."""
        out = u.new_empty(len(u), self.rows.total)
        self._run(_values, out, out, u, reciprocal, c, direction)
        return out

    def gradients(
        self,
        grad: Tensor,
        u: Tensor,
        reciprocal: Tensor,
        c: Tensor | None = None,
        direction: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Implement :meth:`Sampler.gradients`."""
        entries = u.numel()
        sums = u.new_zeros(entries + reciprocal.numel(), _COPIES, dtype=torch.float64)
        self._run(_gradients, sums, grad.contiguous(), u, reciprocal, c, direction)
        total = sums.sum(1).to(u.dtype)
        return total[:entries].view(u.shape), total[entries:].view(reciprocal.shape)

    def _run(
        self,
        kernel: Any,
        target: Tensor,
        of_modes: Tensor,
        u: Tensor,
        reciprocal: Tensor,
        c: Tensor | None,
        direction: Tensor | None,
    ) -> None:
        """Launch a kernel for all modes."""
        own, device, rows = self.intervals, u.device, self.rows
        height = _TILE // self.lanes
        tiles = rows.memory.once(
            (height, device), lambda: on_device(row_tiles(rows, height), device)
        )
        numbers = rows.tensors(u.dtype, device)
        c, direction = (u if c is None else c), (reciprocal if direction is None else direction)
        launch(
            *(kernel, (len(tiles),), tiles, *numbers[1:]),
            *(x.contiguous() for x in (reciprocal, u, direction, c)),
            *(of_modes, target, own.base, own.rows, len(u), rows.total),
            DIRECTED=int(c is not u),
            DEGREE=own.degree,
            BITS=own.bits,
            MANTISSA=MANTISSAS[own.dtype],
            COPIES=_COPIES,
            ROWS=height,
            LANES=self.lanes,
            num_warps=4,
        )


# Sizes are not specialised on, or every divisibility by 16 would compile the kernels anew.
_SIZES = ["base", "intervals", "channels", "n_modes"]


@triton.jit
def _rows(
    tiles: tl.tensor,
    first: tl.tensor,
    starts: tl.tensor,
    factors: tl.tensor,
    places: tl.tensor,
    ROWS: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Structure of this program, and for each of its rows the first mode, places and a factor."""
    tile = tiles + tl.program_id(0).to(tl.int64) * 3
    row = tl.load(tile) + tl.arange(0, ROWS)[:, None]
    present = row < tl.load(tile + 1)
    at = tl.load(starts + row, present, 0)
    count = (tl.load(starts + row + 1, present, 0) - at).to(tl.int32)
    factor = tl.load(factors + row, present, 0.0)
    m_x = tl.load(first + row * 3, present, 0).to(factor.dtype)
    m_y = tl.load(first + row * 3 + 1, present, 0).to(factor.dtype)
    m_z = tl.load(first + row * 3 + 2, present, 0)
    return tl.load(tile + 2), m_x, m_y, m_z, at, count, factor, tl.load(places + row, present, 0)


@triton.jit
def _combine(
    matrix: tl.tensor, m_x: tl.tensor, m_y: tl.tensor, m_z: tl.tensor
) -> tuple[tl.tensor, ...]:
    """Vector m . rows of a matrix."""
    x = m_x * tl.load(matrix) + m_y * tl.load(matrix + 3) + m_z * tl.load(matrix + 6)
    y = m_x * tl.load(matrix + 1) + m_y * tl.load(matrix + 4) + m_z * tl.load(matrix + 7)
    z = m_x * tl.load(matrix + 2) + m_y * tl.load(matrix + 5) + m_z * tl.load(matrix + 8)
    return x, y, z


@triton.jit
def _interval(
    k2: tl.tensor,
    base: tl.tensor,
    intervals: tl.tensor,
    BITS: tl.constexpr,
    MANTISSA: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Interval of k^2, the place from its middle in its widths, and the inverse of the width."""
    integer = tl.int32 if MANTISSA == 23 else tl.int64
    bias: tl.constexpr = 127 if MANTISSA == 23 else 1023
    shift: tl.constexpr = MANTISSA - BITS
    number = k2.to(integer, bitcast=True)
    interval = ((number >> shift) - (base - 1)).to(tl.int32)
    interval = tl.minimum(tl.maximum(interval, 0), intervals - 1)
    t = (number & ((1 << shift) - 1)).to(k2.dtype) * (1.0 / (1 << shift)) - 0.5
    # The width is 2^-BITS of the power of two below k^2: its inverse has the negative exponent.
    exponent = (2 * bias + BITS) - (number >> MANTISSA)
    inverse = (exponent.to(integer) << MANTISSA).to(k2.dtype, bitcast=True)
    return interval, t, tl.where(k2 > 0.0, inverse, 0.0)


@triton.jit
def _polynomial(
    at: tl.tensor,
    near: tl.tensor,
    t: tl.tensor,
    inverse: tl.tensor,
    ORDER: tl.constexpr,
    DEGREE: tl.constexpr,
) -> tl.tensor:
    """Differentiate the polynomials with coefficients at some places in k^2, zero if not near."""
    value = tl.zeros_like(t)
    for power in tl.static_range(DEGREE, ORDER - 1, -1):
        coefficient = tl.load(at + power, near, 0.0)
        if ORDER == 1:
            coefficient *= power
        if ORDER == 2:
            coefficient *= power * (power - 1)
        value = value * t + coefficient
    for _ in tl.static_range(ORDER):
        value *= inverse
    return value


@triton.jit(do_not_specialize=_SIZES)
def _values(
    tiles: tl.tensor,
    first: tl.tensor,
    starts: tl.tensor,
    factors: tl.tensor,
    along: tl.tensor,
    places: tl.tensor,
    reciprocal: tl.tensor,
    u: tl.tensor,
    direction: tl.tensor,
    c: tl.tensor,
    of_modes: tl.tensor,
    target: tl.tensor,
    base: tl.tensor,
    intervals: tl.tensor,
    channels: tl.tensor,
    n_modes: tl.tensor,
    DIRECTED: tl.constexpr,
    DEGREE: tl.constexpr,
    BITS: tl.constexpr,
    MANTISSA: tl.constexpr,
    COPIES: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    """Store the values on all modes, zero beyond the last interval."""
    graph, m_x, m_y, m_z, at, count, factor, place = _rows(
        tiles, first, starts, factors, places, ROWS
    )
    for begin in range(0, tl.max(count), LANES):
        i = begin + tl.arange(0, LANES)[None, :]
        inside = i < count
        m = (m_z + i).to(m_x.dtype)
        x, y, z = _combine(reciprocal + graph * 9, m_x, m_y, m)
        interval, t, inverse = _interval(x * x + y * y + z * z, base, intervals, BITS, MANTISSA)
        near = inside & (interval < intervals - 1)
        scale = factor * tl.load(along + place + i, inside, 0.0)
        if DIRECTED:
            e_x, e_y, e_z = _combine(direction + graph * 9, m_x, m_y, m)
            change = 2.0 * (x * e_x + y * e_y + z * e_z)
        for p in range(channels):
            entry = (p * intervals + interval) * (DEGREE + 1)
            value = _polynomial(u + entry, near, t, inverse, 0, DEGREE)
            if DIRECTED:
                value += _polynomial(c + entry, near, t, inverse, 1, DEGREE) * change
            # Several kernels on one large grid have more values than 32 bits can count.
            own = target + tl.cast(p, tl.int64) * n_modes
            tl.store(own + at + i, scale * value, inside)


@triton.jit(do_not_specialize=_SIZES)
def _gradients(
    tiles: tl.tensor,
    first: tl.tensor,
    starts: tl.tensor,
    factors: tl.tensor,
    along: tl.tensor,
    places: tl.tensor,
    reciprocal: tl.tensor,
    u: tl.tensor,
    direction: tl.tensor,
    c: tl.tensor,
    of_modes: tl.tensor,
    target: tl.tensor,
    base: tl.tensor,
    intervals: tl.tensor,
    channels: tl.tensor,
    n_modes: tl.tensor,
    DIRECTED: tl.constexpr,
    DEGREE: tl.constexpr,
    BITS: tl.constexpr,
    MANTISSA: tl.constexpr,
    COPIES: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    """Add the gradients of coefficients, and behind them those of cells, to copies of them."""
    graph, m_x, m_y, m_z, at, count, factor, place = _rows(
        tiles, first, starts, factors, places, ROWS
    )
    copy = (tl.arange(0, ROWS)[:, None] * LANES + tl.arange(0, LANES)[None, :]) % COPIES
    # Sums over the modes of a lane: of vectors, and of m_z times them.
    s_x = tl.zeros((ROWS, LANES), m_x.dtype)
    s_y, s_z, w_x, w_y, w_z = s_x, s_x, s_x, s_x, s_x
    for begin in range(0, tl.max(count), LANES):
        i = begin + tl.arange(0, LANES)[None, :]
        m = (m_z + i).to(m_x.dtype)
        x, y, z = _combine(reciprocal + graph * 9, m_x, m_y, m)
        interval, t, inverse = _interval(x * x + y * y + z * z, base, intervals, BITS, MANTISSA)
        near = (i < count) & (interval < intervals - 1)
        scale = factor * tl.load(along + place + i, near, 0.0)
        of_k, of_turned = tl.zeros_like(t), tl.zeros_like(t)
        e_x, e_y, e_z = _combine(direction + graph * 9, m_x, m_y, m)
        change = 2.0 * (x * e_x + y * e_y + z * e_z)
        for p in range(channels):
            term = scale * tl.load(of_modes + tl.cast(p, tl.int64) * n_modes + at + i, near, 0.0)
            entry = (p * intervals + interval) * (DEGREE + 1)
            of_k += term * _polynomial(u + entry, near, t, inverse, 1, DEGREE)
            if DIRECTED:
                of_turned += term * _polynomial(c + entry, near, t, inverse, 1, DEGREE)
                of_k += term * change * _polynomial(c + entry, near, t, inverse, 2, DEGREE)
                term *= change * inverse
            _add_powers(target + entry * COPIES + copy, term, t, near, DIRECTED, DEGREE, COPIES)
        h_x, h_y = of_k * x + of_turned * e_x, of_k * y + of_turned * e_y
        h_z = of_k * z + of_turned * e_z
        s_x, s_y, s_z = s_x + h_x, s_y + h_y, s_z + h_z
        w_x, w_y, w_z = w_x + m * h_x, w_y + m * h_y, w_z + m * h_z
    place = channels * intervals * (DEGREE + 1) + graph * 9
    cell = target + place * COPIES + tl.program_id(0) % COPIES
    _add_moments(cell, m_x, m_y, s_x, w_x, COPIES)
    _add_moments(cell + COPIES, m_x, m_y, s_y, w_y, COPIES)
    _add_moments(cell + 2 * COPIES, m_x, m_y, s_z, w_z, COPIES)


@triton.jit
def _add_powers(
    place: tl.tensor,
    term: tl.tensor,
    t: tl.tensor,
    near: tl.tensor,
    ORDER: tl.constexpr,
    DEGREE: tl.constexpr,
    COPIES: tl.constexpr,
) -> None:
    """Add what each coefficient's derivative of order 0 or 1 is worth."""
    for power in tl.static_range(ORDER, DEGREE + 1):
        value = term.to(tl.float64)
        if ORDER == 1:
            value *= power
        tl.atomic_add(place + power * COPIES, value, near, sem="relaxed")
        term *= t


@triton.jit
def _add_moments(
    cell: tl.tensor,
    m_x: tl.tensor,
    m_y: tl.tensor,
    sums: tl.tensor,
    moments: tl.tensor,
    COPIES: tl.constexpr,
) -> None:
    """Add 2 sum_m m_i h for one component of h to the column of a cell."""
    of_rows = tl.sum(sums, 1, keep_dims=True).to(tl.float64)
    along = tl.sum(moments, 1, keep_dims=True).to(tl.float64)
    tl.atomic_add(cell, 2.0 * tl.sum(m_x * of_rows), sem="relaxed")
    tl.atomic_add(cell + 3 * COPIES, 2.0 * tl.sum(m_y * of_rows), sem="relaxed")
    tl.atomic_add(cell + 6 * COPIES, 2.0 * tl.sum(along), sem="relaxed")
