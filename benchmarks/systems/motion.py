"""How molecular dynamics begins and runs, whatever it is for."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from tqdm import tqdm


def thermal(frame: Atoms, calculator: Calculator, kelvin: float) -> Atoms:
    """A copy with a calculator and velocities, whose centre rests."""
    atoms = frame.copy()
    atoms.calc = calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=kelvin, rng=np.random.default_rng(1))
    Stationary(atoms)
    return atoms


def progress(run: MolecularDynamics, steps: int, words: str) -> None:
    """Run with a progress bar."""
    bar = tqdm(total=steps, desc=f"  {words}", unit="step", mininterval=10.0)
    run.attach(lambda: bar.update(10), interval=10)
    run.run(steps)
    bar.close()
