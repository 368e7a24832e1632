"""The inner loops of the mesh, compiled by numba for one window width and one dtype.

Scratch arrays live on the stack with constant lengths, padded to whole vectors, so that
LLVM keeps them in vector registers. Atoms are visited slab by slab; slabs of one colour
touch no common node, so threads need no locks. All functions release the GIL: threads are
Python's own, as many as PyTorch uses, and need no threading layer of numba.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from sog_longrange.summation.windows import make_window

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "fastmath": True,
    "error_model": "numpy",
    "boundscheck": False,
}


def _jit(function: Callable[..., Any]) -> Any:
    """Compile a function, once for all processes where there is a place to keep it."""
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder can be written to
        return numba.njit(**_OPTIONS)(function)


def _inlined(function: Callable[..., Any]) -> Any:
    """Compile a function into its callers, under a name that is the same in every process.

    Numba gives random identities to functions, which would spoil the cache of their callers.
    """
    compiled = numba.njit(forceinline=True, **_OPTIONS)(function)
    constants = [cell.cell_contents for cell in function.__closure__ or ()]
    names = [getattr(value, "_uuid", None) or repr(value) for value in constants]
    compiled._set_uuid(f"{function.__module__}.{function.__qualname__}{names}")
    return compiled


def _intrinsic(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Define an intrinsic, under a name that is the same in every process."""
    if function is None:
        return lambda function: _intrinsic(function, **options)
    defined = intrinsic(**options)(function) if options else intrinsic(function)
    defined._set_uuid(f"{function.__module__}.{function.__qualname__}")
    return defined


_TURN = 2.0 * np.pi
_BLOCK = 8
_ROW = 16
_THREE_ROWS, _SIX_ROWS, _NINE_ROWS = 3 * _ROW, 6 * _ROW, 9 * _ROW
_ALIGNMENT = 64
_FAST = ("fast",)


class MeshLoops(NamedTuple):
    """Compiled loops over atoms; see the functions that :func:`mesh_loops` makes."""

    spread: Callable[..., None]
    spread_dipoles: Callable[..., None]
    gather: Callable[..., None]
    gather_hessian: Callable[..., None]


@_intrinsic(prefer_literal=True)
def _scratch(typing_context: Any, length: Any, like: Any) -> Any:
    """Pointer to an aligned array on the stack, of constant length and the type of `like`."""
    kind = like.literal_type if isinstance(like, types.Literal) else like

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value_type = context.get_data_type(kind)
        pointer = cgutils.alloca_once(builder, ir.ArrayType(value_type, length.literal_value))
        pointer.align = _ALIGNMENT
        return builder.bitcast(pointer, value_type.as_pointer())

    return types.CPointer(kind)(length, like), codegen


@_intrinsic
def _address(typing_context: Any, array: Any, index: Any) -> Any:
    """Pointer to an element of a contiguous one-dimensional array."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.gep(data, [args[1]])

    return types.CPointer(array.dtype)(array, types.int64), codegen


@_intrinsic
def _row(typing_context: Any, pointer: Any, number: Any) -> Any:
    """Pointer to a row of scratch memory."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        length = ir.Constant(args[1].type, _ROW)
        return builder.gep(args[0], [builder.mul(args[1], length)])

    return pointer(pointer, types.int64), codegen


def _vector(builder: Any, pointer: Any, length: int) -> Any:
    """Read a vector where a pointer points, aligned as its elements are."""
    element = pointer.type.pointee
    vector = builder.bitcast(pointer, ir.VectorType(element, length).as_pointer())
    return vector, builder.load(vector, align=4)


def _splat(builder: Any, value: Any, length: int) -> Any:
    lane = ir.Constant(ir.IntType(32), 0)
    vector = builder.insert_element(
        ir.Constant(ir.VectorType(value.type, length), ir.Undefined), value, lane
    )
    mask = ir.Constant(ir.VectorType(ir.IntType(32), length), [0] * length)
    return builder.shuffle_vector(vector, vector, mask)


