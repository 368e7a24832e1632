"""Charge structure factors at the smallest wave vectors, of true and of latent charges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms

from .system import Answer, frames_of

SHELLS = 3
BLOCKS = 5


def shells(cell: np.ndarray, count: int = SHELLS) -> list[np.ndarray]:
    """Wave vectors of the shortest lengths, one of each opposite pair, by length.

    Parameters
    ----------
    cell : edges of the box, shape (3,), in Å.
    count : number of lengths.
    """
    grid = np.indices((7, 7, 7)).reshape(3, -1).T - 3
    waves = 2.0 * np.pi * grid[len(grid) // 2 + 1 :] / cell
    lengths = np.linalg.norm(waves, axis=1).round(6)
    return [waves[lengths == own] for own in np.unique(lengths)[:count]]


def charge_structure(frames: list[Atoms], charges: list[np.ndarray]) -> np.ndarray:
    """S(k) = <|sum q exp(i k r)|^2> / N by frame and shell, in e^2.

    Parameters
    ----------
    frames, charges : of one box; charges in e, shape (n_atoms,) each.

    Returns
    -------
    ndarray, shape (n_frames, n_shells)
    """
    waves = shells(frames[0].cell.lengths())
    found = []
    for frame, own in zip(frames, charges, strict=True):
        sums = [np.exp(1j * frame.positions @ k.T).T @ own for k in waves]
        found.append([np.mean(np.abs(one) ** 2) / len(frame) for one in sums])
    return np.array(found)


def block_error(values: np.ndarray) -> np.ndarray:
    """Standard error of the mean over frames, of five blocks, relative to the mean."""
    blocks = np.array([part.mean(0) for part in np.array_split(values, BLOCKS)])
    return blocks.std(0, ddof=1) / np.sqrt(BLOCKS) / values.mean(0)


def compare(model, frames: list[Atoms]) -> dict:
    """Structure factors of latent and of true charges on exact frames.

    Parameters
    ----------
    model : of a host.
    frames : with `true_charges`.

    Returns
    -------
    dict
        Means by shell from the smallest k: of the model's charges (`latent`, where it has any)
        and of the true ones, and the block error of the latter.
    """
    exact = charge_structure(frames, [own.arrays["true_charges"] for own in frames])
    result = {"truth": names(exact.mean(0)), "block_error": names(block_error(exact))}
    charges = model.find(frames, False, "S(k)").charges
    if charges is not None:
        latent = charge_structure(frames, [own[:, 0] for own in charges])
        result["latent"] = names(latent.mean(0))
    return result


def names(values: np.ndarray) -> dict[str, float]:
    """Numbers by shell."""
    return {f"k{number}": float(own) for number, own in enumerate(values, 1)}


def probe(model, folder: Path, split: str = "snapshots") -> dict:
    """Structure factors on exact snapshots."""
    return {"structure": compare(model, frames_of(folder, split))}


ANSWERS = tuple(
    Answer(
        f"charge structure factor, smallest k number {shell}, e²",
        f"probe/structure/latent/k{shell}",
        f"probe/structure/truth/k{shell}",
        factor=1.1,
    )
    for shell in range(1, SHELLS + 1)
)
