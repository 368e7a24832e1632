"""What the ASE calculators of the adapters share: charge and field in, a dipole out.

`Atoms` are those of ASE, which is not imported here.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from .errors import BoundaryError, InputError, explain
from .observables import dipole

EXTERNAL_FIELD: Final = "external_field"
"""Key of the uniform external electric field in `atoms.info`, of 3 floats in V/Å."""


TOTAL_CHARGE: Final = ("charge", "total_charge")
"""Keys of the total charge in `atoms.info`, in e; the first that is there counts."""

_PERPENDICULAR = 1e-6  # V


class AtomsLike(Protocol):
    """What is read of an `ase.Atoms`."""

    info: dict[str, Any]
    positions: np.ndarray
    cell: Any
    pbc: np.ndarray


def external_field(atoms: AtomsLike) -> Tensor | None:
    """Read the uniform external field of a structure.

    Parameters
    ----------
    atoms : ase.Atoms

    Returns
    -------
    Tensor, shape (3,), float64, in V/Å, or None
        None if `atoms.info` has no such key.

    Raises
    ------
    InputError
        If it is not 3 finite numbers.
    BoundaryError
        If its potential differs between periodic images: charge that flows from one cell to the
        next would then feel the place where the potential jumps back.
    """
    if EXTERNAL_FIELD not in atoms.info:
        return None
    given = atoms.info[EXTERNAL_FIELD]
    try:
        field = np.array(given, dtype=np.float64)
    except (TypeError, ValueError):
        field = np.empty(0)
    if field.shape != (3,) or not np.isfinite(field).all():
        name = f'atoms.info["{EXTERNAL_FIELD}"]'
        raise InputError(explain(name, "3 finite numbers in V/Å", repr(given)))
    rises = np.asarray(atoms.cell.array)[np.asarray(atoms.pbc)] @ field
    if np.abs(rises).max(initial=0.0) > _PERPENDICULAR:
        raise BoundaryError(
            explain(
                f'atoms.info["{EXTERNAL_FIELD}"]',
                "perpendicular to the periodic lattice vectors",
                f"{given!r} with pbc={np.asarray(atoms.pbc).tolist()}",
                "Take the forces Z^T E of sog_longrange.born_charges along periodic axes.",
            )
        )
    return torch.from_numpy(field)


def total_charge_key(atoms: AtomsLike) -> str | None:
    """Find the key under which the total charge of a structure is.

    Parameters
    ----------
    atoms : ase.Atoms

    Returns
    -------
    str or None
        None if `atoms.info` holds no total charge.
    """
    return next((key for key in TOTAL_CHARGE if key in atoms.info), None)


def is_info_changed(before: AtomsLike, after: AtomsLike) -> bool:
    """Tell whether field or total charge of two structures differ, at which ASE does not look.

    Parameters
    ----------
    before, after : ase.Atoms

    Returns
    -------
    bool
    """
    return any(
        not np.array_equal(before.info.get(key), after.info.get(key))
        for key in (EXTERNAL_FIELD, *TOTAL_CHARGE)
    )


def dipole_of_atoms(
    charges: np.ndarray, atoms: AtomsLike, dipoles: np.ndarray | None = None
) -> np.ndarray:
    """Dipole of the charges of a structure, and of the dipoles of its atoms.

    Parameters
    ----------
    charges : ndarray, shape (n_atoms,), in e
    atoms : ase.Atoms
    dipoles : ndarray, shape (n_atoms, 3), in e Å, optional

    Returns
    -------
    ndarray, shape (3,), in e Å
        See :func:`~sog_longrange.dipole` for the branch of periodic structures.
    """
    numbers = (np.asarray(charges, dtype=np.float64), atoms.positions, atoms.cell.array)
    values, positions, cell = (torch.tensor(x) for x in numbers)
    own = None if dipoles is None else torch.tensor(np.asarray(dipoles, dtype=np.float64))
    pbc = torch.tensor(atoms.pbc)
    moments: np.ndarray = dipole(values, positions, cell, pbc, dipoles=own)[0].numpy()
    return moments
