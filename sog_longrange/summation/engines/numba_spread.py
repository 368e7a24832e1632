"""Loops over atoms, compiled by numba for one window width, one dtype and one order.

Atoms are visited slab by slab; slabs of one colour touch no common grid point, so threads need
no locks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from sog_longrange.summation.multipoles import monomials, raised
from sog_longrange.summation.windows import make_window

from .numba_vectors import ROW, address, axpy, dot, fill, horner, inlined, jit, row, scratch

MAX_ORDER: int = 3
"""Highest order of the derivatives that are compiled; higher ones are PyTorch's."""

_TURN = 2.0 * np.pi
_BLOCK = 8


@jit
def sort_atoms(
    phases: np.ndarray, batch: np.ndarray, sizes: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Order of atoms by structure, slab and block, and where each slab begins in it.

    Slabs are at least a window wide and even in number, or one for the whole structure, so
    that slabs of the same parity touch no common node. Every structure begins with an
    even slab; where it has one slab only, an empty one follows.

    Parameters
    ----------
    phases : array, shape (n_atoms, 3), in [0, 2 pi]
    batch : array, shape (n_atoms,), sorted
    sizes : array, shape (n_graphs, 3)
        Number of nodes along each axis.
    width : int
        Of the window.

    Returns
    -------
    order : array, shape (n_atoms,)
    slab_starts : array, shape (n_slabs + 1,)
    """
    n_graphs, n_atoms = len(sizes), len(phases)
    slabs = np.maximum(sizes[:, 0] // max(width, _BLOCK) // 2 * 2, 1)
    first_slab = np.zeros(n_graphs + 1, np.int64)
    first_slab[1:] = np.cumsum(slabs + slabs % 2)
    blocks = (sizes[:, 1] + _BLOCK - 1) // _BLOCK
    first_key = np.zeros(n_graphs + 1, np.int64)
    first_key[1:] = np.cumsum((slabs + slabs % 2) * blocks)
    key = np.empty(n_atoms, np.int64)
    starts = np.zeros(first_key[n_graphs] + 1, np.int64)
    for i in range(n_atoms):
        g = batch[i]
        n_x, n_y = sizes[g, 0], sizes[g, 1]
        x = min(np.int64(phases[i, 0] * (n_x / _TURN)), n_x - 1)
        y = min(np.int64(phases[i, 1] * (n_y / _TURN)), n_y - 1)
        slab = min(x // (n_x // slabs[g]), slabs[g] - 1)
        key[i] = first_key[g] + slab * blocks[g] + y // _BLOCK
        starts[key[i] + 1] += 1
    starts = np.cumsum(starts)
    slab_starts = np.empty(first_slab[n_graphs] + 1, np.int64)
    for g in range(n_graphs):
        for s in range(first_slab[g + 1] - first_slab[g]):
            slab_starts[first_slab[g] + s] = starts[first_key[g] + s * blocks[g]]
    slab_starts[first_slab[n_graphs]] = n_atoms
    order = np.empty(n_atoms, np.int64)
    for i in range(n_atoms):
        order[starts[key[i]]] = i
        starts[key[i]] += 1
    return order, slab_starts


def padded_width(width: int) -> int:
    """Length of the scratch arrays: the next power of two.

    Parameters
    ----------
    width : int

    Returns
    -------
    int
    """
    return 1 << (width - 1).bit_length()


@lru_cache(maxsize=64)
def spread_loop(width: int, dtype: str, order: int) -> Callable[..., None]:
    """Compile the loop that adds the sources of the atoms of some slabs to the grids.

    Parameters
    ----------
    width : int
        Number of grid points along each axis that an atom touches.
    dtype : str
        "float32" or "float64".
    order : int
        Highest order of the sources.

    Returns
    -------
    callable
    """
    real = np.dtype(dtype).type
    padded, o = padded_width(width), order + 1
    n_weights, n_box, places = 3 * o * ROW, o**3, _box_places(order)
    n_rows, n_at = 3 * o, 3 * ROW
    weights, factors = _make_weights(width, dtype, order), _make_factors(dtype, order)
    combine = _make_combine(dtype, order)

    @jit
    def spread(atoms: Any, tasks: Any, phases: Any, sources: Any, *geometry: Any) -> None:
        batch, sizes, starts, c, points = geometry
        zero = real(0.0)
        line, rows = scratch(ROW, zero), scratch(n_weights, zero)
        w = numba.carray(rows, (n_rows, ROW))
        box = numba.carray(scratch(n_box, zero), n_box)
        along_x = numba.carray(scratch(n_box, zero), (o, o))
        values = numba.carray(line, ROW)
        scales = numba.carray(scratch(n_box, zero), n_box)
        at = numba.carray(scratch(n_at, np.int64(0)), (3, ROW))
        flat = points.reshape(-1)
        for task in range(tasks.shape[0]):
            for place in range(tasks[task, 0], tasks[task, 1]):
                i = atoms[place]
                size = sizes[batch[i]]
                for axis in range(3):
                    weights(phases[i, axis], size[axis], c, rows, at, axis)
                factors(size, scales)
                contiguous = at[2, 0] + padded <= size[2]
                for p in range(sources.shape[2]):
                    for m in range(sources.shape[1]):
                        box[places[m]] = sources[i, m, p] * scales[places[m]]
                    base = starts[batch[i]] + p * points.shape[1]
                    for ix in range(width):
                        combine(box, w, ix, along_x)
                        for iy in range(width):
                            start = base + (at[0, ix] * size[1] + at[1, iy]) * size[2]
                            target = line
                            if contiguous:
                                target = address(flat, start + at[2, 0])
                            else:
                                fill(padded, line, zero)
                            for d in range(o):
                                f = zero
                                for b in range(o - d):
                                    f += along_x[b, d] * w[o + b, iy]
                                axpy(padded, target, f, row(rows, 2 * o + d))
                            if not contiguous:
                                for iz in range(width):
                                    flat[start + at[2, iz]] += values[iz]

    return spread


@lru_cache(maxsize=64)
def interpolation_loop(
    width: int, dtype: str, order: int, *, weighted: bool
) -> Callable[..., None]:
    """Compile the loop that takes derivatives of the potentials of some atoms.

    Parameters
    ----------
    width : int
        Number of grid points along each axis that an atom touches.
    dtype : str
        "float32" or "float64".
    order : int
        Highest order of the derivatives.
    weighted : bool
        Whether the phase gradient of a weighted sum of derivatives, one order lower, is wanted
        instead of the derivatives.

    Returns
    -------
    callable
    """
    real = np.dtype(dtype).type
    padded, o = padded_width(width), order + 1
    n_weights, n_sums, n_box, n_at = 3 * o * ROW, o * o * ROW, o**3, 3 * ROW
    weights, factors = _make_weights(width, dtype, order), _make_factors(dtype, order)
    contract = _make_contract(width, dtype, order)
    finish = (_make_gradient if weighted else _make_derivatives)(width, dtype, order)

    @jit
    def interpolate(
        atoms: Any,
        first: Any,
        last: Any,
        phases: Any,
        batch: Any,
        sizes: Any,
        starts: Any,
        c: Any,
        points: Any,
        *target: Any,
    ) -> None:
        zero = real(0.0)
        line, rows = scratch(ROW, zero), scratch(n_weights, zero)
        sums = scratch(n_sums, zero)
        scales = numba.carray(scratch(n_box, zero), n_box)
        at = numba.carray(scratch(n_at, np.int64(0)), (3, ROW))
        fill(padded, line, zero)
        flat = points.reshape(-1)
        for place in range(first, last):
            i = atoms[place]
            g = batch[i]
            size = sizes[g]
            for axis in range(3):
                weights(phases[i, axis], size[axis], c, rows, at, axis)
            factors(size, scales)
            for p in range(points.shape[0]):
                contract(flat, starts[g] + p * points.shape[1], size, at, line, rows, sums)
                finish(i, p, scales, rows, sums, *target)

    return interpolate


def _make_weights(width: int, dtype: str, order: int) -> Callable[..., None]:
    """Weights of the grid points of one axis and derivatives over d!; fills their numbers too.

    Row (order + 1) axis + d of the scratch holds the d-th derivatives.
    """
    real = np.dtype(dtype).type
    padded, o = padded_width(width), order + 1
    window = make_window(width)
    shift, first = real(window.shift), window.first

    @inlined
    def weights(phase: Any, size: Any, c: Any, rows: Any, at: Any, axis: Any) -> None:
        u = phase * real(size / _TURN) + shift
        b = np.floor(u)
        t = u - b
        own = row(rows, o * axis)
        last = c.size // padded - 1
        for d in range(o):
            fill(padded, row(rows, o * axis + d), real(0.0))
        axpy(padded, own, real(1.0), address(c, last * padded))
        for k in range(last - 1, -1, -1):
            for d in range(order, 0, -1):
                horner(padded, row(rows, o * axis + d), t, row(rows, o * axis + d - 1))
            horner(padded, own, t, address(c, k * padded))
        low = np.int64(b) + first
        for i in range(width):
            point = low + i
            if point < 0:
                point += size
            if point >= size:
                point -= size
            at[axis, i] = point

    return weights


def _make_factors(dtype: str, order: int) -> Callable[..., None]:
    """Factors of derivatives per grid spacing over a! b! c! to those per radian, in a box."""
    real = np.dtype(dtype).type
    o = order + 1
    factorials = tuple(real(math.factorial(d)) for d in range(o))

    @inlined
    def factors(size: Any, scales: Any) -> None:
        k_x, k_y, k_z = real(size[0] / _TURN), real(size[1] / _TURN), real(size[2] / _TURN)
        x = real(1.0)
        for a in range(o):
            y = x
            for b in range(o - a):
                z = y
                for d in range(o - a - b):
                    product = factorials[a] * factorials[b] * factorials[d]
                    scales[(a * o + b) * o + d] = z * product
                    z *= k_z
                y *= k_y
            x *= k_x

    return factors


def _make_combine(dtype: str, order: int) -> Callable[..., None]:
    """Sum sources over the powers along x, for the grid points of one plane."""
    real = np.dtype(dtype).type
    o = order + 1

    @inlined
    def combine(box: Any, w: Any, ix: Any, along_x: Any) -> None:
        for b in range(o):
            for d in range(o - b):
                total = real(0.0)
                for a in range(o - b - d):
                    total += box[(a * o + b) * o + d] * w[a, ix]
                along_x[b, d] = total

    return combine


def _make_contract(width: int, dtype: str, order: int) -> Callable[..., None]:
    """Sum over x and y for every grid point along z; row (order + 1) a + b of derivatives."""
    real = np.dtype(dtype).type
    padded, o = padded_width(width), order + 1
    n_weights, n_along = 3 * o, o * ROW

    @inlined
    def contract(flat: Any, base: Any, size: Any, at: Any, line: Any, rows: Any, sums: Any) -> None:
        w, values = numba.carray(rows, (n_weights, ROW)), numba.carray(line, ROW)
        over_y = scratch(n_along, real(0.0))
        contiguous = at[2, 0] + padded <= size[2]
        for a in range(o):
            for b in range(o - a):
                fill(padded, row(sums, o * a + b), real(0.0))
        for ix in range(width):
            for b in range(o):
                fill(padded, row(over_y, b), real(0.0))
            for iy in range(width):
                start = base + (at[0, ix] * size[1] + at[1, iy]) * size[2]
                source = line
                if contiguous:
                    source = address(flat, start + at[2, 0])
                else:
                    for k in range(width):
                        values[k] = flat[start + at[2, k]]
                for b in range(o):
                    axpy(padded, row(over_y, b), w[o + b, iy], source)
            for a in range(o):
                for b in range(o - a):
                    axpy(padded, row(sums, o * a + b), w[a, ix], row(over_y, b))

    return contract


def _make_derivatives(width: int, dtype: str, order: int) -> Callable[..., None]:
    """Store all derivatives of one atom and channel."""
    padded, o = padded_width(width), order + 1
    places, count = _box_places(order), len(monomials(order))

    @inlined
    def derivatives(i: Any, p: Any, scales: Any, rows: Any, sums: Any, out: Any) -> None:
        for m in range(count):
            place = places[m]
            d, ab = place % o, place // o
            out[i, m, p] = dot(padded, row(sums, ab), row(rows, 2 * o + d)) * scales[place]

    return derivatives


def _make_gradient(width: int, dtype: str, order: int) -> Callable[..., None]:
    """Add the gradient of the weighted derivatives of one atom and channel."""
    real = np.dtype(dtype).type
    padded, o = padded_width(width), order + 1
    places, count = _box_places(order), len(monomials(order))
    up, lower = np.array(raised(order - 1), np.int64), len(monomials(order - 1))

    @inlined
    def gradient(i: Any, p: Any, scales: Any, rows: Any, sums: Any, weights: Any, out: Any) -> None:
        own = numba.carray(scratch(count, real(0.0)), count)
        for m in range(1, count):
            place = places[m]
            d, ab = place % o, place // o
            own[m] = dot(padded, row(sums, ab), row(rows, 2 * o + d)) * scales[place]
        for axis in range(3):
            total = real(0.0)
            for m in range(lower):
                total += weights[i, m, p] * own[up[axis, m]]
            out[i, axis] += total

    return gradient


def _box_places(order: int) -> np.ndarray:
    """Places of derivatives in a box of all powers up to the order along each axis."""
    o = order + 1
    return np.array([(a * o + b) * o + c for a, b, c in monomials(order)], np.int64)
