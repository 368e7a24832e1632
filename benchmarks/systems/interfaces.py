"""Interfaces in small periodic cells: LiCl/GaF3, TiO2/NaCl(aq), Pt/KF(aq), by GFN1-xTB.

Forces are compared near the interface and far from it. GFN1-xTB has one k point and minimal basis
sets: labels are a consistent world of charge transfer across an interface, not those of the
materials. Cells have no vacuum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import fcc111
from mace_options import BOXES
from scipy.spatial.transform import Rotation

from . import xtb
from .checks import NotWorse
from .system import Effect, Find, System, frames_of, store

STARTS, STEPS = 3, 8  # structures that are relaxed, and their steps
SIZES = {"train": 12, "val": 1, "test": 3}  # frames from each of them
RATTLE = 0.07  # Å
LARGEST_FORCE = 50.0  # eV/Å


def stacked(lower: Atoms, upper: Atoms, gap: float) -> Atoms:
    """Two slabs of one cross-section, one on the other, periodic, `gap` Å apart on both sides."""
    lower, upper = lower.copy(), upper.copy()
    lower.positions[:, 2] -= lower.positions[:, 2].min()
    upper.positions[:, 2] += lower.positions[:, 2].max() + gap - upper.positions[:, 2].min()
    sides = np.repeat([0, 1], [len(lower), len(upper)])
    both = lower + upper
    both.arrays["side"] = sides
    both.cell = np.diag([*lower.cell.lengths()[:2], both.positions[:, 2].max() + gap])
    both.pbc = True
    return both


def salt_on_fluoride(rng: np.random.Generator) -> Atoms:
    """LiCl(001), four layers, on GaF3 of the cubic ReO3 kind, whose lattices match within 1 %."""
    edge = 3.65
    salt = Atoms("LiClClLi", cell=[edge, edge, 5.14])
    salt.set_scaled_positions([(0, 0, 0), (0.5, 0.5, 0), (0, 0, 0.5), (0.5, 0.5, 0.5)])
    corner = [(0, 0, 0), (0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5)]
    fluoride = Atoms("GaF3", cell=[edge] * 3)
    fluoride.set_scaled_positions(corner)
    return stacked(salt.repeat((2, 2, 2)), fluoride.repeat((2, 2, 2)), 2.2)


def solution(
    cell: np.ndarray, molecules: int, ions: tuple[str, str], rng: np.random.Generator
) -> Atoms:
    """Molecules turned at random and two ions, on a grid over a cross-section."""
    along = np.maximum((cell / 2.9).astype(int), 1)
    layers = int(np.ceil((molecules + 2) / along.prod()))
    grid = np.indices((*along, layers)).reshape(3, -1).T
    grid = grid[rng.permutation(len(grid))[: molecules + 2]]
    sites = grid * [*(cell / along), 3.0]
    shape = np.array([(0, 0, 0), (0.757, 0.586, 0), (-0.757, 0.586, 0)])
    water = [site + Rotation.random(rng=rng).apply(shape) for site in sites[2:]]
    symbols = [*ions, *(["O", "H", "H"] * molecules)]
    return Atoms(symbols, np.vstack([sites[:2], *water]), cell=[*cell, 1.0])


def titania_in_solution(rng: np.random.Generator) -> Atoms:
    """Rutile TiO2(001), two layers of cells, and NaCl in ten molecules of water."""
    a, c, u = 4.594, 2.959, 0.305
    rutile = Atoms("Ti2O4", cell=[a, a, c])
    rutile.set_scaled_positions(
        [(0, 0, 0), (0.5, 0.5, 0.5), (u, u, 0), (-u, -u, 0), (0.5 + u, 0.5 - u, 0.5)]
        + [(0.5 - u, 0.5 + u, 0.5)]
    )
    solid = rutile.repeat((2, 2, 2))
    return stacked(solid, solution(np.array([2 * a, 2 * a]), 10, ("Na", "Cl"), rng), 2.3)


def platinum_in_solution(rng: np.random.Generator) -> Atoms:
    """Pt(111), three layers, and KF in ten molecules of water."""
    metal = fcc111("Pt", (3, 4, 3), a=3.92, orthogonal=True)
    return stacked(metal, solution(metal.cell.lengths()[:2], 10, ("K", "F"), rng), 2.6)


def make_frames(build: Callable, number: int, folder: Path, find: Find, seed: int) -> None:
    """Rattled structures that were relaxed a little."""
    rng = np.random.default_rng(number)
    starts = [xtb.relaxed(build(rng), xtb.GFN1, 0.1, STEPS) for _ in range(STARTS)]
    splits = {
        split: [xtb.rattled(own, RATTLE, rng) for own in starts for _ in range(size)]
        for split, size in SIZES.items()
    }
    labelled = xtb.label_splits(splits, workers=2)
    store(folder, {split: list(filter(sane, frames)) for split, frames in labelled.items()})


def sane(frame: Atoms) -> bool:
    """Tell whether no bond was rattled to where it never is: of O-H to 0.6 Å, say."""
    return bool(np.linalg.norm(frame.arrays["REF_forces"], axis=1).max() < LARGEST_FORCE)


def depth(frame: Atoms) -> np.ndarray:
    """Distance in Å of each atom from the other side, along the normal."""
    z, height, side = frame.positions[:, 2], frame.cell[2, 2], frame.arrays["side"]
    apart = np.abs(z[:, None] - z)
    apart = np.minimum(apart, height - apart)
    return np.where(side[:, None] != side, apart, np.inf).min(1)


def probe(model, folder: Path) -> dict[str, float]:
    """Force errors within 3 Å of the other side and beyond, in meV/Å."""
    frames = frames_of(folder, "test")
    found = model.find(frames, False, "near and far").forces
    wrong = np.concatenate([a - b.arrays["REF_forces"] for a, b in zip(found, frames, strict=True)])
    near = np.concatenate([depth(own) < 3.0 for own in frames])
    rms = lambda own: 1e3 * float(np.sqrt(np.mean(own**2)))  # noqa: E731
    return {"near": rms(wrong[near]), "far": rms(wrong[~near])}


def effects(folder: Path) -> list[Effect]:
    """Charge that went from one side to the other by the labels' own charges."""
    frames = frames_of(folder, "test")
    moved = [own.arrays["xtb_charges"][own.arrays["side"] == 0].sum() for own in frames]
    return [Effect("charge of one side, e", float(np.mean(moved)), 0.05)]


def interface(name: str, build: Callable, number: int, title: str, physics: str) -> System:
    """One interface."""
    return System(
        name,
        ("test",),
        200,
        (*BOXES, "--E0s=average"),
        make=partial(make_frames, build, number),
        recipe=2,
        effects=effects,
        probe=probe,
        labels="GFN1-xTB, periodic",
        title=title,
        physics=physics,
    )


INTERFACES = {
    "licl_gaf3": (
        *(salt_on_fluoride, 701),
        *("LiCl on GaF3", "Charge moves between two insulators."),
    ),
    "tio2_nacl_aq": (
        *(titania_in_solution, 702),
        *("TiO2 in NaCl solution", "An oxide polarises a solution."),
    ),
    "pt_kf_aq": (
        *(platinum_in_solution, 703),
        *("Pt in KF solution", "A metal takes what charge it likes."),
    ),
}
SYSTEMS = {name: interface(name, *own) for name, own in INTERFACES.items()}
CHECKS = tuple(NotWorse(name, "errors/test/forces") for name in SYSTEMS)
