"""What is read of structures as ASE has them: total charge, external field, cell."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from sog_longrange.errors import InputError, explain
from sog_longrange.frames import check_cell, check_positions
from sog_longrange.geometry import own_volume
from sog_longrange.observables.external_field import is_along_periodic
from sog_longrange.options import as_number
from sog_longrange.validation import WHOLE

EXTERNAL_FIELD: Final = "external_field"
"""Key of the uniform external electric field in `atoms.info`, of 3 floats in V/Å."""


TOTAL_CHARGE: Final = ("charge", "total_charge")
"""Keys of the total charge in `atoms.info`, in e, which must not disagree."""

CHARGES_SUM_TO_ZERO: Final = (
    "the latent charges of this model sum to zero. Train a model with charge_constraint='total' or "
    "charge_embedding for charged structures."
)


class AtomsLike(Protocol):
    """What is read of an `ase.Atoms`.

    Attributes
    ----------
    info : dict
        May have the total charge and the external field.
    numbers : array, shape (n_atoms,), of int
        Atomic numbers.
    symbols : ase.symbols.Symbols
    positions : array, shape (n_atoms, 3), in Å
    cell : ase.cell.Cell
        Lattice vectors as rows, in Å.
    pbc : array, shape (3,), of bool
    """

    info: dict[str, Any]
    numbers: np.ndarray
    symbols: Any
    positions: np.ndarray
    cell: Any
    pbc: np.ndarray


def given_charge(atoms: AtomsLike) -> float:
    """Return the total charge of a structure for a model that needs one.

    Parameters
    ----------
    atoms : ase.Atoms

    Returns
    -------
    float, in e

    Raises
    ------
    InputError
        If there is none, or it is not one finite number.
    """
    charge = total_charge(atoms)
    if charge is None:
        expected = f"with {TOTAL_CHARGE[0]!r}, the total charge in e, which this model needs"
        remedy = "In engines of molecular dynamics it is an option, as `pair_style sog charge 0`."
        raise InputError(explain("atoms.info", expected, str(atoms.info), remedy))
    return charge


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
    return torch.from_numpy(field)


def periodic_field(atoms: AtomsLike) -> np.ndarray | None:
    """Read an external field whose potential differs between periodic images.

    Parameters
    ----------
    atoms : ase.Atoms

    Returns
    -------
    ndarray, shape (3,), float64, in V/Å, or None
        None if there is no field, or one that is perpendicular to the periodic lattice
        vectors.

    Raises
    ------
    InputError
        If there is a field that is not 3 finite numbers.
    """
    field = external_field(atoms)
    if field is None:
        return None
    cell = torch.tensor(np.asarray(atoms.cell.array, dtype=np.float64))
    pbc = torch.tensor(np.asarray(atoms.pbc))
    along = bool(is_along_periodic(cell[None], pbc[None], field[None])[0])
    vector: np.ndarray = field.numpy()
    return vector if along else None


def total_charge(atoms: AtomsLike, keys: Sequence[str] = TOTAL_CHARGE) -> float | None:
    """Read the total charge of a structure.

    Parameters
    ----------
    atoms : ase.Atoms
    keys : sequence of str
        Where to look; they must not disagree.

    Returns
    -------
    float, in e, or None
        None if `atoms.info` holds no total charge.

    Raises
    ------
    InputError
        If what it holds does not mean one finite number, or its two keys disagree.
    """
    found = {key: as_number(atoms.info[key]) for key in keys if key in atoms.info}
    for key, number in found.items():
        if number is None:
            remedy = "Set the total charge of the structure there, such as 0 or -1."
            name, got = f'atoms.info["{key}"]', repr(atoms.info[key])
            raise InputError(explain(name, "one finite number in e", got, remedy))
    numbers = {key: number for key, number in found.items() if number is not None}
    if not numbers:
        return None
    low, high = min(numbers, key=numbers.__getitem__), max(numbers, key=numbers.__getitem__)
    if numbers[high] - numbers[low] > WHOLE:
        expected = f'equal to atoms.info["{high}"], {numbers[high]:g}'
        name, got = f'atoms.info["{low}"]', f"{numbers[low]:g}"
        raise InputError(explain(name, expected, got, "Remove the wrong one."))
    return next(iter(numbers.values()))


def ignored_charge(
    atoms: AtomsLike, constraints: Iterable[str], keys: Sequence[str] = TOTAL_CHARGE
) -> float | None:
    """Find a total charge that models take no notice of and contradict.

    Parameters
    ----------
    atoms : ase.Atoms
    constraints : iterable of str
        Charge constraints of the models, none of which needs a total charge.
    keys : sequence of str
        Where to look.

    Returns
    -------
    float, in e, or None
        None if there is none, or charges are free.
    """
    given = [as_number(atoms.info[key]) for key in keys if key in atoms.info]
    charged = [number for number in given if number is not None and abs(number) > WHOLE]
    return charged[0] if charged and set(constraints) - {"none"} else None


def keep_info(atoms: AtomsLike) -> None:
    """Make fields and charges of a copy of a structure independent of those of the structure.

    ASE copies `info` without what is in it, so that a calculator would not notice a field that
    is changed in place.

    Parameters
    ----------
    atoms : ase.Atoms
        The copy, which is changed.
    """
    for key in (EXTERNAL_FIELD, *TOTAL_CHARGE):
        if key in atoms.info:
            atoms.info[key] = copy.deepcopy(atoms.info[key])


def is_info_changed(before: AtomsLike, after: AtomsLike) -> bool:
    """Tell whether field or total charge of two structures differ, at which ASE does not look.

    Parameters
    ----------
    before, after : ase.Atoms

    Returns
    -------
    bool
    """
    keys = (EXTERNAL_FIELD, *TOTAL_CHARGE)
    return any(_differ(before.info.get(key), after.info.get(key)) for key in keys)


def _differ(one: Any, other: Any) -> bool:  # noqa: ANN401
    return not np.array_equal(one, other)


def check_atoms(atoms: AtomsLike) -> None:
    """Refuse a structure that no graph should be built of.

    Parameters
    ----------
    atoms : ase.Atoms

    Raises
    ------
    InputError
        If there are no atoms, positions are not finite, or the cell does not span the periodic
        directions; see :func:`~sog_longrange.frames.check_cell`.
    """
    check_positions(atoms.positions, "the structure")
    check_cell(atoms.cell.array, atoms.pbc.tolist(), "the structure")


def check_elements(atoms: AtomsLike, known: Collection[int]) -> None:
    """Refuse a structure with elements that a model does not know.

    Parameters
    ----------
    atoms : ase.Atoms
    known : collection of int
        Atomic numbers.

    Raises
    ------
    InputError
        Naming these elements.
    """
    lacking = [z not in known for z in atoms.numbers.tolist()]
    if any(lacking):
        names = ", ".join(sorted(set(atoms.symbols[lacking])))
        numbers = ", ".join(str(z) for z in sorted(known))
        expected = f"of elements that the model knows, with the atomic numbers {numbers}"
        raise InputError(explain("atoms", expected, names))


def has_volume(atoms: AtomsLike) -> bool:
    """Tell whether a structure has a volume, without which it has no stress.

    Parameters
    ----------
    atoms : ase.Atoms

    Returns
    -------
    bool
    """
    cell = torch.tensor(np.asarray(atoms.cell.array, dtype=np.float64))
    return not bool(own_volume(cell[None]).isnan())
