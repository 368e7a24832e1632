"""What the charges of a trained model came to, logged after training."""

from __future__ import annotations

import logging
from typing import Any

import torch
from ase.data import chemical_symbols
from mace.tools import torch_geometric

from sog_longrange.charge_summary import ChargeSummary
from sog_mace.model import SOGMACE

SAMPLE = 64
"""Structures that the report looks at."""


def report_charges(model: SOGMACE, dataset: Any, batch_size: int) -> None:
    """Log the latent charges of structures of a data set, and warn of what looks unphysical.

    Parameters
    ----------
    model : SOGMACE
    dataset : torch.utils.data.Dataset
        Of `mace.data.AtomicData`; an even sample of it is evaluated.
    batch_size : int
        Structures that are evaluated at a time.
    """
    summary = ChargeSummary(model.long_range)
    step = max(len(dataset) // SAMPLE, 1)
    sample = torch.utils.data.Subset(dataset, range(0, len(dataset), step)[:SAMPLE])
    loader = torch_geometric.dataloader.DataLoader(sample, batch_size=batch_size, shuffle=False)
    numbers = model.atomic_numbers
    for batch in loader:
        data = batch.to(numbers.device).to_dict()
        out = model(data, compute_force=False)
        summary.add(
            out["latent_charges"],
            numbers[data["node_attrs"].argmax(-1)],
            data["batch"],
            out["long_range_energy"],
            out["interaction_energy"] - out["long_range_energy"],
        )
    for line in summary.lines(chemical_symbols):
        logging.info(line)
    for warning in summary.warnings():
        logging.warning(warning)
