"""Dense reciprocal sum over all structures of a batch at once."""

from __future__ import annotations

import torch
from torch import Tensor

from sog_longrange.errors import SizeError
from sog_longrange.geometry import (
    MAX_ELEMENTS,
    TAPER,
    Modes,
    cell_volume,
    choose_modes,
    fade_out,
    reciprocal_cell,
    squared_wave_numbers,
    wave_number_onset,
    wrapped_phases,
)
from sog_longrange.kernels.kernel import Kernel, zero_modes
from sog_longrange.validation import check_no_overflow

from .autograd import quadratic_energy
from .fourier import SECOND_ORDERS, FourierBackend, hessian_product


def dense_energy(
    kernel: Kernel,
    charges: Tensor,
    positions: Tensor,
    cell: Tensor,
    batch: Tensor,
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    """Reciprocal-space energy of periodic structures, self-interaction included.

    Parameters
    ----------
    kernel : Kernel
    charges : Tensor, shape (n_atoms, n_channels), in e
    positions : Tensor, shape (n_atoms, 3), in Å
    cell : Tensor, shape (n_graphs, 3, 3), in Å
    batch : Tensor, shape (n_atoms,), sorted
    tolerance : float
        Relative size of the Gaussian factor at which the sum ends.

    Returns
    -------
    energy : Tensor, shape (n_graphs,), in eV
        1/(2V) sum_k Khat(k) |S(k)|^2, S(k) = sum_j q_j exp(-i k.r_j).
    potential : Tensor, shape (n_atoms, n_channels), in eV/e

    Raises
    ------
    SizeError
        If the modes or their products with the atoms fit into no memory.

    References
    ----------
    Ji, Liang, Xu, arXiv:2502.04668.
    """
    onset = wave_number_onset(kernel.min_width, tolerance)
    modes = choose_modes(cell, TAPER * onset)
    backend = DenseBackend(modes, batch, cell.shape[0])
    reciprocal = reciprocal_cell(cell)
    table = kernel_table(kernel, modes, reciprocal, cell, onset)
    phases = wrapped_phases(positions, reciprocal, batch)
    check_no_overflow("positions", phases)
    return quadratic_energy(backend, phases, charges, table)


def kernel_table(
    kernel: Kernel, modes: Modes, reciprocal: Tensor, cell: Tensor, onset: float
) -> Tensor:
    """Khat(k) / V on the half box of modes, faded out at the cutoff.

    Parameters
    ----------
    kernel : Kernel
    modes : Modes
    reciprocal, cell : Tensor, shape (n_graphs, 3, 3)
    onset : float
        Wave number at which the fade begins, in 1/Å.

    Returns
    -------
    Tensor, shape (n_graphs, n_kernels, n_1, n_2, n_3), in eV/e^2
        Modes with a mirror image outside the box carry its weight too.
    """
    k2 = squared_wave_numbers(modes, reciprocal)
    volume = cell_volume(cell)[:, None, None, None]
    factor = modes.weights[:, None, None] / volume
    return (faded_fourier(kernel, k2, onset) * factor).transpose(0, 1)


def faded_fourier(kernel: Kernel, k2: Tensor, onset: float) -> Tensor:
    """Khat(k), faded out at the cutoff and zero at k = 0 for laws that drop it.

    Parameters
    ----------
    kernel : Kernel
    k2 : Tensor, any shape
        Squared wave numbers, in 1/Å^2.
    onset : float
        Wave number at which the fade begins, in 1/Å.

    Returns
    -------
    Tensor, shape (n_kernels, *k2.shape), in eV Å^3/e^2
    """
    fade = fade_out(k2, onset)
    keeps = zero_modes(kernel)
    if all(keeps):
        return kernel.fourier(k2) * fade
    # Made of whole tensors, because a graph for export takes no lists of numbers.
    origin = k2 == 0.0
    dropped = torch.stack([torch.zeros_like(origin) if keep else origin for keep in keeps])
    # Where no law keeps k = 0, it may be infinite there.
    values = kernel.fourier(torch.where(dropped.all(0), torch.ones_like(k2), k2))
    return values * torch.where(dropped, torch.zeros_like(fade), fade)


class DenseBackend(FourierBackend):
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
        """Build the factors (i m)^o exp(i m theta), o = 0, 1, of each axis."""
        padded = self._pad(phases)
        self.factors = [
            torch.polar(torch.ones_like(angle), angle)
            for angle in (padded[..., d, None] * self.modes.axes[d] for d in range(3))
        ]
        y, z = self.factors[1], self.factors[2]
        self.plane = (y[..., :, None] * z[..., None, :]).flatten(-2)

    def spread(self, charges: Tensor, dipoles: Tensor | None = None) -> Tensor:
        """Structure factor sum_j (q_j + d_j.grad) exp(-i m.theta_j)."""
        # All sums use exp(+i m.theta); the conjugate is taken once, at the end.
        if dipoles is None:
            return self._project(self._pad(charges)).conj()
        d = self._pad(dipoles)
        i_m = [1j * axis for axis in self.modes.axes]
        spectrum = self._project(self._pad(charges), d[:, :, 0])
        spectrum = spectrum + i_m[1][:, None] * self._project(d[:, :, 1])
        spectrum = spectrum + i_m[2] * self._project(d[:, :, 2])
        return spectrum.conj()

    def gather(self, spectrum: Tensor) -> tuple[Tensor, Tensor]:
        """Potential and its phase gradient at the atoms."""
        d = self._derivatives(spectrum, 1)
        return d[:, 0, 0, 0], torch.stack((d[:, 1, 0, 0], d[:, 0, 1, 0], d[:, 0, 0, 1]), 1)

    def gather_hessian(self, spectrum: Tensor, direction: Tensor) -> Tensor:
        """Second phase derivatives of the potential, times a direction."""
        d = self._derivatives(spectrum, 2)
        return hessian_product([d[:, a, b, c] for a, b, c in SECOND_ORDERS], direction)

    def per_table(self, per_graph: Tensor) -> Tensor:
        """One number per structure, broadcast over its modes."""
        return per_graph[:, None, None, None, None]

    def _project(self, charges: Tensor, slopes: Tensor | None = None) -> Tensor:
        """sum_j (q_j + i m_1 d_j) exp(i m.theta_j) of padded (B, W, P); (B, P, n_1, n_2, n_3)."""
        values = charges[..., None].to(self.plane.dtype)
        if slopes is not None:
            values = torch.complex(
                charges[..., None].expand(*slopes.shape, self.modes.shape[0]),
                slopes[..., None] * self.modes.axes[0],
            )
        left = values * self.factors[0][:, :, None]
        product = left.flatten(2).transpose(1, 2) @ self.plane
        return product.view(self.num_graphs, charges.shape[-1], *self.modes.shape)

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


def _check_size(num_graphs: int, width: int, modes: Modes) -> None:
    n1, n2, n3 = modes.shape
    largest = num_graphs * max(width * n2 * n3, n1 * n2 * n3)
    if largest > MAX_ELEMENTS:
        raise SizeError(
            f"{num_graphs} periodic structures of up to {width} atoms with "
            f"{n1} x {n2} x {n3} modes need arrays of {largest:.3g} elements, more than "
            f"{MAX_ELEMENTS:.3g}. Use a larger `min_width` or `tolerance`, or a smaller batch."
        )
