"""Data that the accuracy benchmark makes itself, or joins from files.

Each function writes labelled frames into a folder; `find` gives the folder of a published or
synthetic set by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import jobs  # noqa: F401  (makes the modules of the examples importable)
import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, InputError
from ase.io import read, write
from ase.neighborlist import neighbor_list
from scipy.spatial.transform import Rotation
from surface_energy import World, make_frames
from workbench import dimers

from sog_longrange import Ewald, LongRangeEnergy
from sog_longrange.units import COULOMB_CONSTANT

Find = Callable[[str], Path]
DIMERS = ("CC", "CP", "PP", "CA", "PA", "AA")
FOLDS = 5


def store(folder: Path, splits: dict[str, list[Atoms]]) -> None:
    """Write splits; that of training last, because it says that all are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(splits, key=lambda name: name == "train"):
        write(folder / f"{name}.xyz", splits[name], format="extxyz")


def join_dimers(folder: Path, find: Find, seed: int) -> None:
    """Six dimer curves as one training set; each keeps its own test."""
    curves = {name: find(f"dimers_bfdb/{name}") for name in DIMERS}
    splits = {"test_" + name: read(own / "test.xyz", ":") for name, own in curves.items()}
    splits["train"] = [frame for own in curves.values() for frame in read(own / "train.xyz", ":")]
    store(folder, splits)


def fold_water(folder: Path, find: Find, seed: int) -> None:
    """One fold of five, by the seed: 18 frames to test, 8 to validate, 64 to train."""
    data = find("water_rpbe_d3")
    frames = read(data / "train.xyz", ":") + read(data / "val.xyz", ":")
    order = np.random.default_rng(0).permutation(len(frames))
    test = np.array_split(order, FOLDS)[(seed - 1) % FOLDS]
    rest = [i for i in order if i not in test]
    chosen = {"test": test, "val": rest[:8], "train": rest[8:]}
    store(folder, {name: [frames[i] for i in own] for name, own in chosen.items()})


def make_surface(folder: Path, find: Find, seed: int) -> None:
    """Rattled bulk crystals of the ionic world; a fifth validates."""
    frames = make_frames(World())
    store(folder, {"val": frames[::5], "train": [f for i, f in enumerate(frames) if i % 5]})


IONS = {  # charge in e, square root of C6 in sqrt(eV) Å^3, number of atoms
    "Na": (1.0, 1.0, 12),
    "K": (1.0, 3.0, 10),
    "F": (-1.0, 2.0, 10),
    "Cl": (-1.0, 5.0, 12),
    "Ne": (0.0, 1.5, 10),
    "Ar": (0.0, 7.0, 10),
}
REACH = 20.0  # Å, where the tail of 1/r^6 has no force left
WIDTH = 1.0  # Å, splits the Coulomb sum; the result does not depend on it


def make_mixture(folder: Path, find: Find, seed: int) -> None:
    """Charges with exact Coulomb forces, 1/r^6 attraction and a short repulsion; six elements."""
    rng = np.random.default_rng(101)
    sizes = {"val": 30, "test": 60, "train": 300}
    store(folder, {name: [mixture(rng) for _ in range(own)] for name, own in sizes.items()})


def scatter(count: int, edges: np.ndarray, closest: float, rng: np.random.Generator) -> np.ndarray:
    """Random places in a periodic box, none closer to another than allowed."""
    places: list[np.ndarray] = []
    while len(places) < count:
        tried = rng.random((1024, 3)) * edges
        for place in places:
            tried = tried[_distances(tried, place, edges) >= closest]
        while len(tried) and len(places) < count:
            places.append(tried[0])
            tried = tried[_distances(tried, tried[0], edges) >= closest]
    return np.array(places)


def _distances(places: np.ndarray, other: np.ndarray, edges: np.ndarray) -> np.ndarray:
    apart = places - other
    return np.linalg.norm(apart - edges * np.round(apart / edges), axis=1)


def mixture(rng: np.random.Generator, density: float = 1 / 27.0, closest: float = 2.4) -> Atoms:
    """One labelled box of ions and atoms."""
    symbols = [symbol for symbol, (_, _, count) in IONS.items() for _ in range(count)]
    edge = (len(symbols) / density) ** (1 / 3)
    edges = edge * np.exp(rng.uniform(-0.15, 0.15) + rng.uniform(-0.12, 0.12, 3))
    places = scatter(len(symbols), edges, closest, rng)
    atoms = Atoms(symbols, places, cell=edges, pbc=True)
    for column, name in enumerate(("true_charges", "true_c6")):
        atoms.arrays[name] = np.array([IONS[symbol][column] for symbol in symbols])
    return label_mixture(atoms)


def label_mixture(atoms: Atoms) -> Atoms:
    """Add the exact energy and forces."""
    charges, strengths = (torch.tensor(atoms.arrays[n]) for n in ("true_charges", "true_c6"))
    positions = torch.tensor(atoms.positions).requires_grad_()
    cell, pbc = torch.tensor(atoms.cell.array)[None], torch.tensor(atoms.pbc)[None]
    far = LongRangeEnergy(Ewald(WIDTH), tolerance=1e-12, backend="dense").double()
    i, j, shifts = neighbor_list("ijS", atoms, REACH)
    i, j = torch.tensor(i), torch.tensor(j)
    r = (positions[j] - positions[i] + torch.tensor(shifts @ atoms.cell.array)).norm(dim=1)
    screened = COULOMB_CONSTANT * torch.erfc(r / (math.sqrt(2.0) * WIDTH)) / r
    wall = 0.2 * (2.6 / r) ** 12 * (1.0 - (r / 8.0) ** 2).clamp(min=0.0) ** 3
    pairs = charges[i] * charges[j] * screened - strengths[i] * strengths[j] / r**6 + wall
    tail = 2.0 * math.pi / 3.0 / REACH**3 / atoms.get_volume() * strengths.sum() ** 2
    energy = far(charges[:, None], positions, cell, pbc).energy.sum() + 0.5 * pairs.sum() - tail
    atoms.arrays["REF_forces"] = -torch.autograd.grad(energy, positions)[0].numpy()
    atoms.info["REF_energy"] = float(energy.detach())
    return atoms


NEAR, FAR = (2.9, 8.0), (10.0, 20.0)  # Å, nitrogen to chlorine


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
        frame = dimers.label(pair(rng, NEAR[0] + (NEAR[1] - NEAR[0]) * rng.random()))
        if frame is not None and abs(frame.info["first_charge"] - 1.0) < 0.06:
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
    from tblite.ase import TBLite

    both = pair(rng, distance)
    energies, charges, forces = [], [], []
    for part, charge in ((both[:-1], 1), (both[-1:], -1)):
        part.calc = TBLite(method=dimers.METHOD, charge=charge, verbosity=0)
        try:
            energies.append(part.get_potential_energy())
        except (CalculationFailed, InputError, RuntimeError):
            return far_pair(rng, distance)
        forces.append(part.get_forces())
        charges.append(part.calc.get_charges())
    vectors = both.positions[:-1] - both.positions[-1]
    r = np.linalg.norm(vectors, axis=1)[:, None]
    between = COULOMB_CONSTANT * charges[0][:, None] * charges[1].sum() / r
    pull = between * vectors / r**2
    both.info["REF_energy"] = float(sum(energies) + between.sum())
    both.arrays["REF_forces"] = np.concatenate([forces[0] + pull, forces[1] - pull.sum(0)])
    return both
