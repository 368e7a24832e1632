"""Density at constant pressure: of a model, and of the exact force field that labelled its data.

The pressure is that of the exact force field at the density of its snapshots, ideal part and
virial. So the answer is known before: that density, which the exact run must find again. Pair
terms of the force field are cut; the truth is the density of that same force field, not of the
real salt.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import IsotropicMTKNPT

from sog_longrange.errors import InputError

from . import exact, structure
from .motion import thermal
from .system import Motion

THERMOSTAT, BAROSTAT = 100.0, 1000.0  # fs
EVERY, SETTLE = 10, 0.2  # steps between looks, and share of the run before the first
WIDEST = 2.0  # times the volume at the start, or over it: there a model has failed
KILOGRAMS = 1e27 / units.mol  # u/Å^3 in kg/m^3
SHARE, TRUTH = 0.5, 2.0  # of the length of all dynamics: a model's run; the exact one, over that
Run = Callable[[MolecularDynamics, int, str], None]


class UnstableError(Exception):
    """The cell grew or shrank without end, or atoms fly; the argument is the density by then."""


def pressure(world: exact.World, frames: list[Atoms], kelvin: float) -> float:
    """Mean pressure of exact snapshots in eV/Å^3, ideal part included.

    Parameters
    ----------
    world, frames : what acts in which structures of one cell.
    kelvin : temperature.
    """
    calculator = exact.ExactCalculator(world)
    virials = [-np.mean(calculator.get_stress(frame)[:3]) for frame in frames]
    ideal = len(frames[0]) * units.kB * kelvin / frames[0].get_volume()
    return ideal + float(np.mean(virials))


def density(atoms: Atoms) -> float:
    """Mass over volume in kg/m^3."""
    return KILOGRAMS * float(atoms.get_masses().sum()) / atoms.get_volume()


def constant_pressure(
    calculator: Calculator,
    frame: Atoms,
    motion: Motion,
    wanted: float,
    picoseconds: float,
    run: Run,
) -> np.ndarray:
    """Densities in kg/m^3 along a run at constant pressure and temperature.

    Parameters
    ----------
    calculator : with forces and stress.
    frame : where it starts.
    motion : temperature and time step.
    wanted : pressure in eV/Å^3.
    picoseconds : length.
    run : runs a motion for some steps, with words for its progress.

    Raises
    ------
    UnstableError
        If the volume doubles or halves, or atoms fly off to where no model evaluates them.
    """
    atoms = thermal(frame, calculator, motion.kelvin)
    own = IsotropicMTKNPT(
        atoms,
        motion.step * units.fs,
        temperature_K=motion.kelvin,
        pressure_au=wanted,
        tdamp=THERMOSTAT * units.fs,
        pdamp=BAROSTAT * units.fs,
    )
    steps, start, found = int(1e3 * picoseconds / motion.step), frame.get_volume(), []

    def look() -> None:
        if not 1.0 / WIDEST < atoms.get_volume() / start < WIDEST:
            raise UnstableError(float(np.nan_to_num(density(atoms))))
        if own.nsteps >= SETTLE * steps:
            found.append(density(atoms))

    own.attach(look, interval=EVERY)
    try:
        run(own, steps, "density")
    except InputError as error:
        raise UnstableError(0.0) from error
    return np.array(found)


def describe(found: np.ndarray) -> dict[str, float]:
    """Mean density and its block error, in kg/m^3."""
    error = float(structure.block_error(found[:, None])[0])
    return {"density": float(found.mean()), "error": error * float(found.mean())}


def truth(motion: Motion, frames: list[Atoms], picoseconds: float, run: Run) -> dict:
    """Pressure in kbar of the exact snapshots, their density, and that of an exact run at it."""
    wanted = pressure(motion.world, frames, motion.kelvin)
    calculator = exact.ExactCalculator(motion.world)
    length = TRUTH * picoseconds
    found = constant_pressure(calculator, frames[-1], motion, wanted, length, run)
    kilobars = wanted / (1e3 * units.bar)
    return {"pressure": kilobars, "known": density(frames[-1]), **describe(found)}


def of_model(
    calculator: Calculator,
    frame: Atoms,
    motion: Motion,
    exactly: dict,
    picoseconds: float,
    run: Run,
) -> dict:
    """Density of a model at the pressure of the exact force field.

    Where the cell grows or shrinks without end the density is that by then, and `unstable` true.

    Parameters
    ----------
    exactly : from :func:`truth`.
    """
    wanted = exactly["pressure"] * 1e3 * units.bar
    try:
        return describe(constant_pressure(calculator, frame, motion, wanted, picoseconds, run))
    except UnstableError as error:
        print(f"  density: unstable, {error.__cause__ or f'{WIDEST:g} times the volume'}")
        return {"density": error.args[0], "error": 0.0, "unstable": True}
