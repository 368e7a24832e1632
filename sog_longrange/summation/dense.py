"""Sum over the modes inside the cutoff without a grid: exact, for few atoms or few modes."""

from __future__ import annotations

from torch import Tensor

from sog_longrange.validation import Structures, layout_of

from .engines.engine import Direct
from .interaction import Interaction, Potentials
from .modes import FlatBackend, periodic_sum
from .multipoles import Multipoles
from .rows import ModeRows, most_modes, sphere_rows


def dense_sum(
    interaction: Interaction, sources: Multipoles, part: Structures, *, field: bool = False
) -> Potentials:
    """Sum over periodic images, mode by mode, self-interaction included.

    Parameters
    ----------
    interaction : Interaction
    sources : Multipoles
    part : Structures
        Periodic along all axes, with reduced cells.
    field : bool
        Whether the field of charges is wanted, too.

    Returns
    -------
    Potentials
        Of the energy 1/(2V) sum_k Khat(k) |S(k)|^2, S(k) = sum_j q_j exp(-i k.r_j).

    Raises
    ------
    SizeError
        If the modes fit into no memory.
    InputError
        If positions are so large that they overflow.

    References
    ----------
    Ji, Liang, Xu, arXiv:2502.04668.
    """
    resolution = interaction.resolution(sources.order)
    layout = layout_of(part)
    rows = sphere_rows(layout.cells, resolution.cutoff)
    engine = interaction.engine_on(part.positions.device)
    most = most_modes(part.batch.device.type)
    sums = [(DenseBackend(own, part.batch, engine.direct), own) for own in rows.parts(most)]
    return periodic_sum(interaction, sources, part, sums, layout.lengths, field=field)


class DenseBackend(FlatBackend):
    """Adjoint sums over all atoms for each mode; half of the modes are there, with its weight.

    Parameters
    ----------
    rows : ModeRows
    batch : Tensor, shape (n_atoms,), sorted
    direct : type of Direct
        From an engine.
    """

    def __init__(self, rows: ModeRows, batch: Tensor, direct: type[Direct]) -> None:
        super().__init__(rows.mode_starts, batch)
        self.rows = rows
        self._direct = direct

    def set_phases(self, phases: Tensor) -> None:
        """Take the phases of all atoms, shape (n_atoms, 3)."""
        self.direct = self._direct(self.rows, phases, self.batch)

    def spread(self, sources: Tensor) -> Tensor:
        """Structure factor sum_j sum_a W_ja d^a exp(-i m.theta_j)."""
        return self.direct.spread(sources)

    def interpolate(self, field: Tensor, order: int) -> Tensor:
        """Phase derivatives of the potential at the atoms."""
        return self.direct.interpolate(field, order)

    def interpolate_gradient(self, field: Tensor, weights: Tensor) -> Tensor:
        """Gradient in the phases of sum_a W_a d^a phi."""
        return self.direct.interpolate_gradient(field, weights)
