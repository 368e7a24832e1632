"""A SchNet of PyTorch Geometric learns a gas of ions, once its energy has a long-range part.

PyG's SchNet knows no cells and nothing beyond its cutoff. Here it gets both without an edit: a
periodic graph, and `WithLongRange` around it. The same SchNet without the long-range part is
trained beside it. The data are made here, with exact Coulomb forces.

    python examples/02_pyg_schnet.py      # a few minutes on one core

Writes results.json and errors.png into --output.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import figures
import numpy as np
import pyg_training
import torch
from coulomb_gas import make_gas
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import SchNet

from sog_pyg import PeriodicGraph, SOGLongRange, WithLongRange

CUTOFF = 5.0  # Å


class PeriodicSchNet(nn.Module):
    """SchNet alone, in periodic cells."""

    def __init__(self, schnet: SchNet) -> None:
        super().__init__()
        self.schnet = schnet

    def forward(
        self, z: Tensor, pos: Tensor, batch: Tensor, cell: Tensor, pbc: Tensor, batch_size: int
    ) -> Tensor:
        """Energies [B, 1], as `energy_forces_stress` asks for."""
        with self.schnet.interaction_graph.at(cell, pbc, batch, batch_size):
            return self.schnet(z, pos, batch)


def make_schnet() -> SchNet:
    """A small SchNet that sees neighbours through periodic boundaries."""
    sizes = {"hidden_channels": 48, "num_filters": 48, "num_interactions": 2, "num_gaussians": 32}
    return SchNet(**sizes, cutoff=CUTOFF, interaction_graph=PeriodicGraph(CUTOFF))


def make_models(seed: int) -> dict[str, nn.Module]:
    """The two competitors, from the same random weights."""
    torch.manual_seed(seed)
    bare = PeriodicSchNet(make_schnet())
    torch.manual_seed(seed)
    # One charge for each ion, neutral in sum, as the gas is.
    long_range = SOGLongRange(num_charges=1, charge_constraint="neutral", tolerance=1e-4)
    return {"SchNet": bare, "SchNet + long range": WithLongRange(make_schnet(), long_range)}


def learned_charges(model: WithLongRange, data: list[Data]) -> tuple[np.ndarray, np.ndarray]:
    """True and learned charges of all ions; they act in pairs, so their common sign is free."""
    with torch.no_grad():
        found = [model.charges(box.z, box.pos, None, box.cell, box.pbc)[:, 0] for box in data]
    true = torch.cat([box.charge for box in data]).numpy()
    learned = torch.cat(found).numpy()
    return true, learned * np.sign(np.dot(true, learned))


def main() -> None:
    """Make the data, train, test and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("demo_output/pyg_schnet"))
    parser.add_argument("--boxes", type=int, default=100, help="to train on (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    print("1/3 Data: boxes of 64 ions with exact Coulomb forces")
    train, test = make_gas(args.boxes, 0, label="train"), make_gas(20, 1, label="test")
    print("2/3 Training")
    plan = pyg_training.Plan(epochs=args.epochs, seed=args.seed, rate=5e-3)
    models = make_models(args.seed)
    history = {name: pyg_training.train(m, train, plan, name) for name, m in models.items()}
    print("3/3 Errors on boxes that were not trained")
    errors = {name: pyg_training.evaluate(model, test) for name, model in models.items()}
    for name, own in errors.items():
        print(f"  {name:20s} forces {own.forces:6.0f} meV/Å, energy {own.energy:6.1f} meV/atom")
    exact = {name: own.exact for name, own in errors.items()}
    said = {name: own.predicted for name, own in errors.items()}
    figures.draw_learning(history, exact, said, args.output / "errors.png")
    true, learned = learned_charges(models["SchNet + long range"], test)
    slope = float(np.polyfit(true, learned, 1)[0])
    spread = float(np.abs(learned - slope * true).max())
    print(f"  learned charges are {slope:.3f} times the true ones, to {spread:.3f} e")
    results = {name: {"energy": e.energy, "forces": e.forces} for name, e in errors.items()}
    results["units"] = {"energy": "meV/atom", "forces": "meV/Å"}
    results["charge_slope"] = slope
    (args.output / "results.json").write_text(json.dumps(results, indent=1))
    print(f"Figures and results in {args.output}")


if __name__ == "__main__":
    main()
