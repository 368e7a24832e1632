"""Latent charges from a number of features that is known when the first ones come."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch_geometric.nn.dense.linear import Linear, is_uninitialized_parameter

from sog_longrange import ConfigError, LatentCharges
from sog_longrange.errors import explain


class LazyCharges(LatentCharges):
    """Readout of latent charges whose number of features may be left open.

    Parameters
    ----------
    in_channels : int
        Number of features of each node, or -1 to take that of the first input.
    num_charges : int
        Number of latent charges of each node.
    hidden_channels : int
        Width of the perceptron; 0 leaves it out.

    Raises
    ------
    ConfigError
        If a size is out of range.
    """

    def __init__(self, in_channels: int, num_charges: int, hidden_channels: int) -> None:
        if in_channels < 1 and in_channels != -1:
            raise ConfigError(explain("in_channels", "positive, or -1", str(in_channels)))
        super().__init__((max(in_channels, 1),), num_charges, hidden_channels)
        self.linear = Linear(in_channels, num_charges, bias=False)
        if self.perceptron is not None:
            self.perceptron[0] = Linear(in_channels, hidden_channels, bias=False)

    @property
    def in_channels(self) -> int:
        """Number of features of each node; -1 until the first input."""
        return int(cast(Any, self.linear).in_channels)

    @property
    def is_open(self) -> bool:
        """Whether the number of features is still to be taken, from an input or loaded weights."""
        return self.layer_sizes != (self.in_channels,)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        for layer in self.modules():
            if isinstance(layer, Linear | nn.Linear):
                layer.reset_parameters()

    def fit(self, features: Tensor) -> None:
        """Take the number of features from the first that come.

        Parameters
        ----------
        features : Tensor, shape (num_nodes, in_channels)
        """
        for layer in self.modules():
            if isinstance(layer, Linear) and is_uninitialized_parameter(layer.weight):
                layer.initialize_parameters(layer, (features,))
        self.layer_sizes = (self.in_channels,)
