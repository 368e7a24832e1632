"""Quantum-chemistry data for the demo: three kinds of dimer, labelled with GFN2-xTB.

Ammonium perchlorate (charged-charged), ammonium with hydrogen cyanide (charged-polar) and two
hydrogen cyanides (polar-polar), slightly distorted and at many orientations: near enough for
training, and farther than anything in it. The ions are chosen so that GFN2-xTB dissociates them
rightly: at 15 Å the pair holds charges of +1 and -1 and binds by 1/r. Many other pairs (ammonium
formate or chloride, any alkali salt) leak charge at a distance in this method.

Nothing here is specific to one model: the files are plain extended XYZ.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.data import vdw_radii
from ase.io import read, write
from ase.optimize import BFGS
from scipy.spatial.transform import Rotation
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tblite.ase import TBLite

METHOD = "GFN2-xTB"
FORMAT = 1  # raised when the recipe below changes, so that old data are not reused
MONOMERS = {"NH4+": 1, "ClO4-": -1, "HCN": 0}
DIMERS = {
    "charged-charged": ("NH4+", "ClO4-"),
    "charged-polar": ("NH4+", "HCN"),
    "polar-polar": ("HCN", "HCN"),
}
SPLITS = ("train", "valid", "test_inside", "test_beyond", "curve")


@dataclass(frozen=True)
class Recipe:
    """What is generated.

    Parameters
    ----------
    inside : largest separation that is trained, in Å.
    beyond : largest separation that is tested, in Å.
    train, valid, test : frames of each dimer in each split.
    monomers : isolated molecules of each kind in the training set (a fifth as many in validation).
    distortion : standard deviation of the random displacement of each coordinate, in Å.
    curve : points of each rigid scan.
    seed : of all random numbers.
    """

    inside: float = 8.0
    beyond: float = 15.0
    train: int = 140
    valid: int = 14
    test: int = 60
    monomers: int = 20
    distortion: float = 0.015
    curve: int = 61
    seed: int = 7


def label(atoms: Atoms) -> Atoms | None:
    """Energy and forces of one frame by GFN2-xTB.

    Parameters
    ----------
    atoms : the frame; ``info["total_charge"]`` is its charge in e.

    Returns
    -------
    Atoms with ``info["REF_energy"]`` in eV, ``arrays["REF_forces"]`` in eV/Å and
    ``info["first_charge"]``, the charge on the first molecule in e; None if the
    self-consistent cycle does not converge.
    """
    from tblite.ase import TBLite

    charge = atoms.info["total_charge"]
    found = label_by(TBLite(method=METHOD, charge=charge, verbosity=0), atoms)
    if found is None:
        return None
    frame, charges = found
    frame.info["first_charge"] = float(charges[: frame.info["first_atoms"]].sum())
    return frame


def label_by(calculator: TBLite, atoms: Atoms) -> tuple[Atoms, np.ndarray] | None:
    """Energy and forces of one frame by a calculator of tblite.

    Parameters
    ----------
    calculator : for its total charge.
    atoms : the frame; its constraints are left out.

    Returns
    -------
    Atoms with ``info["REF_energy"]`` in eV and ``arrays["REF_forces"]`` in eV/Å, and charges of
    atoms in e; None if the self-consistent cycle does not converge.
    """
    from ase.calculators.calculator import CalculationFailed, InputError

    frame = atoms.copy()
    frame.set_constraint()
    frame.calc = calculator
    try:
        energy, forces = frame.get_potential_energy(), frame.get_forces()
    except (CalculationFailed, InputError, RuntimeError):
        return None
    charges = calculator.get_charges()
    frame.calc = None
    frame.info["REF_energy"] = float(energy)
    frame.arrays["REF_forces"] = forces
    return frame, charges


def label_all(
    frames: list[Atoms],
    workers: int,
    how: Callable[[Atoms], Atoms | None] = label,
    method: str = METHOD,
) -> list[Atoms]:
    """Label frames over processes with a progress bar; those that fail are left out.

    Parameters
    ----------
    frames : unlabelled frames.
    workers : number of processes.
    how : labels one frame, or returns None.
    method : name of what labels, for the progress bar.

    Returns
    -------
    The labelled frames, in order.

    Raises
    ------
    RuntimeError
        If more than one frame in twenty fails.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the workers: one core for each
    with get_context("spawn").Pool(workers) as pool:
        results = pool.imap(how, frames, chunksize=16)
        labelled = [
            frame
            for frame in tqdm(results, total=len(frames), desc=method, unit="frame")
            if frame is not None
        ]
    failed = len(frames) - len(labelled)
    if failed:
        tqdm.write(f"  {failed} of {len(frames)} frames did not converge and are left out")
    if 20 * failed > len(frames):
        raise RuntimeError(f"{failed} of {len(frames)} {method} calculations failed: check tblite")
    return labelled