@_intrinsic(prefer_literal=True)
def _fill(typing_context: Any, length: Any, y: Any, a: Any) -> Any:
    """Set a vector to a number: y = a."""
    n = length.literal_value
    kind = y.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where, _ = _vector(builder, args[1], n)
        builder.store(_splat(builder, args[2], n), where, align=4)
        return context.get_dummy_value()

    return types.void(length, y, kind), codegen


@_intrinsic(prefer_literal=True)
def _axpy(typing_context: Any, length: Any, y: Any, a: Any, x: Any) -> Any:
    """Add a multiple of a vector to another: y += a x."""
    n = length.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where, old = _vector(builder, args[1], n)
        term = builder.fmul(
            _splat(builder, args[2], n), _vector(builder, args[3], n)[1], flags=_FAST
        )
        builder.store(builder.fadd(old, term, flags=_FAST), where, align=4)
        return context.get_dummy_value()

    return types.void(length, y, y.dtype, x), codegen


@_intrinsic(prefer_literal=True)
def _horner(typing_context: Any, length: Any, y: Any, t: Any, x: Any) -> Any:
    """One step of Horner's rule: y = y t + x."""
    n = length.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where, old = _vector(builder, args[1], n)
        term = builder.fmul(old, _splat(builder, args[2], n), flags=_FAST)
        new = builder.fadd(term, _vector(builder, args[3], n)[1], flags=_FAST)
        builder.store(new, where, align=4)
        return context.get_dummy_value()

    return types.void(length, y, y.dtype, x), codegen


@_intrinsic(prefer_literal=True)
def _dot(typing_context: Any, length: Any, x: Any, y: Any) -> Any:
    """Inner product of two vectors."""
    n = length.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        product = builder.fmul(
            _vector(builder, args[1], n)[1], _vector(builder, args[2], n)[1], flags=_FAST
        )
        half = n
        while half > 1:
            half //= 2
            low = ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(half)))
            high = ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(half, 2 * half)))
            product = builder.fadd(
                builder.shuffle_vector(product, product, low),
                builder.shuffle_vector(product, product, high),
                flags=_FAST,
            )
        return builder.extract_element(product, ir.Constant(ir.IntType(32), 0))

    return x.dtype(length, x, y), codegen


