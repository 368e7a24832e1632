"""Compare trained MACE-like models with reference energies and forces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms

ENERGY, FORCES = "REF_energy", "REF_forces"
BATCH = 32  # frames evaluated at a time


@dataclass(frozen=True)
class Prediction:
    """What a model says about a list of frames.

    Parameters
    ----------
    energies : ndarray, shape (n_frames,), in eV.
    forces : list of ndarray, shape (n_atoms, 3) each, in eV/Å.
    """

    energies: np.ndarray
    forces: list[np.ndarray]

    def __getitem__(self, chosen: slice) -> Prediction:
        """Select some of the frames."""
        return Prediction(self.energies[chosen], self.forces[chosen])

    def __add__(self, other: Prediction) -> Prediction:
        """Join the frames of two predictions."""
        energies = np.concatenate([self.energies, other.energies])
        return Prediction(energies, self.forces + other.forces)

    @property
    def flat(self) -> np.ndarray:
        """All force components in one array."""
        return np.concatenate([forces.ravel() for forces in self.forces])


def reference(frames: list[Atoms]) -> Prediction:
    """The reference labels of frames, in the form of a prediction."""
    energies = np.array([frame.info[ENERGY] for frame in frames])
    return Prediction(energies, [frame.arrays[FORCES] for frame in frames])


def predict(model_file: Path, frames: list[Atoms], label: str = "") -> Prediction:
    """Energies and forces of frames by a model that a training command saved.

    Parameters
    ----------
    model_file : the saved model; plain and long-range MACE are read alike.
    frames : structures; ``info["total_charge"]`` reaches the model as it does in training.
    label : name on the progress bar.

    Returns
    -------
    Prediction
    """
    import mace  # noqa: F401  (before anything that imports e3nn)
    import torch

    # A MACE model file is a pickle: only load what you trained yourself.
    model = torch.load(model_file, map_location="cpu", weights_only=False).eval()
    model.requires_grad_(requires_grad=False)
    torch.set_default_dtype(next(model.parameters()).dtype)
    energies, forces = [], []
    for batch in tqdm(_batches(model, frames), desc=f"  {label:9s}", unit="batch", ncols=100):
        out = model(batch.to_dict(), compute_force=True)
        energies.append(out["energy"].detach().numpy())
        forces.append(out["forces"].detach().numpy())
    sizes = np.cumsum([len(frame) for frame in frames])[:-1]
    return Prediction(np.concatenate(energies), np.split(np.concatenate(forces), sizes))


def _batches(model: Any, frames: list[Atoms]) -> Any:  # noqa: ANN401
    """Frames as MACE reads them, a few at a time, in order."""
    from mace import data, tools
    from mace.tools import torch_geometric

    table = tools.AtomicNumberTable([int(z) for z in model.atomic_numbers])
    keys = data.KeySpecification(info_keys={"total_charge": "total_charge"}, arrays_keys={})
    items = [
        data.AtomicData.from_config(
            data.config_from_atoms(frame, key_specification=keys),
            z_table=table,
            cutoff=float(model.r_max),
        )
        for frame in frames
    ]
    return torch_geometric.dataloader.DataLoader(items, batch_size=BATCH, shuffle=False)


def rmse(predicted: Prediction, exact: Prediction, chosen: np.ndarray) -> dict[str, float]:
    """Root mean square errors over some of the frames.

    Parameters
    ----------
    predicted, exact : over the same frames.
    chosen : ndarray of bool, shape (n_frames,).

    Returns
    -------
    dict with ``energy`` in meV per frame, ``forces`` in meV/Å and ``frames``, their number.
    """
    index = np.flatnonzero(chosen)
    energy = predicted.energies[index] - exact.energies[index]
    forces = np.concatenate([(predicted.forces[i] - exact.forces[i]).ravel() for i in index])
    return {
        "energy": 1e3 * float(np.sqrt(np.mean(energy**2))),
        "forces": 1e3 * float(np.sqrt(np.mean(forces**2))),
        "frames": len(index),
    }


def error_table(
    splits: dict[str, list[Atoms]], predictions: dict[str, dict[str, Prediction]]
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Errors of every model for each split and each kind of dimer.

    Parameters
    ----------
    splits : frames by the name of the split.
    predictions : for each split, what each model says.

    Returns
    -------
    dict ``[split][kind][model]`` as :func:`rmse` gives; the kind ``all`` holds every frame.
    """
    table: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for split, frames in splits.items():
        exact = reference(frames)
        labels = np.array([str(frame.info.get("dimer", "all")) for frame in frames])
        kinds = [*dict.fromkeys(labels), "all"] if len(set(labels)) > 1 else ["all"]
        table[split] = {
            kind: {
                model: rmse(prediction, exact, (labels == kind) | (kind == "all"))
                for model, prediction in predictions[split].items()
            }
            for kind in kinds
        }
    return table


def format_table(
    table: dict[str, dict[str, dict[str, dict[str, float]]]], titles: dict[str, str]
) -> str:
    """The table of errors as text, with the ratio of the first model to the second.

    Parameters
    ----------
    table : from :func:`error_table`.
    titles : heading of each split.

    Returns
    -------
    str
    """
    first, second = next(iter(next(iter(table.values())).values()))
    head = f"{'':26s}{'energy RMSE, meV per structure':^34s}  {'force RMSE, meV/Å':^34s}"
    columns = f"{first:>11s}{second:>13s}{'ratio':>10s}"
    lines = [head, f"{'':26s}{columns}  {columns}"]
    for split, kinds in table.items():
        lines.append(titles[split])
        for kind, errors in kinds.items():
            cells = []
            for quantity in ("energy", "forces"):
                a, b = errors[first][quantity], errors[second][quantity]
                cells.append(f"{a:11.1f}{b:13.1f}{a / max(b, 1e-12):9.1f}x")
            count = errors[first]["frames"]
            lines.append(f"  {kind:17s}{count:5d}  {cells[0]}  {cells[1]}")
    return "\n".join(lines)
