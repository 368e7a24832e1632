"""What OpenMM calls for the energy and the forces of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import openmm
from ase import Atoms
from openmm import unit

from sog_longrange.ase_support import EXTERNAL_FIELD, TOTAL_CHARGE, open_calculator
from sog_longrange.errors import InputError, explain

EV: Final = 96.48533212331002
"""1 eV in kJ/mol (exact in SI)."""

KINDS: Final = ("energy", "interaction_energy")
"""Energies that a potential may have, by their names among results of calculators."""


def read_atoms(
    topology: openmm.app.Topology,
    system: openmm.System,
    chosen: Sequence[int] | None,
    charge: float | None = None,
    field: Sequence[float] | None = None,
) -> Atoms:
    """Atoms of a topology, all at one place.

    Parameters
    ----------
    topology : openmm.app.Topology
    system : openmm.System
        Whose other forces may be periodic.
    chosen : sequence of int, optional
        Which atoms; by default all.
    charge : float, in e, optional
    field : sequence of 3 float, in V/Å, optional

    Returns
    -------
    ase.Atoms

    Raises
    ------
    InputError
        If one of the atoms has no element, or there is a field and the system is periodic.
    """
    every = list(topology.atoms())
    atoms = every if chosen is None else [every[index] for index in chosen]
    without = [atom for atom in atoms if atom.element is None]
    if without:
        expected = "the element of every atom that the model describes"
        raise InputError(explain("topology", expected, f"none for {without[0]}"))
    numbers = [atom.element.atomic_number for atom in atoms]
    box = topology.getPeriodicBoxVectors()
    found = Atoms(numbers=numbers)
    if box is not None or system.usesPeriodicBoundaryConditions():
        vectors = system.getDefaultPeriodicBoxVectors() if box is None else box
        found.set_cell([list(row.value_in_unit(unit.angstrom)) for row in vectors])
        found.pbc = True
    if charge is not None:
        found.info[TOTAL_CHARGE[0]] = charge
    if field is not None:
        _set_field(found, field)
    return found


def _set_field(atoms: Atoms, field: Sequence[float]) -> None:
    atoms.info[EXTERNAL_FIELD] = field
    if atoms.pbc.any():
        # Its energy is that of atoms that nobody wraps, and OpenMM may.
        expected = "for open structures only"
        raise InputError(explain("externalField", expected, "a periodic topology"))


class Evaluation:
    """Energy and forces of a state of OpenMM.

    Can be pickled, and so be part of a serialised system, which holds the names of the files and
    opens them where it is used again.

    Parameters
    ----------
    paths : sequence of str
        Files of one model or a committee.
    device : str
    atoms : ase.Atoms
        Those of the model, with total charge and external field; positions do not matter.
    kind : str
        One of ``KINDS``.

    Raises
    ------
    InputError, HostError, MissingLibraryError
        If a file cannot be opened, or its model does not take these atoms.
    """

    def __init__(self, paths: Sequence[str], device: str, atoms: Atoms, kind: str) -> None:
        self.paths = list(paths)
        self.device = device
        self.atoms = atoms
        self.kind = kind
        self._calculator: Any = None
        self.open()

    def open(self) -> Any:
        """Open the files, unless they are open.

        Returns
        -------
        ase.calculators.calculator.Calculator
        """
        if self._calculator is None:
            calculator = open_calculator(self.paths, self.device)
            calculator.check_species(self.atoms)
            self._calculator = calculator
        return self._calculator

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_calculator": None}

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
        """Evaluate the model.

        Parameters
        ----------
        state : openmm.State
            With positions, and box vectors if the system is periodic.

        Returns
        -------
        energy : float, in kJ/mol
        forces : ndarray, shape (n_atoms, 3), in kJ/mol/nm
        """
        atoms = self.atoms
        atoms.positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
        if atoms.pbc.all():
            box = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom)
            atoms.set_cell(np.asarray(box))
        (results,) = self.open().calculate_batch([atoms], [self.kind, "forces"])
        # 1 Å is 0.1 nm.
        forces = np.asarray(10.0 * EV * results["forces"], dtype=np.float64)
        return EV * float(results[self.kind]), forces


def make_force(
    paths: str | Path | Sequence[str | Path], device: str, atoms: Atoms, kind: str
) -> openmm.PythonForce:
    """Make the force of a model.

    Parameters
    ----------
    paths : str or Path, or sequence of them
        Files of one model or a committee.
    device : str
    atoms : ase.Atoms
        From :func:`read_atoms`.
    kind : str
        One of ``KINDS``.

    Returns
    -------
    openmm.PythonForce

    Raises
    ------
    InputError, HostError, MissingLibraryError
        As :class:`Evaluation`, or if `kind` is not known.
    """
    if kind not in KINDS:
        raise InputError(explain("returnEnergyType", f"one of {', '.join(KINDS)}", repr(kind)))
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    names = [str(Path(path).absolute()) for path in given]
    force = openmm.PythonForce(Evaluation(names, device, atoms, kind))
    force.setUsesPeriodicBoundaryConditions(bool(atoms.pbc.all()))
    return force
