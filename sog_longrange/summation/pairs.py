"""Exact sum over the pairs of atoms of non-periodic structures."""

from __future__ import annotations

import torch
from torch import Tensor

from sog_longrange.errors import InputError, explain
from sog_longrange.geometry import pair_indices, sum_over_atoms
from sog_longrange.kernels.channels import apply_kernels
from sog_longrange.validation import Structures

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
    counts = torch.bincount(part.batch, minlength=part.num_graphs)
    first, second = pair_indices(counts)
    vectors, distances2 = pair_vectors(part.positions, first, second)
    order = sources.order + 1 if field or sources.order > 0 else 0
    series = [value.T for value in interaction.kernel.radial_derivatives(distances2, order)]
    here, there = sources.at(first), sources.at(second)
    to_first = _from_partner(series, vectors, there)
    to_second = _from_partner(series, -vectors, here)
    work = here.work(*to_first).double()
    energy = sum_over_atoms(work, part.batch[first], part.num_graphs)
    (potential_1, field_1), (potential_2, field_2) = to_first, to_second

    def of_atoms(one: Tensor, other: Tensor) -> Tensor:
        zeros = one.new_zeros(len(part.positions), *one.shape[1:])
        return zeros.index_add(0, first, one).index_add(0, second, other)

    fields = None if field_1 is None or field_2 is None else of_atoms(field_1, field_2)
    return Potentials(energy, of_atoms(potential_1, potential_2), fields)


def pair_vectors(positions: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors from the second to the first atom of each pair, and their squared lengths.

    Parameters
    ----------
    positions : Tensor, shape (n_atoms, 3), in Å
    first, second : Tensor, shape (n_pairs,)
        Atoms of each pair.

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
