"""From atomic features to latent charges and dipoles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sog_longrange.errors import ConfigError, explain
from sog_longrange.validation import check_float, check_like, check_shape

from .sites import Sites


class LatentCharges(nn.Module):
    """Readout of latent charges from the invariant features of every layer.

    The charges are a bias-free linear map of each layer's features plus a small
    perceptron on the last layer's. They start random and small: the energy is
    quadratic in them, so charges of zero would never be trained.

    Parameters
    ----------
    layer_sizes : sequence of int
        Number of invariant features of each layer of the host model.
    num_channels : int
        Number of latent charges of each atom.
    hidden_size : int
        Width of the perceptron; 0 leaves it out.

    Raises
    ------
    ConfigError
        If a size is out of range.

    References
    ----------
    Ji, Liang, Xu, arXiv:2502.04668; Cheng, arXiv:2408.15165.
    """

    def __init__(
        self, layer_sizes: Sequence[int], num_channels: int = 1, hidden_size: int = 32
    ) -> None:
        super().__init__()
        if not layer_sizes or min(layer_sizes) < 1:
            raise ConfigError(explain("layer_sizes", "positive numbers", str(list(layer_sizes))))
        check_readout(num_channels, hidden_size)
        self.layer_sizes = tuple(int(size) for size in layer_sizes)
        self.num_channels = num_channels
        self.linear = nn.Linear(sum(self.layer_sizes), num_channels, bias=False)
        self.perceptron: nn.Sequential | None = None
        if hidden_size > 0:
            self.perceptron = nn.Sequential(
                nn.Linear(self.layer_sizes[-1], hidden_size, bias=False),
                nn.SiLU(),
                nn.Linear(hidden_size, num_channels, bias=False),
            )

    @property
    def weight(self) -> Tensor:
        """A parameter, whose dtype and device are those of the features."""
        return self.linear.weight

    def forward(self, features: Tensor, sites: Sites | None = None) -> Tensor:
        """Latent charges of each atom.

        Parameters
        ----------
        features : Tensor, shape (n_atoms, sum(layer_sizes))
            Invariant features, layer after layer.
        sites : Sites, optional
            Without use here.

        Returns
        -------
        Tensor, shape (n_atoms, num_channels), in e

        Raises
        ------
        InputError, InputTypeError
            If the features have another width, dtype or device than the readout. Their
            numbers are not looked at.
        """
        width = sum(self.layer_sizes)
        check_float("features", features)
        check_shape("features", features, (None, width), f"(n_atoms, {width})")
        check_like("features", features, self.linear.weight, "the readout's weights")
        charges: Tensor = self.linear(features)
        if self.perceptron is not None:
            first, activation, last = self.perceptron
            hidden = activation(first(features[:, -self.layer_sizes[-1] :]))
            charges = torch.addmm(charges, hidden, cast(Tensor, last.weight).T)
        return charges


class LatentDipoles(nn.Module):
    """Readout of latent dipoles from equivariant vectors.

    The dipoles are a bias-free linear mix of the vectors of all layers plus a second mix, each
    term of which is gated by a function of the last layer's invariant features. They turn with
    the vectors, and start random and small as :class:`LatentCharges` do.

    Parameters
    ----------
    num_vectors : int
        Number of vectors of each atom, of all layers of the host model together.
    num_channels : int
        Number of latent dipoles of each atom.
    num_invariants : int
        Number of invariant features of the host model's last layer.
    hidden_size : int
        Number of gated vectors; 0 leaves them out.
    channels : sequence of int, optional
        Channels that have dipoles, which are zero in the others; by default all.

    Raises
    ------
    ConfigError
        If a size is out of range.

    References
    ----------
    Schütt, Unke, Gastegger, arXiv:2102.03150 (PaiNN), for gated vectors as dipoles.
    """

    places: Tensor | None

    def __init__(
        self,
        num_vectors: int,
        num_channels: int = 1,
        num_invariants: int = 0,
        hidden_size: int = 0,
        channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if num_vectors < 1:
            raise ConfigError(explain("num_vectors", "at least 1", str(num_vectors)))
        check_readout(num_channels, hidden_size)
        if hidden_size > 0 and num_invariants < 1:
            expected = "at least 1 with a hidden_size"
            raise ConfigError(explain("num_invariants", expected, str(num_invariants)))
        self.num_vectors = num_vectors
        self.num_channels = num_channels
        self.num_invariants = num_invariants
        own = num_channels if channels is None else len(channels)
        places = None if own == num_channels else torch.eye(num_channels)[list(channels or ())]
        self.register_buffer("places", places, persistent=False)
        self.linear = nn.Linear(num_vectors, own, bias=False)
        self.gates: nn.Sequential | None = None
        if hidden_size > 0:
            self.gates = nn.Sequential(nn.Linear(num_invariants, hidden_size), nn.Tanh())
            self.inner = nn.Linear(num_vectors, hidden_size, bias=False)
            self.outer = nn.Linear(hidden_size, own, bias=False)

    def forward(self, vectors: Tensor, features: Tensor) -> Tensor:
        """Latent dipoles of each atom.

        Parameters
        ----------
        vectors : Tensor, shape (n_atoms, 3, num_vectors)
            Cartesian components x, y, z of vectors that change sign under inversion.
        features : Tensor, shape (n_atoms, n_features)
            Invariant features, those of the last layer at the end.

        Returns
        -------
        Tensor, shape (n_atoms, 3, num_channels), in e Å

        Raises
        ------
        InputError, InputTypeError
            If the vectors have another shape, dtype or device than the readout. Their
            numbers are not looked at.
        """
        n_atoms, width = features.shape[0], self.num_vectors
        check_float("vectors", vectors)
        expected = f"(n_atoms={n_atoms}, 3, {width})"
        check_shape("vectors", vectors, (n_atoms, 3, width), expected)
        check_like("vectors", vectors, self.linear.weight, "the readout's weights")
        dipoles: Tensor = self.linear(vectors)
        if self.gates is not None:
            gates = self.gates(features[:, -self.num_invariants :])[:, None]
            dipoles = dipoles + self.outer(gates * self.inner(vectors))
        return dipoles if self.places is None else dipoles @ self.places


def check_readout(num_channels: int, hidden_size: int) -> None:
    """Raise `ConfigError` unless a readout can have these sizes.

    Parameters
    ----------
    num_channels : int
        At least 1.
    hidden_size : int
        At least 0.
    """
    if num_channels < 1:
        raise ConfigError(explain("num_channels", "at least 1", str(num_channels)))
    if hidden_size < 0:
        raise ConfigError(explain("hidden_size", "at least 0", str(hidden_size)))
