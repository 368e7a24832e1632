"""Training of PyG models on energies and forces, and their errors."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from tqdm import tqdm

from sog_pyg import energy_forces_stress

from . import figures
from .coulomb_gas import make_gas
from .evaluation import root_mean_square


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
    return Errors(
        root_mean_square(np.concatenate(energies)),
        root_mean_square(predicted - exact),
        predicted,
        exact,
    )


def timed_training(model: nn.Module, data: list[Data], plan: Plan, label: str) -> float:
    """Train, and return the seconds that it took."""
    start = time.monotonic()
    train(model, data, plan, label)
    return time.monotonic() - start


Makers = dict[str, Callable[[], nn.Module]]
Report = Callable[[dict[str, nn.Module], list[Data]], dict[str, Any]]


def compare(
    description: str | None, makers: Makers, plan: Plan, output: str, report: Report | None = None
) -> None:
    """Compare models on a gas of ions: make the data, train, test and draw.

    Parameters
    ----------
    description : of the command.
    makers : what builds each model, by the name it is shown by; from the same random numbers.
    plan : defaults of the command's options.
    output : default folder.
    report : prints more of the trained models, and returns it for the results.
    """
    args = make_parser(description, plan, output).parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    print("1/3 Data: boxes of 64 ions with exact Coulomb forces")
    data, test = make_gas(args.boxes, 0, label="train"), make_gas(20, 1, label="test")
    print("2/3 Training")
    plan = replace(plan, epochs=args.epochs, seed=args.seed)
    models, history = {}, {}
    for name, make in makers.items():
        torch.manual_seed(args.seed)
        models[name] = make()
        history[name] = train(models[name], data, plan, name)
    print("3/3 Errors on boxes that were not trained")
    errors = {name: evaluate(model, test) for name, model in models.items()}
    for name, own in errors.items():
        print(f"  {name:20s} forces {own.forces:6.0f} meV/Å, energy {own.energy:6.1f} meV/atom")
    draw(history, errors, args.output)
    results: dict[str, Any] = {
        n: {"energy": e.energy, "forces": e.forces} for n, e in errors.items()
    }
    results["units"] = {"energy": "meV/atom", "forces": "meV/Å"}
    results |= report(models, test) if report is not None else {}
    (args.output / "results.json").write_text(json.dumps(results, indent=1))
    print(f"Figures and results in {args.output}")


def make_parser(description: str | None, plan: Plan, output: str) -> argparse.ArgumentParser:
    """Options of a comparison."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("--boxes", type=int, default=100, help="to train on (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=plan.epochs, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=plan.seed, help="(default: %(default)s)")
    return parser


def draw(history: dict[str, list[float]], errors: dict[str, Errors], folder: Path) -> None:
    """Draw how the models learned, and the forces they predict."""
    exact = {name: own.exact for name, own in errors.items()}
    said = {name: own.predicted for name, own in errors.items()}
    figures.draw_learning(history, exact, said, folder / "errors.png")
