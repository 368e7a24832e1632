"""Dipoles, quadrupoles and polarisation of latent charges."""

from __future__ import annotations

import torch
from torch import Tensor

from sog_longrange.errors import BoundaryError, explain
from sog_longrange.geometry import cell_volume

from .images import arms, check_one_channel, dipole_moments, sum_by_graph


def centre(
    positions: Tensor,
    weights: Tensor | None = None,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
) -> Tensor:
    """Weighted centre of each structure, as an origin of its multipoles.

    Parameters
    ----------
    positions : Tensor, shape (n_atoms, 3), in Å
        Of open structures: a periodic one has no centre.
    weights : Tensor, shape (n_atoms,), optional
        Masses or nuclear charges; by default all atoms count alike.
    batch, num_graphs
        As in :meth:`~sog_longrange.LongRangeEnergy.forward`.

    Returns
    -------
    Tensor, shape (n_graphs, 3), in Å
        Zero for structures without atoms.

    Raises
    ------
    InputError, InputTypeError
        If an argument is malformed.
    """
    if weights is None:
        weights = positions.new_ones(positions.shape[:1])
    structures = check_one_channel("weights", weights, positions, None, None, batch, num_graphs)
    moments, totals = (
        sum_by_graph(weights[:, None] * positions, structures),
        sum_by_graph(weights, structures),
    )
    return moments / torch.where(totals == 0, torch.ones_like(totals), totals)[:, None]


def dipole(
    charges: Tensor,
    positions: Tensor,
    cell: Tensor | None = None,
    pbc: Tensor | None = None,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    *,
    origin: Tensor | None = None,
    dipoles: Tensor | None = None,
) -> Tensor:
    """Dipole of each structure.

    Along periodic axes each atom is taken at its image nearest to the origin. So the result
    depends neither on the images of the atoms nor on the cell basis, and jumps by q_j a where
    an atom j passes from one nearest image to the next, with a lattice vector a. Like any
    dipole of a periodic cell it is known modulo these quanta.

    Parameters
    ----------
    charges : Tensor, shape (n_atoms,), in e
    positions, cell, pbc, batch, num_graphs
        As in :meth:`~sog_longrange.LongRangeEnergy.forward`.
    origin : Tensor, shape (3,) or (n_graphs, 3), in Å, optional
        By default the origin of the coordinates. The dipole of an open, neutral
        structure does not depend on it; that of total charge Q falls by Q o if it moves
        by o. See :func:`centre`.
    dipoles : Tensor, shape (n_atoms, 3), in e Å, optional
        Of the atoms themselves, such as ``out.dipoles[:, :, 0]``; they add to the dipole of the
        structure and know no branch.

    Returns
    -------
    Tensor, shape (n_graphs, 3), in e Å
        sum_j q_j (r_j - origin) + mu_j. Twice differentiable; 1 e Å is 4.803 debye.

    Raises
    ------
    InputError, InputTypeError
        If an argument is malformed or a periodic cell is singular.
    """
    structures = check_one_channel("charges", charges, positions, cell, pbc, batch, num_graphs)
    return sum_by_graph(dipole_moments(charges, dipoles, arms(structures, origin)), structures)


def quadrupole(
    charges: Tensor,
    positions: Tensor,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    *,
    origin: Tensor | None = None,
    traceless: bool = True,
) -> Tensor:
    """Quadrupole of each open structure.

    Parameters
    ----------
    charges : Tensor, shape (n_atoms,), in e
    positions : Tensor, shape (n_atoms, 3), in Å
    batch, num_graphs
        As in :meth:`~sog_longrange.LongRangeEnergy.forward`.
    origin : Tensor, shape (3,) or (n_graphs, 3), in Å, optional
        By default the origin of the coordinates. The quadrupole does not depend on it only
        if charge and dipole vanish. See :func:`centre`.
    traceless : bool
        Whether the traceless form is returned or the raw second moment.

    Returns
    -------
    Tensor, shape (n_graphs, 3, 3), in e Å^2
        Traceless: sum_j q_j (3 x_a x_b - x^2 delta_ab) / 2, raw: sum_j q_j x_a x_b, with
        x = r_j - origin.

    Raises
    ------
    InputError, InputTypeError
        If an argument is malformed.

    References
    ----------
    Buckingham, Q. Rev. Chem. Soc. 13 (1959) 183, for the factor of the traceless form.
    """
    structures = check_one_channel("charges", charges, positions, None, None, batch, num_graphs)
    vectors = arms(structures, origin)
    moments = sum_by_graph(
        charges[:, None, None] * vectors[:, :, None] * vectors[:, None, :], structures
    )
    if not traceless:
        return moments
    trace = moments.diagonal(dim1=-2, dim2=-1).sum(-1)
    return 1.5 * moments - 0.5 * trace[:, None, None] * torch.eye(3).to(moments)


def polarisation(
    charges: Tensor,
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    *,
    origin: Tensor | None = None,
    dipoles: Tensor | None = None,
) -> Tensor:
    """Polarisation of each periodic cell, on the branch nearest to an origin.

    The phases b_k . r_j of the reciprocal lattice vectors fix where an atom is modulo the
    lattice, and so the polarisation modulo the quanta q_j a_k / V, e a_k / V for integer
    charges. :func:`dipole` says which branch is taken. Changes of the polarisation, not its
    values, are physical; :func:`born_charges` are on no branch.

    Parameters
    ----------
    charges, positions, cell, pbc, batch, num_graphs, origin, dipoles
        As in :func:`dipole`. Of a charged cell the polarisation depends on the origin.

    Returns
    -------
    Tensor, shape (n_graphs, 3), in e/Å^2
        :func:`dipole` over the volume. Twice differentiable; 1 e/Å^2 is 16.02 C/m^2.

    Raises
    ------
    InputError, InputTypeError
        If an argument is malformed or a cell is singular.
    BoundaryError
        If a structure is not periodic along all three axes, so that it has no volume.

    References
    ----------
    King-Smith, Vanderbilt, Phys. Rev. B 47 (1993) 1651, for the quantum; King, Kim, Zhong,
    Cheng, arXiv:2412.15455, for latent charges.
    """
    structures = check_one_channel("charges", charges, positions, cell, pbc, batch, num_graphs)
    if not bool(structures.pbc.all()):
        remedy = "Use `dipole`, which needs no volume."
        got = str(structures.pbc.tolist())
        raise BoundaryError(explain("pbc", "True along all axes", got, remedy))
    moments = sum_by_graph(dipole_moments(charges, dipoles, arms(structures, origin)), structures)
    return moments / cell_volume(structures.cell)[:, None]
