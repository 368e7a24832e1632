"""Structures of elements in every boundary, and changes of them that a model must follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DOUBLE = torch.float64


class AtomicStructure(NamedTuple):
    """One structure of elements, as a host framework reads it.

    Attributes
    ----------
    numbers : Tensor, shape (n_atoms,), int64
        Atomic numbers.
    positions : Tensor, shape (n_atoms, 3), float64, in Å
    cell : Tensor, shape (3, 3), float64, in Å
        Rows are lattice vectors; zero for a structure without a cell.
    pbc : tuple of 3 bool
    """

    numbers: Tensor
    positions: Tensor
    cell: Tensor
    pbc: tuple[bool, bool, bool]

    @property
    def volume(self) -> float:
        """Volume of the cell in Å^3, zero without one."""
        return abs(float(torch.linalg.det(self.cell)))


class Evaluation(NamedTuple):
    """What a host returns for a list of structures, in their order.

    Attributes
    ----------
    energy : Tensor, shape (n_structures,), in eV
    forces : Tensor, shape (n_atoms, 3), in eV/Å
    stress : Tensor, shape (n_structures, 3, 3), in eV/Å^3, or None
        Positive under tension; NaN for structures without a volume. None if the host has none.
    charges : Tensor, shape (n_atoms, n_channels), in e, or None
        Latent charges. None if the host does not report them.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor | None = None
    charges: Tensor | None = None


CELL = torch.tensor([[5.3, 0.3, -0.4], [0.9, 5.6, 0.5], [1.1, -0.7, 6.2]], dtype=DOUBLE)
PLACES = torch.tensor(
    [[0.08, 0.11, 0.13], [0.33, 0.16, 0.22], [0.13, 0.45, 0.18], [0.58, 0.62, 0.41]],
    dtype=DOUBLE,
)
SLAB = (True, True, False)
LINE = (False, True, False)


def make_samples(elements: Sequence[int]) -> dict[str, AtomicStructure]:
    """Make small structures of every boundary.

    Parameters
    ----------
    elements : sequence of int
        Atomic numbers that the model has, repeated as needed.

    Returns
    -------
    dict
        Four atoms each, by name: `bulk`, `left-handed bulk`, `slab`, `slab without a third
        row` (of its cell, so that it has no volume), `line` (periodic along one direction),
        `molecule` (no cell) and `boxed molecule` (not periodic, with a cell).
    """
    numbers = torch.tensor([elements[index % len(elements)] for index in range(len(PLACES))])
    positions = PLACES @ CELL

    def make(cell: Tensor, pbc: tuple[bool, bool, bool]) -> AtomicStructure:
        return AtomicStructure(numbers, positions.clone(), cell.clone(), pbc)

    whole, none = (True, True, True), (False, False, False)
    return {
        "bulk": make(CELL, whole),
        "left-handed bulk": make(CELL[[1, 0, 2]], whole),
        "slab": make(CELL * torch.tensor([[1.0], [1.0], [1.7]], dtype=DOUBLE), SLAB),
        "slab without a third row": make(CELL * torch.tensor([[1.0], [1.0], [0.0]]).double(), SLAB),
        "line": make(CELL * torch.tensor([[1.9], [1.0], [1.7]], dtype=DOUBLE), LINE),
        "molecule": make(0.0 * CELL, none),
        "boxed molecule": make(2.1 * CELL, none),
    }


def random_like(values: Tensor, seed: int) -> Tensor:
    """Draw normal random numbers.

    Parameters
    ----------
    values : Tensor
    seed : int

    Returns
    -------
    Tensor, shape, dtype and device of `values`
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(values.shape, generator=generator, dtype=DOUBLE).to(values)


def strained(structure: AtomicStructure, strain: Tensor) -> AtomicStructure:
    """Strain positions and cell.

    Parameters
    ----------
    structure : AtomicStructure
    strain : Tensor, shape (3, 3)

    Returns
    -------
    AtomicStructure
    """
    change = torch.eye(3, dtype=DOUBLE) + strain
    return structure._replace(positions=structure.positions @ change, cell=structure.cell @ change)


def in_other_images(structure: AtomicStructure, seed: int) -> AtomicStructure:
    """Move every atom by lattice vectors along the periodic directions.

    Parameters
    ----------
    structure : AtomicStructure
    seed : int

    Returns
    -------
    AtomicStructure
    """
    images = (2.0 * random_like(structure.positions, seed)).round()
    images = images * torch.tensor(structure.pbc)
    return structure._replace(positions=structure.positions + images @ structure.cell)


def repeated(structure: AtomicStructure, axis: int) -> AtomicStructure:
    """Double a structure along one of its periodic directions.

    Parameters
    ----------
    structure : AtomicStructure
    axis : int

    Returns
    -------
    AtomicStructure
        The second half of the atoms are the copies.
    """
    cell = structure.cell.clone()
    cell[axis] *= 2.0
    return structure._replace(
        numbers=structure.numbers.repeat(2),
        positions=torch.cat([structure.positions, structure.positions + structure.cell[axis]]),
        cell=cell,
    )


def in_other_basis(structure: AtomicStructure, first: int, second: int) -> AtomicStructure:
    """Add one lattice vector to another, and reverse it: a left-handed, sheared cell.

    Parameters
    ----------
    structure : AtomicStructure
    first, second : int
        Periodic directions: the row that is added, and the one that changes.

    Returns
    -------
    AtomicStructure
        Of the same lattice.
    """
    cell = structure.cell.clone()
    cell[second] = -cell[second] - cell[first]
    return structure._replace(cell=cell)
