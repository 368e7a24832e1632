"""Structures of the benchmark of the head: water of no order, and a gas of ions."""

from __future__ import annotations

import ase.build
import numpy as np
from ase import Atoms

ENERGY, FORCES = "REF_energy", "REF_forces"
WATER_VOLUME = 29.9  # Å^3 per molecule, at 1 g/cm^3
ION_VOLUME = 27.0  # Å^3 per ion, as in the gases of the accuracy benchmarks
JITTER = 0.2  # Å, standard deviation of each coordinate of a molecule


def make_frames(kind: str, count: int, n_atoms: int) -> list[Atoms]:
    """Periodic boxes with random labels, the same in every run.

    Parameters
    ----------
    kind : "water" or "gas".
    count : number of boxes.
    n_atoms : of each box; of water a multiple of 3.

    Returns
    -------
    list of Atoms
        With `ENERGY` in eV and `FORCES` in eV/Å, which only a loss needs.
    """
    make = {"water": _water, "gas": _gas}[kind]
    frames = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        frame = make(n_atoms, rng)
        frame.info[ENERGY] = float(rng.normal())
        frame.arrays[FORCES] = rng.normal(size=(n_atoms, 3))
        frames.append(frame)
    return frames


def _water(n_atoms: int, rng: np.random.Generator) -> Atoms:
    """Molecules near the sites of a lattice, each turned at random."""
    n_molecules = n_atoms // 3
    sites, edge = _lattice(n_molecules, WATER_VOLUME)
    box = Atoms(cell=[edge] * 3, pbc=True)
    for site in sites:
        molecule = ase.build.molecule("H2O")
        molecule.rotate(rng.uniform(0, 360), rng.normal(size=3))
        molecule.translate(site + JITTER * rng.normal(size=3))
        box += molecule
    return box


def _gas(n_atoms: int, rng: np.random.Generator) -> Atoms:
    """As many cations as anions near the sites of a lattice, in any order."""
    sites, edge = _lattice(n_atoms, ION_VOLUME)
    symbols = np.array(["Na", "Cl"] * (n_atoms // 2))
    places = rng.permutation(sites) + rng.uniform(-0.4, 0.4, size=sites.shape)
    return Atoms(symbols, places, cell=[edge] * 3, pbc=True)


def _lattice(count: int, volume: float) -> tuple[np.ndarray, float]:
    """So many sites of a cubic lattice, and the edge of its box, which is as dense as wanted."""
    edge = (count * volume) ** (1.0 / 3.0)
    per_edge = int(np.ceil(count ** (1.0 / 3.0) - 1e-9))
    grid = np.indices((per_edge,) * 3).reshape(3, -1).T
    # Evenly spread where the lattice has more sites than are wanted.
    chosen = np.linspace(0, len(grid) - 1, count).round().astype(int)
    return (grid[chosen] + 0.5) * (edge / per_edge), edge
