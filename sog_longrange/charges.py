"""From atomic features to latent charges and dipoles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .errors import ConfigError, explain
from .validation import check_finite, check_float, check_like, check_shape, check_tensor


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

    def forward(self, features: Tensor) -> Tensor:
        """Latent charges of each atom.

        Parameters
        ----------
        features : Tensor, shape (n_atoms, sum(layer_sizes))
            Invariant features, layer after layer.

        Returns
        -------
        Tensor, shape (n_atoms, num_channels), in e

        Raises
        ------
        InputError, InputTypeError
            If the features have another width, dtype or device than the readout, or are
            not finite.
        """
        width = sum(self.layer_sizes)
        check_float("features", features)
        check_shape("features", features, (None, width), f"(n_atoms, {width})")
        check_like("features", features, self.linear.weight, "the readout's weights")
        check_finite("features", features)
        charges: Tensor = self.linear(features)
        if self.perceptron is not None:
            charges = charges + self.perceptron(features[:, -self.layer_sizes[-1] :])
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

    Raises
    ------
    ConfigError
        If a size is out of range.

    References
    ----------
    Schütt, Unke, Gastegger, arXiv:2102.03150 (PaiNN), for gated vectors as dipoles.
    """

    def __init__(
        self, num_vectors: int, num_channels: int = 1, num_invariants: int = 0, hidden_size: int = 0
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
        self.linear = nn.Linear(num_vectors, num_channels, bias=False)
        self.gates: nn.Sequential | None = None
        if hidden_size > 0:
            self.gates = nn.Sequential(nn.Linear(num_invariants, hidden_size), nn.Tanh())
            self.inner = nn.Linear(num_vectors, hidden_size, bias=False)
            self.outer = nn.Linear(hidden_size, num_channels, bias=False)

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
            If the vectors have another shape, dtype or device than the readout, or are not
            finite.
        """
        n_atoms, width = features.shape[0], self.num_vectors
        check_float("vectors", vectors)
        expected = f"(n_atoms={n_atoms}, 3, {width})"
        check_shape("vectors", vectors, (n_atoms, 3, width), expected)
        check_like("vectors", vectors, self.linear.weight, "the readout's weights")
        check_finite("vectors", vectors)
        dipoles: Tensor = self.linear(vectors)
        if self.gates is not None:
            gates = self.gates(features[:, -self.num_invariants :])[:, None]
            dipoles = dipoles + self.outer(gates * self.inner(vectors))
        return dipoles


class ChargeEmbedding(nn.Module):
    """Let invariant features depend on the total charge of each structure.

    Every atom of a structure of charge Q gets W tanh(w Q + v Q^2) added to its features:
    smooth, bounded, and zero for neutral structures. W starts at zero, so that a model starts
    as the one without the embedding; its gradient is alive wherever there is charge.

    Parameters
    ----------
    num_features : int
        Number of invariant features of each atom.
    hidden_size : int
        Number of functions of the charge, at least 1.

    Raises
    ------
    ConfigError
        If a size is out of range.

    References
    ----------
    Unke et al., Nat. Commun. 12 (2021) 7273 (SpookyNet), for electronic charge as an input.
    """

    def __init__(self, num_features: int, hidden_size: int = 16) -> None:
        super().__init__()
        if num_features < 1:
            raise ConfigError(explain("num_features", "at least 1", str(num_features)))
        if hidden_size < 1:
            raise ConfigError(explain("hidden_size", "at least 1", str(hidden_size)))
        self.hidden = nn.Linear(2, hidden_size, bias=False)
        self.output = nn.Linear(hidden_size, num_features, bias=False)
        nn.init.zeros_(self.output.weight)

    def reset_parameters(self) -> None:
        """Start again as nothing."""
        self.hidden.reset_parameters()
        nn.init.zeros_(self.output.weight)

    def forward(self, features: Tensor, total_charge: Tensor, batch: Tensor) -> Tensor:
        """Features with the charge of each atom's structure in them.

        Parameters
        ----------
        features : Tensor, shape (n_atoms, num_features)
        total_charge : Tensor, shape (n_graphs,), in e
            See :func:`~sog_longrange.validation.check_total_charge`.
        batch : Tensor, shape (n_atoms,)

        Returns
        -------
        Tensor, shape (n_atoms, num_features)

        Raises
        ------
        InputError, InputTypeError
            If features or charges have another shape or dtype than the embedding.
        """
        width = self.output.out_features
        check_float("features", features)
        check_shape("features", features, (None, width), f"(n_atoms, {width})")
        check_like("features", features, self.output.weight, "the embedding's weights")
        check_tensor("total_charge", total_charge)
        check_shape("total_charge", total_charge, (None,), "(n_graphs,)")
        charge = total_charge.to(features)
        hidden = torch.tanh(self.hidden(torch.stack([charge, charge**2], 1)))
        shifts: Tensor = self.output(hidden)
        return features + shifts[batch]


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


def project_total_charge(
    charges: Tensor,
    total_charge: Tensor,
    batch: Tensor,
    channels: Sequence[int] | None = None,
) -> Tensor:
    """Shift the charges of each structure evenly so that they have a given sum.

    Parameters
    ----------
    charges : Tensor, shape (n_atoms, n_channels), in e
    total_charge : Tensor, shape (n_graphs,), in e
        Wanted sum of the first channel; the other channels are made neutral.
    batch : Tensor, shape (n_atoms,)
    channels : sequence of int, optional
        Channels that are changed, of which the first has the wanted sum; by default all.

    Returns
    -------
    Tensor, shape (n_atoms, n_channels), in e
        The closest charges (least squares) with that sum; smooth, and independent
        of the order of the atoms.
    """
    num_graphs = total_charge.shape[0]
    # One sum over atoms: compilers fail at that of a constant.
    counted = torch.cat([charges, torch.ones_like(charges[:, :1])], 1)
    added = charges.new_zeros(num_graphs, counted.shape[1]).index_add(0, batch, counted)
    excess, counts = added[:, :-1], added[:, -1].clamp_min(1.0)
    sums = list(excess.unbind(1))
    first, *others = range(len(sums)) if channels is None else channels
    sums[first] = total_charge
    for channel in others:
        sums[channel] = torch.zeros_like(total_charge)
    wanted = torch.stack(sums, 1)
    return charges - ((excess - wanted) / counts[:, None])[batch]
