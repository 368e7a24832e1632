"""A SchNet of PyTorch Geometric learns a gas of ions, once its energy has a long-range part.

PyG's SchNet knows no cells and nothing beyond its cutoff. Here it gets both without an edit: a
periodic graph, and `WithLongRange` around it. The same SchNet without the long-range part is
trained beside it. The data are made here, with exact Coulomb forces.

    python examples/02_pyg_schnet.py      # a few minutes on one core

Writes results.json and errors.png into --output.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import SchNet
from workbench import pyg_training

from sog_pyg import LongRangeLayer, PeriodicGraph, WithLongRange

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


def make_bare() -> nn.Module:
    """SchNet as it is."""
    return PeriodicSchNet(make_schnet())


def make_long_range() -> nn.Module:
    """SchNet with a long range: one charge for each ion, neutral in sum, as the gas is."""
    long_range = LongRangeLayer(num_charges=1, charge_constraint="neutral", tolerance=1e-4)
    return WithLongRange(make_schnet(), long_range)


def learned_charges(model: WithLongRange, data: list[Data]) -> tuple[np.ndarray, np.ndarray]:
    """True and learned charges of all ions; they act in pairs, so their common sign is free."""
    with torch.no_grad():
        found = [model.charges(box.z, box.pos, None, box.cell, box.pbc)[:, 0] for box in data]
    true = torch.cat([box.charge for box in data]).numpy()
    learned = torch.cat(found).numpy()
    return true, learned * np.sign(np.dot(true, learned))


def report_charges(models: dict[str, nn.Module], test: list[Data]) -> dict[str, float]:
    """Compare learned with true charges."""
    true, learned = learned_charges(models["SchNet + long range"], test)
    slope = float(np.polyfit(true, learned, 1)[0])
    spread = float(np.abs(learned - slope * true).max())
    print(f"  learned charges are {slope:.3f} times the true ones, to {spread:.3f} e")
    return {"charge_slope": slope}


def main() -> None:
    """Make the data, train, test and draw."""
    makers = {"SchNet": make_bare, "SchNet + long range": make_long_range}
    plan = pyg_training.Plan(epochs=20, rate=5e-3)
    pyg_training.compare(__doc__, makers, plan, "demo_output/pyg_schnet", report_charges)


if __name__ == "__main__":
    main()
