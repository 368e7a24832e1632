"""A hand-written network of PyTorch Geometric with a long-range layer inside.

The network has two message-passing layers. Between them a `SOGLongRange` layer lets each ion
feel the potential and the field of all others, however far away; see charge_network.py, which
is all there is to write. The same network with a third convolution instead is trained beside it.

    python examples/03_pyg_layer.py      # a few minutes on one core

Writes results.json and errors.png into --output.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import figures
import pyg_training
import torch
from charge_network import ChargeNetwork
from coulomb_gas import make_gas

MODELS = {"cutoff only": 0, "long-range layer": 4}  # charges of the layer


def main() -> None:
    """Make the data, train, test and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("demo_output/pyg_layer"))
    parser.add_argument("--boxes", type=int, default=100, help="to train on (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=15, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    print("1/3 Data: boxes of 64 ions with exact Coulomb forces")
    train, test = make_gas(args.boxes, 0, label="train"), make_gas(20, 1, label="test")
    print("2/3 Training")
    plan = pyg_training.Plan(epochs=args.epochs, seed=args.seed)
    history, errors = {}, {}
    for name, num_charges in MODELS.items():
        torch.manual_seed(args.seed)
        model = ChargeNetwork(num_charges=num_charges)
        history[name] = pyg_training.train(model, train, plan, name)
        errors[name] = pyg_training.evaluate(model, test)
    print("3/3 Errors on boxes that were not trained")
    for name, own in errors.items():
        print(f"  {name:20s} forces {own.forces:6.0f} meV/Å, energy {own.energy:6.1f} meV/atom")
    exact = {name: own.exact for name, own in errors.items()}
    said = {name: own.predicted for name, own in errors.items()}
    figures.draw_learning(history, exact, said, args.output / "errors.png")
    results = {name: {"energy": e.energy, "forces": e.forces} for name, e in errors.items()}
    results["units"] = {"energy": "meV/atom", "forces": "meV/Å"}
    (args.output / "results.json").write_text(json.dumps(results, indent=1))
    print(f"Figures and results in {args.output}")


if __name__ == "__main__":
    main()
