"""Latent charges from a number of features that is known when the first ones come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch_geometric.nn.dense.linear import Linear, is_uninitialized_parameter

from sog_longrange import ConfigError, LatentCharges, SOGConfig
from sog_longrange.charges.build import Readout, build_readout, of_host
from sog_longrange.charges.flows import FlowingCharges
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


class LazyFlows(FlowingCharges):
    """Readout of charges that flow along edges, whose number of features may be left open.

    Parameters
    ----------
    in_channels, num_charges, hidden_channels
        As for :class:`LazyCharges`.
    cutoff, element_charges, atomic_numbers
        As for :class:`~sog_longrange.charges.flows.FlowingCharges`.

    Raises
    ------
    ConfigError
        If a size or the cutoff is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        num_charges: int,
        hidden_channels: int,
        *,
        cutoff: float,
        element_charges: Mapping[int, float] | None = None,
        atomic_numbers: Sequence[int] = (),
    ) -> None:
        sizes = (max(in_channels, 1),), num_charges, hidden_channels
        super().__init__(
            *sizes, cutoff=cutoff, element_charges=element_charges, atomic_numbers=atomic_numbers
        )
        self._start = element_charges
        self.ends = LazyCharges(in_channels, self.ends.num_channels, hidden_channels)

    @property
    def in_channels(self) -> int:
        """Number of features of each node; -1 until the first input."""
        return cast(LazyCharges, self.ends).in_channels

    @property
    def is_open(self) -> bool:
        """Whether the number of features is still to be taken, from an input or loaded weights."""
        return cast(LazyCharges, self.ends).is_open

    def reset_parameters(self) -> None:
        """Draw new weights; elements have the charges that they began with."""
        cast(LazyCharges, self.ends).reset_parameters()
        new = FlowingCharges(
            (1,),
            self.num_channels,
            0,
            cutoff=self.cutoff,
            element_charges=self._start,
            atomic_numbers=self.atomic_numbers,
        )
        with torch.no_grad():
            for name in (*self.by_element, "gain"):
                if (own := getattr(self, name)) is not None:
                    own.copy_(getattr(new, name))

    def fit(self, features: Tensor) -> None:
        """Take the number of features from the first that come.

        Parameters
        ----------
        features : Tensor, shape (num_nodes, in_channels)
        """
        cast(LazyCharges, self.ends).fit(features)
        self.layer_sizes = self.ends.layer_sizes


LazyReadout = LazyCharges | LazyFlows


def build_lazy(
    config: SOGConfig, in_channels: int, cutoff: float | None, elements: Sequence[int]
) -> LazyReadout | Readout:
    """Return a new readout as options ask for it.

    Parameters
    ----------
    config : SOGConfig
    in_channels : int
        Number of features of each node, or -1 to take that of the first input.
    cutoff : float, in Å, or None
        Of the edges.
    elements : sequence of int
        Atomic numbers.

    Returns
    -------
    LazyReadout or Readout
        The latter where there are values that begin as those of elements.

    Raises
    ------
    ConfigError
        If an option is out of range, or one is missing or given without a use.
    """
    sizes = in_channels, config.num_channels, config.hidden_size
    _check_given("cutoff", cutoff, config.has_flows or bool(config.far_channels), config)
    if config.readout == "ions" or not (config.has_flows or config.positive_channels):
        _check_given("elements", list(elements) or None, config.readout == "ions", config)
    if config.positive_channels:
        if in_channels < 1:
            expected = f"the number of features with kernel={config.kernel!r}"
            raise ConfigError(explain("in_channels", expected, str(in_channels)))
        return build_readout(config, (in_channels,), cutoff, elements)
    if cutoff is None:
        return LazyCharges(*sizes)
    return LazyFlows(*sizes, **of_host(config, cutoff, elements))


def _check_given(name: str, value: object, wanted: bool, config: SOGConfig) -> None:
    if (value is not None) != wanted:
        options = f"readout={config.readout!r} and kernel={config.kernel!r}"
        expected = f"{'given' if wanted else 'left out'} with {options}"
        raise ConfigError(explain(name, expected, str(value)))
