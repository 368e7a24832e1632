"""Batches of some of the structures of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from sog_longrange.validation import Structures

from .interaction import Potentials


def select(structures: Structures, graphs: Tensor) -> tuple[Tensor, Tensor, Structures]:
    """Make the structures of a mask a batch of their own, and say where they came from.

    Parameters
    ----------
    structures : Structures
    graphs : Tensor, shape (n_graphs,), bool

    Returns
    -------
    index : Tensor
        Numbers of the structures in the batch they came from.
    atoms : Tensor
        Numbers of their atoms.
    part : Structures
    """
    atoms = graphs[structures.batch].nonzero().squeeze(-1)
    index = graphs.nonzero().squeeze(-1)
    renumbered = (graphs.cumsum(0) - 1)[structures.batch[atoms]]
    part = Structures(
        structures.positions[atoms],
        structures.cell[index],
        structures.pbc[index],
        renumbered,
        len(index),
    )
    return index, atoms, part


def no_potentials(structures: Structures, charges: Tensor, *, field: bool) -> Potentials:
    """Zeros that can be differentiated in the positions.

    Parameters
    ----------
    structures : Structures
    charges : Tensor, shape (n_atoms, n_channels), in e
    field : bool
        Whether there is a field.

    Returns
    -------
    Potentials
    """
    zeros = structures.positions.new_zeros(structures.num_graphs, dtype=torch.float64)
    # The sum of no positions cannot overflow.
    energy = zeros + structures.positions[:0].sum()
    potential = torch.zeros_like(charges)
    vectors = charges.new_zeros(len(charges), 3, charges.shape[1]) if field else None
    return Potentials(energy, potential, vectors)


def put(out: Potentials, graphs: Tensor, atoms: Tensor, own: Potentials) -> Potentials:
    """Put the potentials of some structures into those of all.

    Parameters
    ----------
    out : Potentials
    graphs, atoms : Tensor
        From :func:`select`.
    own : Potentials
        Of the selected structures.

    Returns
    -------
    Potentials
    """
    field = out.field
    if field is not None and own.field is not None:
        field = field.index_copy(0, atoms, own.field)
    return Potentials(
        out.energy.index_copy(0, graphs, own.energy),
        out.potential.index_copy(0, atoms, own.potential),
        field,
    )
