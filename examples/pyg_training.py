"""Training of PyG models on energies and forces, and their errors."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from tqdm import tqdm

from sog_pyg import energy_forces_stress


@dataclass(frozen=True)
class Plan:
    """How a model is trained.

    Parameters
    ----------
    epochs : passes over the data.
    batch_size : structures of a step.
    rate : learning rate of the first step; it falls to `final` of itself along a cosine.
    energy_weight : of the squared energy error per atom, next to 1 for forces.
    seed : of the order of the data.
    """

    epochs: int = 30
    batch_size: int = 4
    rate: float = 3e-3
    final: float = 0.01
    energy_weight: float = 0.01
    seed: int = 1


@dataclass(frozen=True)
class Errors:
    """Errors of a model and what it says.

    Parameters
    ----------
    energy : RMSE in meV per atom.
    forces : RMSE in meV/Å.
    predicted, exact : ndarray, all force components in eV/Å.
    """

    energy: float
    forces: float
    predicted: np.ndarray
    exact: np.ndarray


def train(model: nn.Module, data: list[Data], plan: Plan, label: str = "") -> list[float]:
    """Train on energies and forces.

    Parameters
    ----------
    model : as `sog_pyg.energy_forces_stress` calls it; changed in place.
    data : with ``energy`` and ``forces``.
    plan : how.
    label : name on the progress bar.

    Returns
    -------
    list of float, force RMSE of each epoch in meV/Å, while training.
    """
    torch.manual_seed(plan.seed)
    loader = DataLoader(data, batch_size=plan.batch_size, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=plan.rate)
    steps = plan.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, steps, eta_min=plan.final * plan.rate
    )
    history = []
    bar = tqdm(range(plan.epochs), desc=f"  {label:14s}", unit="epoch", ncols=100)
    for _ in bar:
        squares = []
        for batch in loader:
            out = energy_forces_stress(model, batch, create_graph=True)
            sizes = batch.ptr.diff()
            forces = (out.forces - batch.forces).square().mean()
            energy = ((out.energy - batch.energy) / sizes).square().mean()
            optimizer.zero_grad()
            (forces + plan.energy_weight * energy).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            squares.append(float(forces.detach()))
        history.append(1e3 * float(np.sqrt(np.mean(squares))))
        bar.set_postfix_str(f"forces {history[-1]:.0f} meV/Å")
    return history


def evaluate(model: nn.Module, data: list[Data], batch_size: int = 8) -> Errors:
    """Errors of energies and forces.

    Parameters
    ----------
    model : a trained model.
    data : with ``energy`` and ``forces``.
    batch_size : structures at a time.

    Returns
    -------
    Errors
    """
    energies, forces = [], []
    for batch in DataLoader(data, batch_size=batch_size):
        out = energy_forces_stress(model, batch)
        energies.append(((out.energy - batch.energy) / batch.ptr.diff()).numpy())
        forces.append(np.stack([out.forces.numpy().ravel(), batch.forces.numpy().ravel()]))
    predicted, exact = np.concatenate(forces, 1)
    return Errors(rmse(np.concatenate(energies)), rmse(predicted - exact), predicted, exact)


def rmse(errors: np.ndarray) -> float:
    """Root mean square in thousandths."""
    return 1e3 * float(np.sqrt(np.mean(np.square(errors))))


def timed_training(model: nn.Module, data: list[Data], plan: Plan, label: str) -> float:
    """Train, and return the seconds that it took."""
    start = time.monotonic()
    train(model, data, plan, label)
    return time.monotonic() - start
