"""Surfaces by a model that saw bulk crystals only: what charge constraints are worth.

A made-up ionic world of smeared charges of 1 and -1 e and a short repulsion, whose surface energy
is known for any boundary: 0.210 J/m^2. A tiny model is trained on 40 rocksalt frames,
periodic along all axes, and asked for slabs of two and four layers, with the boundary T T F and
with T T T and vacuum, which must agree.

    python -m nox -s systems -- surface --model sog "free=--sog_charge_constraint=none"
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.neighborlist import neighbor_list
from ase.units import J, m
from mace_options import SURFACE

from sog_longrange import LongRangeEnergy, SumOfGaussians

from .checks import Check
from .system import Find, System, store

LATTICE = 5.4  # Å
CUTOFF = 5.0  # Å, of the repulsion
TRUE = 0.210  # J/m^2, of every slab and boundary


class World(Calculator):
    """Smeared charges of 1 (Na) and -1 e (Cl) without self-interaction, and a short repulsion."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self):
        super().__init__()
        kernel = SumOfGaussians(min_width=1.0).double()
        self.long_range = LongRangeEnergy(kernel, tolerance=1e-7).double()

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        charges = torch.tensor(np.where(atoms.numbers == 11, 1.0, -1.0))[:, None]
        positions = torch.tensor(atoms.positions).requires_grad_()
        cell, pbc = torch.tensor(atoms.cell.array)[None], torch.tensor(atoms.pbc)[None]
        energy = self.long_range(charges, positions, cell, pbc).energy.sum()
        forces = -torch.autograd.grad(energy, positions)[0].numpy()
        i, d, vectors = neighbor_list("idD", atoms, CUTOFF)
        fade, wall = (1.0 - (d / CUTOFF) ** 2) ** 2, 1200.0 * np.exp(-d / 0.32)
        slope = wall * (-4.0 * d / CUTOFF**2 * (1.0 - (d / CUTOFF) ** 2) - fade / 0.32)
        np.add.at(forces, i, slope[:, None] * vectors / d[:, None])
        self.results = {"energy": float(energy.detach()) + 0.5 * (wall * fade).sum()}
        self.results["forces"] = forces


def make_frames(world: World) -> list[Atoms]:
    """Rattled crystals of several densities, labelled."""
    frames = []
    for seed in range(40):
        scale = 1.0 + 0.03 * np.random.default_rng(seed).normal()
        atoms = bulk("NaCl", "rocksalt", a=LATTICE * scale, cubic=True)
        atoms = atoms.repeat((2, 1, 1)) if seed % 2 else atoms
        atoms.rattle(0.12, seed=seed)
        atoms.info["REF_energy"] = world.get_potential_energy(atoms)
        atoms.arrays["REF_forces"] = world.get_forces(atoms)
        frames.append(atoms)
    return frames


def energy(atoms: Atoms, calculator: Calculator) -> float:
    """Energy in eV."""
    atoms = atoms.copy()
    atoms.calc = calculator
    return atoms.get_potential_energy()


def surface_energies(model, data: Path) -> dict[str, float]:
    """Surface energies in J/m^2 by number of layers and boundary."""
    calculator = model.calculator()
    unit = bulk("NaCl", "rocksalt", a=LATTICE, cubic=True)
    of_bulk, found = energy(unit, calculator), {}
    head = model.long_range
    has_slabs = head is None or head.config.is_sum_of_gaussians  # which LES' kernel is not
    for layers in (2, 4):
        slab = unit.repeat((1, 1, layers))
        slab.cell[2, 2] += 15.0
        for boundary in ("T T F", "T T T") if has_slabs else ("T T T",):
            slab.pbc = [flag == "T" for flag in boundary.split()]
            excess = (energy(slab, calculator) - layers * of_bulk) / (2.0 * LATTICE**2)
            found[f"{layers} layers {boundary}"] = excess / (J / m**2)
    return found


def make_surface(folder: Path, find: Find, seed: int) -> None:
    """Rattled bulk crystals of the ionic world; a fifth validates."""
    frames = make_frames(World())
    store(folder, {"val": frames[::5], "train": [f for i, f in enumerate(frames) if i % 5]})


def surface_error(result: dict) -> float | None:
    """Largest error of a surface energy in J/m^2."""
    found = result.get("probe")
    return max(abs(value - TRUE) for value in found.values()) if found else None


SYSTEMS = {
    "surface": System(
        "surface",
        ("val",),
        350,
        SURFACE,
        make=make_surface,
        probe=surface_energies,
        labels="exact sums",
        title="rock salt, bulk and slabs",
        physics="Slabs by a model of bulk crystals.",
    ),
}
WORDS = "surface energy off 0.210 J/m²"
CHECKS = tuple(
    Check("surface", surface_error, 0.15, columns, what=WORDS)
    for columns in (("sog",), ("interface",))
)
