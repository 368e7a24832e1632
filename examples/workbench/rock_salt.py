"""A model of rock salt whose phonons are known, and phonons of any calculator by phonopy."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.filters import FrechetCellFilter
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS

from sog_longrange import LongRangeEnergy, SumOfGaussians
from sog_longrange.ase_support import AtomicBornCharges, born_charges_of_atoms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phonopy import Phonopy

STRENGTH, DECAY, REACH = 1256.31, 0.3149, 8.0  # of the Born-Mayer repulsion: eV, Å, Å
MIN_WIDTH = 0.8  # of the Gaussians, Å
CHARGES = {11: 1.0, 17: -1.0}  # e
VOIGT = [0, 4, 8, 5, 2, 1]


class FixedIons(Calculator):
    """Ions of charge +1 and -1 e, by the sum of Gaussians, that repel their nearest neighbours."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, tolerance: float = 1e-9) -> None:
        super().__init__()
        kernel = SumOfGaussians(min_width=MIN_WIDTH)
        self.long_range = LongRangeEnergy(kernel, tolerance=tolerance).double()

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Energy, forces and stress of a crystal."""
        super().calculate(atoms, properties, system_changes)
        energy, forces, virial = self._coulomb()
        repulsion, push, pressure = self._repulsion()
        stress = (virial + pressure) / self.atoms.get_volume()
        self.results = {
            "energy": energy + repulsion,
            "forces": forces + push,
            "stress": stress.ravel()[VOIGT],
        }

    def _coulomb(self) -> tuple[float, np.ndarray, np.ndarray]:
        """Energy, forces and derivative in strain of the charges."""
        atoms = self.atoms
        charges = torch.tensor([[CHARGES[z]] for z in atoms.numbers.tolist()])
        positions = torch.tensor(atoms.positions, requires_grad=True)
        strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
        stretch = torch.eye(3, dtype=torch.float64) + (strain + strain.T) / 2
        cell = torch.tensor(atoms.cell.array) @ stretch
        out = self.long_range(
            charges.double(), positions @ stretch, cell, pbc=torch.tensor(atoms.pbc)
        )
        gradient, virial = torch.autograd.grad(out.energy.sum(), [positions, strain])
        return float(out.energy.detach()), -gradient.numpy(), virial.numpy()

    def _repulsion(self) -> tuple[float, np.ndarray, np.ndarray]:
        """Energy, forces and derivative in strain of pairs of unlike ions."""
        i, j, distance, vector = neighbor_list("ijdD", self.atoms, REACH)
        unlike = self.atoms.numbers[i] != self.atoms.numbers[j]
        i, distance, vector = i[unlike], distance[unlike], vector[unlike]
        energy = STRENGTH * np.exp(-distance / DECAY)
        push = (energy / DECAY / distance)[:, None] * vector
        forces = np.zeros((len(self.atoms), 3))
        np.add.at(forces, i, -push)
        return 0.5 * float(energy.sum()), forces, -0.5 * push.T @ vector

    def get_born_charges(self, atoms: Atoms, **options: Any) -> AtomicBornCharges:  # noqa: ANN401
        """Born charges, which are the charges themselves."""
        charges = torch.tensor([CHARGES[z] for z in atoms.numbers.tolist()], dtype=torch.float64)
        positions = torch.tensor(atoms.positions, requires_grad=True)
        return born_charges_of_atoms(charges, positions, atoms, **options)


def relaxed_crystal(calculator: Calculator, edge: float = 5.6) -> Atoms:
    """The primitive cell of rock salt with the lattice constant that a calculator prefers."""
    atoms = bulk("NaCl", "rocksalt", a=edge)
    atoms.calc = calculator
    BFGS(FrechetCellFilter(atoms, hydrostatic_strain=True), logfile=None).run(1e-4, 60)
    atoms.calc = None
    return atoms


def phonons_of(calculator: Calculator, atoms: Atoms, repeats: Sequence[int]) -> Phonopy:
    """Phonons from forces in a supercell, without a non-analytical term."""
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(
        numbers=atoms.numbers, cell=atoms.cell.array, scaled_positions=atoms.get_scaled_positions()
    )
    with warnings.catch_warnings():
        # A rod has fewer symmetries than its cells.
        warnings.filterwarnings("ignore", ".*symmetries of supercell and primitive")
        phonons = Phonopy(cell, np.diag(repeats), primitive_matrix=np.eye(3), log_level=0)
    phonons.generate_displacements(distance=0.01)
    forces = []
    for one in phonons.supercells_with_displacements:
        moved = Atoms(one.symbols, cell=one.cell, scaled_positions=one.scaled_positions, pbc=True)
        forces.append(calculator.get_forces(moved))
    phonons.forces = np.array(forces)
    phonons.produce_force_constants()
    phonons.symmetrize_force_constants()
    return phonons


def frequencies(
    phonons: Phonopy, point: Sequence[float], direction: Sequence[float] | None = None
) -> np.ndarray:
    """Frequencies in THz at a reduced wave vector; at zero, those of waves along a direction."""
    phonons.run_qpoints([point], nac_q_direction=direction)
    found: np.ndarray = phonons.qpoints.frequencies[0]
    return found


def make_frames(count: int, seed: int) -> list[Atoms]:
    """Labelled crystals to train on: cubes of 8 atoms and rods of 6 to 12, strained and displaced.

    Parameters
    ----------
    count : how many.
    seed : of the random numbers.

    Returns
    -------
    Frames with energies and forces, as `mace_run_train` reads them.
    """
    rng, calculator, frames = np.random.default_rng(seed), FixedIons(), []
    for number in range(count):
        if number % 2:
            atoms = bulk("NaCl", "rocksalt", a=5.63, cubic=True)
        else:
            repeats = np.ones(3, dtype=int)
            repeats[rng.integers(3)] = rng.integers(3, 7)
            atoms = bulk("NaCl", "rocksalt", a=5.63).repeat(repeats)
        strain = rng.uniform(-0.02, 0.02, (3, 3))
        strain = (strain + strain.T) / 2
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        atoms.positions += rng.uniform(0.02, 0.10) * rng.normal(size=atoms.positions.shape)
        atoms.info["REF_energy"] = calculator.get_potential_energy(atoms)
        atoms.arrays["REF_forces"] = calculator.get_forces(atoms)
        frames.append(atoms)
    return frames
