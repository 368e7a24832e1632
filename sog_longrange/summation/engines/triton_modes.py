"""Kernels of the sums between atoms and modes, compiled by Triton.

Phase factors are products of those of the three axes, which one launch tabulates. A program has
a window of modes along the third reciprocal vector, and each of its threads a row, or an atom,
whose factors along the other axes it computes once for the window. Structure factors are summed
over the atoms of a structure; potentials over its rows, and along the window at the end.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Sizes are not specialised on, or every divisibility by 16 would compile the kernels anew.
_SIZES = ["n_atoms", "n_graphs", "n_modes", "n_x", "n_y", "n_z", "blocks", "rows"]


@triton.jit(do_not_specialize=_SIZES)
def tabulate(
    phases: tl.tensor,
    batch: tl.tensor,
    by_axis: tl.tensor,
    by_atom: tl.tensor,
    ends: tl.tensor,
    n_atoms: tl.tensor,
    n_graphs: tl.tensor,
    n_x: tl.tensor,
    n_y: tl.tensor,
    n_z: tl.tensor,
    ATOMS: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    """Tabulate cosines and sines of m theta, and where the atoms of each structure lie.

    Parameters
    ----------
    phases : pointer, (n_atoms, 3)
    batch : pointer, (n_atoms,)
    by_axis : pointer, (2, n_x + n_y + n_z, n_atoms)
        Cosines, then sines, for m = 0, 1... along the three axes.
    by_atom : pointer, (n_atoms, n_x + n_y + n_z, 2)
        The same in the order of atoms.
    ends : pointer, (2, n_graphs)
        First atoms and those beyond the last; stays as it is where there are none.
    n_atoms, n_graphs, n_x, n_y, n_z : int
    ATOMS, LANES : constexpr
        Of a tile.
    """
    columns = n_x + n_y + n_z
    atom = tl.program_id(0).to(tl.int64) * ATOMS + tl.arange(0, ATOMS)[:, None]
    column = tl.program_id(1).to(tl.int64) * LANES + tl.arange(0, LANES)[None, :]
    present = atom < n_atoms
    inside = present & (column < columns)
    axis = (column >= n_x).to(tl.int64) + (column >= n_x + n_y).to(tl.int64)
    mode = column - tl.where(axis > 0, n_x, 0) - tl.where(axis > 1, n_y, 0)
    theta = tl.load(phases + atom * 3 + axis, inside, 0.0)
    # In single precision the product would lose the digits that many turns take.
    angle = theta.to(tl.float64) * mode.to(tl.float64)
    cosine, sine = tl.cos(angle).to(theta.dtype), tl.sin(angle).to(theta.dtype)
    at = column * n_atoms + atom
    tl.store(by_axis + at, cosine, inside)
    tl.store(by_axis + (columns.to(tl.int64) * n_atoms + at), sine, inside)
    at = (atom * columns + column) * 2
    tl.store(by_atom + at, cosine, inside)
    tl.store(by_atom + at + 1, sine, inside)
    if tl.program_id(1) == 0:
        graph = tl.load(batch + atom, present, -1)
        before = tl.load(batch + atom - 1, present & (atom > 0), -1)
        after = tl.load(batch + atom + 1, atom + 1 < n_atoms, -1)
        tl.store(ends + graph, atom, present & (before != graph))
        tl.store(ends + n_graphs + graph, atom + 1, present & (after != graph))


@triton.jit
def _sign(mode: tl.tensor) -> tl.tensor:
    """Sign of a mode number: factors of negative ones are complex conjugates."""
    return tl.where(mode < 0, -1.0, 1.0)


@triton.jit
def _level(
    own: tl.tensor,
    channels: tl.tensor,
    here: tl.tensor,
    m_x: tl.tensor,
    m_y: tl.tensor,
    C: tl.constexpr,
    ORDER: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Sum (-i m)^a W_a = even - i odd over the sources of an atom with power C along z."""
    even = tl.zeros_like(m_x)
    odd = tl.zeros_like(m_x)
    for a in tl.static_range(ORDER + 1 - C):
        for b in tl.static_range(ORDER + 1 - C - a):
            # Places of monomials: those of lower orders, then of higher powers along x, come first.
            d = a + b + C
            place = d * (d + 1) * (d + 2) // 6 + (b + C) * (b + C + 1) // 2 + C
            term = tl.load(own + place * channels, here, 0.0)
            for _ in tl.static_range(a):
                term *= m_x
            for _ in tl.static_range(b):
                term *= m_y
            if d % 4 > 1:
                term = -term
            if d % 2 == 0:
                even += term
            else:
                odd += term
    return even, odd


