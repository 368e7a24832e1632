"""Ions of fixed charge with a repulsion: a salt whose energy is known exactly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.md.langevin import Langevin

from sog_longrange import Ewald, LongRangeEnergy
from sog_longrange.units import COULOMB_CONSTANT

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGNS = {11: 1.0, 17: -1.0}  # sodium and chlorine
STRENGTH, DECAY = 1256.31, 0.3149  # of the repulsion of unlike ions at a charge of 1 e: eV, Å
SMEARING = 1.2  # Å, divides the Coulomb sum; the result does not depend on it


def signs_of(atoms: Atoms) -> np.ndarray:
    """Sign of the charge of each ion, shape (n,)."""
    return np.array([SIGNS[number] for number in atoms.numbers.tolist()])


class PointIons(Calculator):
    """Point charges in a periodic box by Ewald's method, and a repulsion of unlike ions.

    Pairs are taken with their nearest images, so that the box must be longer than 12 Å.

    Parameters
    ----------
    charge : of a sodium ion, in e; the repulsion is scaled by its square, so that distances
        in crystals do not depend on it.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, charge: float = 1.0) -> None:
        super().__init__()
        self.charge = charge
        self.far = LongRangeEnergy(Ewald(SMEARING), tolerance=1e-6, backend="dense")

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Energy and forces."""
        super().calculate(atoms, properties, system_changes)
        positions = torch.tensor(self.atoms.positions, requires_grad=True)
        energy = self._energy(positions)
        (slope,) = torch.autograd.grad(energy, positions)
        self.results = {"energy": float(energy.detach()), "forces": -slope.numpy()}

    def _energy(self, positions: torch.Tensor) -> torch.Tensor:
        charges = self.charge * torch.tensor(signs_of(self.atoms))
        cell, pbc = torch.tensor(self.atoms.cell.array)[None], torch.ones(1, 3, dtype=torch.bool)
        far = self.far(charges[:, None], positions, cell, pbc).energy.sum()
        i, j = torch.triu_indices(len(positions), len(positions), 1)
        apart = positions[i] - positions[j]
        edges = cell[0].diagonal()
        distance = (apart - edges * torch.round(apart / edges)).norm(dim=-1)
        near = torch.erfc(distance / (math.sqrt(2.0) * SMEARING)) / distance
        products = charges[i] * charges[j]
        wall = STRENGTH * torch.exp(-distance / DECAY) * (-products).clamp(min=0.0)
        return far + (COULOMB_CONSTANT * products * near + wall).sum()


def set_velocities(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Give atoms the velocities of Maxwell's distribution at a temperature in K."""
    scatter = np.sqrt(atoms.get_masses()[:, None] * units.kB * temperature)
    atoms.set_momenta(scatter * rng.normal(size=(len(atoms), 3)))


def make_melt(
    calculator: Calculator, frames: int, temperature: float, every: int, seed: int, steps: int = 400
) -> list[Atoms]:
    """A molten salt: frames along a trajectory of 64 ions at the density of molten NaCl.

    Parameters
    ----------
    calculator : of energies and forces.
    frames : how many.
    temperature : in K.
    every : steps of 2 fs between two frames.
    seed : of the random numbers.
    steps : before the first frame: half of them at four times the temperature, where all melts.

    Returns
    -------
    Frames with ``REF_energy`` in eV and ``REF_forces`` in eV/Å.
    """
    rng = np.random.default_rng(seed)
    atoms = bulk("NaCl", "rocksalt", a=6.28, cubic=True).repeat(2)
    atoms.calc = calculator
    set_velocities(atoms, 4 * temperature, rng)
    options = {"friction": 0.02 / units.fs, "rng": rng, "fixcm": False}
    dynamics = Langevin(atoms, 2 * units.fs, temperature_K=4 * temperature, **options)
    dynamics.run(steps // 2)
    dynamics.set_temperature(temperature_K=temperature)
    dynamics.run(steps - steps // 2)
    found = []
    for _ in range(frames):
        dynamics.run(every)
        frame = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
        frame.info["REF_energy"] = atoms.get_potential_energy()
        frame.arrays["REF_forces"] = atoms.get_forces()
        found.append(frame)
    return found


def make_gas(calculator: Calculator, count: int, seed: int) -> list[Atoms]:
    """Boxes of 64 ions at random places, at 27 Å^3 for each, no two closer than 2.2 Å.

    Parameters
    ----------
    calculator : of energies and forces.
    count : how many.
    seed : of the random numbers.

    Returns
    -------
    Frames with ``REF_energy`` in eV and ``REF_forces`` in eV/Å.
    """
    rng, edge, frames = np.random.default_rng(seed), 12.0, []
    for _ in range(count):
        places: list[np.ndarray] = []
        while len(places) < 64:
            new = rng.uniform(0.0, edge, 3)
            apart = np.array(places).reshape(-1, 3) - new
            apart -= edge * np.round(apart / edge)
            if (apart**2).sum(1).min(initial=edge**2) > 2.2**2:
                places.append(new)
        atoms = Atoms([11] * 32 + [17] * 32, places, cell=[edge] * 3, pbc=True)
        atoms.info["REF_energy"] = calculator.get_potential_energy(atoms)
        atoms.arrays["REF_forces"] = calculator.get_forces(atoms)
        frames.append(atoms)
    return frames
