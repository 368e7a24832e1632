"""A network of two message-passing layers, with or without a long-range layer between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from sog_pyg import LongRangeLayer, periodic_edges


class Convolution(MessagePassing):
    """Messages from all neighbours within the cutoff, weighted by a function of the distance."""

    def __init__(self, channels: int, cutoff: float, num_radial: int = 24) -> None:
        super().__init__(aggr="add")
        self.cutoff = cutoff
        self.register_buffer("centres", torch.linspace(0.5, cutoff, num_radial))
        self.radial = perceptron(num_radial, channels, channels)
        self.send = nn.Linear(channels, channels, bias=False)
        self.receive = nn.Linear(channels, channels, bias=False)
        self.update_net = perceptron(channels, channels, channels)

    def forward(self, x: Tensor, edge_index: Tensor, length: Tensor) -> Tensor:
        """Features [N, F] -> features [N, F]."""
        spacing = self.cutoff / len(self.centres)
        basis = torch.exp(-0.5 * ((length[:, None] - self.centres) / spacing) ** 2)
        envelope = (1.0 - (length / self.cutoff) ** 2).clamp(min=0.0) ** 3
        weight = self.radial(basis) * envelope[:, None]
        sent = self.propagate(edge_index, x=self.send(x), weight=weight)
        return x + self.update_net(self.receive(x) * sent)

    def message(self, x_j: Tensor, weight: Tensor) -> Tensor:
        """One edge: what its source sends, weighted."""
        return x_j * weight


class ChargeLayer(nn.Module):
    """Update of a node by the potential and the field of all others."""

    def __init__(self, channels: int, num_charges: int) -> None:
        super().__init__()
        options = {"output": "features", "tolerance": 1e-4, "charge_constraint": "neutral"}
        self.long_range = LongRangeLayer(channels, num_charges, hidden_channels=0, **options)
        self.receive = nn.Linear(channels, channels, bias=False)
        self.mix = nn.Linear(2 * num_charges, channels, bias=False)
        self.update_net = perceptron(channels, channels, channels)

    def forward(
        self, x: Tensor, pos: Tensor, batch: Tensor | None, cell: Tensor, pbc: Tensor, size: int
    ) -> Tensor:
        """Features [N, F] -> features [N, F]."""
        potential, field = self.long_range(x, pos, batch, cell, pbc, size)
        # Squares of vectors do not change when all is rotated, as features must not.
        felt = self.mix(torch.cat([potential, field.square().sum(1)], -1))
        return x + self.update_net(self.receive(x) * felt)


class ChargeNetwork(nn.Module):
    """Energy of a structure from two convolutions and what is between them.

    Parameters
    ----------
    channels : number of features of each node.
    cutoff : of the convolutions, in Å.
    num_charges : of the long-range layer; 0 puts a third convolution in its place.
    """

    def __init__(self, channels: int = 32, cutoff: float = 5.0, num_charges: int = 4) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.embedding = nn.Embedding(100, channels)
        self.first = Convolution(channels, cutoff)
        self.between = (
            ChargeLayer(channels, num_charges) if num_charges else Convolution(channels, cutoff)
        )
        self.second = Convolution(channels, cutoff)
        self.readout = perceptron(channels, channels, 1)

    def forward(
        self,
        z: Tensor,
        pos: Tensor,
        batch: Tensor | None,
        cell: Tensor,
        pbc: Tensor,
        batch_size: int,
    ) -> Tensor:
        """Energies [B, 1] in eV, as `sog_pyg.energy_forces_stress` asks for."""
        edge_index, edge_vec = periodic_edges(pos, self.cutoff, cell, pbc, batch, batch_size)
        length = edge_vec.norm(dim=-1)
        x = self.first(self.embedding(z), edge_index, length)
        if isinstance(self.between, ChargeLayer):
            x = self.between(x, pos, batch, cell, pbc, batch_size)
        else:
            x = self.between(x, edge_index, length)
        x = self.second(x, edge_index, length)
        index = torch.zeros_like(z) if batch is None else batch
        return x.new_zeros(batch_size, 1).index_add(0, index, self.readout(x))


def perceptron(size: int, hidden: int, out: int) -> nn.Sequential:
    """Two linear layers with a smooth activation between them."""
    return nn.Sequential(nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, out))
