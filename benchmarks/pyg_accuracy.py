"""A network of two layers with and without a long-range layer: same size, data and budget.

Both are trained on a gas of ±1 ions with exact Coulomb forces, which is made here. The network
without has a third convolution in the place of the long-range layer, so that it has more
parameters and sees farther than any of its layers. Writes a table, and the figures as JSON.

    python benchmarks/pyg_accuracy.py            # about ten minutes on one core
    python benchmarks/pyg_accuracy.py --epochs 10 --boxes 100
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from workbench import pyg_training
from workbench.charge_network import ChargeNetwork
from workbench.coulomb_gas import Recipe, make_gas

MODELS = {"cutoff only": 0, "with long-range layer": 4}  # charges of the layer
TESTS = {
    "same kind": (40, Recipe()),
    "512 ions": (3, Recipe(num_ions=512)),
    "half as dense": (20, Recipe(volume=54.0)),
}


def run(args: argparse.Namespace) -> dict:
    """Train both networks and return their errors."""
    print("Making the data")
    train = make_gas(args.boxes, seed=0, label="train")
    tests = {
        name: make_gas(count, seed=1 + i, recipe=recipe, label=name)
        for i, (name, (count, recipe)) in enumerate(TESTS.items())
    }
    plan = pyg_training.Plan(epochs=args.epochs, seed=args.seed)
    results = {}
    for name, num_charges in MODELS.items():
        torch.manual_seed(args.seed)
        model = ChargeNetwork(args.channels, args.cutoff, num_charges)
        seconds = pyg_training.timed_training(model, train, plan, name)
        errors = {test: pyg_training.evaluate(model, data) for test, data in tests.items()}
        results[name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": round(seconds),
            "errors": {t: {"energy": e.energy, "forces": e.forces} for t, e in errors.items()},
        }
    return results


def markdown(results: dict) -> str:
    """The errors of both networks as a Markdown table."""
    first, second = results
    lines = [
        f"| test | energy, meV/atom: {first} | {second} "
        f"| force, meV/Å: {first} | {second} | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for test in results[first]["errors"]:
        bare, long_range = (results[name]["errors"][test] for name in (first, second))
        cells = [test, f"{bare['energy']:.1f}", f"{long_range['energy']:.1f}"]
        cells += [f"{bare['forces']:.1f}", f"{long_range['forces']:.1f}"]
        cells += [f"{bare['forces'] / long_range['forces']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--boxes", type=int, default=200, help="training structures (default: %(default)s)")
    add("--epochs", type=int, default=30, help="of both networks (default: %(default)s)")
    add("--channels", type=int, default=32, help="of both networks (default: %(default)s)")
    add("--cutoff", type=float, default=5.0, help="of both networks, Å (default: %(default)s)")
    add("--seed", type=int, default=1, help="of both networks (default: %(default)s)")
    add("--output", type=Path, default=Path("benchmark_output/pyg_accuracy"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    results = run(args)
    table = markdown(results)
    (args.output / "results.json").write_text(json.dumps(results, indent=2))
    (args.output / "table.md").write_text(table + "\n")
    print(f"\n{table}\n")
    for name, result in results.items():
        print(f"{name}: {result['parameters']} parameters, {result['seconds']} s of training")
    worst = min(
        results["cutoff only"]["errors"][t]["forces"] / e["forces"]
        for t, e in results["with long-range layer"]["errors"].items()
    )
    print(f"Smallest ratio of force errors: {worst:.1f}. Files in {args.output}")


if __name__ == "__main__":
    main()
