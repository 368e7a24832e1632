"""Pairs of neighbours that are left to the network of the host, in TorchScript."""

import torch
from torch import Tensor, nn

from sog_longrange.kernels.kernel import Kernel
from sog_longrange.near_pairs import NearPairs, switch

from .traced import channel_terms, trace, trace_radial


class _Switch(nn.Module):
    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(self, distances: Tensor) -> Tensor:
        return switch(distances, self.cutoff)


class ScriptedNear(nn.Module):
    """What is left out, as of :class:`~sog_longrange.near_pairs.NearPairs`, in TorchScript.

    Parameters
    ----------
    kernel : Kernel
    num_channels : int
    near : NearPairs or None
    like : Tensor
        Of the dtype and on the device of the positions.
    """

    def __init__(
        self, kernel: Kernel, num_channels: int, near: NearPairs | None, like: Tensor
    ) -> None:
        super().__init__()
        channels = () if near is None else near.channels
        terms = channel_terms(num_channels, len(kernel.zero_mode))
        # A list without elements has no type in TorchScript.
        self.terms = [x for x in terms if set(x[:2]) <= set(channels)] or [(-1, -1, -1)]
        self.radial = trace_radial(kernel, 0, like)
        example = like.new_tensor([1.0, 2.0]).requires_grad_()
        self.switch = trace(_Switch(1.0 if near is None else near.cutoff), example)

    def forward(self, charges: Tensor, edge_index: Tensor, distances: Tensor) -> Tensor:
        """Evaluate what is added to the energies of atoms.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        edge_index : Tensor, shape (2, n_edges), int64
        distances : Tensor, shape (n_edges,), in Å

        Returns
        -------
        Tensor, shape (n_atoms,), in eV
        """
        energies = torch.zeros_like(charges[:, 0])
        if self.terms[0][0] < 0:
            return energies
        values = self.radial(distances.square())[0] * self.switch(distances)
        i, j = edge_index[0], edge_index[1]
        for p, q, kernel in self.terms:
            pairs = charges[:, p][i] * charges[:, q][j]
            if p != q:
                pairs = pairs + charges[:, q][i] * charges[:, p][j]
            energies = energies.index_add(0, i, -0.5 * values[kernel] * pairs)
        return energies
