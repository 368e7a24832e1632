"""Two molecules that move apart: six organic dimers, and ammonium with chloride.

Cutoff models are blind where the molecules are farther apart than in any training frame; charges
that are whole, and zero for a neutral molecule, are not.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read
from mace_options import DIMERS
from measures import BOND
from scipy.spatial.transform import Rotation
from workbench import dimers

from . import xtb
from .checks import Check, NotWorse, largest_charge, off_whole
from .system import Find, System, store

WORDS = {"C": "charged", "P": "polar", "A": "apolar"}
KINDS = ("CC", "CP", "PP", "CA", "PA", "AA")
MODEL = "training_module.model"
NEQUIP_DIMERS = ("batch_size=2", "energy_weight=100.0", f"{MODEL}.num_features=32")
MANY = (*DIMERS, "--batch_size=4", "--eval_interval=2")
SLOWLY = 0.1  # as many large steps as time allows


def join_dimers(folder: Path, find: Find, seed: int) -> None:
    """Six dimer curves as one training set; each keeps its own test."""
    curves = {name: find(f"dimers_bfdb/{name}") for name in KINDS}
    splits = {"test_" + name: read(own / "test.xyz", ":") for name, own in curves.items()}
    splits["train"] = [frame for own in curves.values() for frame in read(own / "train.xyz", ":")]
    store(folder, splits)


NEAR, FAR = (2.9, 8.0), (10.0, 20.0)  # Å, nitrogen to chlorine
TOUCHING = 4.5  # Å, within which charge is shared; farther on it leaks
SHARED, LEAKED = 0.06, 0.002  # e, at most


def make_ammonium_chloride(folder: Path, find: Find, seed: int) -> None:
    """NH4+ and Cl- by GFN2-xTB up to 8 Å; farther, where it leaks charge, as ions alone."""
    rng = np.random.default_rng(102)
    sizes = {"val": 20, "test_inside": 40, "train": 150}
    splits = {name: near_pairs(rng, own) for name, own in sizes.items()}
    splits["test_beyond"] = [far_pair(rng, r) for r in np.linspace(*FAR, 41)]
    store(folder, splits)


def near_pairs(rng: np.random.Generator, count: int) -> list[Atoms]:
    """Labelled pairs, of those that converge to ions."""
    frames: list[Atoms] = []
    while len(frames) < count:
        frame = dimers.label(pair(rng, distance := rng.uniform(*NEAR)))
        allowed = SHARED if distance < TOUCHING else LEAKED
        if frame is not None and abs(frame.info["first_charge"] - 1.0) < allowed:
            frames.append(frame)
    return frames


def pair(rng: np.random.Generator, distance: float) -> Atoms:
    """Ammonium, turned and distorted, and a chloride."""
    first = dimers.monomer("NH4+").copy()
    first.positions = Rotation.random(rng=rng).apply(first.positions)
    first.positions += rng.normal(scale=0.03, size=first.positions.shape)
    both = first + Atoms("Cl", [(distance, 0.0, 0.0)])
    both.info.update(total_charge=0, first_atoms=len(first), distance=distance)
    return both


def far_pair(rng: np.random.Generator, distance: float) -> Atoms:
    """Labels of the ions alone, and Coulomb's law between their atoms' charges."""
    both = pair(rng, distance)
    frame = xtb.apart(both, len(both) - 1, (1, -1), dimers.METHOD)
    if frame is None:
        return far_pair(rng, distance)
    del frame.arrays["xtb_charges"]
    return frame


def dimer(name: str, epochs: int = 700, *options: str, nequip: tuple[str, ...] | None = None):
    """A curve whose farthest separations are tested."""
    told = (*DIMERS, *options)
    return System(
        f"dimers_bfdb/{name}",
        ("test",),
        epochs,
        told,
        nequip,
        valid="train",
        bond=BOND,
        copies=True,
        labels="DFT, published",
        title=f"dimer, {' and '.join(WORDS[own] for own in name)}",
        physics="Molecules farther apart than any that was trained.",
    )


SYSTEMS = {
    "dimers_cc": dimer("CC", 1000, nequip=NEQUIP_DIMERS),
    # The ion polarises its partner well beyond 4.5 Å, and the charges must see that.
    "dimers_cp": dimer("CP", 500, "--r_max=6.0", nequip=(*NEQUIP_DIMERS, "cutoff_radius=6.0")),
    "dimers_pp": replace(dimer("PP", 1200), final_rate=SLOWLY),
    **{f"dimers_{name}": dimer(name.upper()) for name in ("ca", "pa", "aa")},
    "dimers_all": System(
        "dimers_all",
        tuple(f"test_{name}" for name in KINDS),
        240,
        (*MANY, "--valid_batch_size=20"),
        valid="train",
        final_rate=SLOWLY,
        labels="DFT, published",
        title="one model of six dimers",
        physics="One model for all six kinds.",
        make=join_dimers,
        bond=BOND,
        copies=True,
    ),
    "ammonium_chloride": System(
        "ammonium_chloride",
        ("test_inside", "test_beyond"),
        200,
        (*MANY, "--r_max=5.0"),
        final_rate=SLOWLY,
        labels="GFN2-xTB",
        title="NH4+ and Cl-",
        physics="Ions keep whole charges at any distance.",
        make=make_ammonium_chloride,
        recipe=2,
        bond=BOND,
    ),
}
FORCES, ENERGY = "errors/test/forces", "errors/test/energy"
WHOLE = off_whole("test_beyond", H4N=1, Cl=-1)
CHECKS = (
    *(
        Check(f"dimers_{own}", largest_charge("test"), 1e-6, what="net charge of a molecule, e")
        for own in ("pp", "pa", "aa")
    ),
    Check("ammonium_chloride", WHOLE, 0.02, what="NH4+ and Cl- at 10 to 20 Å, off ±1 e"),
    Check("dimers_cc", ENERGY, 3.0),
    Check("dimers_cp", FORCES, 6.0),
    Check("dimers_cp", ENERGY, 3.0),
    Check("dimers_pp", FORCES, 0.8, other="baselines/test/copy/forces"),
    NotWorse("dimers_pa", FORCES),
    NotWorse("dimers_aa", FORCES),
    *(NotWorse("dimers_all", f"errors/test_{own}/forces") for own in KINDS),
    *(
        Check("dimers_all", f"errors/test_{own}/forces", 0.95, other="sr")
        for own in ("CC", "CP", "CA", "PP")
    ),
)
