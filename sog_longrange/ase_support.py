"""What the ASE calculators of the adapters share: charge and field in, what follows from them out.

`Atoms` are those of ASE, which is not imported here.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .coincidence import explain_not_finite
from .errors import InputError, NotFiniteError, explain
from .frames import check_cell, check_positions
from .geometry import own_volume
from .observables.born_charges import born_charges
from .observables.multipoles import dipole
from .validation import WHOLE, as_number, check_structures

EXTERNAL_FIELD: Final = "external_field"
"""Key of the uniform external electric field in `atoms.info`, of 3 floats in V/Å."""


TOTAL_CHARGE: Final = ("charge", "total_charge")
"""Keys of the total charge in `atoms.info`, in e, which must not disagree."""

CHARGES_SUM_TO_ZERO: Final = (
    "the latent charges of this model sum to zero. Train a model with charge_constraint='total' or "
    "charge_embedding for charged structures."
)

PERPENDICULAR: Final = 1e-6
"""Change of a field's potential along periodic lattice vectors, in V, that counts as none."""


class AtomsLike(Protocol):
    """What is read of an `ase.Atoms`."""

    info: dict[str, Any]
    positions: np.ndarray
    cell: Any
    pbc: np.ndarray


class AtomicBornCharges(NamedTuple):
    """Born effective charges of one structure, as :class:`~sog_longrange.BornCharges`.

    Attributes
    ----------
    values : ndarray, shape (n_atoms, 3, 3), in e
        The first index of the matrices is that of the dipole, the second of the displacement.
    sum_rule : ndarray, shape (3, 3), in e
        What is left of the acoustic sum rule, before anything was enforced.
    """

    values: np.ndarray
    sum_rule: np.ndarray


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
    vector: np.ndarray = field.numpy()
    rises = np.asarray(atoms.cell.array)[np.asarray(atoms.pbc)] @ vector
    return vector if np.abs(rises).max(initial=0.0) > PERPENDICULAR else None


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


def check_results(results: dict[str, Any], atoms: AtomsLike, more: str = "") -> None:
    """Refuse energies and forces that are not finite, and say why.

    Parameters
    ----------
    results : dict
        Of a calculator; emptied if they are refused, so that nobody meets them later.
    atoms : ase.Atoms
        What they are for.
    more : str
        What else could be the cause, for the message.

    Raises
    ------
    NotFiniteError
        That names two atoms at one place, if there are any.
    """
    for name in ("energy", "forces"):
        finite = np.isfinite(results.get(name, 0.0))
        if not finite.all():
            results.clear()
            where = tuple(int(i) for i in np.argwhere(~finite)[0])
            got = f"NaN or infinity at index {where}" if where else "NaN or infinity"
            error = NotFiniteError(f"{explain(name, 'finite', got)}{more}")
            cell = torch.tensor(np.asarray(atoms.cell.array), dtype=torch.float64)
            pbc, positions = torch.tensor(np.asarray(atoms.pbc)), torch.tensor(atoms.positions)
            raise explain_not_finite(error, check_structures(positions, cell, pbc))


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


def born_charges_of_atoms(
    charges: Tensor,
    positions: Tensor,
    atoms: AtomsLike,
    *,
    eps_inf: float = 1.0,
    reach: float | None = None,
    enforce_sum_rule: bool = False,
    dipoles: Tensor | None = None,
) -> AtomicBornCharges:
    """Born effective charges of one structure.

    Parameters
    ----------
    charges : Tensor, shape (n_atoms,), in e
        In the graph of the positions.
    positions : Tensor, shape (n_atoms, 3), in Å
    atoms : ase.Atoms
        Whose cell and boundary are taken.
    eps_inf, reach, enforce_sum_rule
        As for :func:`~sog_longrange.born_charges`.
    dipoles : Tensor, shape (n_atoms, 3), in e Å, optional
        Of the atoms themselves, in the graph of the positions.

    Returns
    -------
    AtomicBornCharges

    Raises
    ------
    InputError
        If an option is malformed.
    """
    cell = torch.tensor(atoms.cell.array).to(positions)
    pbc = torch.tensor(np.asarray(atoms.pbc)).to(positions.device)
    if not charges.requires_grad:  # As those of an atom alone.
        charges = charges + 0.0 * positions.sum()
    if dipoles is not None and not dipoles.requires_grad:
        dipoles = dipoles + 0.0 * positions.sum()
    values, sum_rule = born_charges(
        charges,
        positions,
        cell,
        pbc,
        eps_inf=eps_inf,
        reach=reach,
        enforce_sum_rule=enforce_sum_rule,
        dipoles=dipoles,
    )
    return AtomicBornCharges(values.cpu().numpy(), sum_rule[0].cpu().numpy())


