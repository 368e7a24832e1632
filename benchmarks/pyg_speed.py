"""Time of the long-range module of PyG against the number of nodes, in both its forms.

Periodic boxes at 0.1 nodes/Å^3, 64 features, float32. "evaluation" is the output alone, "forces"
its first derivative in positions, "training" the gradient of a force loss in the weights.

    python benchmarks/pyg_speed.py                       # about two minutes on one core
    python benchmarks/pyg_speed.py --sizes 1000 100000
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from sog_pyg import LongRangeLayer

CHANNELS = 64
TASKS = ("evaluation", "forces", "training")


def prepare(n_nodes: int, min_width: float, output: str):
    """The tasks for a box of nodes, as functions without arguments."""
    torch.manual_seed(0)
    edge = (10.0 * n_nodes) ** (1 / 3)
    x, places = torch.randn(n_nodes, CHANNELS), edge * torch.rand(n_nodes, 3)
    cell, pbc = edge * torch.eye(3), torch.tensor([True] * 3)
    layer = LongRangeLayer(CHANNELS, 1, output=output, min_width=min_width, tolerance=1e-4)

    def number(pos: Tensor) -> Tensor:
        out = layer(x, pos, cell=cell, pbc=pbc)
        return sum((own * own.sin()).sum() for own in (out if output == "features" else (out,)))

    def forces(*, train: bool = False) -> Tensor:
        pos = places.clone().requires_grad_()
        return torch.autograd.grad(number(pos), pos, create_graph=train)[0]

    def evaluation() -> None:
        with torch.no_grad():
            number(places)

    def training() -> None:
        forces(train=True).square().sum().backward()

    return dict(zip(TASKS, (evaluation, forces, training), strict=True))


def milliseconds(task, repetitions: int) -> float:
    """Median time of a call, after one that does not count."""
    task()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        task()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--min-width", type=float, default=1.2, help="Å (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| nodes | form | " + " | ".join(f"{task}, ms" for task in TASKS) + " |")
    print("|---" * (2 + len(TASKS)) + "|")
    for size in args.sizes:
        for output in ("energy", "features"):
            tasks = prepare(size, args.min_width, output)
            cells = [f"{milliseconds(task, args.repetitions):,.0f}" for task in tasks.values()]
            print(f"| {size:,} | {output} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
