"""Errors of a model on labelled frames: energies, forces, stress, and net forces on fragments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

ENERGY, FORCES, STRESS = "REF_energy", "REF_forces", "REF_stress"
BOND = 1.25  # longest bond over the sum of the covalent radii


@dataclass(frozen=True)
class Found:
    """What a model says of frames, or what their labels are.

    Parameters
    ----------
    energies : ndarray, shape (n_frames,), in eV.
    forces : list of ndarray, shape (n_atoms, 3) each, in eV/Å.
    stresses : ndarray, shape (n_frames, 3, 3), in eV/Å^3, or None.
    charges : list of ndarray, shape (n_atoms, n_channels) each, in e, or None.
    """

    energies: np.ndarray
    forces: list[np.ndarray]
    stresses: np.ndarray | None = None
    charges: list[np.ndarray] | None = None


def labels(frames: list[Atoms]) -> Found:
    """Labels of frames; stress where all have it."""
    stresses = None
    if all(STRESS in frame.info for frame in frames):
        stresses = np.array([np.reshape(frame.info[STRESS], (3, 3)) for frame in frames])
    energies = np.array([frame.info[ENERGY] for frame in frames])
    return Found(energies, [frame.arrays[FORCES] for frame in frames], stresses)


def fragments(atoms: Atoms, bond: float = BOND) -> np.ndarray:
    """Number of the fragment of each atom: what chains of bonds connect.

    Parameters
    ----------
    atoms : the structure.
    bond : longest bond over the sum of the covalent radii.

    Returns
    -------
    ndarray of int, shape (n_atoms,)
    """
    i, j = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=bond))
    bonds = coo_matrix((np.ones(len(i)), (i, j)), shape=(len(atoms), len(atoms)))
    return connected_components(bonds, directed=False)[1]


def sums(values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Sums over the atoms of each fragment, shape (n_fragments, ...)."""
    total = np.zeros((members.max() + 1, *values.shape[1:]))
    np.add.at(total, members, values)
    return total


def rms(values: np.ndarray) -> float:
    """Root mean square, in thousandths of the unit."""
    return 1e3 * float(np.sqrt(np.mean(np.square(values))))


def force_errors(
    found: list[np.ndarray], exact: list[np.ndarray], parts: list[np.ndarray] | None
) -> dict[str, float]:
    """RMSE of forces, and of the net forces on fragments, in meV/Å."""
    wrong = [a - b for a, b in zip(found, exact, strict=True)]
    errors = {"forces": rms(np.concatenate(wrong))}
    if parts is not None:
        errors["net_force"] = rms(
            np.concatenate([sums(*pair) for pair in zip(wrong, parts, strict=True)])
        )
    return errors


def errors(found: Found, exact: Found, parts: list[np.ndarray] | None) -> dict[str, float]:
    """RMSE by quantity.

    Parameters
    ----------
    found, exact : over the same frames.
    parts : fragments of each frame, where net forces on them are compared.

    Returns
    -------
    dict
        `energy` in meV a structure, `energy_shape` without its mean error, `forces` in meV/Å,
        where there are labels `stress` in meV/Å^3, where there are parts `net_force` in meV/Å.
    """
    wrong = found.energies - exact.energies
    result = {"energy": rms(wrong), "energy_shape": rms(wrong - wrong.mean())}
    result |= force_errors(found.forces, exact.forces, parts)
    if exact.stresses is not None and found.stresses is not None:
        result["stress"] = rms(found.stresses - exact.stresses)
    return result | {"frames": len(wrong)}


def zero(exact: Found, parts: list[np.ndarray] | None) -> dict[str, float]:
    """Errors of predicting no force: the rms of the labels."""
    return force_errors([np.zeros_like(own) for own in exact.forces], exact.forces, parts)


def copied(
    frames: list[Atoms], training: list[Atoms], parts: list[np.ndarray]
) -> dict[str, float] | None:
    """Errors of the forces of the training frame of the same atoms that is farthest apart.

    None if there is none for a frame. It has the orientation of the frame only where both are
    of one rigid curve.
    """
    far: dict[tuple[int, ...], tuple[float, Atoms]] = {}
    for own in training:
        kind, distance = tuple(own.numbers), _distance(own)
        if distance > far.get(kind, (0.0, own))[0]:
            far[kind] = distance, own
    if not all(tuple(own.numbers) in far for own in frames):
        return None
    copies = [far[tuple(own.numbers)][1].arrays[FORCES] for own in frames]
    return force_errors(copies, [own.arrays[FORCES] for own in frames], parts)


def _distance(atoms: Atoms) -> float:
    """Distance of the centres of the first two fragments; 0 where there is only one."""
    members = fragments(atoms)
    if members.max() == 0:
        return 0.0
    first, second = (atoms.positions[members == number].mean(0) for number in (0, 1))
    return float(np.linalg.norm(first - second))


def net_charges(
    frames: list[Atoms], charges: list[np.ndarray], parts: list[np.ndarray]
) -> dict[str, dict[str, float]]:
    """Net charge of the first channel of each kind of fragment, in e: least, mean and largest.

    Parameters
    ----------
    frames, charges, parts : of the same structures.
    """
    kinds: dict[str, list[float]] = {}
    for own, values, members in zip(frames, charges, parts, strict=True):
        for number, charge in enumerate(sums(values[:, 0], members)):
            kinds.setdefault(own[members == number].get_chemical_formula(), []).append(charge)
    return {
        kind: {"min": float(min(own)), "mean": float(np.mean(own)), "max": float(max(own))}
        for kind, own in kinds.items()
    }
