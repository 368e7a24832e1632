"""Measure time and peak memory of an energy and its forces against what the cost model predicts.

Each case runs in a process of its own, which first evaluates a few atoms of the same kind, so
that libraries are loaded and compiled code is ready; what the peak rises by then, counts. Seconds
are those of all threads; predicted are those on the clock, with two cores.

    python benchmarks/memory.py                      # about ten minutes
    python benchmarks/memory.py --quick              # one minute
    python benchmarks/memory.py --case 3 200 mesh float64
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor

from sog_longrange import LongRangeEnergy, SumOfGaussians
from sog_longrange.errors import PerformanceWarning
from sog_longrange.validation import check_structures

TOLERANCE = 1e-4
EMPTY = [(3, edge, "mesh", dtype) for edge in (100, 200, 300) for dtype in ("float32", "float64")]
ORDINARY = [
    (n_atoms, round((10.0 * n_atoms) ** (1 / 3), 1), backend, dtype)
    for n_atoms in (1000, 10_000, 100_000)
    for backend in ("mesh", "dense")
    for dtype in ("float32", "float64")
    if (n_atoms, backend) not in ((10_000, "dense"), (100_000, "dense"))
]
DIRECT = [(3, 60, "dense", "float64"), (4000, 34.2, "dense", "float32")]
QUICK = [(3, 100, "mesh", "float64"), (10_000, 46.4, "mesh", "float32")]
CLEAR_PEAK = Path("/proc/self/clear_refs")

Inputs = tuple[Tensor, ...]


def make_inputs(n_atoms: int, edge: float, dtype: torch.dtype) -> Inputs:
    """Random ions in a cube."""
    generator = torch.Generator().manual_seed(0)
    positions = edge * torch.rand(n_atoms, 3, generator=generator, dtype=torch.float64)
    charges = torch.ones(n_atoms, 1)
    charges[::2] = -1.0
    cell = edge * torch.eye(3)
    return (*(x.to(dtype) for x in (charges, positions, cell)), torch.tensor([True] * 3))


def evaluate(energy: LongRangeEnergy, inputs: Inputs) -> None:
    """Compute energy and forces."""
    charges, positions, cell, pbc = inputs
    positions = positions.clone().requires_grad_()
    out = energy(charges, positions, cell, pbc)
    torch.autograd.grad(out.energy.sum(), positions)


def time_evaluation(energy: LongRangeEnergy, inputs: Inputs) -> float:
    """CPU time of all threads, in s."""
    start = time.process_time()
    evaluate(energy, inputs)
    return time.process_time() - start


def peak_memory() -> float:
    """Largest resident memory of this process since it was cleared, in GB."""
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def clear_peak() -> None:
    """Forget the peak of compilers and imports, where the system can."""
    if CLEAR_PEAK.exists():
        CLEAR_PEAK.write_text("5", encoding="ascii")


def measure(n_atoms: int, edge: float, backend: str, dtype_name: str) -> dict[str, float]:
    """Time and memory of one case, and what was predicted."""
    dtype = getattr(torch, dtype_name)
    energy = LongRangeEnergy(
        SumOfGaussians(min_width=1.0), tolerance=TOLERANCE, backend=backend
    ).to(dtype)
    evaluate(energy, make_inputs(10, 10.0, dtype))
    inputs = make_inputs(n_atoms, edge, dtype)
    choice = energy.choices(inputs[0], check_structures(inputs[1], *inputs[2:]))[0]
    clear_peak()
    before = peak_memory()
    seconds = min(time_evaluation(energy, inputs) for _ in range(2))
    return {
        "seconds": seconds,
        "predicted_seconds": choice.costs[backend] / 1000.0,
        "gb": peak_memory() - before,
        "predicted_gb": choice.memory[backend] / 1e9,
    }


def run(case: tuple[int, float, str, str]) -> dict[str, float]:
    """Measure a case in a fresh process."""
    command = [sys.executable, __file__, "--case", *map(str, case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--case", nargs=4, metavar=("ATOMS", "EDGE", "BACKEND", "DTYPE"))
    parser.add_argument("--quick", action="store_true", help="two cases only")
    options = parser.parse_args()
    if options.case:
        warnings.simplefilter("ignore", PerformanceWarning)
        n_atoms, edge, backend, dtype = options.case
        print(json.dumps(measure(int(n_atoms), float(edge), backend, dtype)))
        return
    print("|  atoms | edge, Å | backend | dtype   | GB (predicted)  | CPU s (pred. s) |")
    print("|---|---|---|---|---|---|")
    for case in QUICK if options.quick else EMPTY + ORDINARY + DIRECT:
        x = run(case)
        memory = f"{x['gb']:.3f} ({x['predicted_gb']:.3f})"
        seconds = f"{x['seconds']:.3f} ({x['predicted_seconds']:.3f})"
        print(
            f"| {case[0]:6} | {case[1]:7} | {case[2]:7} | {case[3]} | {memory:15} | {seconds:15} |"
        )


if __name__ == "__main__":
    main()
