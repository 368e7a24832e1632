"""Labels by semi-empirical quantum chemistry (tblite), open and periodic, over two processes."""

from __future__ import annotations

from functools import partial

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.optimize import LBFGS
from tqdm import tqdm
from workbench import dimers

from sog_longrange.units import COULOMB_CONSTANT

GFN1, GFN2 = "GFN1-xTB", "GFN2-xTB"


def calculator(atoms: Atoms, method: str):
    """The method, with one unpaired electron where their number is odd."""
    from tblite.ase import TBLite

    charge = int(atoms.info.get("total_charge", 0))
    odd = (int(atoms.numbers.sum()) - charge) % 2
    return TBLite(method=method, charge=charge, multiplicity=1 + odd, verbosity=0)


def label(atoms: Atoms, method: str = GFN1) -> Atoms | None:
    """One frame with its energy, forces and atomic charges; None where the cycle fails.

    Parameters
    ----------
    atoms : the frame; ``info["total_charge"]`` is its charge in e, 0 by default.
    method : GFN1-xTB or GFN2-xTB.

    Returns
    -------
    Atoms with `REF_energy` in eV, `REF_forces` in eV/Å and `xtb_charges` in e, which no model is
    told.
    """
    found = dimers.label_by(calculator(atoms, method), atoms)
    if found is None:
        return None
    frame, charges = found
    frame.arrays["xtb_charges"] = charges
    return frame


def dipole(atoms: Atoms, method: str) -> np.ndarray:
    """Dipole in e Å, shape (3,)."""
    frame = atoms.copy()
    frame.calc = calculator(frame, method)
    return frame.get_dipole_moment()


def born_charges(atoms: Atoms, method: str, step: float = 0.01) -> np.ndarray:
    """Born charges in e by central differences of the dipole, shape (n_atoms, 3, 3).

    Parameters
    ----------
    atoms : open.
    method : GFN1-xTB or GFN2-xTB.
    step : displacement in Å.

    Returns
    -------
    ndarray
        The first index after the atom is that of the dipole, the second that of the displacement.
    """
    found = np.empty((len(atoms), 3, 3))
    for atom, axis in np.ndindex(len(atoms), 3):
        ends = []
        for sign in (1.0, -1.0):
            frame = atoms.copy()
            frame.positions[atom, axis] += sign * step
            ends.append(dipole(frame, method))
        found[atom, :, axis] = (ends[0] - ends[1]) / (2.0 * step)
    return found


def apart(atoms: Atoms, first: int, charges: tuple[int, int], method: str) -> Atoms | None:
    """Two molecules far apart, from labels of each alone and Coulomb's law between their atoms.

    Parameters
    ----------
    atoms : open; both molecules.
    first : number of atoms of the first one.
    charges : of both, in e: methods that share electrons between far molecules leak charge.
    method : GFN1-xTB or GFN2-xTB.
    """
    parts = []
    for part, charge in zip((atoms[:first], atoms[first:]), charges, strict=True):
        part.info["total_charge"] = charge
        parts.append(label(part, method))
    if None in parts:
        return None
    q = [own.arrays["xtb_charges"] for own in parts]
    vectors = parts[0].positions[:, None] - parts[1].positions
    r = np.linalg.norm(vectors, axis=-1)
    energy = COULOMB_CONSTANT * q[0][:, None] * q[1] / r
    pull = (energy / r**2)[..., None] * vectors
    frame = atoms.copy()
    frame.info["REF_energy"] = sum(own.info["REF_energy"] for own in parts) + float(energy.sum())
    between = np.concatenate([pull.sum(1), -pull.sum(0)])
    alone = np.concatenate([own.arrays["REF_forces"] for own in parts])
    frame.arrays["REF_forces"] = alone + between
    frame.arrays["xtb_charges"] = np.concatenate(q)
    return frame


def label_splits(
    splits: dict[str, list[Atoms]], method: str = GFN1, workers: int = 0
) -> dict[str, list[Atoms]]:
    """Label the frames of every split; those that do not converge are left out.

    Parameters
    ----------
    splits : unlabelled frames.
    method : GFN1-xTB or GFN2-xTB.
    workers : processes, for what takes seconds a frame; 0 for this one.
    """
    how = partial(label, method=method)
    if workers:
        return dimers.label_splits(splits, workers, how, method)
    bar = tqdm([(split, own) for split in splits for own in splits[split]], desc=method)
    labelled = [(split, how(own)) for split, own in bar]
    failed = sum(own is None for _, own in labelled)
    if 20 * failed > len(labelled):
        raise RuntimeError(f"{failed} of {len(labelled)} {method} calculations failed")
    return {
        split: [own for name, own in labelled if name == split and own is not None]
        for split in splits
    }


def relaxed(atoms: Atoms, method: str, fmax: float, steps: int, fixed: tuple = ()) -> Atoms:
    """The nearest minimum, or what is found in so many steps."""
    frame = atoms.copy()
    frame.set_constraint(FixAtoms(fixed) if len(fixed) else None)
    frame.calc = calculator(frame, method)
    LBFGS(frame, logfile=None, maxstep=0.1).run(fmax=fmax, steps=steps)
    frame.calc = None
    frame.set_constraint()
    return frame


def rattled(atoms: Atoms, size: float, rng: np.random.Generator, **info: object) -> Atoms:
    """A copy whose coordinates are displaced by normal random numbers."""
    frame = atoms.copy()
    frame.positions += rng.normal(scale=size, size=frame.positions.shape)
    frame.info.update(info)
    return frame
