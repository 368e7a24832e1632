"""Read a user's own labelled structures and split them for the demo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from ase.io import read, write

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms

FEWEST = 20  # frames below which nothing can be learnt or measured


class DataError(ValueError):
    """The structures cannot be used; the message says what was expected and what to do."""


def read_labelled(path: Path, energy_key: str, forces_key: str) -> list[Atoms]:
    """Read an extended XYZ file and store its labels as REF_energy and REF_forces.

    Parameters
    ----------
    path : the file.
    energy_key, forces_key : names of the labels in the file.

    Returns
    -------
    list of Atoms

    Raises
    ------
    DataError
        If the file is missing or too small, or a label is missing or not finite.
    """
    if not path.is_file():
        raise DataError(f"`--data`: expected an extended XYZ file, found nothing at {path}.")
    try:
        frames = read(path, index=":")
    except Exception as error:  # ASE raises many kinds
        raise DataError(f"`--data`: ASE cannot read {path}: {error}") from error
    if len(frames) < FEWEST:
        raise DataError(f"`--data`: expected at least {FEWEST} frames, found {len(frames)}.")
    for number, frame in enumerate(frames):
        energy = _label(frame, number, energy_key, "energy")
        forces = _label(frame, number, forces_key, "forces")
        frame.calc = None
        frame.info["REF_energy"] = float(energy)
        frame.arrays["REF_forces"] = np.asarray(forces, dtype=float)
    return frames


def _label(frame: Atoms, number: int, key: str, quantity: str) -> object:
    """One label of one frame; ASE keeps ``energy`` and ``forces`` in a calculator."""
    stored = frame.info if quantity == "energy" else frame.arrays
    results = {} if frame.calc is None else frame.calc.results
    value = stored.get(key, results.get(key))
    if value is None:
        found = sorted([*stored, *(name for name in results if name not in stored)])
        raise DataError(
            f"`--{quantity}-key`: expected {key!r} in every frame, but frame {number} holds "
            f"{', '.join(found) or 'nothing'}. Name the right one: --{quantity}-key NAME"
        )
    shape = () if quantity == "energy" else (len(frame), 3)
    if np.shape(value) != shape or not np.isfinite(value).all():
        raise DataError(
            f"{key!r} of frame {number}: expected finite numbers of shape {shape}, "
            f"found shape {np.shape(value)}. Remove or correct this frame."
        )
    return value


def split(frames: list[Atoms], seed: int) -> tuple[dict[str, list[Atoms]], str]:
    """Split frames by separation if all have one, else at random.

    Parameters
    ----------
    frames : labelled frames.
    seed : of the random choice.

    Returns
    -------
    frames by split name, and a line that says how they were split.
    """
    order = np.random.default_rng(seed).permutation(len(frames))
    far: list[Atoms] = []
    note = f"{len(frames)} frames, split at random (seed {seed}): 80 % train, 10 % valid, 10 % test"
    if all("separation" in frame.info for frame in frames):
        distance = np.array([float(frame.info["separation"]) for frame in frames])
        limit = float(np.quantile(distance, 0.7))
        far = [frames[i] for i in np.flatnonzero(distance > limit)]
        order = order[distance[order] <= limit]
        note = (
            f"{len(frames)} frames with info['separation']: the nearest 70 % (up to {limit:.2f} Å) "
            "are split into train, valid and test; the farthest 30 % are the test beyond"
        )
    tenth = max(1, len(order) // 10)
    chosen = {
        "train": order[2 * tenth :],
        "valid": order[:tenth],
        "test_inside": order[tenth : 2 * tenth],
    }
    splits = {name: [frames[i] for i in index] for name, index in chosen.items()}
    return (splits | {"test_beyond": far} if far else splits), note


def write_splits(folder: Path, splits: dict[str, list[Atoms]]) -> None:
    """Write one extended XYZ file for each split."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frames in splits.items():
        write(folder / f"{name}.xyz", frames, format="extxyz")
