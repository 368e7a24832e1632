"""Potential and field at the atoms, for use inside a model whose forces are trained.

The energy of :class:`~sog_longrange.LongRangeEnergy` is differentiable twice, which is what a
force loss needs of an energy. A model that computes with the potential itself, as one of
its layers, needs two derivatives of the potential and of the field. Here both are parts of
the autograd graph: sums over pairs for open structures, and for all others meshes whose
stencils autograd differentiates to any order. The cost stays near-linear. The energy of
dipoles is done here too: its second derivatives hold third ones of the potential.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sog_longrange.errors import ConfigError, explain
from sog_longrange.geometry import (
    TAPER,
    cell_volume,
    pair_indices,
    reciprocal_cell,
    wave_number_onset,
    wrapped_phases,
)
from sog_longrange.kernels.channels import apply_kernels
from sog_longrange.kernels.kernel import Kernel
from sog_longrange.validation import Structures, check_no_overflow

from .dispatch import Interaction, no_energy, select
from .engines.select import find_engine
from .jets import JetStencil
from .kernel_table import blocks, kernel_on_modes
from .mesh import Engine, MeshBackend, Meshes, choose_meshes, mode_boxes
from .padded import pad
from .pairs import pair_vectors
from .windows import window_width


class PotentialOutput(NamedTuple):
    """What the charges and dipoles of a structure make each of its atoms feel.

    Attributes
    ----------
    potential : Tensor, shape (n_atoms, n_channels), in eV/e
        phi_i = sum_j K(r_ij) q_j, over all periodic images; of dipoles mu_j too, which are the
        limit of charges Q and -Q at r_j + mu_j / 2Q and r_j - mu_j / 2Q.
    field : Tensor, shape (n_atoms, 3, n_channels), in eV/(e Å)
        -d phi / d r at the atom, all charges and dipoles held where they are.
    """

    potential: Tensor
    field: Tensor


class Sources(NamedTuple):
    """What makes potentials.

    Attributes
    ----------
    charges : Tensor, shape (n_atoms, n_channels), in e
    dipoles : Tensor, shape (n_atoms, 3, n_channels), in e Å, or None
    """

    charges: Tensor
    dipoles: Tensor | None

    @property
    def fields(self) -> int:
        """How many times the memory of an energy of charges the sums over sources take."""
        return 2 if self.dipoles is None else 3

    def at(self, atoms: Tensor) -> Sources:
        """Return the sources of some of the atoms."""
        return Sources(self.charges[atoms], None if self.dipoles is None else self.dipoles[atoms])

    def work(self, potential: Tensor, field: Tensor) -> Tensor:
        """Return q phi - mu.F of each atom in a potential and a field; (n_atoms,), in eV."""
        of_charges = (self.charges * potential).sum(-1)
        if self.dipoles is None:
            return of_charges
        return of_charges - (self.dipoles * field).sum((1, 2))


class Felt(NamedTuple):
    """Result of a sum over sources.

    Attributes
    ----------
    potential, field : Tensor
        See :class:`PotentialOutput`.
    energy : Tensor, shape (n_graphs,), float64, in eV
        Of all sources; zero of charges alone, whose energy is cheaper elsewhere.
    """

    potential: Tensor
    field: Tensor
    energy: Tensor


_Jet = Callable[[Tensor], tuple[Tensor, ...]]
Sum = Callable[[Interaction, Sources, Structures], Felt]


def sum_sources(interaction: Interaction, sources: Sources, structures: Structures) -> Felt:
    """Sum over sources that are validated already, each structure as its boundary asks.

    Parameters
    ----------
    interaction : Interaction
    sources : Sources
    structures : Structures

    Returns
    -------
    Felt
        Differentiable to any order.

    Raises
    ------
    ConfigError
        If the interaction has another backend than "auto" or "mesh", or a process group.
    InputError
        If positions are so large that they overflow.
    BoundaryError, SizeError
        As :meth:`~sog_longrange.summation.dispatch.Interaction.plan`.
    """
    _check_interaction(interaction)
    # Only of the mesh there are derivatives of any order.
    interaction = interaction._replace(backend="mesh")
    plan = interaction.plan(sources.charges.shape[1], structures, sources.fields)
    potential = torch.zeros_like(sources.charges)
    field = torch.zeros_like(potential)[:, None].expand(-1, 3, -1)
    total = no_energy(structures)
    for kind, mask in plan.parts():
        graphs, atoms, part = select(plan.structures, mask)
        own = _SUMS[kind](interaction, sources.at(atoms), part)
        potential = potential.index_copy(0, atoms, own.potential)
        field = field.index_copy(0, atoms, own.field)
        total = total.index_copy(0, graphs, own.energy)
    return Felt(potential, field, total)


def _check_interaction(interaction: Interaction) -> None:
    if interaction.backend not in ("auto", "mesh"):
        expected = '"auto" or "mesh" where potentials are computed with'
        raise ConfigError(explain("backend", expected, repr(interaction.backend)))
    if interaction.process_group is not None:
        raise ConfigError(explain("energy", "without a process group", "one with"))


def _on_mesh(interaction: Interaction, sources: Sources, part: Structures) -> Felt:
    """Sum over periodic images, in reciprocal space."""
    kernel, tolerance = interaction.kernel, interaction.tolerance
    onset = wave_number_onset(kernel.min_width, tolerance)
    lengths = torch.linalg.vector_norm(part.cell.detach().double(), dim=-1).tolist()
    meshes = choose_meshes(lengths, TAPER * onset, window_width(tolerance))
    reciprocal = reciprocal_cell(part.cell)
    engine = find_engine(interaction.engine, part.positions.device)
    table = kernel_on_modes(
        *(kernel, mode_boxes(meshes, part.cell), reciprocal, onset),
        *(max(map(max, lengths)), engine.sampler),
    )
    phases = wrapped_phases(part.positions, reciprocal, part.batch)
    check_no_overflow("positions", phases)
    out = _convolve(meshes, engine, sources, phases, table, reciprocal, part.batch)
    volume = cell_volume(part.cell)
    own = volume[part.batch][:, None]
    felt = Felt(out.potential / own, out.field / own[..., None], out.energy / volume)
    return _with_self(felt, interaction, sources, part, -1.0)


def _on_padded_mesh(interaction: Interaction, sources: Sources, part: Structures) -> Felt:
    """Sum over the images along the periodic axes, in boxes padded along the free ones."""
    kernel, tolerance = interaction.kernel, interaction.tolerance
    charges = sources.charges
    n_fields = sources.fields * charges.shape[1]
    boxes = pad(kernel, part.positions, part.cell, part.pbc, part.batch, tolerance, n_fields)
    engine = find_engine(interaction.engine, charges.device)
    geometry = boxes.phases, boxes.table, boxes.reciprocal
    out = _convolve(boxes.meshes, engine, sources, *geometry, part.batch)
    total = charges.new_zeros(part.num_graphs, charges.shape[1])
    total = total.index_add(0, part.batch, charges)
    mean = apply_kernels(boxes.means, total, 1)
    felt = out._replace(potential=out.potential + mean[part.batch])
    if sources.dipoles is not None:
        felt = felt._replace(energy=out.energy + 0.5 * (mean * total).sum(-1))
    return _with_self(felt, interaction, sources, part, -1.0)


def _convolve(
    meshes: Meshes,
    engine: Engine,
    sources: Sources,
    phases: Tensor,
    table: Tensor,
    reciprocal: Tensor,
    batch: Tensor,
) -> Felt:
    """Potential, field and energy of a table of modes."""
    backend = MeshBackend(meshes, batch, engine._replace(stencil=JetStencil))
    backend.set_phases(phases)
    dipoles = sources.dipoles
    if dipoles is not None:
        dipoles = torch.einsum("ncp,nkc->nkp", dipoles, reciprocal[batch])
    spectrum = backend.spread(sources.charges, dipoles)
    potential, slope = backend.gather(backend.field(backend.convolve(table, spectrum)))
    field = -torch.einsum("nkp,nkc->ncp", slope, reciprocal[batch])
    if dipoles is None:
        return Felt(potential, field, table.new_zeros(len(reciprocal), dtype=torch.float64))
    return Felt(potential, field, _mode_energy(backend, spectrum, table))


def _mode_energy(backend: MeshBackend, spectrum: Tensor, table: Tensor) -> Tensor:
    """Half the sum of the table times |S|^2, of which half the work is to be differentiated."""
    terms = (table * backend.correlate(spectrum, spectrum, table)).sum(0).double()
    return 0.5 * torch.stack([terms[own].sum() for own in blocks(backend.mode_starts)])


def _over_pairs(interaction: Interaction, sources: Sources, part: Structures) -> Felt:
    """Exact sum over all pairs of open structures."""
    first, second = pair_indices(torch.bincount(part.batch, minlength=part.num_graphs))
    vectors, distances2 = pair_vectors(part.positions, first, second)
    law = _law(interaction.kernel, distances2, 1 if sources.dipoles is None else 2)
    here, there = sources.at(first), sources.at(second)
    to_first, to_second = _from_partner(law, vectors, there), _from_partner(law, -vectors, here)
    potential, field = (
        a.new_zeros(len(part.positions), *a.shape[1:])
        .index_add(0, first, a)
        .index_add(0, second, b)
        for a, b in zip(to_first, to_second, strict=True)
    )
    total = potential.new_zeros(part.num_graphs, dtype=torch.float64)
    if sources.dipoles is not None:
        total = _per_graph(here.work(*to_first), part.batch[first], part.num_graphs)
    return _with_self(Felt(potential, field, total), interaction, sources, part, 0.0)


_SUMS: dict[str, Sum] = {"mesh": _on_mesh, "padded": _on_padded_mesh, "pairs": _over_pairs}


def _law(kernel: Kernel, r2: Tensor, order: int) -> list[Tensor]:
    """Kernel and its derivatives in r^2 up to an order; each (n, n_kernels)."""

    def law(x: Tensor) -> tuple[Tensor, ...]:
        return (kernel.radial(x),)

    jet: _Jet = law
    for _ in range(order):
        jet = _with_slope(jet)
    return [value.T for value in jet(r2)]


def _with_slope(jet: _Jet) -> _Jet:
    """Add the next derivative to a value and its derivatives."""

    def longer(x: Tensor) -> tuple[Tensor, ...]:
        # Forward mode: reverse mode would need the graph also where nothing is differentiated.
        values, slopes, *_ = torch.func.jvp(jet, (x,), (torch.ones_like(x),))
        return (*values, slopes[-1])

    return longer


def _from_partner(law: list[Tensor], vectors: Tensor, partner: Sources) -> tuple[Tensor, Tensor]:
    """Potential (n_pairs, P) and field (n_pairs, 3, P) at a vector from each source."""
    charges, dipoles = partner.charges, partner.dipoles
    v, slope = vectors[..., None], 2.0 * law[1]
    potential, radial = apply_kernels(law[0], charges, 1), -apply_kernels(slope, charges, 1)
    if dipoles is None:
        return potential, radial[:, None] * v
    along = (dipoles * v).sum(1)
    potential = potential - apply_kernels(slope, along, 1)
    radial = radial + 4.0 * apply_kernels(law[2], along, 1)
    return potential, radial[:, None] * v + apply_kernels(slope[:, None], dipoles, 2)


def _with_self(
    felt: Felt, interaction: Interaction, sources: Sources, part: Structures, sign: float
) -> Felt:
    """Add what each atom feels of itself, -1 times where a sum holds it and should not."""
    kernel, factor = interaction.kernel, sign if interaction.remove_self else sign + 1.0
    origin = sources.charges.new_zeros(1)
    if sources.dipoles is None:
        potential = factor * apply_kernels(kernel.radial(origin).T, sources.charges, 1)
        return felt._replace(potential=felt.potential + potential)
    value, slope = (factor * own for own in _law(kernel, origin, 1))
    potential = apply_kernels(value, sources.charges, 1)
    field = 2.0 * apply_kernels(slope[:, None], sources.dipoles, 2)
    work = _per_graph(sources.work(potential, field), part.batch, part.num_graphs)
    return Felt(felt.potential + potential, felt.field + field, felt.energy + 0.5 * work)


def _per_graph(values: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    return values.new_zeros(num_graphs, dtype=torch.float64).index_add(0, batch, values.double())
