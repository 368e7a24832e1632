"""Sum over periodic images mode by mode, which is faster than a grid for few atoms."""

import math

import torch
from torch import Tensor, nn

from sog_longrange.geometry import cell_volume, largest_mode, reciprocal_cell, wrapped_phases
from sog_longrange.kernels.kernel import Kernel
from sog_longrange.summation.resolution import Resolution

from .traced import channel_terms, trace_fourier

MOST_WORK: int = 50_000
"""Number of atoms times that of modes up to which this sum is the faster one."""


class ScriptedDense(nn.Module):
    """Energy 1/(2V) sum_k Khat(k) |S(k)|^2 of one periodic structure, self-interaction included.

    Parameters
    ----------
    kernel : Kernel
    resolution : Resolution
        For the order of the sources.
    num_channels : int
    order : int
        Highest order of the sources: 1 with dipoles.
    like : Tensor
        Of the dtype and on the device of the positions.
    """

    def __init__(
        self, kernel: Kernel, resolution: Resolution, num_channels: int, order: int, like: Tensor
    ) -> None:
        super().__init__()
        self.fourier = trace_fourier(kernel, resolution.taper_start, like)
        self.terms = channel_terms(num_channels, len(kernel.zero_mode))
        self.cutoff: float = resolution.cutoff
        self.order: int = order
        self.most: int = MOST_WORK

    def is_faster(self, n_atoms: int, cell: Tensor) -> bool:
        """Tell whether this sum is faster than that on a grid.

        Parameters
        ----------
        n_atoms : int
        cell : Tensor, shape (3, 3), in Å

        Returns
        -------
        bool
        """
        # Half of the modes inside a sphere.
        volume = float(cell_volume(cell.detach()[None])[0])
        return n_atoms * volume * self.cutoff**3 / (12.0 * math.pi**2) < self.most

    def forward(self, charges: Tensor, dipoles: Tensor, positions: Tensor, cell: Tensor) -> Tensor:
        """Evaluate the energy.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        dipoles : Tensor, shape (n_atoms, 3, n_channels or 0), in e Å
        positions : Tensor, shape (n_atoms, 3), in Å
        cell : Tensor, shape (3, 3), in Å

        Returns
        -------
        Tensor, shape (), float64, in eV
        """
        reciprocal = reciprocal_cell(cell[None])
        batch = torch.zeros([positions.shape[0]], dtype=torch.int64, device=positions.device)
        modes = self.half_sphere(cell.detach(), reciprocal[0].detach())
        phases = wrapped_phases(positions, reciprocal, batch) @ modes.t()
        cosine, sine = torch.cos(phases), torch.sin(phases)
        k2 = (modes @ reciprocal[0]).square().sum(1)
        table = self.fourier(k2) * torch.where(modes.any(1), 2.0, 1.0)
        real, imaginary = charges.t() @ cosine, charges.t() @ sine
        if self.order > 0:
            along = torch.einsum("ncp,kc,mk->npm", dipoles, reciprocal[0], modes)
            real = real - (along * sine[:, None]).sum(0)
            imaginary = imaginary + (along * cosine[:, None]).sum(0)
        energy = torch.zeros([], dtype=torch.float64, device=cell.device)
        for p, q, kernel in self.terms:
            power = real[p] * real[q] + imaginary[p] * imaginary[q]
            part = 0.5 if p == q else 1.0
            energy = energy + part * (table[kernel] * power).double().sum()
        return energy / cell_volume(cell[None])[0].double()

    def half_sphere(self, cell: Tensor, reciprocal: Tensor) -> Tensor:
        """Modes up to the cutoff, of each two mirror images one.

        Parameters
        ----------
        cell : Tensor, shape (3, 3), in Å
        reciprocal : Tensor, shape (3, 3), in 1/Å

        Returns
        -------
        Tensor, shape (n_modes, 3), in the dtype of `reciprocal`
        """
        edges: list[float] = torch.linalg.vector_norm(cell.double(), dim=1).cpu().tolist()
        axes: list[Tensor] = []
        for axis, edge in enumerate(edges):
            most = largest_mode(edge, self.cutoff)
            first = 0 if axis == 0 else -most
            axes.append(torch.arange(first, most + 1, device=cell.device))
        modes = torch.stack(torch.meshgrid(axes, indexing="ij"), -1).flatten(0, 2)
        x, y, z = modes.unbind(1)
        kept = (x > 0) | (y > 0) | ((y == 0) & (z >= 0))
        modes = modes.to(reciprocal)
        inside = (modes @ reciprocal).square().sum(1) <= self.cutoff * self.cutoff
        return modes[kept & inside]
