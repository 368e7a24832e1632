"""Quantum-chemistry data for the demo of charge states: molecules at charges -1, 0 and +1.

Four molecules whose anions are bound also in experiment, distorted around the relaxed geometries
of all three charge states. Each conformation is labelled at each charge, so that differences
are vertical ionisation energies and electron affinities. The method is IPEA1-xTB, the variant of
GFN-xTB that was fitted to these two, with its shift of the energy of the free electron.

Nothing here is specific to one model: the files are plain extended XYZ.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.optimize import BFGS

from . import dimers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tblite.ase import TBLite

METHOD = "IPEA1-xTB"
FREE_ELECTRON = 4.8455  # eV, added by the authors of the method for each electron that leaves
FORMAT = 1  # raised when the recipe below changes, so that old data are not reused
CHARGES = (-1, 0, 1)
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Recipe:
    """What is generated.

    Parameters
    ----------
    train, valid, test : conformations of each molecule in each split, three frames each.
    distortion : standard deviation of the random displacement of each coordinate, in Å.
    seed : of all random numbers.
    """

    train: int = 30
    valid: int = 5
    test: int = 20
    distortion: float = 0.02
    seed: int = 7


def calculator(charge: int) -> TBLite:
    """IPEA1-xTB at a total charge; ions of closed-shell molecules have one unpaired electron."""
    from tblite.ase import TBLite

    return TBLite(method=METHOD, charge=charge, multiplicity=1 + abs(charge), verbosity=0)


def label(atoms: Atoms) -> Atoms | None:
    """Energy and forces of one frame.

    Parameters
    ----------
    atoms : the frame; ``info["total_charge"]`` is its charge in e.

    Returns
    -------
    Atoms with ``info["REF_energy"]`` in eV and ``arrays["REF_forces"]`` in eV/Å; None if
    the self-consistent cycle does not converge.
    """
    charge = atoms.info["total_charge"]
    found = dimers.label_by(calculator(charge), atoms)
    if found is None:
        return None
    frame, _ = found
    frame.info["REF_energy"] -= FREE_ELECTRON * charge
    return frame


def on_circle(radius: float, degrees: list[float]) -> np.ndarray:
    """Points in the plane z = 0, in Å."""
    angles = np.radians(degrees)
    return radius * np.stack([np.cos(angles), np.sin(angles), np.zeros(len(angles))], 1)


def benzoquinone() -> Atoms:
    """Six-ring with two opposite oxygens."""
    ring = [0, 60, 120, 180, 240, 300]
    points = [on_circle(1.44, ring), on_circle(2.67, ring[::3])]
    points.append(on_circle(2.50, [60, 120, 240, 300]))
    return Atoms("C6O2H4", np.vstack(points))


def nitrobenzene() -> Atoms:
    """Benzene with a nitro group in its plane."""
    ring = [0, 60, 120, 180, 240, 300]
    points = [on_circle(1.40, ring), on_circle(2.48, ring[1:])]
    points += [[[2.87, 0, 0], [3.44, 1.08, 0], [3.44, -1.08, 0]]]
    return Atoms("C6H5NO2", np.vstack(points))


def maleic_anhydride() -> Atoms:
    """Five-ring of oxygen, two carbonyls and a double bond."""
    points = [on_circle(1.15, [90, 18, -54, -126, 162]), on_circle(2.33, [18, 162])]
    points.append(on_circle(2.20, [-54, -126]))
    return Atoms("OC4O2H2", np.vstack(points))


def tetracyanoethylene() -> Atoms:
    """A double bond with four cyano groups."""
    corner = np.array([[0.68, 0, 0], [1.40, 1.22, 0], [2.0, 2.21, 0]])
    half = np.vstack([corner, corner[1:] * [1, -1, 1]])
    return Atoms("CCNCN" * 2, np.vstack([half, -half]))


MOLECULES: dict[str, Callable[[], Atoms]] = {
    "benzoquinone": benzoquinone,
    "nitrobenzene": nitrobenzene,
    "maleic anhydride": maleic_anhydride,
    "tetracyanoethylene": tetracyanoethylene,
}


@lru_cache
def relaxed(name: str, charge: int) -> Atoms:
    """Relaxed molecule at a total charge.

    Parameters
    ----------
    name : a key of ``MOLECULES``.
    charge : in e.

    Returns
    -------
    Atoms
    """
    atoms = MOLECULES[name]()
    atoms.calc = calculator(charge)
    BFGS(atoms, logfile=None).run(fmax=0.02, steps=200)
    atoms.calc = None
    return atoms


def conformation(
    name: str, number: int, distortion: float, rng: np.random.Generator
) -> list[Atoms]:
    """One distorted geometry, at every charge."""
    atoms = relaxed(name, int(rng.choice(CHARGES))).copy()
    atoms.positions += rng.normal(scale=distortion, size=atoms.positions.shape)
    frames = [atoms.copy() for _ in CHARGES]
    for frame, charge in zip(frames, CHARGES, strict=True):
        frame.info.update(molecule=name, conformation=number, total_charge=charge)
    return frames


def frames_of(recipe: Recipe) -> dict[str, list[Atoms]]:
    """Unlabelled frames of every split.

    Parameters
    ----------
    recipe : what to generate.

    Returns
    -------
    Frames by split name.
    """
    rng = np.random.default_rng(recipe.seed)
    counts = {"train": recipe.train, "valid": recipe.valid, "test": recipe.test}
    return {
        split: [
            frame
            for name in MOLECULES
            for number in range(count)
            for frame in conformation(name, number, recipe.distortion, rng)
        ]
        for split, count in counts.items()
    }


def make_data(folder: Path, recipe: Recipe, workers: int) -> dict[str, list[Atoms]]:
    """Generate and label all splits, or read them when the same recipe was made before.

    Parameters
    ----------
    folder : where ``train.xyz`` and the others lie.
    recipe : what to generate.
    workers : number of processes.

    Returns
    -------
    Labelled frames by split name.
    """
    wanted = {"format": FORMAT, "method": METHOD, **asdict(recipe)}
    return dimers.keep(
        folder,
        wanted,
        SPLITS,
        lambda: dimers.label_splits(frames_of(recipe), workers, label, METHOD),
    )
