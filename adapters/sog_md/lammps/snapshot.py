"""What one rank of LAMMPS hands a model, and what it gets back."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sog_longrange.errors import HostError, explain

UNITS: Final = {"metal": 1.0, "real": 23.060549}
"""Units of LAMMPS that have Å, and their energy in eV."""

OUTPUTS: Final[tuple[str, ...]] = (
    "long_range_energy",
    "short_range_energy",
    "charge_state_energy",
    "field_energy",
)
"""Energies in the global vector of the fix, in this order."""

Array = NDArray[Any]


class Snapshot(NamedTuple):
    """Atoms of one rank at one step.

    Attributes
    ----------
    tags : ndarray, shape (n_own,)
        Numbers by which LAMMPS knows atoms on all ranks.
    numbers : ndarray, shape (n_own,)
        Atomic numbers.
    positions : ndarray, shape (n_own, 3), in Å
        From the origin of the box along periodic axes; any periodic image.
    cell : ndarray, shape (3, 3), in Å
        Lower triangular.
    pbc : ndarray of bool, shape (3,)
    """

    tags: Array
    numbers: Array
    positions: Array
    cell: Array
    pbc: Array


class Evaluated(NamedTuple):
    """Results of a model for the atoms of one rank.

    Attributes
    ----------
    energy : float
        Of all atoms of all ranks, in eV.
    forces : ndarray, shape (n_own, 3), in eV/Å
    virial : ndarray, shape (3, 3), in eV, or None
        Of all atoms of all ranks; None if nobody wanted it.
    atomic_energies : ndarray, shape (n_own,), in eV, or None
    charges : ndarray, shape (n_own,), in e, or None
    energies : dict of float
        Those of `OUTPUTS` that the model has, in eV, of all atoms of all ranks.
    """

    energy: float
    forces: Array
    virial: Array | None
    atomic_energies: Array | None
    charges: Array | None
    energies: dict[str, float]


def box_of(lmp: Any) -> tuple[Array, Array, Array]:
    """Box of a simulation at this step.

    Parameters
    ----------
    lmp : lammps.lammps

    Returns
    -------
    origin : ndarray, shape (3,), in Å
    cell : ndarray, shape (3, 3), in Å
    pbc : ndarray of bool, shape (3,)
    """
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    origin = np.array(low)
    cell = np.diag(np.array(high) - origin)
    cell[1, 0], cell[2, 0], cell[2, 1] = xy, xz, yz
    return origin, cell, np.array(periodic, dtype=bool)


def images_of(lmp: Any, num_own: int) -> Array:
    """Count the cells that own atoms have crossed, along each lattice vector.

    Parameters
    ----------
    lmp : lammps.lammps
    num_own : int

    Returns
    -------
    ndarray of int, shape (n_own, 3)
    """
    packed = np.array(lmp.numpy.extract_atom("image", nelem=num_own), dtype=np.int64).ravel()
    bits = 10 if lmp.extract_setting("imageint") == 4 else 21
    counts = packed[:, None] >> (bits * np.arange(3)) & ((1 << bits) - 1)
    return counts - (1 << bits - 1)


def unit_of_energy(lmp: Any) -> float:
    """Return how much of LAMMPS's unit of energy an eV is.

    Parameters
    ----------
    lmp : lammps.lammps

    Returns
    -------
    float

    Raises
    ------
    HostError
        If the simulation has units without Å.
    """
    units = lmp.extract_global("units")
    if units not in UNITS:
        remedy = "Begin the input with `units metal`: Å, eV, ps."
        raise HostError(explain("units", " or ".join(UNITS), str(units), remedy))
    return UNITS[units]
