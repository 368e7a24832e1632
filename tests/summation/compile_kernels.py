"""Compile the Triton kernels for a GPU that need not be there: python compile_kernels.py.

The interpreter accepts what the compiler does not.
"""

from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sog_longrange.summation.engines import (
    triton_direct,
    triton_engine,
    triton_grids,
    triton_table,
)
from sog_longrange.summation.grids import Grids
from sog_longrange.summation.kernel_table import choose_intervals
from sog_longrange.summation.multipoles import monomials
from sog_longrange.summation.rows import sphere_rows

TARGET = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
done = set()


def compile_instead(kernel, grid, /, *args, num_warps, **constants):
    """Compile what is to be launched, once for each set of types and constants."""
    names = kernel.arg_names
    signature = {
        name: TYPES[value.dtype] if torch.is_tensor(value) else "i32"
        for name, value in zip(names, args, strict=False)
    }
    signature |= dict.fromkeys(constants, "constexpr")
    key = (kernel.__name__, *signature.items(), *constants.items())
    if key in done:
        return
    done.add(key)
    source = ASTSource(kernel, {name: signature[name] for name in names}, constants)
    triton.compile(source, target=TARGET, options={"num_warps": num_warps})
    types = " ".join(sorted(set(signature.values())))
    print(kernel.__name__, types, constants, flush=True)


def run(dtype):
    cells = torch.diag(torch.tensor([4.0, 5.0, 6.0], dtype=torch.float64))[None]
    rows = sphere_rows(cells.numpy(), 3.0)
    phases, batch = torch.rand(40, 3, dtype=dtype), torch.zeros(40, dtype=torch.int64)
    intervals = choose_intervals(6.0, 3.0, dtype)
    u = torch.zeros(1, intervals.rows, intervals.degree + 1, dtype=dtype)
    own = triton_table.TritonSampler(intervals, rows)
    for extra in ((), (u.clone(), cells.to(dtype))):
        own.values(u, cells.to(dtype), *extra)
        own.gradients(torch.zeros(1, rows.total, dtype=dtype), u, cells.to(dtype), *extra)
    sums = triton_direct.TritonDirect(rows, phases, batch)
    grids = Grids(((8, 8, 8),), 5)
    spreader = triton_engine.TritonSpreader(grids, phases, batch)
    for order in (0, 2):
        sources = torch.zeros(40, len(monomials(order)), 1, dtype=dtype)
        sums.interpolate(sums.spread(sources), order)
        spreader.interpolate(spreader.spread(sources), order)


def main():
    modules = (triton_direct, triton_engine, triton_grids, triton_table)
    for module in modules:
        mock.patch.object(module, "launch", compile_instead).start()
    for dtype in (torch.float32, torch.float64):
        run(dtype)


if __name__ == "__main__":
    main()
