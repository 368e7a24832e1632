"""Batches of some of the structures of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sog_longrange.geometry import to_device
from sog_longrange.validation import Structures, layout_of

from .interaction import Potentials


def select(structures: Structures, graphs: Sequence[int]) -> tuple[Tensor, Tensor, Structures]:
    """Make some structures of a batch a batch of their own, and say where they came from.

    Parameters
    ----------
    structures : Structures
    graphs : sequence of int
        Their numbers in the batch, in ascending order.

    Returns
    -------
    index : Tensor
        Numbers of the structures in the batch they came from.
    atoms : Tensor
        Numbers of their atoms.
    part : Structures
    """
    layout = layout_of(structures)
    own, starts = layout.select(graphs), layout.starts
    places = [np.arange(starts[g], starts[g + 1]) for g in graphs]
    renumbered = np.repeat(np.arange(len(graphs)), own.counts)
    batch = structures.batch
    index = to_device(list(graphs), batch)
    atoms = to_device(np.concatenate(places), batch)
    part = Structures(
        structures.positions[atoms],
        structures.cell[index],
        structures.pbc[index],
        to_device(renumbered, batch),
        len(graphs),
        own,
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