@triton.jit
def _factor(
    at_x: tl.tensor, at_y: tl.tensor, beyond: tl.tensor, m_x: tl.tensor, m_y: tl.tensor
) -> tuple[tl.tensor, ...]:
    """exp(i (m_x theta_x + m_y theta_y)) from pointers to cosines, sines are beyond them."""
    x_re, x_im = tl.load(at_x), tl.load(at_x + beyond) * _sign(m_x)
    y_re, y_im = tl.load(at_y), tl.load(at_y + beyond) * _sign(m_y)
    return x_re * y_re - x_im * y_im, x_re * y_im + x_im * y_re


@triton.jit
def _source(
    own: tl.tensor,
    channels: tl.tensor,
    here: tl.tensor,
    xy_re: tl.tensor,
    xy_im: tl.tensor,
    m_x: tl.tensor,
    m_y: tl.tensor,
    m_z: tl.tensor,
    ORDER: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Conjugate of sum_a (-i m)^a W_a exp(-i (m_x theta_x + m_y theta_y)) of an atom."""
    even, odd = _level(own, channels, here, m_x, m_y, ORDER, ORDER)
    re, im = even * xy_re - odd * xy_im, even * xy_im + odd * xy_re
    for c in tl.static_range(ORDER - 1, -1, -1):
        even, odd = _level(own, channels, here, m_x, m_y, c, ORDER)
        re = re * m_z + (even * xy_re - odd * xy_im)
        im = im * m_z + (even * xy_im + odd * xy_re)
    return re, im


@triton.jit(do_not_specialize=_SIZES)
def spread(
    tasks: tl.tensor,
    ends: tl.tensor,
    first: tl.tensor,
    starts: tl.tensor,
    factors: tl.tensor,
    sources: tl.tensor,
    out: tl.tensor,
    n_graphs: tl.tensor,
    n_modes: tl.tensor,
    n_x: tl.tensor,
    n_y: tl.tensor,
    n_z: tl.tensor,
    ORDER: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    UNROLL: tl.constexpr,
) -> None:
    """Store structure factors on a window of some rows, or add some atoms' share of them.

    Parameters
    ----------
    tasks : pointer, (n_tasks, 4)
        Where the rows of each program begin and end, their structure and the window's begin.
    ends : pointer, (2, n_graphs)
    first, starts : pointer
        Of the rows.
    factors : pointer, (n_atoms, n_x + n_y + n_z, 2)
    sources : pointer, (n_atoms, n_sources, n_channels)
    out : pointer, (n_channels, n_modes, 2)
    n_graphs, n_modes, n_x, n_y, n_z : int
    ORDER : constexpr
    ROWS, LANES : constexpr
        Of a tile.
    IS_SPLIT : constexpr
        Whether several programs share the atoms of a structure.
    UNROLL : constexpr
        Atoms at a time.
    """
    real = factors.dtype.element_ty
    count: tl.constexpr = (ORDER + 1) * (ORDER + 2) * (ORDER + 3) // 6
    channel, channels = tl.program_id(2), tl.num_programs(2)
    task = tasks + tl.program_id(0).to(tl.int64) * 4
    graph = tl.load(task + 2)
    row = tl.load(task) + tl.arange(0, ROWS)[None, :]
    present = row < tl.load(task + 1)
    x = tl.load(first + row * 3, present, 0)
    y = tl.load(first + row * 3 + 1, present, 0)
    z = tl.load(task + 3) + tl.arange(0, LANES)[:, None]
    m_x, m_y, m_z = x.to(real), y.to(real), z.to(real)
    at_x, at_y, at_z = tl.abs(x) * 2, (n_x + tl.abs(y)) * 2, (n_x + n_y + tl.abs(z)) * 2
    is_mode = tl.abs(z) < n_z
    begin, end = tl.load(ends + graph), tl.load(ends + n_graphs + graph)
    if IS_SPLIT:
        share = (end - begin + tl.num_programs(1) - 1) // tl.num_programs(1)
        begin += tl.program_id(1) * share
        end = tl.minimum(begin + share, end)
    re = tl.zeros((LANES, ROWS), real)
    im = tl.zeros((LANES, ROWS), real)
    for j in range(begin, end, UNROLL):
        for k in tl.static_range(UNROLL):
            # Beyond the last atom its factors are read again, with sources of zero.
            atom = tl.minimum(j + k, end - 1)
            own = sources + atom * (count * channels) + channel
            table = factors + atom * ((n_x + n_y + n_z) * 2)
            z_re = tl.load(table + at_z, is_mode, 0.0)
            z_im = tl.load(table + at_z + 1, is_mode, 0.0) * _sign(m_z)
            xy_re, xy_im = _factor(table + at_x, table + at_y, 1, m_x, m_y)
            s_re, s_im = _source(own, channels, j + k < end, xy_re, xy_im, m_x, m_y, m_z, ORDER)
            re += s_re * z_re - s_im * z_im
            im -= s_re * z_im + s_im * z_re
    # Several channels may have more modes than 32 bits can count.
    own = out + channel.to(tl.int64) * n_modes * 2
    _put(own, re, im, z, row, present, first, starts, IS_SPLIT)


@triton.jit
def _put(
    out: tl.tensor,
    re: tl.tensor,
    im: tl.tensor,
    z: tl.tensor,
    row: tl.tensor,
    present: tl.tensor,
    first: tl.tensor,
    starts: tl.tensor,
    IS_SUM: tl.constexpr,
) -> None:
    """Store complex numbers on a window of rows, or add them."""
    at = tl.load(starts + row, present, 0)
    place = z - tl.load(first + row * 3 + 2, present, 0)
    inside = present & (place >= 0) & (place < tl.load(starts + row + 1, present, 0) - at)
    target = out + (at + place) * 2
    if IS_SUM:
        tl.atomic_add(target, re, inside, sem="relaxed")
        tl.atomic_add(target + 1, im, inside, sem="relaxed")
    else:
        tl.store(target, re, inside)
        tl.store(target + 1, im, inside)


@triton.jit(do_not_specialize=_SIZES)
def interpolate(
    row_starts: tl.tensor,
    batch: tl.tensor,
    first: tl.tensor,
    starts: tl.tensor,
    by_axis: tl.tensor,
    by_atom: tl.tensor,
    field: tl.tensor,
    out: tl.tensor,
    n_atoms: tl.tensor,
    n_modes: tl.tensor,
    n_x: tl.tensor,
    n_y: tl.tensor,
    n_z: tl.tensor,
    blocks: tl.tensor,
    rows: tl.tensor,
    ORDER: tl.constexpr,
    TERMS: tl.constexpr,
    ATOMS: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Add the derivatives up to an order, at some atoms, of the potential of some rows.

    Parameters
    ----------
    row_starts : pointer, (n_graphs + 1,)
    batch : pointer, (n_atoms,)
    first, starts : pointer
        Of the rows.
    by_axis, by_atom : pointer
        Cosines and sines, as `tabulate` stores them.
    field : pointer, (n_channels, n_modes, 2)
    out : pointer, (n_atoms, n_derivatives, n_channels)
    n_atoms, n_modes, n_x, n_y, n_z : int
    blocks : int
        Number of blocks of atoms.
    rows : int
        Most rows of one structure that a program adds up.
    ORDER : constexpr
    TERMS : constexpr
        Number of pairs of powers along x and y, rounded up.
    ATOMS, LANES : constexpr
        Of a tile.
    ROWS : constexpr
        Not less than `rows`.
    """
    block = tl.program_id(0) % blocks
    span = tl.program_id(0) // blocks
    atom = block.to(tl.int64) * ATOMS + tl.arange(0, ATOMS)[None, None, :]
    graphs = tl.load(batch + atom, atom < n_atoms, -1)
    # Beyond the last atom it is read again; nothing is stored for it.
    atom = tl.minimum(atom, n_atoms - 1)
    psi = field + tl.program_id(1).to(tl.int64) * n_modes * 2
    for graph in range(tl.load(batch + block.to(tl.int64) * ATOMS), tl.max(graphs) + 1):
        begin = tl.load(row_starts + graph) + span.to(tl.int64) * rows
        end = tl.minimum(begin + rows, tl.load(row_starts + graph + 1))
        z_low, z_high = _range(begin, end, first, starts, ROWS)
        for z in range(z_low, z_high, LANES):
            m = z + tl.arange(0, LANES)[None, :, None]
            re, im = _sum_rows(
                begin,
                end,
                m,
                atom,
                first,
                starts,
                by_axis,
                psi,
                n_atoms,
                n_x,
                n_y,
                n_z,
                TERMS,
            )
            factors = by_atom + (atom * (n_x + n_y + n_z) + n_x + n_y) * 2
            _add_derivatives(re, im, m, factors, graphs == graph, n_z, out, atom, ORDER, TERMS)


@triton.jit
def _range(
    begin: tl.tensor, end: tl.tensor, first: tl.tensor, starts: tl.tensor, ROWS: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """First mode along the third axis of some rows, and the one beyond the last; empty for none."""
    row = begin + tl.arange(0, ROWS)
    present = row < end
    low = tl.load(first + row * 3 + 2, present, 0)
    count = tl.load(starts + row + 1, present, 0) - tl.load(starts + row, present, 0)
    far = 1 << 30
    return tl.min(tl.where(present, low, far)), tl.max(tl.where(present, low + count, -far))


@triton.jit
def _powers(TERMS: tl.constexpr) -> tuple[tl.tensor, ...]:
    """Powers along x and y, those of lower orders first."""
    term = tl.arange(0, TERMS)[:, None, None]
    degree = (term >= 1).to(tl.int32) + (term >= 3).to(tl.int32) + (term >= 6).to(tl.int32)
    degree += (term >= 10).to(tl.int32)
    b = term - degree * (degree + 1) // 2
    return degree - b, b


@triton.jit
def _power(value: tl.tensor, power: tl.tensor) -> tl.tensor:
    """Power from 0 to 3 of a number."""
    first = tl.where(power > 0, value, 1.0)
    return first * tl.where(power > 1, value, 1.0) * tl.where(power > 2, value, 1.0)


@triton.jit
def _sum_rows(
    begin: tl.tensor,
    end: tl.tensor,
    m: tl.tensor,
    atom: tl.tensor,
    first: tl.tensor,
    starts: tl.tensor,
    factors: tl.tensor,
    psi: tl.tensor,
    n_atoms: tl.tensor,
    n_x: tl.tensor,
    n_y: tl.tensor,
    n_z: tl.tensor,
    TERMS: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """sum_xy m_x^a m_y^b psi exp(i (m_x theta_x + m_y theta_y)); (terms, window, atoms)."""
    real = factors.dtype.element_ty
    a, b = _powers(TERMS)
    beyond = (n_x + n_y + n_z).to(tl.int64) * n_atoms
    re = tl.zeros((TERMS, m.shape[1], atom.shape[2]), real)
    im = tl.zeros((TERMS, m.shape[1], atom.shape[2]), real)
    for row in range(begin, end):
        x, y = tl.load(first + row * 3), tl.load(first + row * 3 + 1)
        at_x = factors + tl.abs(x) * n_atoms + atom
        at_y = factors + (n_x + tl.abs(y)) * n_atoms + atom
        xy_re, xy_im = _factor(at_x, at_y, beyond, x, y)
        at, place = tl.load(starts + row), m - tl.load(first + row * 3 + 2)
        inside = (place >= 0) & (place < tl.load(starts + row + 1) - at)
        psi_re = tl.load(psi + (at + place) * 2, inside, 0.0)
        psi_im = tl.load(psi + (at + place) * 2 + 1, inside, 0.0)
        factor = _power(x.to(real), a) * _power(y.to(real), b)
        re += factor * (psi_re * xy_re - psi_im * xy_im)
        im += factor * (psi_re * xy_im + psi_im * xy_re)
    return re, im


@triton.jit
def _add_derivatives(
    re: tl.tensor,
    im: tl.tensor,
    m: tl.tensor,
    factors: tl.tensor,
    present: tl.tensor,
    n_z: tl.tensor,
    out: tl.tensor,
    atom: tl.tensor,
    ORDER: tl.constexpr,
    TERMS: tl.constexpr,
) -> None:
    """Add Re i^n sum_z m_z^c psi exp(i m_z theta_z) to the derivatives at some atoms."""
    count: tl.constexpr = (ORDER + 1) * (ORDER + 2) * (ORDER + 3) // 6
    a, b = _powers(TERMS)
    inside = present & (tl.abs(m) < n_z)
    z_re = tl.load(factors + tl.abs(m) * 2, inside, 0.0)
    z_im = tl.load(factors + tl.abs(m) * 2 + 1, inside, 0.0) * _sign(m)
    w_re, w_im = re * z_re - im * z_im, re * z_im + im * z_re
    own = out + atom * (count * tl.num_programs(1)) + tl.program_id(1)
    for c in tl.static_range(ORDER + 1):
        d = a + b + c
        # Re(i^d w) is Re w, -Im w, -Re w, Im w.
        value = tl.sum(tl.where(d % 2 == 0, w_re, w_im), 1, keep_dims=True)
        value *= tl.where((d % 4 == 1) | (d % 4 == 2), -1.0, 1.0)
        place = d * (d + 1) * (d + 2) // 6 + (b + c) * (b + c + 1) // 2 + c
        target = own + place * tl.num_programs(1)
        tl.atomic_add(target, value, present & (d <= ORDER), sem="relaxed")
        w_re, w_im = w_re * m.to(w_re.dtype), w_im * m.to(w_im.dtype)
