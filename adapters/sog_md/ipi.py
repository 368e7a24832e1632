"""i-PI: driver of models with a long range, for `ffdirect` and for clients of sockets.

i-PI takes the path of a file with the class of a driver; ``python -m sog_md.ipi`` prints it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import ase.io
import numpy as np
from ase import Atoms

from sog_longrange.ase_support import TOTAL_CHARGE, dipole_of_atoms, open_calculator
from sog_longrange.charges.electric import electric
from sog_longrange.errors import InputError, explain
from sog_longrange.hosts import load_library

DRIVER_FILE: Final = Path(__file__).with_name("ipi_driver.py")
"""What i-PI is told as `pes_path`. i-PI imports it under its own name, which must not be `ipi`."""

UNWRAPPED: Final = "unwrapped_dipole"
EXTRAS: Final = ("dipole", UNWRAPPED, "charges", "latent_charges", "latent_dipoles")
"""What a driver can report of each bead."""

Answer = tuple[float, np.ndarray, np.ndarray, str]
"""Energy, forces (n_atoms, 3), virial (3, 3) in atomic units of i-PI, and JSON."""


class SOGDriver:
    """Energy, forces and virial of beads, and their dipoles.

    Parameters
    ----------
    template : str
        File that ASE reads, for the elements of the atoms in the order of i-PI. From extended XYZ
        also the boundary, the total charge and an external field are taken.
    model : str or list of str
        File of a model, or those of a committee, with spaces between if they are one text, for
        :func:`~sog_longrange.ase_support.open_calculator`.
    device : str
    charge : float, in e, optional
        Total charge, before one in the template.
    pbc : str or bool, optional
        Whether structures are periodic, as `true` or `false`, or along which axes, as `TTF`;
        before that of the template, and needed if the template has no cell.
    extras : str or list of str
        Those of `EXTRAS` that are reported, in e, Å and e Å: `dipole` by default, the one of
        the calculator, with a branch where structures are periodic; `unwrapped_dipole`, with
        every atom where i-PI has it, which is continuous as long as i-PI wraps none. Empty
        for none.
    **unused
        `verbosity`, which i-PI passes.

    Raises
    ------
    InputError
        If a parameter is not known or malformed, a file is missing, or the model does not take
        these atoms.
    """

    def __init__(
        self,
        template: str,
        model: str | Sequence[str],
        device: str = "cpu",
        charge: float | None = None,
        pbc: str | bool | None = None,
        extras: str | Sequence[str] = "dipole",
        **unused: object,
    ) -> None:
        unknown = ", ".join(sorted(set(unused) - {"verbosity", "verbose"}))
        if unknown:
            expected = "template, model, device, charge, pbc, extras"
            raise InputError(explain("parameters", expected, unknown))
        self.extras = _read_extras(extras)
        self.template = read_template(template, pbc, charge)
        self.calculator = open_calculator(_read_names(model), device)
        self.calculator.check_species(self.template)
        self._units = load_library("ipi.utils.units", "ipi")
        self._beads: list[Atoms] = []

    def __call__(self, cell: Any, pos: Any) -> Answer | list[Answer]:
        """Evaluate one structure, or several at once.

        Parameters
        ----------
        cell : ndarray, shape (3, 3), in bohr, or list of them
            Columns are lattice vectors.
        pos : ndarray, shape (n_atoms, 3), in bohr, or list of them

        Returns
        -------
        tuple or list of tuple
            As i-PI takes them.
        """
        try:
            if not isinstance(cell, list):
                return self.evaluate([cell], [pos])[0]
            return self.evaluate(cell, pos)
        except Exception as error:
            self._stop(error)
            raise

    @staticmethod
    def _stop(error: Exception) -> None:
        """Stop i-PI where it would go on waiting for a thread that has ended."""
        if threading.current_thread() is not threading.main_thread():
            softexit = load_library("ipi.utils.softexit", "ipi").softexit
            softexit.trigger(status="bad", message=f"{type(error).__name__}: {error}")

    def evaluate(
        self, cells: Sequence[np.ndarray], positions: Sequence[np.ndarray]
    ) -> list[Answer]:
        """Evaluate structures, by one call of the model where its host can.

        Parameters
        ----------
        cells, positions
            As lists of arrays; see :meth:`__call__`.

        Returns
        -------
        list of tuple

        Raises
        ------
        InputError
            If the number of atoms is not that of the template.
        SOGError
            As the calculator.
        """
        length = self._units.unit_to_user("length", "angstrom", 1.0)
        while len(self._beads) < len(cells):
            self._beads.append(self.template.copy())
        beads = self._beads[: len(cells)]
        for atoms, cell, places in zip(beads, cells, positions, strict=True):
            if np.shape(places) != atoms.positions.shape:
                expected = f"of the {len(atoms)} atoms of the template"
                raise InputError(explain("positions", expected, f"shape {np.shape(places)}"))
            atoms.positions = length * np.asarray(places)
            atoms.set_cell(length * np.asarray(cell).T)
        names = [_SOURCES.get(name, name) for name in self.extras]
        results = self.calculator.calculate_batch(beads, ["energy", "forces", "stress", *names])
        return [self._answer(*pair, 1.0 / length) for pair in zip(beads, results, strict=True)]

    def _answer(self, atoms: Atoms, results: dict[str, Any], bohr: float) -> Answer:
        """Results in atomic units: forces are derivatives of the energy in these."""
        hartree = self._units.unit_to_internal("energy", "electronvolt", 1.0)
        xx, yy, zz, yz, xz, xy = results["stress"]
        stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        forces = np.asarray(hartree / bohr * results["forces"], dtype=np.float64)
        virial = np.asarray(-hartree * atoms.get_volume() * stress, dtype=np.float64)
        found = {
            name: _unwrapped(atoms, results) if name == UNWRAPPED else results[name]
            for name in self.extras
        }
        text = json.dumps({name: np.asarray(value).tolist() for name, value in found.items()})
        return hartree * float(results["energy"]), forces, virial, text if found else ""


_SOURCES: Final = {UNWRAPPED: "charges"}


def _unwrapped(atoms: Atoms, results: dict[str, Any]) -> np.ndarray:
    """Dipole (3,) in e Å with every atom where it is, not at its image nearest to the origin."""
    free = atoms.copy()
    free.pbc = False
    own = results.get("latent_dipoles")
    return dipole_of_atoms(results["charges"], free, None if own is None else electric(own))


def _read_names(given: str | Sequence[str]) -> list[str]:
    """Files, whose names may have spaces if there is one."""
    if not isinstance(given, str):
        return list(given)
    return [given] if Path(given).exists() else given.split()


def _read_extras(given: str | Sequence[str]) -> list[str]:
    names = given.split() if isinstance(given, str) else list(given)
    unknown = ", ".join(name for name in names if name not in EXTRAS)
    if unknown:
        raise InputError(explain("extras", f"of {', '.join(EXTRAS)}", unknown))
    return names


def read_template(
    path: str | Path, pbc: str | bool | None = None, charge: float | None = None
) -> Atoms:
    """Read the atoms that a driver is for.

    Parameters
    ----------
    path : str or Path
    pbc : str or bool, optional
        As `true`, `false` or `TTF`.
    charge : float, in e, optional

    Returns
    -------
    ase.Atoms

    Raises
    ------
    InputError
        If there is no such file, or neither file nor `pbc` tells the boundary.
    """
    if not Path(path).exists():
        raise InputError(explain("template", "a file", f"{path}: no such file"))
    atoms: Atoms = ase.io.read(path)
    atoms.calc = None
    if pbc is None and not atoms.cell.any():
        expected = f"given, as 'true' or 'false', where {Path(path).name} has no cell"
        remedy = "ASE reads no cell from the XYZ files of i-PI."
        raise InputError(explain("pbc", expected, "none", remedy))
    if pbc is not None:
        atoms.pbc = _read_pbc(pbc)
    if charge is not None:
        for key in TOTAL_CHARGE:
            atoms.info.pop(key, None)
        atoms.info[TOTAL_CHARGE[0]] = charge
    return atoms


def _read_pbc(given: str | bool) -> list[bool]:
    letters = str(given).strip().upper()
    whole = {"TRUE": "TTT", "FALSE": "FFF"}.get(letters, letters)
    if len(whole) != 3 or set(whole) - {"T", "F"}:
        raise InputError(explain("pbc", "'true', 'false' or three of T and F", repr(given)))
    return [letter == "T" for letter in whole]


if __name__ == "__main__":
    print(DRIVER_FILE)
