"""Results of calculators that follow from latent charges: dipole, Born charges, field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sog_longrange.charges.electric import electric
from sog_longrange.coincidence import explain_not_finite
from sog_longrange.errors import NotFiniteError, explain
from sog_longrange.observables.born_charges import born_charges
from sog_longrange.observables.external_field import uniform_field
from sog_longrange.observables.multipoles import dipole
from sog_longrange.validation import check_structures

from .structures import AtomsLike


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


def as_double(values: np.ndarray) -> Tensor:
    """Copy numbers to a tensor in double precision.

    Parameters
    ----------
    values : array

    Returns
    -------
    Tensor, float64
    """
    return torch.tensor(np.asarray(values, dtype=np.float64))


def charge_results(
    charges: np.ndarray,
    atoms: AtomsLike,
    dipoles: np.ndarray | None = None,
    moment: np.ndarray | None = None,
) -> dict[str, Any]:
    """Collect the results of a calculator that say what the latent charges are.

    Parameters
    ----------
    charges : ndarray, shape (n_atoms, n_channels), in e
    atoms : ase.Atoms
    dipoles : ndarray, shape (n_atoms, 3, n_channels), in e Å, optional
    moment : ndarray, shape (3,), in e Å, optional
        Dipole of the structure, if it is known.

    Returns
    -------
    dict
        `latent_charges`, `charges` (n_atoms,) in e, those of the first channel, and their
        `dipole` (3,) in e Å; with dipoles also `latent_dipoles`.
    """
    own = None if dipoles is None else electric(dipoles)
    results = {"latent_charges": charges, "charges": electric(charges).copy()}
    known = dipole_of_atoms(results["charges"], atoms, own) if moment is None else moment
    results["dipole"] = known
    return results if dipoles is None else results | {"latent_dipoles": dipoles}


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
    moment: np.ndarray = dipoles_of_frames(charges, [atoms], dipoles)[0]
    return moment


def dipoles_of_frames(
    charges: np.ndarray, frames: Sequence[AtomsLike], dipoles: np.ndarray | None = None
) -> np.ndarray:
    """Dipoles of the charges of several structures, and of the dipoles of their atoms.

    Parameters
    ----------
    charges : ndarray, shape (n_atoms,), in e
        Of the atoms of all structures, one after another.
    frames : sequence of ase.Atoms
    dipoles : ndarray, shape (n_atoms, 3), in e Å, optional

    Returns
    -------
    ndarray, shape (n_frames, 3), in e Å
        See :func:`~sog_longrange.dipole` for the branch of periodic structures.
    """
    positions = as_double(np.concatenate([atoms.positions for atoms in frames]))
    cell = as_double(np.stack([atoms.cell.array for atoms in frames]))
    pbc = torch.tensor(np.stack([np.asarray(atoms.pbc) for atoms in frames]))
    sizes = torch.tensor([atoms.positions.shape[0] for atoms in frames])
    batch = torch.arange(sizes.shape[0]).repeat_interleave(sizes)
    own = None if dipoles is None else as_double(dipoles)
    moments = dipole(as_double(charges), positions, cell, pbc, batch, len(frames), dipoles=own)
    return np.asarray(moments)


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
    charges, positions = (as_double(x) for x in (results["charges"], atoms.positions))
    own = results.get("latent_dipoles")
    dipoles = None if own is None else as_double(electric(own))
    # Without a cell, every atom is where it is.
    in_field = uniform_field(charges, positions, as_double(field), dipoles=dipoles)
    energies = energy_unit * in_field.atomic_energies.numpy()
    forces = energy_unit / length_unit * np.einsum("jab,a->jb", born, field)
    total = float(energies.sum())
    added = {"energy": total, "free_energy": total, "forces": forces}
    added |= {"energies": energies, "node_energy": energies}
    for key, value in added.items():
        if key in results:
            results[key] = results[key] + value
    results.pop("stress", None)
    results.update(field_energy=total, born_charges=born)


def check_results(results: dict[str, Any], atoms: AtomsLike, more: str = "") -> None:
    """Raise an error for energies and forces that are not finite, with the reason.

    Parameters
    ----------
    results : dict
        Of a calculator; emptied if they are not finite, so that none of them is used later.
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