class ChargesInASE:
    """What ASE calculators of models with latent charges share, to stand before the host's class.

    Such a calculator says what its charges are by `_linked_charges`.
    """

    atoms: Any  # None before the first calculation
    _has_warned_of_charge = False

    def _ignore_charge(self, atoms: AtomsLike, constraints: Iterable[str]) -> None:
        """Warn once of a total charge that models take no notice of and contradict."""
        charge = ignored_charge(atoms, constraints)
        if charge is not None and not self._has_warned_of_charge:
            self._has_warned_of_charge = True
            text = f"The total charge {charge:g} e in atoms.info is ignored: {CHARGES_SUM_TO_ZERO}"
            warnings.warn(text, stacklevel=2)

    def check_state(self, atoms: AtomsLike, tol: float = 1e-15) -> list[str]:
        """Tell what changed since the last calculation, field and total charge included."""
        changes: list[str] = super().check_state(atoms, tol)  # type: ignore[misc]
        if not changes and is_info_changed(self.atoms, atoms):
            changes.append("info")
        return changes

    def get_born_charges(
        self,
        atoms: AtomsLike | None = None,
        *,
        eps_inf: float = 1.0,
        reach: float | None = None,
        enforce_sum_rule: bool = False,
    ) -> AtomicBornCharges:
        """Born effective charges of the charges of the first channel, with their response.

        Parameters
        ----------
        atoms : ase.Atoms, optional
            By default those of the last calculation.
        eps_inf, reach, enforce_sum_rule
            As for :func:`sog_longrange.born_charges`. The reach of a model without a charge
            constraint is its number of layers times its cutoff.

        Returns
        -------
        AtomicBornCharges
            `values` (n_atoms, 3, 3) in e, Z_jab = sqrt(eps_inf) dP_a / dr_jb, and `sum_rule`
            (3, 3), what is left of the acoustic sum rule. Their common sign is free.

        Raises
        ------
        HostError
            If the charges cannot be differentiated, as those of a compiled model, or have no
            mean, as those of a committee, whose signs are free one by one.
        InputError
            If an option is malformed or there are no atoms.
        """
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise InputError(explain("atoms", "given before any calculation", "None"))
        charges, dipoles, positions = self._linked_charges(atoms)
        return born_charges_of_atoms(
            charges,
            positions,
            atoms,
            eps_inf=eps_inf,
            reach=reach,
            enforce_sum_rule=enforce_sum_rule,
            dipoles=dipoles,
        )

    def _linked_charges(self, atoms: AtomsLike) -> tuple[Tensor, Tensor | None, Tensor]:
        """Charges (n_atoms,) and dipoles (n_atoms, 3) of atoms in the graph of the positions."""
        raise NotImplementedError


def add_periodic_field(
    results: dict[str, Any],
    born: np.ndarray,
    atoms: AtomsLike,
    field: np.ndarray,
    energy_unit: float = 1.0,
    length_unit: float = 1.0,
) -> None:
    """Add the forces Z^T E of a field along periodic axes, and its energy, to results.

    The energy is -sum_j (q_j r_j + mu_j).E, mu_j latent dipoles if there are any, with every atom
    where it is, not in any cell: smooth and the same on every path for atoms that are never
    wrapped, as ASE leaves them. It is the potential of the forces as long as charge flows only
    between atoms that are nearest images of each other there. No energy of a cell has all these
    forces as its gradient, since the dipole of charge that flows around the cell has no value. A
    stress is not defined, and is taken out.

    Parameters
    ----------
    results : dict
        Of a calculator without the field, with `charges` and those to be changed: `energy`,
        `free_energy`, `energies`, `node_energy`, `forces` and `stress`, if they are there.
    born : ndarray, shape (n_atoms, 3, 3), in e
        That obey the acoustic sum rule; else the field would pull at neutral cells.
    atoms : ase.Atoms
    field : ndarray, shape (3,), in V/Å
    energy_unit, length_unit : float
        Of the model, in eV and Å.
    """
    charges = np.asarray(results["charges"], dtype=np.float64)
    moments = charges[:, None] * atoms.positions
    if "latent_dipoles" in results:
        moments = moments + results["latent_dipoles"][:, :, 0]
    energies = -energy_unit * (moments @ field)
    forces = energy_unit / length_unit * np.einsum("jab,a->jb", born, field)
    total = float(energies.sum())
    added = {"energy": total, "free_energy": total, "forces": forces}
    added |= {"energies": energies, "node_energy": energies}
    for key, value in added.items():
        if key in results:
            results[key] = results[key] + value
    results.pop("stress", None)
    results.update(field_energy=total, born_charges=born)


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


def explain_no_volume(atoms: AtomsLike) -> str:
    """Say why there is no stress of a structure without a volume.

    Parameters
    ----------
    atoms : ase.Atoms

    Returns
    -------
    str
    """
    return explain(
        "properties",
        "without 'stress' for a structure whose cell has no volume",
        f"one with it, and the cell {np.asarray(atoms.cell.array).tolist()}",
        "Stress is the derivative of the energy in strain over the volume of the cell. Set three "
        "rows that span a volume, along open axes with vacuum, or ask for energy and forces only.",
    )


def explain_no_stress() -> str:
    """Say why there is no stress in a field along periodic axes.

    Returns
    -------
    str
    """
    return explain(
        "properties",
        "without 'stress' in a field along periodic axes",
        "one with it",
        "The dipole of a strained cell depends on the images of its atoms. Keep the cell fixed, "
        f'or remove atoms.info["{EXTERNAL_FIELD}"].',
    )
