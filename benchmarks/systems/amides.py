"""Capped amino acids by GFN2-xTB, made from nothing: forces, dipoles and Born charges.

Acetyl, a residue and N-methylamide are put together from bond lengths, angles and the two torsions
of the backbone, relaxed a little, and moved at 500 K. Each start belongs to one split. Dipoles and
Born charges were never trained.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from mace_options import PEPTIDES
from tqdm import tqdm

from . import born, xtb
from .checks import Check, NotWorse
from .system import Find, System, frames_of, store

STARTS = {"train": 7, "val": 1, "test": 2}  # of each residue
KELVIN, STEP, FRICTION = 500.0, 1.0, 0.02  # K, fs, 1/fs
STEPS, SETTLE, EVERY = 240, 60, 20
AMIDE = np.radians(122.0)  # angle at the first nitrogen
TURNS = (60.0, 180.0, 300.0)  # torsions of a methyl group, degrees

# Name (its first letter is the element), the atoms that give bond, angle and torsion; Å, degrees.
BACKBONE = (
    ("CM", "C1", "N2", "CA", 1.51, 116.0, 180.0),
    ("O1", "C1", "N2", "CA", 1.23, 123.0, 0.0),
    ("HN2", "N2", "C1", "O1", 1.01, 119.0, 180.0),
    ("C2", "CA", "N2", "C1", 1.53, 111.0, "phi"),
    ("HA", "CA", "N2", "C2", 1.09, 109.5, 120.0),
    ("N3", "C2", "CA", "N2", 1.34, 116.0, "psi"),
    ("O2", "C2", "N3", "CA", 1.23, 123.0, 180.0),
    ("CN", "N3", "C2", "CA", 1.45, 122.0, 180.0),
    ("HN3", "N3", "C2", "O2", 1.01, 119.0, 180.0),
    *(("HM", "CM", "C1", "N2", 1.09, 109.5, own) for own in TURNS),
    *(("HC", "CN", "N3", "C2", 1.09, 109.5, own) for own in TURNS),
)
CARBON = ("CB", "CA", "N2", "C2", 1.53, 109.5, 240.0)
SIDES = {
    "glycine": (("HB", "CA", "N2", "C2", 1.09, 109.5, 240.0),),
    "alanine": (CARBON, *(("HB", "CB", "CA", "N2", 1.09, 109.5, own) for own in TURNS)),
    "serine": (
        CARBON,
        ("OG", "CB", "CA", "N2", 1.42, 109.5, 60.0),
        *(("HB", "CB", "CA", "N2", 1.09, 109.5, own) for own in TURNS[1:]),
        ("HG", "OG", "CB", "CA", 0.97, 107.0, 180.0),
    ),
}


def place(first: np.ndarray, second: np.ndarray, third: np.ndarray, *inner: float) -> np.ndarray:
    """Place of an atom from its distance to the first, angle to the second, torsion to the third.

    Parameters
    ----------
    first, second, third : places in Å; the angle is at the first, the torsion about both.
    inner : bond in Å, angle and torsion in degrees.
    """
    bond, angle, torsion = inner[0], *np.radians(inner[1:])
    axis = (second - first) / np.linalg.norm(second - first)
    arm = third - second
    arm = arm - (arm @ axis) * axis
    arm /= np.linalg.norm(arm)
    side = np.cos(torsion) * arm + np.sin(torsion) * np.cross(arm, axis)
    return first + bond * (np.cos(angle) * axis + np.sin(angle) * side)


def dipeptide(residue: str, phi: float, psi: float) -> Atoms:
    """A capped residue at two torsions of its backbone in degrees."""
    places = {
        "C1": np.zeros(3),
        "N2": np.array([1.34, 0.0, 0.0]),
        "CA": np.array([1.34 - 1.45 * np.cos(AMIDE), 1.45 * np.sin(AMIDE), 0.0]),
    }
    symbols, all_places = ["C", "N", "C"], list(places.values())
    torsions = {"phi": phi, "psi": psi}
    for name, *near, bond, angle, torsion in (*BACKBONE, *SIDES[residue]):
        own = place(*(places[one] for one in near), bond, angle, torsions.get(torsion, torsion))
        places[name] = own  # of hydrogens alike the last, to which nothing is bonded
        symbols.append(name[0])
        all_places.append(own)
    return Atoms(symbols, np.array(all_places), info={"residue": residue})


def moved(atoms: Atoms, seed: int) -> list[Atoms]:
    """Frames of a short run at constant temperature."""
    frame = xtb.relaxed(atoms, xtb.GFN2, 0.5, 25)
    frame.calc = xtb.calculator(frame, xtb.GFN2)
    rng, heat, kept = np.random.default_rng(seed), {"temperature_K": KELVIN}, []
    MaxwellBoltzmannDistribution(frame, rng=rng, **heat)
    how = {"friction": FRICTION / units.fs, "fixcm": False}
    run = Langevin(frame, STEP * units.fs, rng=rng, **how, **heat)

    def look() -> None:
        if run.nsteps > SETTLE:
            kept.append(Atoms(frame.symbols, frame.positions, info=dict(atoms.info)))

    run.attach(look, interval=EVERY)
    run.run(STEPS)
    return kept


def make_frames(folder: Path, find: Find, seed: int) -> None:
    """Frames with energies, forces and dipoles, and Born charges of one of each tested start."""
    rng, splits = np.random.default_rng(205), {split: [] for split in STARTS}
    plan = [(split, own) for split, size in STARTS.items() for own in SIDES for _ in range(size)]
    for number, (split, residue) in enumerate(tqdm(plan, desc="dipeptides", unit="start")):
        start = dipeptide(residue, rng.uniform(-160.0, -50.0), rng.uniform(-180.0, 180.0))
        splits[split] += moved(start, 1000 + number)
    splits = xtb.label_splits(splits, xtb.GFN2)
    for frame in (own for frames in splits.values() for own in frames):
        frame.info["REF_dipole"] = xtb.dipole(frame, xtb.GFN2)
    size = (STEPS - SETTLE) // EVERY
    splits["born"] = [own.copy() for own in splits["test"][size - 1 :: size]]
    for frame in splits["born"]:
        frame.arrays[born.BORN] = xtb.born_charges(frame, xtb.GFN2).reshape(-1, 9)
    store(folder, splits)


def probe(model, folder: Path) -> dict:
    """Born charges."""
    found = born.compare(model, frames_of(folder, "born"))
    return {"born": found} if found else {}


SYSTEMS = {
    "dipeptides_xtb": System(
        "dipeptides_xtb",
        ("test",),
        60,
        PEPTIDES,
        ("cutoff_radius=4.0", "batch_size=4", "energy_weight=10.0"),
        make=make_frames,
        probe=probe,
        labels="GFN2-xTB",
        title="dipeptides",
        physics="Dipoles and Born charges without being trained.",
    ),
}
CHECKS = (
    NotWorse("dipeptides_xtb", "errors/test/forces"),
    Check("dipeptides_xtb", "learned/dipole/r2", 0.95, least=True),
)
