"""Atoms at one place: what makes the numbers of most models NaN.

Looked for only once something is not finite, to say why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import NotFiniteError
from .validation import Structures

COINCIDENT: float = 1e-3
"""Distance in Å up to which two atoms are said to coincide."""

_MAX_PAIRS = 2**20
_MOST_PAIRS = 2**30

_NO_COINCIDENCE = (
    f"No two atoms were found within {COINCIDENT:g} Å of each other, so the weights of the model "
    "have diverged or an input is NaN. Take weights from before training diverged, or train with a "
    "smaller learning rate."
)


class Coincidence(NamedTuple):
    """Two atoms at one place.

    Attributes
    ----------
    structure : int
        Index in the batch.
    atoms : tuple of 2 ints
        Indices in the structure, in ascending order.
    batch_atoms : tuple of 2 ints
        Indices in the batch.
    distance : float
        In Å, between the nearest images.
    """

    structure: int
    atoms: tuple[int, int]
    batch_atoms: tuple[int, int]
    distance: float

    def __str__(self) -> str:
        """Say which atoms coincide, and what to do."""
        (i, j), (first, second) = self.atoms, self.batch_atoms
        batch = f" (atoms {first} and {second} of the batch)" if first > i else ""
        return (
            f"Atoms {i} and {j} of structure {self.structure}{batch} are "
            f"{round(self.distance, 6):g} Å apart, periodic images included. Move them apart, or "
            "remove one of them."
        )


def coincident_atoms(structures: Structures, distance: float = COINCIDENT) -> Coincidence | None:
    """Find two atoms of one structure at one place, under the periodic boundary of that structure.

    Memory does not grow with the number of pairs. Time is that of sorting N atoms along one axis,
    and more where many are at one height, as in crystals.

    Parameters
    ----------
    structures : Structures
        From :func:`~sog_longrange.validation.check_structures`.
    distance : float
        Up to which atoms coincide, in Å; small compared with the cell.

    Returns
    -------
    Coincidence or None
        One such pair of the first structure that has any; None if there is none, and for crystals
        of more than a hundred thousand atoms, which would take minutes.
    """
    counts = torch.bincount(structures.batch, minlength=structures.num_graphs).tolist()
    parts = structures.positions.detach().double().split(counts)
    cells, start = structures.cell.detach().double(), 0
    for graph, (positions, cell, pbc) in enumerate(zip(parts, cells, structures.pbc, strict=True)):
        found = _coincident_pair(positions, cell, pbc, distance)
        if found is not None:
            i, j, length = found
            return Coincidence(graph, (i, j), (start + i, start + j), length)
        start += len(positions)
    return None


def explain_not_finite(error: NotFiniteError, structures: Structures) -> NotFiniteError:
    """Add the cause to what says that a number of a model is not finite.

    Parameters
    ----------
    error : NotFiniteError
    structures : Structures
        What the model was evaluated for.

    Returns
    -------
    NotFiniteError
    """
    found = coincident_atoms(structures)
    return NotFiniteError(f"{error} {_NO_COINCIDENCE if found is None else found}")


def _coincident_pair(
    positions: Tensor, cell: Tensor, pbc: Tensor, distance: float
) -> tuple[int, int, float] | None:
    """Two atoms of one structure and their distance, or None."""
    n_atoms = len(positions)
    if n_atoms < 2:
        return None
    basis = _whole_basis(cell, pbc)
    inverse = torch.linalg.inv(basis)
    turns = positions @ inverse
    turns = torch.where(pbc, turns - turns.floor(), turns)
    # Atoms at one place are at one height above the planes of any two vectors.
    spacings = 1.0 / torch.linalg.vector_norm(inverse, dim=0)
    heights = turns * spacings
    axis = int((heights.amax(0) - heights.amin(0)).argmax())
    height, atoms = heights[:, axis].sort()
    if bool(pbc[axis]):
        again = height <= distance
        height = torch.cat([height, height[again] + spacings[axis]])
        atoms = torch.cat([atoms, atoms[again]])
    partners = torch.searchsorted(height, height[:n_atoms] + distance, right=True)
    partners = partners - torch.arange(1, n_atoms + 1, device=partners.device)
    if int(partners.sum()) > _MOST_PAIRS:
        return None
    for rows, steps in _pairs(partners):
        i, j = atoms[rows], atoms[rows + steps]
        apart = turns[i] - turns[j]
        apart = torch.where(pbc, apart - apart.round(), apart)
        lengths = torch.linalg.vector_norm(apart @ basis, dim=-1)
        lengths = torch.where(i == j, torch.inf, lengths)
        nearest = int(lengths.argmin())
        if float(lengths[nearest]) <= distance:
            first, second = sorted((int(i[nearest]), int(j[nearest])))
            return first, second, float(lengths[nearest])
    return None


def _pairs(partners: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Row of each pair in a sorted list, and how many rows further down its partner is.

    Comes in parts that have `_MAX_PAIRS` pairs, or a single row.
    """
    ends, start = partners.cumsum(0), 0
    while start < len(partners):
        before = ends[start] - partners[start]
        stop = int(torch.searchsorted(ends, before + _MAX_PAIRS, right=True))
        stop = max(stop, start + 1)
        counts = partners[start:stop]
        rows = torch.arange(start, stop, device=partners.device).repeat_interleave(counts)
        if len(rows) > 0:
            firsts = (counts.cumsum(0) - counts).repeat_interleave(counts)
            yield rows, torch.arange(1, len(rows) + 1, device=partners.device) - firsts
        start = stop


def _whole_basis(cell: Tensor, pbc: Tensor) -> Tensor:
    """Lattice vectors along periodic axes, unit vectors across them along the others."""
    periodic = cell[pbc]
    across = torch.linalg.svd(periodic).Vh[len(periodic) :]
    basis = torch.empty_like(cell)
    basis[pbc], basis[~pbc] = periodic, across
    return basis
