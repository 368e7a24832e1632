"""Asserts that an energy has the invariances of its boundary."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from sog_longrange.errors import InputError, explain

from .comparison import check_close, compare, normal
from .structures import EnergyFunction, Structure, join, make_supercell

MIRROR: tuple[tuple[int, ...], ...] = ((0, 1, 0), (1, 0, 0), (0, 0, 1))
SHEAR: tuple[tuple[int, ...], ...] = ((1, 1, 0), (0, 1, -1), (0, 0, 1))
SKEW: tuple[tuple[int, ...], ...] = ((1, 0, 2), (-1, 1, 0), (0, -1, -1))
CELL_BASES: tuple[tuple[tuple[int, ...], ...], ...] = (MIRROR, SHEAR, SKEW)
"""Integer changes of the cell basis with determinants -1, 1 and 1."""


def assert_invariant(
    energy: EnergyFunction,
    structure: Structure,
    *,
    tolerance: float = 1e-10,
    rotation_tolerance: float = 1e-8,
    seed: int = 0,
) -> None:
    """Assert every invariance that holds for the boundary of a structure.

    Translation, permutation and rotation; for periodic structures also image shifts,
    changes of the cell basis and supercells. The defaults are meant for float64.

    Parameters
    ----------
    energy : callable
        See :mod:`sog_longrange.testing`.
    structure : Structure
        Periodic along all three axes or none.
    tolerance, rotation_tolerance : float
        Largest difference allowed, relative to the larger of abs(E) and 1 eV per atom.
    seed : int
        Seed of the random transformations.

    Raises
    ------
    AssertionError
        If an invariance is broken; the message says which.
    """
    assert_translation_invariant(energy, structure, tolerance=tolerance, seed=seed)
    assert_permutation_invariant(energy, structure, tolerance=tolerance, seed=seed)
    assert_rotation_invariant(energy, structure, tolerance=rotation_tolerance, seed=seed)
    if bool(structure.pbc.all()):
        assert_image_invariant(energy, structure, tolerance=tolerance, seed=seed)
        assert_cell_basis_invariant(energy, structure, tolerance=tolerance)
        assert_extensive(energy, structure, tolerance=tolerance)


def assert_translation_invariant(
    energy: EnergyFunction, structure: Structure, *, tolerance: float = 1e-10, seed: int = 0
) -> None:
    """Assert that moving all atoms together does not change the energy.

    Parameters
    ----------
    energy : callable
        See :mod:`sog_longrange.testing`.
    structure : Structure
    tolerance : float
        Largest difference allowed, relative to the larger of abs(E) and 1 eV per atom.
    seed : int
        Seed of the random translation.

    Raises
    ------
    AssertionError
        If the energy changes.
    """
    shift = 10.0 * normal(structure, seed, 3)
    moved = structure._replace(positions=structure.positions + shift)
    compare(energy, structure, moved, 1.0, tolerance, f"a translation by {shift.tolist()} Å")


def assert_image_invariant(
    energy: EnergyFunction, structure: Structure, *, tolerance: float = 1e-10, seed: int = 0
) -> None:
    """Assert that moving atoms by lattice vectors does not change the energy.

    Parameters
    ----------
    energy : callable
        See :mod:`sog_longrange.testing`.
    structure : Structure
        Periodic along all three axes.
    tolerance : float
        Largest difference allowed, relative to the larger of abs(E) and 1 eV per atom.
    seed : int
        Seed of the random lattice vectors, one for each atom.

    Raises
    ------
    AssertionError
        If the energy changes.
    """
    images = (3.0 * normal(structure, seed, len(structure.positions), 3)).round()
    moved = structure._replace(positions=structure.positions + images @ structure.cell)
    compare(energy, structure, moved, 1.0, tolerance, "a shift of atoms by lattice vectors")


def assert_permutation_invariant(
    energy: EnergyFunction, structure: Structure, *, tolerance: float = 1e-10, seed: int = 0
) -> None:
    """Assert that the order of the atoms does not change the energy.

    Parameters
    ----------
    energy : callable
        See :mod:`sog_longrange.testing`.
    structure : Structure
    tolerance : float
        Largest difference allowed, relative to the larger of abs(E) and 1 eV per atom.
    seed : int
        Seed of the random order.

    Raises
    ------
    AssertionError
        If the energy changes.
    """
    order = normal(structure, seed, len(structure.positions)).argsort()
    permuted = structure._replace(
        charges=structure.charges[order], positions=structure.positions[order]
    )
    compare(energy, structure, permuted, 1.0, tolerance, f"the order of atoms {order.tolist()}")


def assert_rotation_invariant(
    energy: EnergyFunction, structure: Structure, *, tolerance: float = 1e-8, seed: int = 0
) -> None:
    """Assert that rotating or mirroring atoms and cell does not change the energy.

    Parameters
    ----------
    energy : callable
        See :mod:`sog_longrange.testing`.
    structure : Structure
    tolerance : float
        Largest difference allowed, relative to the larger of abs(E) and 1 eV per atom.
    seed : int
        Seed of the random rotation.

    Raises
    ------
    AssertionError
        If the energy changes.
    """
    orthogonal, _ = torch.linalg.qr(normal(structure, seed, 3, 3))
    for name, matrix in (("a rotation", orthogonal), ("a rotation with inversion", -orthogonal)):
        turned = structure._replace(
            positions=structure.positions @ matrix.T, cell=structure.cell @ matrix.T
        )
        compare(energy, structure, turned, 1.0, tolerance, name)


def assert_cell_basis_invariant(
    energy: EnergyFunction,
    structure: Structure,
    *,
    bases: Sequence[Sequence[Sequence[int]]] = CELL_BASES,
    tolerance: float = 1e-10,
) -> None:
    """Assert that the choice of lattice vectors does not change the energy.

    Parameters
    ----------
    energy : callable
        See :mod:`sog_longrange.testing`.
    structure : Structure
        Periodic along all three axes.
    bases : sequence of integer 3 x 3 matrices
        Each maps the lattice vectors to others of the same lattice; determinants are 1,
        or -1 for a change of handedness.
    tolerance : float
        Largest difference allowed, relative to the larger of abs(E) and 1 eV per atom.

    Raises
    ------
    AssertionError
        If the energy changes.
    InputError
        If a matrix does not describe the same lattice.
    """
    for rows in bases:
        matrix = torch.tensor(rows, dtype=structure.cell.dtype, device=structure.cell.device)
        determinant = round(float(torch.linalg.det(matrix.double())))
        if abs(determinant) != 1:
            raise InputError(explain("bases", "of determinant 1 or -1", str(determinant)))
        same = structure._replace(cell=matrix @ structure.cell)
        compare(energy, structure, same, 1.0, tolerance, f"the cell basis {rows}")


def assert_extensive(
    energy: EnergyFunction,
    structure: Structure,
    *,
    repeats: tuple[int, int, int] = (2, 1, 3),
    tolerance: float = 1e-10,
) -> None:
    """Assert that a supercell has the energy of its unit cells.

    Parameters
    ----------
    energy : callable
        See :mod:`sog_longrange.testing`.
    structure : Structure
        Periodic along all three axes.
    repeats : tuple of 3 int
        Number of copies along each lattice vector.
    tolerance : float
        Largest difference allowed, relative to the larger of abs(E) and 1 eV per atom.

    Raises
    ------
    AssertionError
        If the energy is not proportional to the number of cells.
    """
    large = make_supercell(structure, repeats)
    compare(energy, structure, large, math.prod(repeats), tolerance, f"the supercell {repeats}")


def assert_batch_consistent(
    energy: EnergyFunction, structures: Sequence[Structure], *, tolerance: float = 1e-10
) -> None:
    """Assert that structures have the same energy in a batch as on their own.

    Parameters
    ----------
    energy : callable
        See :mod:`sog_longrange.testing`.
    structures : sequence of Structure
        At least one, of any boundary; structures without atoms are allowed.
    tolerance : float
        Largest difference allowed, relative to the larger of abs(E) and 1 eV per atom.

    Raises
    ------
    AssertionError
        If an energy differs, or if there is not one energy per structure.
    """
    together = energy(*join(structures)).detach()
    if together.shape != (len(structures),):
        shape = tuple(together.shape)
        raise AssertionError(f"{len(structures)} structures have energies of shape {shape}.")
    for index, structure in enumerate(structures):
        alone = float(energy(*join([structure])).detach()[0])
        what = f"Structure {index} of the batch"
        check_close(float(together[index]), alone, tolerance, structure, what)
