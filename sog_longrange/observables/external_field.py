"""Energy of latent charges in a uniform external field."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .images import (
    check_one_channel,
    dipole_moments,
    refractive_index,
    sum_by_graph,
    vector_by_graph,
)


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
    depend on the positions. The gauge: the field's potential vanishes at the origin; along
    periodic axes it falls over the cell around the origin and jumps back half a cell from
    it. An atom that crosses the jump changes the energy by q_j a.E and its force not at
    all; but charge that flows across it feels a force of the jump. Put it where there is
    no charge, as in the vacuum around a slab, or take the force Z^T E of
    :func:`born_charges`, which knows no jump and is the gradient everywhere else.

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
        As in :func:`field_energy`, which also tells the gauge.

    Returns
    -------
    FieldOutput
        Twice differentiable.

    Raises
    ------
    InputError, InputTypeError
        If an argument is malformed or a periodic cell is singular.
    """
    root = refractive_index(eps_inf)
    structures = check_one_channel("charges", charges, positions, cell, pbc, batch, num_graphs)
    fields = vector_by_graph("field", field, structures)
    moments = dipole_moments(charges, dipoles, structures, origin)
    energies = -root * (moments * fields[structures.batch]).sum(-1)
    return FieldOutput(
        sum_by_graph(energies, structures), energies, sum_by_graph(moments, structures)
    )
