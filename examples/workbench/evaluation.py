"""Compare the predictions of trained models with reference energies and forces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

ENERGY, FORCES = "REF_energy", "REF_forces"


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
        "energy": root_mean_square(energy),
        "forces": root_mean_square(forces),
        "frames": len(index),
    }


def root_mean_square(errors: np.ndarray) -> float:
    """Root mean square of errors, in thousandths of their unit."""
    return 1e3 * float(np.sqrt(np.mean(np.square(errors))))


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
