"""The interaction of each charge and dipole with itself: 1/2 K(0) q^2 - K'(0) mu^2.

Reciprocal sums hold it, pair sums do not.
"""

from __future__ import annotations

from torch import Tensor

from sog_longrange.geometry import sum_over_atoms
from sog_longrange.kernels.channels import apply_kernels
from sog_longrange.validation import Structures

from .distributed import accumulate, replicate
from .interaction import Interaction, Potentials
from .multipoles import Multipoles


def with_self_term(
    interaction: Interaction,
    sources: Multipoles,
    structures: Structures,
    holds: list[bool],
    out: Potentials,
) -> Potentials:
    """Remove the self term where a sum holds it, or add it where it does not and is wanted.

    Parameters
    ----------
    interaction : Interaction
    sources : Multipoles
    structures : Structures
    holds : list of bool
        Whether the sum of each structure holds the self term.
    out : Potentials

    Returns
    -------
    Potentials
    """
    wanted = not interaction.remove_self
    signs = [float(wanted) - float(own) for own in holds]
    if not any(signs):
        return out
    potential, field = _own(interaction, sources)
    if len(set(signs)) == 1:
        weight: Tensor | float = signs[0]
    else:
        weight = sources.charges.new_tensor(signs)[structures.batch][:, None]
    potential = weight * potential
    if field is not None:
        field = (weight if isinstance(weight, float) else weight[..., None]) * field
    per_atom = 0.5 * sources.work(potential, field).double()
    energy = sum_over_atoms(per_atom, structures.batch, structures.num_graphs)
    return Potentials(
        out.energy + accumulate(energy, interaction.process_group),
        out.potential + potential,
        out.field if field is None or out.field is None else out.field + field,
    )


def _own(interaction: Interaction, sources: Multipoles) -> tuple[Tensor, Tensor | None]:
    """Potential and field of each source at its own place."""
    group, origin = interaction.process_group, sources.charges.new_zeros(1)
    series = interaction.kernel.radial_derivatives(origin, sources.order)
    value, *slopes = (replicate(own.T, group) for own in series)
    potential = apply_kernels(value, sources.charges, 1)
    if sources.dipoles is None:
        return potential, None
    # K depends on r^2: its second derivative along an axis is 2 dK/d(r^2) at the origin.
    return potential, 2.0 * apply_kernels(slopes[0][:, None], sources.dipoles, 2)
