"""Molecular liquids by density functional theory: water, and the solvent EC/EMC with its stress."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase.io import read
from mace_options import LIQUID
from measures import BOND

from .checks import Check, NotWorse
from .system import Find, System, store

FOLDS = 5


def fold_water(folder: Path, find: Find, seed: int) -> None:
    """One fold of five, by the seed: 18 frames to test, 8 to validate, 64 to train."""
    data = find("water_rpbe_d3")
    frames = read(data / "train.xyz", ":") + read(data / "val.xyz", ":")
    order = np.random.default_rng(0).permutation(len(frames))
    test = np.array_split(order, FOLDS)[(seed - 1) % FOLDS]
    rest = [i for i in order if i not in test]
    chosen = {"test": test, "val": rest[:8], "train": rest[8:]}
    store(folder, {name: [frames[i] for i in own] for name, own in chosen.items()})


# Weights that leave forces the largest part of the loss, but energies and stresses a visible one.
STRESS = (
    "--loss=stress",
    "--stress_key=REF_stress",
    "--stress_weight=100000",
    "--energy_weight=1000",
)
SYSTEMS = {
    "ecemc": System(
        "ecemc",
        ("test",),
        20,
        (*LIQUID, "--r_max=4.0", "--batch_size=4", *STRESS),
        bond=BOND,
        labels="DFT, published",
        title="electrolyte solvent EC/EMC",
        physics="Forces and stress not worse.",
    ),
    "water": System(
        "water",
        ("test",),
        30,
        (*LIQUID, "--E0s=average"),
        seeds=(1, 2, 3, 4, 5),
        make=fold_water,
        labels="DFT, published",
        title="liquid water",
        physics="A polar liquid.",
        by_seed=True,
        bond=BOND,
    ),
}
CHECKS = (
    NotWorse("ecemc", "errors/test/forces"),
    NotWorse("ecemc", "errors/test/stress"),
    Check("water", "errors/test/forces", 0.97, other="sr"),
)
