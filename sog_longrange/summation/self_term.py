"""The interaction of each charge and dipole with itself: 1/2 K(0) q^2 - K'(0) mu^2.

Reciprocal sums hold it, pair sums do not.
"""

from __future__ import annotations

from torch import Tensor

from sog_longrange.geometry import sum_over_atoms, to_device
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
    if len(set(signs)) > 1:
        weight = to_device(signs, sources.charges)[structures.batch][:, None]
        potential = weight * potential
        field = None if field is None else weight[..., None] * field
    # In float32 a million terms would lose meV per atom.
    per_atom = sources.work(potential, field).double()
    energy = sum_over_atoms(per_atom, structures.batch, structures.num_graphs)
    energy = accumulate(energy, interaction.process_group)
    factor = signs[0] if len(set(signs)) == 1 else 1.0
    return Potentials(
        out.energy.add(energy, alpha=0.5 * factor),
        out.potential.add(potential, alpha=factor),
        out.field if field is None or out.field is None else out.field.add(field, alpha=factor),
    )


def _own(interaction: Interaction, sources: Multipoles) -> tuple[Tensor, Tensor | None]:
    """Potential and field of each source at its own place."""
    value, *slopes = (
        replicate(own, interaction.process_group) for own in _at_origin(interaction, sources)
    )
    potential = apply_kernels(value, sources.charges, 1)
    if sources.dipoles is None:
        return potential, None
    # K depends on r^2: its second derivative along an axis is 2 dK/d(r^2) at the origin.
    return potential, 2.0 * apply_kernels(slopes[0][:, None], sources.dipoles, 2)


def _at_origin(interaction: Interaction, sources: Multipoles) -> list[Tensor]:
    """Kernels and their derivatives in r^2 up to the order of the sources; each (1, n_kernels)."""
    gaussians = interaction.kernel.gaussians
    if gaussians is None:
        origin = sources.charges.new_zeros(1)
        series = interaction.kernel.radial_derivatives(origin, sources.order)
        return [own.T for own in series]
    amplitudes, widths = gaussians
    values = [amplitudes.sum(-1)[None]]
    if sources.order > 0:
        values.append(-0.5 * (amplitudes / widths**2).sum(-1)[None])
    return values
