"""Energy of latent charges in a uniform external field."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from sog_longrange.geometry import at_atoms
from sog_longrange.validation import Structures, is_traced

from .images import (
    arms,
    check_one_channel,
    dipole_moments,
    displacements,
    refractive_index,
    sum_by_graph,
    vector_by_graph,
)

PERPENDICULAR: Final = 1e-6
"""Change of a field's potential along periodic lattice vectors, in V, that counts as none."""


class FieldOutput(NamedTuple):
    """Charges in a uniform external electric field.

    Attributes
    ----------
    energy : Tensor, shape (n_graphs,), in eV
        See :func:`field_energy`.
    atomic_energies : Tensor, shape (n_atoms,), in eV
        -sqrt(eps_inf) (q_j d_j + mu_j).E, d_j the vector from the origin to the nearest image of
        atom j, mu_j its own dipole, if any. They sum to the energy, and each depends on the origin.
    dipole : Tensor, shape (n_graphs, 3), in e Å
        See :func:`dipole`.
    """

    energy: Tensor
    atomic_energies: Tensor
    dipole: Tensor


def field_energy(
    charges: Tensor,
    positions: Tensor,
    field: Tensor,
    cell: Tensor | None = None,
    pbc: Tensor | None = None,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    *,
    origin: Tensor | None = None,
    eps_inf: float = 1.0,
    dipoles: Tensor | None = None,
) -> Tensor:
    """Energy of charges in a uniform external electric field, to be added to a model's.

    Its negative gradient is the force of the field, with the response of charges that
    depend on the positions. The field's potential vanishes at the origin; along
    periodic axes it falls over the cell around the origin and jumps back half a cell from
    it. An atom that crosses the jump changes the energy by q_j a.E and its force not at
    all; but the jump exerts a force on charge that flows across it. Put it where there is
    no charge, as in the vacuum around a slab, or take the force Z^T E of
    :func:`born_charges`, which has no jump and is the gradient everywhere else.

    Parameters
    ----------
    charges, positions, cell, pbc, batch, num_graphs, origin, dipoles
        As in :func:`dipole`.
    field : Tensor, shape (3,) or (n_graphs, 3), in V/Å
        Of periodic cells the macroscopic field, which the electrons screen already.
    eps_inf : float
        High-frequency dielectric constant, as in :func:`born_charges`.

    Returns
    -------
    Tensor, shape (n_graphs,), in eV
        -sqrt(eps_inf) P.E with the dipole P. Twice differentiable.

    Raises
    ------
    InputError, InputTypeError
        If an argument is malformed or a periodic cell is singular.

    References
    ----------
    Souza, Iniguez, Vanderbilt, Phys. Rev. Lett. 89 (2002) 117602, for the energy -P.E of a
    periodic cell and its branches.
    """
    rest = (cell, pbc, batch, num_graphs)
    return uniform_field(
        charges, positions, field, *rest, origin=origin, eps_inf=eps_inf, dipoles=dipoles
    ).energy


def uniform_field(
    charges: Tensor,
    positions: Tensor,
    field: Tensor,
    cell: Tensor | None = None,
    pbc: Tensor | None = None,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    *,
    origin: Tensor | None = None,
    eps_inf: float = 1.0,
    dipoles: Tensor | None = None,
) -> FieldOutput:
    """Energy of charges in a uniform external electric field, by atoms, and the dipole.

    Parameters
    ----------
    charges, positions, field, cell, pbc, batch, num_graphs, origin, eps_inf, dipoles
        As in :func:`field_energy`, which also describes the origin of the potential.

    Returns
    -------
    FieldOutput
        Twice differentiable.

    Raises
    ------
    InputError, InputTypeError
        If an argument is malformed or a periodic cell is singular.
    """
    structures = check_one_channel("charges", charges, positions, cell, pbc, batch, num_graphs)
    fields = vector_by_graph("field", field, structures)
    return field_term(charges, structures, fields, origin=origin, eps_inf=eps_inf, dipoles=dipoles)


def field_term(
    charges: Tensor,
    structures: Structures,
    fields: Tensor,
    *,
    origin: Tensor | None = None,
    eps_inf: float = 1.0,
    dipoles: Tensor | None = None,
) -> FieldOutput:
    """Evaluate -P.E of arguments that are checked already, also while a tracer records it.

    No graph can look for nearest images, nor raise. So traced energies take every atom where it
    is, and are NaN in fields along periodic axes, where the images of the atoms matter.

    Parameters
    ----------
    charges : Tensor, shape (n_atoms,), in e
    structures : Structures
        From :func:`~sog_longrange.validation.check_structures`.
    fields : Tensor, shape (n_graphs, 3), in V/Å
    origin, eps_inf, dipoles
        As in :func:`field_energy`.

    Returns
    -------
    FieldOutput
        Twice differentiable.

    Raises
    ------
    InputError, InputTypeError
        If `origin`, `eps_inf` or `dipoles` are malformed.
    """
    root = refractive_index(eps_inf)
    if is_traced():
        along = is_along_periodic(structures.cell.detach(), structures.pbc, fields)
        fields = torch.where(along[:, None], torch.nan, fields)
        vectors = displacements(structures, origin)
    else:
        vectors = arms(structures, origin)
    moments = dipole_moments(charges, dipoles, vectors)
    energies = -root * (moments * at_atoms(fields, structures.batch)).sum(-1)
    return FieldOutput(
        sum_by_graph(energies, structures), energies, sum_by_graph(moments, structures)
    )


def is_along_periodic(cell: Tensor, pbc: Tensor, fields: Tensor) -> Tensor:
    """Tell in which structures the potential of a field differs between periodic images.

    Parameters
    ----------
    cell : Tensor, shape (n_graphs, 3, 3), in Å
    pbc : Tensor, shape (n_graphs, 3), bool
    fields : Tensor, shape (n_graphs, 3), in V/Å

    Returns
    -------
    Tensor, shape (n_graphs,), bool
    """
    rises = torch.einsum("gkc,gc->gk", cell, fields).abs()
    return (pbc & (rises > PERPENDICULAR)).any(-1)
