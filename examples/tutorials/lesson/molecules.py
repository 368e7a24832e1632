"""Pairs of small molecules, labelled with GFN2-xTB."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import molecule
from workbench import dimers

DISTORTION = 0.015  # Å, of each coordinate; three times as much in water


def make_pairs(
    kind: str, count: int, near: float, far: float, seed: int, alone: int = 0
) -> list[Atoms]:
    """Pairs at random distances and orientations, and molecules alone, all a little distorted.

    Parameters
    ----------
    kind : a key of ``workbench.dimers.DIMERS``.
    count : how many pairs.
    near, far : least and largest separation of the centres of mass in Å; 0 for contact.
    seed : of the random numbers.
    alone : how many of each of the two molecules.

    Returns
    -------
    Frames with ``REF_energy`` in eV, ``REF_forces`` in eV/Å and ``total_charge`` in e.
    """
    rng = np.random.default_rng(seed)
    frames = [dimers.random_pair(kind, near, far, DISTORTION, rng) for _ in range(count)]
    for name in dict.fromkeys(dimers.DIMERS[kind]):
        frames += [dimers.isolated(name, DISTORTION, rng) for _ in range(alone)]
    return [_labelled(frame) for frame in frames]


def make_scan(kind: str, points: int, far: float) -> tuple[list[Atoms], float]:
    """A rigid scan of the attractive orientation, from contact on.

    Parameters
    ----------
    kind : a key of ``workbench.dimers.DIMERS``.
    points : how many.
    far : largest separation in Å.

    Returns
    -------
    Labelled frames with ``separation`` in Å, and the energy in eV of the separate molecules.
    """
    rng = np.random.default_rng(0)  # of no use without a distortion
    alone = [_labelled(dimers.isolated(name, 0.0, rng)) for name in dimers.DIMERS[kind]]
    frames = [_labelled(frame) for frame in dimers.rigid_scan(kind, points, far)]
    return frames, sum(frame.info["REF_energy"] for frame in alone)


def make_hydrated(count: int, near: float, far: float, seed: int, alone: int = 0) -> list[Atoms]:
    """A chloride ion and a molecule of water at random distances and orientations, or water alone.

    Parameters
    ----------
    count : how many pairs.
    near, far : least and largest distance of the ion from the centre of mass in Å.
    seed : of the random numbers.
    alone : how many single molecules of water.

    Returns
    -------
    Frames with ``REF_energy`` in eV, ``REF_forces`` in eV/Å and ``total_charge`` in e.
    """
    rng, frames = np.random.default_rng(seed), []
    for number in range(count + alone):
        frame = _bent_water(rng)
        if number < count:
            direction = rng.normal(size=3)
            direction *= rng.uniform(near, far) / np.linalg.norm(direction)
            frame += Atoms("Cl", [direction])
        frame.info.update(total_charge=-int(number < count), first_atoms=3)
        frames.append(_labelled(frame))
    return frames


def _bent_water(rng: np.random.Generator) -> Atoms:
    """A distorted molecule of water at the origin, turned at random."""
    water = molecule("H2O")
    water.positions += rng.normal(scale=3 * DISTORTION, size=(3, 3)) - water.get_center_of_mass()
    water.rotate(360 * rng.random(), rng.normal(size=3))
    return water


def _labelled(frame: Atoms) -> Atoms:
    found = dimers.label(frame)
    if found is None:
        raise RuntimeError(f"{dimers.METHOD} did not converge for {frame.get_chemical_formula()}")
    return found
