"""Sums and nearest images, which all observables use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sog_longrange.errors import InputError, explain
from sog_longrange.geometry import at_atoms, reduced_cell, sum_over_atoms
from sog_longrange.validation import (
    Structures,
    check_finite,
    check_float,
    check_like,
    check_shape,
    check_structures,
)

_NEIGHBOURS = 2  # along each axis of a compact cell, among which is the nearest image
_ROUNDED = 1e-6  # relative difference of squared distances that are meant to be equal


def nearest_images(vectors: Tensor, lattice: Tensor, batch: Tensor, *, mean: bool) -> Tensor:
    """Shortest periodic image of each vector, or the mean of those that are equally short.

    Parameters
    ----------
    vectors : Tensor, shape (n, 3), in Å
    lattice : Tensor, shape (n_graphs, 3, 3), in Å
        From :func:`compact_lattice`.
    batch : Tensor, shape (n,)
    mean : bool

    Returns
    -------
    Tensor, shape (n, 3), in Å
    """
    if not bool(lattice.any()):
        return vectors
    with torch.no_grad():
        steps = torch.arange(-_NEIGHBOURS, _NEIGHBOURS + 1).to(vectors)
        turns = torch.einsum("nc,nck->nk", vectors, torch.linalg.pinv(lattice)[batch])
        shifts = torch.cartesian_prod(steps, steps, steps) - turns.round()[:, None]
        images = vectors[:, None] + torch.einsum("nsk,nkc->nsc", shifts, lattice[batch])
        squares = images.square().sum(-1)
        shift = shifts.take_along_dim(squares.argmin(1)[:, None, None], 1)[:, 0]
        if mean:
            # Atoms of crystals are where symmetry wants them to rounding only, often of a file.
            slack = max(torch.finfo(vectors.dtype).eps ** 0.5, _ROUNDED)
            shortest = squares <= (1.0 + slack) * squares.amin(1, keepdim=True)
            weights = shortest.to(vectors) / shortest.sum(1, keepdim=True)
            shift = (weights[:, :, None] * shifts).sum(1)
    return vectors + torch.einsum("nk,nkc->nc", shift, lattice[batch])


def compact_lattice(structures: Structures) -> Tensor:
    """Short lattice vectors, zero along non-periodic directions.

    Parameters
    ----------
    structures : Structures

    Returns
    -------
    Tensor, shape (n_graphs, 3, 3), in Å
    """
    cell, pbc = structures.cell, structures.pbc
    own = pbc[:, :, None]
    rows = torch.where(own, cell, torch.zeros_like(cell))
    # With its normal in place of the open row, a slab is reduced within its plane.
    normals = torch.linalg.cross(rows[:, [1, 2, 0]], rows[:, [2, 0, 1]])
    compact = reduced_cell(torch.where(own, rows, normals), (pbc.sum(-1) > 1).tolist())
    return torch.where(own, compact, torch.zeros_like(compact))


def displacements(structures: Structures, origin: Tensor | None) -> Tensor:
    """Vector from the origin to each atom, where it is.

    Parameters
    ----------
    structures : Structures
    origin : Tensor, shape (3,) or (n_graphs, 3), in Å, optional

    Returns
    -------
    Tensor, shape (n_atoms, 3), in Å
    """
    if origin is None:
        return structures.positions
    origins = vector_by_graph("origin", origin, structures)
    return structures.positions - at_atoms(origins, structures.batch)


def arms(structures: Structures, origin: Tensor | None) -> Tensor:
    """Vector from the origin to the nearest image of each atom.

    Parameters
    ----------
    structures : Structures
    origin : Tensor, shape (3,) or (n_graphs, 3), in Å, optional

    Returns
    -------
    Tensor, shape (n_atoms, 3), in Å
    """
    vectors = displacements(structures, origin)
    return nearest_images(vectors, compact_lattice(structures), structures.batch, mean=False)


def dipole_moments(charges: Tensor, dipoles: Tensor | None, vectors: Tensor) -> Tensor:
    """Dipole of each atom about the origin.

    Parameters
    ----------
    charges : Tensor, shape (n_atoms,), in e
    dipoles : Tensor, shape (n_atoms, 3), in e Å, optional
    vectors : Tensor, shape (n_atoms, 3), in Å
        From :func:`arms` or :func:`displacements`.

    Returns
    -------
    Tensor, shape (n_atoms, 3), in e Å
    """
    moments = charges[:, None] * vectors
    if dipoles is None:
        return moments
    check_one_dipole(dipoles, charges)
    return moments + dipoles


def check_one_dipole(dipoles: Tensor, charges: Tensor) -> None:
    """Check one dipole for each atom.

    Parameters
    ----------
    dipoles : Tensor, shape (n_atoms, 3), in e Å
    charges : Tensor, shape (n_atoms,), in e

    Raises
    ------
    InputError, InputTypeError
        If they do not fit.
    """
    n = charges.shape[0]
    check_float("dipoles", dipoles)
    expected = f"(n_atoms={n}, 3), one channel such as `dipoles[:, :, 0]`"
    check_shape("dipoles", dipoles, (n, 3), expected)
    check_like("dipoles", dipoles, charges, "`charges`")
    check_finite("dipoles", dipoles)


def sum_by_graph(values: Tensor, structures: Structures) -> Tensor:
    """Sum over the atoms of each structure.

    Parameters
    ----------
    values : Tensor, shape (n_atoms, ...)
    structures : Structures

    Returns
    -------
    Tensor, shape (n_graphs, ...)
    """
    return sum_over_atoms(values, structures.batch, structures.num_graphs)


def count_atoms(structures: Structures) -> Tensor:
    """Count the atoms of each structure.

    Parameters
    ----------
    structures : Structures

    """
    return torch.bincount(structures.batch, minlength=structures.num_graphs)


def refractive_index(eps_inf: float) -> float:
    """Square root of a dielectric constant, after checking it.

    Parameters
    ----------
    eps_inf : float

    Raises
    ------
    InputError
        If it is not positive and finite.
    """
    if not (eps_inf > 0.0 and math.isfinite(eps_inf)):
        raise InputError(explain("eps_inf", "positive and finite", str(eps_inf)))
    return math.sqrt(eps_inf)


def check_one_channel(
    name: str,
    values: Tensor,
    positions: Tensor,
    cell: Tensor | None,
    pbc: Tensor | None,
    batch: Tensor | None,
    num_graphs: int | None,
) -> Structures:
    """Check structures and one number for each of their atoms.

    Parameters
    ----------
    name : str
    values : Tensor, shape (n_atoms,)
    positions, cell, pbc, batch, num_graphs
        As in :meth:`~sog_longrange.LongRangeEnergy.forward`.

    Returns
    -------
    Structures

    Raises
    ------
    InputError, InputTypeError
        If an argument is malformed.
    """
    structures = check_structures(positions, cell, pbc, batch, num_graphs)
    n = positions.shape[0]
    check_float(name, values)
    check_shape(name, values, (n,), f"(n_atoms={n},), one channel such as `charges[:, 0]`")
    check_like(name, values, positions)
    check_finite(name, values)
    return structures


def vector_by_graph(name: str, value: Tensor, structures: Structures) -> Tensor:
    """Check a vector of all structures or one of each.

    Parameters
    ----------
    name : str
    value : Tensor, shape (3,) or (n_graphs, 3)
    structures : Structures

    Returns
    -------
    Tensor, shape (n_graphs, 3)

    Raises
    ------
    InputError, InputTypeError
        If the vector does not fit.
    """
    check_float(name, value)
    n = structures.num_graphs
    # A comparison of shapes of different length would fix the number of structures in a graph.
    if not (value.dim() == 1 and value.shape == (3,)):
        check_shape(name, value, (n, 3), f"(3,) or (n_graphs={n}, 3)")
    check_like(name, value, structures.positions)
    check_finite(name, value)
    return value.expand(n, 3)
