"""Sum over the pairs of atoms of an open structure."""

import torch
from torch import Tensor, nn

from sog_longrange.kernels.kernel import Kernel

from .traced import channel_terms, trace_radial

MOST_ATOMS: int = 4096
"""Largest open structure of an exported model, in which all pairs are in memory at once."""


class ScriptedPairs(nn.Module):
    """Energy of all pairs of atoms, as of :mod:`sog_longrange.summation.pairs`, in TorchScript.

    Parameters
    ----------
    kernel : Kernel
    num_channels : int
    order : int
        Highest order of the sources: 1 with dipoles.
    like : Tensor
        Of the dtype and on the device of the positions.

    Raises
    ------
    HostError
        If there are dipoles and the kernel is no sum of Gaussians.
    """

    def __init__(self, kernel: Kernel, num_channels: int, order: int, like: Tensor) -> None:
        super().__init__()
        self.radial = trace_radial(kernel, order, like)
        self.terms = channel_terms(num_channels, len(kernel.zero_mode))
        self.order: int = order
        self.most: int = MOST_ATOMS

    def forward(self, charges: Tensor, dipoles: Tensor, positions: Tensor) -> Tensor:
        """Evaluate the energy.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        dipoles : Tensor, shape (n_atoms, 3, n_channels or 0), in e Å
        positions : Tensor, shape (n_atoms, 3), in Å

        Returns
        -------
        Tensor, shape (), float64, in eV
        """
        count = positions.shape[0]
        if count > self.most:
            raise ValueError(
                "An open structure must have at most "
                + str(self.most)
                + " atoms in an exported model, got "
                + str(count)
                + ". Use a periodic box."
            )
        pairs = torch.triu_indices(count, count, 1, device=positions.device)
        first, second = pairs[0], pairs[1]
        vectors = positions[first] - positions[second]
        series = self.radial(vectors.square().sum(-1))
        energy = torch.zeros([], dtype=torch.float64, device=positions.device)
        for p, q, kernel in self.terms:
            own = series[:, kernel]
            work = self.work(charges, dipoles, first, second, p, q, vectors, own)
            if p != q:
                work = work + self.work(charges, dipoles, first, second, q, p, vectors, own)
            energy = energy + work.double().sum()
        return energy

    def work(
        self,
        charges: Tensor,
        dipoles: Tensor,
        first: Tensor,
        second: Tensor,
        p: int,
        q: int,
        vectors: Tensor,
        series: Tensor,
    ) -> Tensor:
        """Energies of channel p of the first atoms and channel q of the second.

        Parameters
        ----------
        charges, dipoles
            As of :meth:`forward`.
        first, second : Tensor, shape (n_pairs,)
        p, q : int
        vectors : Tensor, shape (n_pairs, 3), in Å
            From the second to the first atom.
        series : Tensor, shape (1 + 2 order, n_pairs)
            The kernel and its derivatives in r^2.

        Returns
        -------
        Tensor, shape (n_pairs,), in eV
        """
        one, other = charges[:, p][first], charges[:, q][second]
        energies = series[0] * one * other
        if self.order > 0:
            here, there = dipoles[:, :, p][first], dipoles[:, :, q][second]
            u, v = (here * vectors).sum(1), (there * vectors).sum(1)
            mixed = other * u - one * v - (here * there).sum(1)
            energies = energies + 2.0 * series[1] * mixed - 4.0 * series[2] * u * v
        return energies


class ScriptedSelf(nn.Module):
    """Interaction of each charge and dipole with itself, 1/2 K(0) q^2 - K'(0) mu^2.

    Parameters
    ----------
    kernel : Kernel
    num_channels : int
    order : int
        Highest order of the sources: 1 with dipoles.
    like : Tensor
        Of the dtype and on the device of the positions.
    """

    values: Tensor

    def __init__(self, kernel: Kernel, num_channels: int, order: int, like: Tensor) -> None:
        super().__init__()
        with torch.no_grad():
            at_origin = trace_radial(kernel, order, like)(like.new_zeros(1))[:, :, 0]
        self.register_buffer("values", at_origin)
        self.terms = channel_terms(num_channels, len(kernel.zero_mode))
        self.order: int = order

    def forward(self, charges: Tensor, dipoles: Tensor) -> Tensor:
        """Evaluate the energy.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        dipoles : Tensor, shape (n_atoms, 3, n_channels or 0), in e Å

        Returns
        -------
        Tensor, shape (), float64, in eV
        """
        energy = torch.zeros([], dtype=torch.float64, device=charges.device)
        for p, q, kernel in self.terms:
            part = 0.5 if p == q else 1.0
            own = self.values[0, kernel] * charges[:, p] * charges[:, q]
            if self.order > 0:
                both = (dipoles[:, :, p] * dipoles[:, :, q]).sum(1)
                own = own - 2.0 * self.values[1, kernel] * both
            energy = energy + part * own.double().sum()
        return energy
