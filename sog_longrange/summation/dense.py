"""Dense reciprocal sum over all structures of a batch at once."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from sog_longrange.errors import SizeError
from sog_longrange.geometry import (
    MAX_ELEMENTS,
    Modes,
    cell_volume,
    choose_modes,
    reciprocal_cell,
    squared_wave_numbers,
    wrapped_phases,
)
from sog_longrange.kernels.kernel import Kernel
from sog_longrange.validation import Structures, check_phases

from .interaction import Interaction, Potentials
from .kernel_table import tapered_fourier
from .modes import ModesBackend, sum_over_modes
from .multipoles import Multipoles, monomials, order_of
from .parts import no_potentials, put, select
from .resolution import Resolution

_WASTE = 4.0


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
        If the modes or their products with the atoms fit into no memory.
    InputError
        If positions are so large that they overflow.

    References
    ----------
    Ji, Liang, Xu, arXiv:2502.04668.
    """
    if part.num_graphs > 1 and _waste_of_padding(part) > _WASTE:
        out = no_potentials(part, sources.charges, field=field or sources.order > 0)
        for place in range(part.num_graphs):
            graph, atoms, single = select(part, [place])
            own = dense_sum(interaction, sources.at(atoms), single, field=field)
            out = put(out, graph, atoms, own)
        return out
    resolution = interaction.resolution(sources.order)
    modes = choose_modes(part.cell, resolution.cutoff)
    backend = DenseBackend(modes, part.batch, part.num_graphs)
    reciprocal = reciprocal_cell(part.cell)
    table = kernel_per_volume(interaction.kernel, modes, reciprocal, part.cell, resolution)
    phases = wrapped_phases(part.positions, reciprocal, part.batch)
    check_phases(phases, part)
    out = sum_over_modes(backend, sources, phases, table, reciprocal, interaction, field=field)
    # What is kept for gradients must not be a view of what users may change.
    return out._replace(potential=out.potential.clone())


def _waste_of_padding(part: Structures) -> float:
    """Work of a dense batch, padded to its largest atom count and cell, over that of its parts."""
    lengths = torch.linalg.vector_norm(part.cell.detach().double(), dim=-1) + 1.0
    counts = torch.bincount(part.batch, minlength=part.num_graphs).clamp(min=1)
    own = (counts * lengths.prod(-1)).sum()
    padded = part.num_graphs * counts.max() * lengths.amax(0).prod()
    return float(padded / own)


def kernel_per_volume(
    kernel: Kernel, modes: Modes, reciprocal: Tensor, cell: Tensor, resolution: Resolution
) -> Tensor:
    """Khat(k) / V on the half box of modes, tapered to zero at the cutoff.

    Parameters
    ----------
    kernel : Kernel
    modes : Modes
    reciprocal, cell : Tensor, shape (n_graphs, 3, 3)
    resolution : Resolution

    Returns
    -------
    Tensor, shape (n_graphs, n_kernels, n_1, n_2, n_3), in eV/e^2
        Modes with a mirror image outside the box carry its weight too.
    """
    k2 = squared_wave_numbers(modes, reciprocal)
    volume = cell_volume(cell)[:, None, None, None]
    factor = modes.weights[:, None, None] / volume
    return (tapered_fourier(kernel, k2, resolution.taper_start) * factor).transpose(0, 1)


