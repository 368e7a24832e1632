"""What the sums over modes, the integer multiples of reciprocal lattice vectors, share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad as fwAD  # noqa: N812

from sog_longrange.geometry import (
    at_atoms,
    cell_volume,
    reciprocal_cell,
    to_device,
    wrapped_phases,
)
from sog_longrange.kernels.channels import apply_kernels, correlate_channels
from sog_longrange.kernels.kernel import Kernel
from sog_longrange.layout import Layout
from sog_longrange.validation import Structures, check_phases

from .distributed import replicate
from .interaction import Interaction, Potentials
from .kernel_table import Sampler, kernel_on_modes
from .multipoles import Backend, Multipoles
from .quadratic_form import Part, quadratic_form
from .resolution import Resolution
from .rows import ModeRows

_SMALL = 2**16
"""Modes of tables that are kept from one evaluation to the next."""


class FlatBackend:
    """What backends share whose spectra are flat: (n_channels, modes of all structures).

    Parameters
    ----------
    mode_starts : list of int
        Where the modes of each structure begin, and where the last ones end.
    batch : Tensor, shape (n_atoms,), sorted
    """

    has_grid = False

    def __init__(self, mode_starts: list[int], batch: Tensor) -> None:
        self.mode_starts = mode_starts
        self.batch = batch
        self.num_graphs = len(mode_starts) - 1

    def convolve(self, table: Tensor, spectrum: Tensor) -> Tensor:
        """Multiply by the kernel."""
        return apply_kernels(table, spectrum, 0)

    def transform(self, density: Tensor) -> Tensor:
        """Return the density, which is its own spectrum."""
        return density

    def invert(self, spectrum: Tensor) -> Tensor:
        """Return the spectrum, from which atoms interpolate directly."""
        return spectrum

    def correlate(self, first: Tensor, second: Tensor, table: Tensor) -> Tensor:
        """Re(S* R) on the modes, for each kernel."""
        return correlate_channels(first, second, table.shape[0], 0)

    def per_table(self, per_graph: Tensor) -> Tensor:
        """One number per structure, repeated over its modes."""
        if self.num_graphs == 1:
            return per_graph
        sizes = to_device(np.diff(self.mode_starts), self.batch)
        return per_graph.repeat_interleave(sizes, output_size=self.mode_starts[-1])


def periodic_sum(
    interaction: Interaction,
    sources: Multipoles,
    part: Structures,
    sums: Sequence[tuple[Backend, ModeRows]],
    lengths: list[list[float]],
    *,
    field: bool,
) -> Potentials:
    """Sum over periodic images in reciprocal space, self-interaction included.

    Parameters
    ----------
    interaction : Interaction
    sources : Multipoles
    part : Structures
        Periodic along all axes.
    sums : sequence of (Backend, ModeRows)
        Backends with the spectra of these rows, whose modes are summed one part after another.
    lengths : list of 3 floats for each structure
        Lengths of the lattice vectors, in Å.
    field : bool
        Whether the field of charges is wanted, too.

    Returns
    -------
    Potentials

    Raises
    ------
    InputError
        If positions are so large that they overflow.
    """
    kernel, group = interaction.kernel, interaction.process_group
    engine = interaction.engine_on(part.positions.device)
    (reciprocal, density), longest = _lattices(part), max(map(max, lengths))
    resolution = interaction.resolution(sources.order)
    table_of = kernel_on_modes(kernel, reciprocal, resolution, longest, engine.sampler)
    own = replicate(reciprocal, group)
    phases = wrapped_phases(part.positions, own, part.batch)
    # A number that is not finite would lead native code out of its arrays.
    check_phases(phases, part)
    how = kernel, part, resolution, engine.sampler, table_of
    parts = [(backend, _kept_table(*how, rows)) for backend, rows in sums]
    out = sum_over_modes(parts, sources, phases, own, interaction, field=field)
    inverse = at_atoms(replicate(density, group), part.batch)[:, None]
    return Potentials(
        out.energy * density,
        out.potential * inverse,
        None if out.field is None else out.field * inverse[..., None],
    )


def _kept_table(
    kernel: Kernel,
    part: Structures,
    resolution: Resolution,
    sampler: type[Sampler],
    table_of: Callable[[ModeRows], Tensor],
    rows: ModeRows,
) -> Callable[[], Tensor]:
    """Make a table, or take that of the last evaluation, if it is small and nothing changed."""
    layout = part.layout
    is_small = rows.total * len(kernel.zero_mode) <= _SMALL
    if kernel.samples is None or layout is None or not (is_small and _is_constant(part.cell)):
        return partial(table_of, rows)

    def kept() -> Tensor:
        known = layout.memory.get("table")
        if known is None or known[:4] != (kernel, rows, resolution, sampler):
            known = layout.memory["table"] = (kernel, rows, resolution, sampler, table_of(rows))
        table: Tensor = known[4]
        return table

    return kept


def _lattices(part: Structures) -> tuple[Tensor, Tensor]:
    """Reciprocal cells (n_graphs, 3, 3) in 1/Å, and inverse volumes (n_graphs,) in 1/Å^3."""
    cell, layout = part.cell, part.layout
    if layout is None or not _is_constant(cell):
        return reciprocal_cell(cell), cell_volume(cell).reciprocal()
    key = ("lattices", cell.dtype, cell.device, torch.is_inference_mode_enabled())
    return layout.memory.once(key, lambda: _known_lattices(layout, cell))


def _is_constant(cell: Tensor) -> bool:
    """Tell whether nobody differentiates in the cell, by either mode of autograd."""
    return not cell.requires_grad and fwAD.unpack_dual(cell).tangent is None


def _known_lattices(layout: Layout, like: Tensor) -> tuple[Tensor, Tensor]:
    inverse = np.linalg.inv(layout.cells)
    density = np.abs(np.linalg.det(inverse))
    columns = 2.0 * math.pi * inverse.transpose(0, 2, 1).reshape(-1, 9), density[:, None]
    known = to_device(np.concatenate(columns, 1), like)
    return known[:, :9].view(-1, 3, 3), known[:, 9]


def sum_over_modes(
    parts: Sequence[Part],
    sources: Multipoles,
    phases: Tensor,
    reciprocal: Tensor,
    interaction: Interaction,
    *,
    field: bool,
) -> Potentials:
    """Energy, potential and field of sources, for tables of the kernel on the modes.

    Parameters
    ----------
    parts : sequence of Part
        Backends, and what makes the tables of their modes, of all structures.
    sources : Multipoles
    phases : Tensor, shape (n_atoms, 3)
    reciprocal : Tensor, shape (n_graphs, 3, 3), in 1/Å
        For this rank.
    interaction : Interaction
    field : bool
        Whether the field of charges is wanted, too.

    Returns
    -------
    Potentials
    """
    order = sources.order
    batch = parts[0][0].batch
    in_phases = sources.in_phase_space(reciprocal, batch)
    group = interaction.process_group
    energy, d = quadratic_form(parts, phases, in_phases, order + 1, group)
    forces = None
    if field or order > 0:
        forces = -torch.einsum("nkp,nkc->ncp", d[:, 1:4], reciprocal[batch])
    return Potentials(energy, d[:, 0], forces)
