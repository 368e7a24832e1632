"""What charges and kernel of a trained model came to, logged after training."""

from __future__ import annotations

import logging
from typing import Any

import torch
from ase.data import chemical_symbols
from mace.tools import torch_geometric
from torch import Tensor

from sog_longrange.charge_summary import ChargeSummary
from sog_longrange.learned_law import LawEstimate
from sog_mace.graphs import edges_of_graph
from sog_mace.model import SOGMACE

SAMPLE = 64
"""Structures that the report looks at."""


def report_charges(model: SOGMACE, dataset: Any, batch_size: int) -> None:
    """Log latent charges and the learned law, and warn of what looks unphysical.

    Parameters
    ----------
    model : SOGMACE
    dataset : torch.utils.data.Dataset
        Of `mace.data.AtomicData`; an even sample of it is evaluated.
    batch_size : int
        Structures that are evaluated at a time.
    """
    summary, law = ChargeSummary(model.long_range), LawEstimate(model.long_range, len(dataset))
    step = max(len(dataset) // SAMPLE, 1)
    sample = torch.utils.data.Subset(dataset, range(0, len(dataset), step)[:SAMPLE])
    loader = torch_geometric.dataloader.DataLoader(sample, batch_size=batch_size, shuffle=False)
    numbers = model.atomic_numbers
    for batch in loader:
        data = batch.to(numbers.device).to_dict()
        needs_forces = law.wants_more and "forces" in data
        out = model(data, compute_force=needs_forces)
        summary.add(
            out["latent_charges"],
            numbers[data["node_attrs"].argmax(-1)],
            data["batch"],
            out["long_range_energy"],
            out["interaction_energy"] - out["long_range_energy"],
        )
        if needs_forces:
            _add_forces(law, data, out)
    for line in (*summary.lines(chemical_symbols), *law.lines()):
        logging.info(line)
    for warning in summary.warnings():
        logging.warning(warning)


def _add_forces(law: LawEstimate, data: dict[str, Tensor], out: dict[str, Any]) -> None:
    """Show a batch to the estimate of the law, without structures that have no forces."""
    batch = data["batch"]
    known = (data["weight"] * data["forces_weight"])[batch] > 0.0
    residuals = (data["forces"] - out["forces"]).where(known[:, None], torch.nan)
    periodic = data["pbc"].view(-1, 3)
    geometry = (data["positions"], data["cell"], periodic, batch)
    own = out.get("latent_dipoles"), *edges_of_graph(data)
    law.add(out["latent_charges"], *geometry, residuals, *own)
