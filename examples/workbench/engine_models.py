"""Models of the examples of simulation engines, trained once for all of them.

Molecules alone are distorted as widely as they move in a simulation, so that it stays where the
model was trained; pairs hardly, so that what they teach is the interaction. The cutoff is short and
the pairs go beyond it: nothing but charges can tell of the other molecule there.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np

from . import demo, dimers, mace_runs

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms

FORMAT = 1  # raised when the recipe below changes, so that old data are not reused
KINDS = ("charged-charged", "charged-polar")
FARTHEST = 12.0  # Å, of trained pairs
DISTORTIONS = (0.02, 0.05, 0.1)  # Å, of molecules alone
DISTORTION = 0.015  # Å, of pairs
COUNTS = {"train": (80, 150), "valid": (8, 12)}  # of each molecule, and of each kind of pair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line that training takes."""
    add = parser.add_argument
    add("--epochs", type=int, default=30, help="of training (default: %(default)s)")
    add("--batch-size", type=int, default=8, help="(default: %(default)s)")
    add("--r-max", type=float, default=3.5, help="cutoff in Å (default: %(default)s)")
    add("--features", type=int, default=16, help="scalars and vectors (default: %(default)s)")
    add("--seed", type=int, default=1, help="of training (default: %(default)s)")
    add("--workers", type=int, default=2, help="processes that label (default: %(default)s)")


def frames_of() -> dict[str, list[Atoms]]:
    """Unlabelled molecules, alone and in pairs, by split."""
    rng = np.random.default_rng(7)
    return {
        split: [
            dimers.isolated(name, rng.choice(DISTORTIONS), rng)
            for name in dimers.MONOMERS
            for _ in range(alone)
        ]
        + [
            dimers.random_pair(kind, 0.0, FARTHEST, DISTORTION, rng)
            for kind in KINDS
            for _ in range(pairs)
        ]
        for split, (alone, pairs) in COUNTS.items()
    }


def prepare(args: argparse.Namespace) -> dict[str, Path]:
    """Label the data and train both models, unless they are there.

    Parameters
    ----------
    args : with `models`, the folder, and what :func:`add_arguments` adds.

    Returns
    -------
    Files of models by label.
    """
    folder = args.models
    files = {label: mace_runs.model_file(folder / label) for label in mace_runs.LABELS}
    if all(path.exists() for path in files.values()):
        print(f"  reusing the models in {folder}")
        return files
    wanted = {
        "format": FORMAT,
        "method": dimers.METHOD,
        "counts": {split: list(counts) for split, counts in COUNTS.items()},
    }
    data = dimers.keep(
        folder / "data",
        wanted,
        tuple(COUNTS),
        lambda: dimers.label_splits(frames_of(), args.workers),
    )
    given = argparse.Namespace(**vars(args) | {"output": folder})
    jobs = [mace_runs.demo_job(label, given, data["train"]) for label in mace_runs.LABELS]
    demo.train(jobs, mace_runs, reuse=False)
    return files
