"""Readouts of charges as options ask for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Protocol, TypedDict

import torch
from torch import Tensor

from sog_longrange.errors import ConfigError, explain
from sog_longrange.kernels.free_atoms import TYPICAL
from sog_longrange.kernels.spec import KernelSpec

from .dispersion import DispersionCoefficients, JoinedCharges
from .elements import initial_charges, isoelectronic
from .flows import FlowingCharges
from .readout import LatentCharges

Part = LatentCharges | FlowingCharges | DispersionCoefficients
Readout = Part | JoinedCharges


class ReadoutOptions(Protocol):
    """What a readout depends on; see :class:`~sog_longrange.SOGConfig`."""

    @property
    def num_channels(self) -> int:
        """Number of latent charges of each atom."""

    @property
    def hidden_size(self) -> int:
        """Width of the perceptron."""

    @property
    def kernels(self) -> tuple[KernelSpec, ...]:
        """What the channels are divided among."""

    @property
    def block(self) -> int:
        """Number of channels of each of these."""

    @property
    def readout(self) -> str:
        """What electric charges are made from."""

    @property
    def element_charges(self) -> str:
        """Charges that elements begin with."""

    def kind_of(self, channel: int) -> str:
        """Kind of the readout of a channel."""


class HostOptions(TypedDict):
    """Options of :class:`~sog_longrange.charges.flows.FlowingCharges` by the model of a host."""

    cutoff: float
    element_charges: Mapping[int, float] | None
    atomic_numbers: Sequence[int]


def build_readout(
    config: ReadoutOptions,
    layer_sizes: Sequence[int],
    cutoff: float | None = None,
    atomic_numbers: Sequence[int] = (),
) -> Readout:
    """Return a new readout.

    Parameters
    ----------
    config : SOGConfig
    layer_sizes : sequence of int
        Number of invariant features of each layer of the host model.
    cutoff : float, in Å, optional
        Of the host's edges, along which charges flow.
    atomic_numbers : sequence of int
        Elements that the model is made for; empty if it does not tell them.

    Returns
    -------
    Readout

    Raises
    ------
    ConfigError
        If an option is out of range, or the host does not say what it needs.
    """
    parts: list[Part] = []
    for kind, group in groupby(range(config.num_channels), key=config.kind_of):
        channels = list(group)
        sizes = layer_sizes, len(channels), config.hidden_size
        if kind == "positive":
            starts = _starts(config, channels, atomic_numbers)
            made = layer_sizes, starts, config.hidden_size, atomic_numbers
            parts.append(DispersionCoefficients(*made))
        elif kind == "atoms":
            parts.append(LatentCharges(*sizes))
        else:
            parts.append(FlowingCharges(*sizes, **of_host(config, cutoff, atomic_numbers)))
    return parts[0] if len(parts) == 1 else JoinedCharges(parts)


def of_host(
    config: ReadoutOptions, cutoff: float | None, atomic_numbers: Sequence[int]
) -> HostOptions:
    """Return what flows need of the host.

    Parameters
    ----------
    config, cutoff, atomic_numbers
        As of :func:`build_readout`.

    Returns
    -------
    HostOptions

    Raises
    ------
    ConfigError
        If the host does not say it.
    """
    if cutoff is None:
        expected = "'atoms' for a model without edges"
        raise ConfigError(explain("readout", expected, repr(config.readout)))
    charges = None
    if config.readout == "ions":
        if not atomic_numbers:
            expected = "'atoms' or 'flows' for a model that does not tell its elements"
            raise ConfigError(explain("readout", expected, repr(config.readout)))
        charges = initial_charges(config.element_charges, atomic_numbers)
    return {"cutoff": cutoff, "element_charges": charges, "atomic_numbers": atomic_numbers}


def _starts(
    config: ReadoutOptions, channels: Sequence[int], atomic_numbers: Sequence[int]
) -> Tensor:
    """Values of free atoms, with which all channels of a potential have their energy together."""
    potentials = [config.kernels[i // config.block].build_potential() for i in channels]
    charges = initial_charges(config.element_charges, atomic_numbers)
    like = [isoelectronic(number, charges[number]) for number in atomic_numbers] or [TYPICAL]
    rows = [[x.start(number) for x in potentials] for number in like]
    return torch.tensor(rows, dtype=torch.float64) / math.sqrt(config.block)