def guess(name: str) -> Atoms:
    """Starting geometry of a molecule of ``MONOMERS``."""
    if name == "HCN":
        return Atoms("HCN", [(1.07, 0, 0), (0, 0, 0), (-1.15, 0, 0)])
    formula, bond = {"NH4+": ("NH4", 1.03), "ClO4-": ("ClO4", 1.46)}[name]
    corners = np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]) / np.sqrt(3)
    return Atoms(formula, np.vstack([np.zeros(3), bond * corners]))


@lru_cache
def monomer(name: str) -> Atoms:
    """Relaxed molecule, centre of mass at the origin; hydrogen cyanide lies along x, H ahead.

    Parameters
    ----------
    name : a key of ``MONOMERS``.

    Returns
    -------
    Atoms
    """
    from tblite.ase import TBLite

    atoms = guess(name)
    atoms.calc = TBLite(method=METHOD, charge=MONOMERS[name], verbosity=0)
    BFGS(atoms, logfile=None).run(fmax=0.002, steps=300)
    atoms.positions -= atoms.get_center_of_mass()
    atoms.calc = None
    return atoms


def isolated(name: str, distortion: float, rng: np.random.Generator) -> Atoms:
    """One molecule alone, each coordinate displaced by a normal random number."""
    atoms = monomer(name).copy()
    atoms.positions += rng.normal(scale=distortion, size=atoms.positions.shape)
    atoms.info.update(dimer="monomer", monomer=name, total_charge=MONOMERS[name])
    atoms.info["first_atoms"] = len(atoms)
    return atoms


def join(first: Atoms, second: Atoms, separation: float, kind: str) -> Atoms:
    """Two molecules with their centres of mass ``separation`` Å apart along x."""
    first, second = first.copy(), second.copy()
    first.positions -= first.get_center_of_mass()
    second.positions -= second.get_center_of_mass() - np.array([separation, 0, 0])
    pair = Atoms(
        np.concatenate([first.numbers, second.numbers]),
        np.vstack([first.positions, second.positions]),
    )
    charge = sum(MONOMERS[name] for name in DIMERS[kind])
    pair.info.update(dimer=kind, separation=float(separation), total_charge=charge)
    pair.info["first_atoms"] = len(first)
    return pair


def clashes(pair: Atoms) -> bool:
    """Whether the two molecules come nearer than thermal motion would bring them."""
    cut = pair.info["first_atoms"]
    distances = pair.get_all_distances()[:cut, cut:]
    radii = vdw_radii[pair.numbers]
    hydrogen = pair.numbers == 1
    light = hydrogen[:cut, None] | hydrogen[None, cut:]
    factor = np.where(light, 0.66, 0.85)
    return bool((distances < factor * (radii[:cut, None] + radii[None, cut:])).any())


def attractive(kind: str) -> tuple[Atoms, Atoms]:
    """The two relaxed molecules, turned so that they attract along x.

    Two hydrogens of ammonium face two oxygens, one hydrogen faces the nitrogen of hydrogen
    cyanide, and two hydrogen cyanides stand head to tail.
    """
    first, second = (monomer(name).copy() for name in DIMERS[kind])
    if kind == "charged-polar":
        first.rotate(first.positions[1], "x")
    return first, second


def contact(first: Atoms, second: Atoms, kind: str) -> float:
    """Smallest separation in Å, by steps of 0.05 Å, at which the two do not clash."""
    separations = np.arange(2.5, 9.0, 0.05)
    return float(next(r for r in separations if not clashes(join(first, second, r, kind))))


