"""Dimethylimidazolium tetrafluoroborate: small periodic cells, and pairs that part.

Labels by GFN2-xTB. Pairs are trained up to 7 Å, a little beyond the cutoff, and asked for
up to 16 Å. There the method leaks charge from one ion to the other, so that far pairs are labelled
as ions alone with Coulomb's law between their atoms.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from ase import Atoms
from mace_options import BOXES
from scipy.spatial.transform import Rotation

from . import xtb
from .checks import NotWorse
from .system import Answer, Effect, Find, System, frames_of, store

PAIRS, VOLUME = 3, 340.0  # ion pairs in a cell, Å^3 for each
STARTS, STEPS = 4, 6  # cells that are relaxed a little
CELLS = {"train": 10, "val": 1, "test": 3}  # frames from each of them
NEAR, FAR = (4.2, 7.0), (8.0, 16.0)  # Å between the centres of a pair
TRAINED = {"train": 50, "val": 5}  # pairs
RATTLE = 0.05  # Å


@lru_cache
def ion(name: str) -> Atoms:
    """A relaxed ion at the origin."""
    atoms = cation() if name == "cation" else anion()
    atoms.info["total_charge"] = 1 if name == "cation" else -1
    atoms = xtb.relaxed(atoms, xtb.GFN2, 0.02, 100)
    atoms.positions -= atoms.positions.mean(0)
    atoms.info.clear()
    return atoms


def anion() -> Atoms:
    """A tetrahedron."""
    corners = np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)])
    return Atoms("BF4", np.vstack([np.zeros(3), 1.4 / np.sqrt(3.0) * corners]))


def cation() -> Atoms:
    """A ring of five with methyl groups at both nitrogens."""
    symbols, places = [], []
    for element, angle in (("C", 90), ("N", 162), ("C", 234), ("C", 306), ("N", 18)):
        out = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle)), 0.0])
        symbols.append(element)
        places.append(1.15 * out)
        if element == "C":
            symbols.append("H")
            places.append(2.23 * out)
            continue
        side = np.cross(out, [0.0, 0.0, 1.0])
        symbols += ["C", "H", "H", "H"]
        places.append(2.62 * out)
        for turn in np.radians((0.0, 120.0, 240.0)):
            around = np.cos(turn) * side + np.sin(turn) * np.array([0.0, 0.0, 1.0])
            places.append(2.98 * out + 1.03 * around)
    return Atoms(symbols, places)


def placed(name: str, centre: np.ndarray, rng: np.random.Generator) -> Atoms:
    """An ion turned at random."""
    atoms = ion(name).copy()
    atoms.positions = centre + Rotation.random(rng=rng).apply(atoms.positions)
    return atoms


def cell(rng: np.random.Generator) -> Atoms:
    """Ions put one after another where they have room, then relaxed a little."""
    edge = (PAIRS * VOLUME) ** (1.0 / 3.0)
    box = Atoms(cell=[edge] * 3, pbc=True)
    order = ["cation"] * PAIRS + ["anion"] * PAIRS
    tries = 0
    while order:
        new = box + placed(order[0], rng.uniform(0.0, edge, 3), rng)
        distances, old = new.get_all_distances(mic=True), len(box)
        if old == 0 or distances[:old, old:].min() > 2.0:
            box, order = new, order[1:]
        tries += 1
        if tries > 20000:
            return cell(rng)
    return xtb.relaxed(box, xtb.GFN2, 0.1, STEPS)


def pair(distance: float, rng: np.random.Generator) -> Atoms:
    """Two ions in open space."""
    atoms = placed("cation", np.zeros(3), rng)
    return atoms + placed("anion", np.array([distance, 0.0, 0.0]), rng)


def near_pair(rng: np.random.Generator) -> Atoms:
    """A rattled pair that does not clash."""
    while True:
        atoms = xtb.rattled(pair(rng.uniform(*NEAR), rng), RATTLE, rng)
        if atoms.get_all_distances()[:16, 16:].min() > 1.9:
            return atoms


def make_frames(folder: Path, find: Find, seed: int) -> None:
    """Cells and pairs."""
    rng = np.random.default_rng(801)
    starts = [cell(rng) for _ in range(STARTS)]
    cells = {
        split: [xtb.rattled(own, RATTLE, rng) for own in starts for _ in range(size)]
        for split, size in CELLS.items()
    }
    pairs = {split: [near_pair(rng) for _ in range(size)] for split, size in TRAINED.items()}
    far = [xtb.rattled(pair(own, rng), RATTLE, rng) for own in np.linspace(*FAR, 25)]
    turned = pair(FAR[0], rng)
    curve = [turned.copy(), turned]
    turned.positions[16:, 0] += FAR[1] - FAR[0]
    splits = {"test_pairs": [ions_apart(own) for own in far]}
    splits["curve"] = [ions_apart(own) for own in curve]
    liquid = xtb.label_splits(cells, xtb.GFN2, workers=2)
    labelled = xtb.label_splits(pairs, xtb.GFN2)
    splits |= {own: frames + labelled.get(own, []) for own, frames in liquid.items()}
    store(folder, splits)


def ions_apart(atoms: Atoms) -> Atoms:
    """A pair far apart, labelled."""
    frame = xtb.apart(atoms, 16, (1, -1), xtb.GFN2)
    if frame is None:
        raise RuntimeError("GFN2-xTB failed for an ion alone: check tblite")
    return frame


def parting(energies: np.ndarray) -> float:
    """Energy that it takes to part a pair from 8 to 16 Å, in eV."""
    return float(energies[1] - energies[0])


def of_labels(folder: Path) -> float:
    """The same by the labels."""
    return parting(np.array([own.info["REF_energy"] for own in frames_of(folder, "curve")]))


def effects(folder: Path) -> list[Effect]:
    """The energy, and how whole the ions are where they are trained."""
    pairs = [own for own in frames_of(folder, "train") if not own.pbc.any()]
    charges = [own.arrays["xtb_charges"][:16].sum() for own in pairs]
    return [
        Effect("energy to part a pair from 8 to 16 Å, eV", of_labels(folder), 0.5),
        Effect("charge of the cation in pairs that are trained, e", float(np.mean(charges)), 0.8),
    ]


def probe(model, folder: Path) -> dict[str, float]:
    """The energy by the model and by the labels, in eV."""
    energies = model.find(frames_of(folder, "curve"), False, "curve").energies
    return {"parting": parting(energies), "truth": of_labels(folder)}


SYSTEMS = {
    "ionic_liquid": System(
        "ionic_liquid",
        ("test", "test_pairs"),
        240,
        (*BOXES, "--E0s=average"),
        make=make_frames,
        effects=effects,
        probe=probe,
        answers=(Answer("energy to part a pair, 8 to 16 Å, eV", "probe/parting", "probe/truth"),),
        labels="GFN2-xTB, periodic",
        title="ionic liquid",
        physics="Ions beyond the cutoff attract each other by -14.4/r eV.",
    )
}
CHECKS = (
    NotWorse("ionic_liquid", "errors/test/forces"),
    NotWorse("ionic_liquid", "errors/test_pairs/forces"),
)
