"""Vectors of constant length for loops that numba compiles.

Scratch arrays live on the stack with constant lengths, padded to whole vectors, so that
LLVM keeps them in vector registers. All functions release the GIL: threads are Python's own,
as many as PyTorch uses, and need no threading layer of numba.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .numba_progress import progress

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "fastmath": True,
    "error_model": "numpy",
    "boundscheck": False,
}


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function, once for all processes where there is a place to keep it.

    Parameters
    ----------
    function : callable

    Returns
    -------
    callable
    """
    watched = progress()
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder can be written to
        watched.kept = False
        return numba.njit(**_OPTIONS)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function into its callers, under a name that is the same in every process.

    Numba gives random identities to functions, which would spoil the cache of their callers.

    Parameters
    ----------
    function : callable

    Returns
    -------
    callable
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


ROW: int = 16
"""Length of a row of scratch memory."""

_ALIGNMENT = 64
_FAST = ("fast",)


@_intrinsic(prefer_literal=True)
def scratch(typing_context: Any, length: Any, like: Any) -> Any:
    """Pointer to an aligned array on the stack, of constant length and the type of `like`.

    Parameters
    ----------
    length : int
        A literal.
    like : number

    Returns
    -------
    pointer
    """
    kind = like.literal_type if isinstance(like, types.Literal) else like

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value_type = context.get_data_type(kind)
        pointer = cgutils.alloca_once(builder, ir.ArrayType(value_type, length.literal_value))
        pointer.align = _ALIGNMENT
        return builder.bitcast(pointer, value_type.as_pointer())

    return types.CPointer(kind)(length, like), codegen


@_intrinsic
def address(typing_context: Any, array: Any, index: Any) -> Any:
    """Pointer to an element of a contiguous one-dimensional array.

    Parameters
    ----------
    array : array
    index : int

    Returns
    -------
    pointer
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.gep(data, [args[1]])

    return types.CPointer(array.dtype)(array, types.int64), codegen


@_intrinsic
def row(typing_context: Any, pointer: Any, number: Any) -> Any:
    """Pointer to a row of scratch memory.

    Parameters
    ----------
    pointer : pointer
    number : int

    Returns
    -------
    pointer
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        length = ir.Constant(args[1].type, ROW)
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
def fill(typing_context: Any, length: Any, y: Any, a: Any) -> Any:
    """Set a vector to a number: y = a.

    Parameters
    ----------
    length : int
        A literal, as in the functions below.
    y : pointer
    a : number

    Returns
    -------
    None
    """
    n = length.literal_value
    kind = y.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where, _ = _vector(builder, args[1], n)
        builder.store(_splat(builder, args[2], n), where, align=4)
        return context.get_dummy_value()

    return types.void(length, y, kind), codegen


@_intrinsic(prefer_literal=True)
def axpy(typing_context: Any, length: Any, y: Any, a: Any, x: Any) -> Any:
    """Add a multiple of a vector to another: y += a x.

    Parameters
    ----------
    length : int
    y : pointer
    a : number
    x : pointer

    Returns
    -------
    None
    """
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
def horner(typing_context: Any, length: Any, y: Any, t: Any, x: Any) -> Any:
    """One step of Horner's rule: y = y t + x.

    Parameters
    ----------
    length : int
    y : pointer
    t : number
    x : pointer

    Returns
    -------
    None
    """
    n = length.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where, old = _vector(builder, args[1], n)
        term = builder.fmul(old, _splat(builder, args[2], n), flags=_FAST)
        new = builder.fadd(term, _vector(builder, args[3], n)[1], flags=_FAST)
        builder.store(new, where, align=4)
        return context.get_dummy_value()

    return types.void(length, y, y.dtype, x), codegen


@_intrinsic(prefer_literal=True)
def dot(typing_context: Any, length: Any, x: Any, y: Any) -> Any:
    """Inner product of two vectors.

    Parameters
    ----------
    length : int
    x, y : pointer

    Returns
    -------
    number
    """
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
def reinterpret(typing_context: Any, value: Any, like: Any) -> Any:
    """Read the bits of a number as a number of another type of the same size.

    Parameters
    ----------
    value : number
    like : number

    Returns
    -------
    number
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_data_type(like))

    return like(value, like), codegen
