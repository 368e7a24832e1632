"""Exact sum over the pairs of atoms of non-periodic structures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sog_longrange.errors import InputError, SizeError, explain
from sog_longrange.geometry import MAX_ELEMENTS, sum_over_atoms, to_device
from sog_longrange.kernels.channels import apply_kernels
from sog_longrange.layout import Layout
from sog_longrange.validation import Structures, layout_of

from .interaction import Interaction, Potentials
from .multipoles import Multipoles


def pairs_sum(
    interaction: Interaction, sources: Multipoles, part: Structures, *, field: bool = False
) -> Potentials:
    """Sum over all pairs of atoms, without self-interaction.

    Parameters
    ----------
    interaction : Interaction
    sources : Multipoles
    part : Structures
        Non-periodic.
    field : bool
        Whether the field of charges is wanted, too.

    Returns
    -------
    Potentials
        Of the energy sum_(i<j) q_i q_j K(|r_i - r_j|), and of dipoles, which are the limit of
        two opposite charges, accordingly.

    Raises
    ------
    InputError
        If atoms are so far apart that distances overflow.
    SizeError
        If there are more pairs than any memory holds.
    """
    layout = layout_of(part)
    first, second, graph = pair_indices(layout.counts, part.batch)
    vectors, distances2 = pair_vectors(part.positions, first, second, layout)
    order = sources.order + 1 if field or sources.order > 0 else 0
    series = [value.T for value in interaction.kernel.radial_derivatives(distances2, order)]
    here, there = sources.at(first), sources.at(second)
    to_first = _from_partner(series, vectors, there)
    to_second = _from_partner(series, -vectors, here)
    work = here.work(*to_first).double()
    energy = sum_over_atoms(work, graph, part.num_graphs)
    (potential_1, field_1), (potential_2, field_2) = to_first, to_second

    def of_atoms(one: Tensor, other: Tensor) -> Tensor:
        zeros = one.new_zeros(len(part.positions), *one.shape[1:])
        return zeros.index_add(0, first, one).index_add(0, second, other)

    fields = None if field_1 is None or field_2 is None else of_atoms(field_1, field_2)
    return Potentials(energy, of_atoms(potential_1, potential_2), fields)


class Pairs(NamedTuple):
    """All pairs of atoms within structures.

    Attributes
    ----------
    first, second : Tensor, shape (n_pairs,), int64
        The two atoms of each pair.
    graph : Tensor, shape (n_pairs,), int64, sorted
        Its structure.
    """

    first: Tensor
    second: Tensor
    graph: Tensor


def pair_indices(counts: list[int], like: Tensor) -> Pairs:
    """All pairs i < j of atoms within each structure of a sorted batch.

    Parameters
    ----------
    counts : list of int
        Number of atoms of each structure.
    like : Tensor, int64
        Its device is used.

    Returns
    -------
    Pairs

    Raises
    ------
    SizeError
        If there are more pairs than any memory holds.
    """
    n_pairs = sum(count * (count - 1) // 2 for count in counts)
    if n_pairs > MAX_ELEMENTS:
        raise SizeError(
            f"Open structures of up to {max(counts)} atoms have {n_pairs:.3g} pairs, "
            f"more than the {MAX_ELEMENTS:.3g} that the exact pair sum handles. "
            "Use a periodic box or smaller structures."
        )
    ends = np.repeat(np.cumsum(counts, dtype=np.int64), counts)
    atoms = np.arange(len(ends))
    partners = ends - atoms - 1
    # Of each atom: how many pairs it is the first of, where they begin, and its structure.
    starts = np.cumsum(partners) - partners
    rows = np.stack([atoms, starts, np.repeat(np.arange(len(counts)), counts), partners])
    atom, start, graph, repeats = to_device(rows, like)
    first, start, graph = (
        x.repeat_interleave(repeats, output_size=n_pairs) for x in (atom, start, graph)
    )
    second = first + 1 + torch.arange(n_pairs, device=like.device) - start
    return Pairs(first, second, graph)


def pair_vectors(
    positions: Tensor, first: Tensor, second: Tensor, layout: Layout
) -> tuple[Tensor, Tensor]:
    """Vectors from the second to the first atom of each pair, and their squared lengths.

    Parameters
    ----------
    positions : Tensor, shape (n_atoms, 3), in Å
    first, second : Tensor, shape (n_pairs,)
        Atoms of each pair.
    layout : Layout

    Returns
    -------
    vectors : Tensor, shape (n_pairs, 3), in Å
    distances2 : Tensor, shape (n_pairs,), in Å^2

    Raises
    ------
    InputError
        If atoms are so far apart that a square overflows: its derivative would be NaN.
    """
    vectors = positions[first] - positions[second]
    distances2 = vectors.square().sum(-1)
    largest = layout.largest_position
    if 100.0 * largest * largest < torch.finfo(positions.dtype).max:
        return vectors, distances2
    finite = torch.isfinite(distances2.detach())
    if not bool(finite.all()):
        pair = int((~finite).nonzero()[0])
        got = f"an overflow between atoms {int(first[pair])} and {int(second[pair])}"
        raise InputError(explain("positions", "finite, as squares of distances too", got))
    return vectors, distances2


def _from_partner(
    series: list[Tensor], vectors: Tensor, partner: Multipoles
) -> tuple[Tensor, Tensor | None]:
    """Potential (n_pairs, P) and field (n_pairs, 3, P) at a vector from each source."""
    charges, dipoles = partner
    potential = apply_kernels(series[0], charges, 1)
    if len(series) == 1:
        return potential, None
    v, slope = vectors[..., None], 2.0 * series[1]
    radial = -apply_kernels(slope, charges, 1)
    if dipoles is None:
        return potential, radial[:, None] * v
    along = (dipoles * v).sum(1)
    potential = potential - apply_kernels(slope, along, 1)
    radial = radial + 4.0 * apply_kernels(series[2], along, 1)
    return potential, radial[:, None] * v + apply_kernels(slope[:, None], dipoles, 2)