@_intrinsic
def _reinterpret(typing_context: Any, value: Any, like: Any) -> Any:
    """Read the bits of a number as a number of another type of the same size."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_data_type(like))

    return like(value, like), codegen


@_jit
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


@lru_cache(maxsize=32)
def mesh_loops(width: int, dtype: str) -> MeshLoops:
    """Compile the loops over atoms for one window width and dtype.

    Parameters
    ----------
    width : int
        Number of nodes along each axis that an atom touches.
    dtype : str
        "float32" or "float64".

    Returns
    -------
    MeshLoops
    """
    return MeshLoops(
        _make_spread(width, dtype, dipoles=False),
        _make_spread(width, dtype, dipoles=True),
        _make_gather(width, dtype, order=1),
        _make_gather(width, dtype, order=2),
    )


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


def _make_weights(width: int, dtype: str, order: int) -> Callable[..., None]:
    """Weights of the nodes of one axis and their derivatives; fills the nodes' numbers too.

    Rows 3 axis + d of the scratch hold the d-th derivatives, the second ones halved.
    """
    real = np.dtype(dtype).type
    padded = padded_width(width)
    window = make_window(width)
    shift, first = real(window.shift), window.first

    @_inlined
    def weights(phase: Any, size: Any, c: Any, w: Any, nodes: Any, axis: Any) -> None:
        u = phase * real(size / _TURN) + shift
        b = np.floor(u)
        t = u - b
        row = _row(w, 3 * axis)
        last = c.size // padded - 1
        for d in range(order + 1):
            _fill(padded, _row(w, 3 * axis + d), real(0.0))
        _axpy(padded, row, real(1.0), _address(c, last * padded))
        for k in range(last - 1, -1, -1):
            for d in range(order, 0, -1):
                _horner(padded, _row(w, 3 * axis + d), t, _row(w, 3 * axis + d - 1))
            _horner(padded, row, t, _address(c, k * padded))
        low = np.int64(b) + first
        for i in range(width):
            node = low + i
            if node < 0:
                node += size
            if node >= size:
                node -= size
            nodes[axis, i] = node

    return weights


def _make_spread(width: int, dtype: str, *, dipoles: bool) -> Callable[..., None]:
    """Add the charges (and dipoles) of the atoms of some slabs to the meshes."""
    real = np.dtype(dtype).type
    padded = padded_width(width)
    weights = _make_weights(width, dtype, 1 if dipoles else 0)

    @_jit
    def spread(
        order: Any, tasks: Any, phases: Any, charges: Any, slopes: Any, *geometry: Any
    ) -> None:
        batch, sizes, starts, c, nodes = geometry
        zero = real(0.0)
        line, scratch = _scratch(_ROW, zero), _scratch(_NINE_ROWS, zero)
        w, values = numba.carray(scratch, (9, _ROW)), numba.carray(line, _ROW)
        at = numba.carray(_scratch(_THREE_ROWS, np.int64(0)), (3, _ROW))
        flat = nodes.reshape(-1)
        for task in range(tasks.shape[0]):
            for place in range(tasks[task, 0], tasks[task, 1]):
                i = order[place]
                g = batch[i]
                n_x, n_y, n_z = sizes[g, 0], sizes[g, 1], sizes[g, 2]
                for axis in range(3):
                    weights(phases[i, axis], sizes[g, axis], c, scratch, at, axis)
                contiguous = at[2, 0] + padded <= n_z
                for p in range(charges.shape[1]):
                    if dipoles:
                        d_x = slopes[i, 0, p] * real(n_x / _TURN)
                        d_y = slopes[i, 1, p] * real(n_y / _TURN)
                        d_z = slopes[i, 2, p] * real(n_z / _TURN)
                    base = starts[g] + p * nodes.shape[1]
                    for ix in range(width):
                        a = charges[i, p] * w[0, ix]
                        if dipoles:
                            a += d_x * w[1, ix]
                        for iy in range(width):
                            f = a * w[3, iy]
                            if dipoles:
                                f += w[0, ix] * d_y * w[4, iy]
                            row = base + (at[0, ix] * n_y + at[1, iy]) * n_z
                            target = line
                            if contiguous:
                                target = _address(flat, row + at[2, 0])
                            else:
                                _fill(padded, line, zero)
                            _axpy(padded, target, f, _row(scratch, 6))
                            if dipoles:
                                _axpy(padded, target, w[0, ix] * w[3, iy] * d_z, _row(scratch, 7))
                            if not contiguous:
                                for iz in range(width):
                                    flat[row + at[2, iz]] += values[iz]

    return spread


def _make_gather(width: int, dtype: str, *, order: int) -> Callable[..., None]:
    """Value and slope (order 1), or second derivatives times a direction (order 2)."""
    real = np.dtype(dtype).type
    padded = padded_width(width)
    weights = _make_weights(width, dtype, order)
    contract = _make_contract(width, dtype, order)
    finish = (_make_slope if order == 1 else _make_product)(padded, real)

    @_jit
    def gather(
        order: Any,
        first: Any,
        last: Any,
        phases: Any,
        batch: Any,
        sizes: Any,
        starts: Any,
        c: Any,
        nodes: Any,
        *target: Any,
    ) -> None:
        zero = real(0.0)
        line, scratch = _scratch(_ROW, zero), _scratch(_NINE_ROWS, zero)
        sums = _scratch(_SIX_ROWS, zero)
        at = numba.carray(_scratch(_THREE_ROWS, np.int64(0)), (3, _ROW))
        _fill(padded, line, zero)
        flat = nodes.reshape(-1)
        for place in range(first, last):
            i = order[place]
            g = batch[i]
            size = sizes[g]
            for axis in range(3):
                weights(phases[i, axis], size[axis], c, scratch, at, axis)
            for p in range(nodes.shape[0]):
                contract(flat, starts[g] + p * nodes.shape[1], size, at, line, scratch, sums)
                finish(i, p, size, scratch, sums, *target)

    return gather


def _make_contract(width: int, dtype: str, order: int) -> Callable[..., None]:
    """Sum over x and y for every node of z: rows 1, x, y, xx, xy, yy of derivatives."""
    real = np.dtype(dtype).type
    padded = padded_width(width)
    n_sums = 3 if order == 1 else 6

    @_inlined
    def contract(
        flat: Any, base: Any, size: Any, at: Any, line: Any, scratch: Any, sums: Any
    ) -> None:
        w, values = numba.carray(scratch, (9, _ROW)), numba.carray(line, _ROW)
        over_y = _scratch(_THREE_ROWS, real(0.0))
        contiguous = at[2, 0] + padded <= size[2]
        for d in range(n_sums):
            _fill(padded, _row(sums, d), real(0.0))
        for ix in range(width):
            for d in range(order + 1):
                _fill(padded, _row(over_y, d), real(0.0))
            for iy in range(width):
                row = base + (at[0, ix] * size[1] + at[1, iy]) * size[2]
                source = line
                if contiguous:
                    source = _address(flat, row + at[2, 0])
                else:
                    for k in range(width):
                        values[k] = flat[row + at[2, k]]
                for d in range(order + 1):
                    _axpy(padded, _row(over_y, d), w[3 + d, iy], source)
            _axpy(padded, _row(sums, 0), w[0, ix], _row(over_y, 0))
            _axpy(padded, _row(sums, 1), w[1, ix], _row(over_y, 0))
            _axpy(padded, _row(sums, 2), w[0, ix], _row(over_y, 1))
            if order > 1:
                _axpy(padded, _row(sums, 3), w[2, ix], _row(over_y, 0))
                _axpy(padded, _row(sums, 4), w[1, ix], _row(over_y, 1))
                _axpy(padded, _row(sums, 5), w[0, ix], _row(over_y, 2))

    return contract


def _make_slope(padded: int, real: Any) -> Callable[..., None]:
    @_inlined
    def slope(
        i: Any, p: Any, size: Any, scratch: Any, sums: Any, value: Any, gradient: Any
    ) -> None:
        z0, z1 = _row(scratch, 6), _row(scratch, 7)
        value[i, p] = _dot(padded, _row(sums, 0), z0)
        gradient[i, 0, p] = _dot(padded, _row(sums, 1), z0) * real(size[0] / _TURN)
        gradient[i, 1, p] = _dot(padded, _row(sums, 2), z0) * real(size[1] / _TURN)
        gradient[i, 2, p] = _dot(padded, _row(sums, 0), z1) * real(size[2] / _TURN)

    return slope


def _make_product(padded: int, real: Any) -> Callable[..., None]:
    @_inlined
    def product(
        i: Any, p: Any, size: Any, scratch: Any, sums: Any, direction: Any, result: Any
    ) -> None:
        z0, z1, z2 = _row(scratch, 6), _row(scratch, 7), _row(scratch, 8)
        k_x, k_y, k_z = real(size[0] / _TURN), real(size[1] / _TURN), real(size[2] / _TURN)
        a, b, e = direction[i, 0] * k_x, direction[i, 1] * k_y, direction[i, 2] * k_z
        xx = real(2.0) * _dot(padded, _row(sums, 3), z0)
        yy = real(2.0) * _dot(padded, _row(sums, 5), z0)
        zz = real(2.0) * _dot(padded, _row(sums, 0), z2)
        xy = _dot(padded, _row(sums, 4), z0)
        xz = _dot(padded, _row(sums, 1), z1)
        yz = _dot(padded, _row(sums, 2), z1)
        result[i, 0, p] = (xx * a + xy * b + xz * e) * k_x
        result[i, 1, p] = (xy * a + yy * b + yz * e) * k_y
        result[i, 2, p] = (xz * a + yz * b + zz * e) * k_z

    return product


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

    @_inlined
    def locate(k2: Any, base: Any, rows: Any) -> Any:
        number = _reinterpret(k2, integer(0))
        row = np.int64(number >> shift) - (base - 1)
        row = min(max(row, 0), rows - 1)
        t = real(integer(number & low_bits)) * scale - real(0.5)
        power = _reinterpret(integer((number >> mantissa) << mantissa), real(0.0))
        inverse = per_octave / power if k2 > real(0.0) else real(0.0)
        return row, t, inverse

    return locate


def _make_polynomial(dtype: str, degree: int, order: int) -> Callable[..., Any]:
    """Differentiate a polynomial of given degree in k^2."""
    real = np.dtype(dtype).type
    scales = tuple(real(math.perm(power, order)) for power in range(degree + 1))

    @_inlined
    def polynomial(c: Any, at: Any, t: Any, inverse: Any) -> Any:
        value = real(0.0)
        for power in range(degree, order - 1, -1):
            value = value * t + scales[power] * c[at + power]
        for _ in range(order):
            value *= inverse
        return value

    return polynomial


@_inlined
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

    @_jit
    def values(tasks: Any, geometry: Any, point: Any, out: Any) -> None:
        base, shapes, offsets, starts, modes, factors = geometry
        b, u, c, direction = point
        channels, rows = u.shape[0], u.shape[1]
        flat_u, flat_c = u.reshape(-1), c.reshape(-1)
        for task in range(tasks.shape[0]):
            g, ix = tasks[task, 0], tasks[task, 1]
            n_y, n_z = shapes[g, 1], shapes[g, 2]
            o_x, o_y, o_z = offsets[g, 0], offsets[g, 1], offsets[g, 2]
            m_x = modes[o_x + ix]
            for iy in range(n_y):
                m_y = modes[o_y + iy]
                factor = factors[o_x + ix] * factors[o_y + iy]
                at = starts[g] + (ix * n_y + iy) * n_z
                for iz in range(n_z):
                    m_z = modes[o_z + iz]
                    x, y, z = _combine(m_x, m_y, m_z, b[g])
                    row, t, inverse = locate(x * x + y * y + z * z, base, rows)
                    if row == rows - 1:
                        for p in range(channels):
                            out[p, at + iz] = real(0.0)
                        continue
                    along = real(0.0)
                    if directed:
                        e_x, e_y, e_z = _combine(m_x, m_y, m_z, direction[g])
                        along = real(2.0) * (x * e_x + y * e_y + z * e_z)
                    for p in range(channels):
                        entry = (p * rows + row) * stride
                        value = value_of(flat_u, entry, t, inverse)
                        if directed:
                            value += slope_of(flat_c, entry, t, inverse) * along
                        out[p, at + iz] = factor * factors[o_z + iz] * value

    return values


def _make_gradients(
    dtype: str, degree: int, directed: bool, locate: Callable[..., Any]
) -> Callable[..., None]:
    real = np.dtype(dtype).type
    two = real(2.0)
    one_mode = _make_mode_gradient(dtype, degree, directed)

    @_jit
    def gradients(
        tasks: Any, geometry: Any, point: Any, grad: Any, by_coefficients: Any, by_cell: Any
    ) -> None:
        base, shapes, offsets, starts, modes, factors = geometry
        b, u, c, direction = point
        rows = u.shape[1]
        flats = (u.reshape(-1), c.reshape(-1), by_coefficients.reshape(-1))
        for task in range(tasks.shape[0]):
            g, ix = tasks[task, 0], tasks[task, 1]
            n_y, n_z = shapes[g, 1], shapes[g, 2]
            o_x, o_y, o_z = offsets[g, 0], offsets[g, 1], offsets[g, 2]
            m_x = modes[o_x + ix]
            for iy in range(n_y):
                m_y = modes[o_y + iy]
                factor = factors[o_x + ix] * factors[o_y + iy]
                at = starts[g] + (ix * n_y + iy) * n_z
                # Sums over the row of modes: of vectors, and of m_z times them.
                s_x = s_y = s_z = w_x = w_y = w_z = real(0.0)
                for iz in range(n_z):
                    m_z = modes[o_z + iz]
                    x, y, z = _combine(m_x, m_y, m_z, b[g])
                    place = locate(x * x + y * y + z * z, base, rows)
                    if place[0] == rows - 1:
                        continue
                    e_x = e_y = e_z = real(0.0)
                    if directed:
                        e_x, e_y, e_z = _combine(m_x, m_y, m_z, direction[g])
                    along = two * (x * e_x + y * e_y + z * e_z)
                    weight = two * factor * factors[o_z + iz]
                    first, second = one_mode(grad, at + iz, weight, along, place, rows, flats)
                    h_x, h_y, h_z = (
                        first * x + second * e_x,
                        first * y + second * e_y,
                        first * z + second * e_z,
                    )
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

    @_inlined
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