def random_pair(
    kind: str, nearest: float, farthest: float, distortion: float, rng: np.random.Generator
) -> Atoms:
    """A distorted dimer between ``nearest`` (or contact) and ``farthest``, denser where near.

    Most of the dimers are turned at random, three in ten tilted from their attractive
    orientation by some 25 degrees about each axis.
    """
    free = rng.random() < 0.5
    molecules = attractive(kind)
    for molecule in molecules:
        tilt = Rotation.random(rng=rng) if free else Rotation.from_rotvec(rng.normal(0, 0.4, 3))
        molecule.positions = tilt.apply(molecule.positions)
        molecule.positions += rng.normal(scale=distortion, size=molecule.positions.shape)
    low = max(nearest, contact(*molecules, kind))
    return join(*molecules, low + (farthest - low) * rng.random(), kind)


def rigid_scan(kind: str, points: int, farthest: float) -> list[Atoms]:
    """The attractive orientation from contact to ``farthest`` Å, denser where it is near."""
    molecules = attractive(kind)
    low = contact(*molecules, kind)
    fractions = np.linspace(0.0, 1.0, points) ** 1.6
    return [join(*molecules, low + f * (farthest - low), kind) for f in fractions]


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
    near, far = (0.0, recipe.inside), (recipe.inside, recipe.beyond)
    ranges = {"train": near, "valid": near, "test_inside": near, "test_beyond": far}
    counts = {"train": recipe.train, "valid": recipe.valid}
    frames = {
        split: [
            random_pair(kind, low, high, recipe.distortion, rng)
            for kind in DIMERS
            for _ in range(counts.get(split, recipe.test))
        ]
        for split, (low, high) in ranges.items()
    }
    for split, count in (("train", recipe.monomers), ("valid", recipe.monomers // 5)):
        for name in MONOMERS:
            frames[split] += [isolated(name, recipe.distortion, rng) for _ in range(count)]
    frames["train"] += [isolated(name, 0.0, rng) for name in MONOMERS]
    frames["curve"] = [
        frame for kind in DIMERS for frame in rigid_scan(kind, recipe.curve, recipe.beyond)
    ]
    frames["curve"] += [isolated(name, 0.0, rng) for name in MONOMERS]
    return frames


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
    return keep(folder, wanted, SPLITS, lambda: label_splits(frames_of(recipe), workers))


def label_splits(
    frames: dict[str, list[Atoms]],
    workers: int,
    how: Callable[[Atoms], Atoms | None] = label,
    method: str = METHOD,
) -> dict[str, list[Atoms]]:
    """Label the frames of every split; arguments as for :func:`label_all`."""
    for split, members in frames.items():
        for frame in members:
            frame.info["split"] = split
    everything = [frame for members in frames.values() for frame in members]
    labelled = label_all(everything, workers, how, method)
    return {split: [f for f in labelled if f.info["split"] == split] for split in frames}


def keep(
    folder: Path,
    wanted: dict[str, object],
    splits: tuple[str, ...],
    make: Callable[[], dict[str, list[Atoms]]],
) -> dict[str, list[Atoms]]:
    """Make data and write them, or read them when the same were made before.

    Parameters
    ----------
    folder : where one file for each split lies.
    wanted : what the data are made from; a copy lies beside them.
    splits : their names.
    make : returns frames by split name.

    Returns
    -------
    Frames by split name.
    """
    stamp = folder / "recipe.json"
    if stamp.exists() and json.loads(stamp.read_text()) == wanted:
        print(f"  reusing {folder}")
        return {split: read(folder / f"{split}.xyz", index=":") for split in splits}
    folder.mkdir(parents=True, exist_ok=True)
    data = make()
    for split, members in data.items():
        write(folder / f"{split}.xyz", members, format="extxyz")
    stamp.write_text(json.dumps(wanted, indent=1))
    return data


def dissociation_report(curve: Iterable[Atoms]) -> str:
    """One line that shows whether the reference separates the ions as physics asks.

    Parameters
    ----------
    curve : the labelled ``curve`` split.

    Returns
    -------
    str.
    """
    frames = list(curve)
    alone = {f.info["monomer"]: f.info["REF_energy"] for f in frames if "monomer" in f.info}
    pairs = [f for f in frames if f.info["dimer"] == "charged-charged"]
    far = max(pairs, key=lambda f: f.info["separation"])
    distance, charge = far.info["separation"], far.info["first_charge"]
    energy = far.info["REF_energy"] - sum(alone[name] for name in DIMERS["charged-charged"])
    return (
        f"  reference at {distance:.0f} Å: NH4+ ClO4- binds by {energy:.3f} eV "
        f"(-14.4/r = {-14.399645 / distance:.3f} eV), charge on NH4+ {charge:.3f} e"
    )