class DenseBackend(ModesBackend):
    """Adjoint sums by matrix products of per-axis phase factors.

    exp(i m.theta) is a product of three factors, one for each axis; structures are
    padded to the largest atom count, so that one batched product serves them all.

    Parameters
    ----------
    modes : Modes
        Half box of modes; its mirror weights belong to the table.
    batch : Tensor, shape (n_atoms,), sorted
    num_graphs : int
    """

    channel_axis = 1

    def __init__(self, modes: Modes, batch: Tensor, num_graphs: int) -> None:
        self.modes = modes
        self.batch = batch
        self.num_graphs = num_graphs
        counts = torch.bincount(batch, minlength=num_graphs)
        self.width = int(counts.max())
        starts = counts.cumsum(0) - counts
        self.slots = batch * self.width + torch.arange(len(batch), device=batch.device)
        self.slots -= starts[batch]
        _check_size(num_graphs, self.width, modes)

    def set_phases(self, phases: Tensor) -> None:
        """Build the factors exp(i m theta) of each axis."""
        padded = self._pad(phases)
        self.factors = [
            torch.polar(torch.ones_like(angle), angle)
            for angle in (padded[..., d, None] * self.modes.axes[d] for d in range(3))
        ]
        y, z = self.factors[1], self.factors[2]
        self.plane = (y[..., :, None] * z[..., None, :]).flatten(-2)

    def spread(self, sources: Tensor) -> Tensor:
        """Structure factor sum_j sum_a W_ja d^a exp(-i m.theta_j)."""
        # All sums use exp(+i m.theta); the conjugate is taken once, at the end.
        weights, (_, y, z) = self._pad(sources), self.modes.axes
        first, *others = (
            self._project(weights, columns) * ((1j * y) ** b)[:, None] * (1j * z) ** c
            if b or c
            else self._project(weights, columns)
            for (b, c), columns in _by_plane(sources.shape[1])
        )
        return sum(others, first).conj()

    def interpolate(self, field: Tensor, order: int) -> Tensor:
        """Phase derivatives of the potential at the atoms."""
        d = self._derivatives(field, order)
        return torch.stack([d[:, a, b, c] for a, b, c in monomials(order)], 1)

    def per_table(self, per_graph: Tensor) -> Tensor:
        """One number per structure, broadcast over its modes."""
        return per_graph[:, None, None, None, None]

    def _project(self, weights: Tensor, columns: list[int]) -> Tensor:
        """sum_j sum_a (i m_1)^a W_ja exp(i m.theta_j) of some columns of padded sources."""
        values = weights[:, :, columns[0]][..., None].to(self.plane.dtype)
        for power, column in enumerate(columns[1:], start=1):
            slopes = weights[:, :, column][..., None]
            values = values + slopes * (1j * self.modes.axes[0]) ** power
        left = values * self.factors[0][:, :, None]
        product = left.flatten(2).transpose(1, 2) @ self.plane
        return product.view(self.num_graphs, weights.shape[-1], *self.modes.shape)

    def _derivatives(self, spectrum: Tensor, order: int) -> Tensor:
        """Mixed phase derivatives of the potential; (n_atoms, o_x, o_y, o_z, P)."""
        x, y, z = (self._powers(axis, order) for axis in range(3))
        channels, shape = spectrum.shape[1], self.modes.shape
        rows = spectrum.movedim(1, 2).reshape(self.num_graphs, shape[0], -1)
        first = x.flatten(1, 2) @ rows
        first = first.view(-1, (order + 1) * channels * shape[1], shape[2])
        second = first @ z.flatten(0, 1).transpose(-1, -2)
        second = second.view(-1, order + 1, channels, shape[1], order + 1)
        values = torch.einsum("nacyz,nby->nabzc", second, y.flatten(0, 1)).real
        return values.reshape(self.num_graphs * self.width, *values.shape[1:])[self.slots]

    def _powers(self, axis: int, order: int) -> Tensor:
        """(i m)^o exp(i m theta) for o = 0..order; (B, W, order + 1, n)."""
        powers = [self.factors[axis]]
        for _ in range(order):
            powers.append(powers[-1] * (1j * self.modes.axes[axis]))
        return torch.stack(powers, 2)

    def _pad(self, per_atom: Tensor) -> Tensor:
        padded = per_atom.new_zeros(self.num_graphs * self.width, *per_atom.shape[1:])
        padded[self.slots] = per_atom
        return padded.view(self.num_graphs, self.width, *per_atom.shape[1:])


@lru_cache(maxsize=16)
def _by_plane(count: int) -> list[tuple[tuple[int, int], list[int]]]:
    """Powers along y and z, and the places of their sources by rising power along x."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, (_, b, c) in enumerate(monomials(order_of(count))):
        groups.setdefault((b, c), []).append(place)
    return list(groups.items())


def _check_size(num_graphs: int, width: int, modes: Modes) -> None:
    n1, n2, n3 = modes.shape
    largest = num_graphs * max(width * n2 * n3, n1 * n2 * n3)
    if largest > MAX_ELEMENTS:
        raise SizeError(
            f"{num_graphs} periodic structures of up to {width} atoms with "
            f"{n1} x {n2} x {n3} modes need arrays of {largest:.3g} elements, more than "
            f"{MAX_ELEMENTS:.3g}. Use a larger `min_width` or `tolerance`, or a smaller batch."
        )
