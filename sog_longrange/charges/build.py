"""Readouts of charges as options ask for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from sog_longrange.kernels.free_atoms import TYPICAL
from sog_longrange.kernels.spec import KernelSpec

from .dispersion import DispersionCoefficients, JoinedCharges
from .readout import LatentCharges

Readout = LatentCharges | DispersionCoefficients | JoinedCharges


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
    def positive_channels(self) -> tuple[int, ...]:
        """Channels whose values are positive."""


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
        Of the host's edges.
    atomic_numbers : sequence of int
        Elements that the model is made for; empty if it does not tell them.

    Returns
    -------
    Readout

    Raises
    ------
    ConfigError
        If an option is out of range.
    """
    positive = config.positive_channels
    if not positive:
        return LatentCharges(layer_sizes, config.num_channels, config.hidden_size)
    parts: list[LatentCharges | DispersionCoefficients] = []
    for own, group in groupby(range(config.num_channels), key=positive.__contains__):
        channels = list(group)
        if own:
            starts = _starts(config, channels, atomic_numbers)
            made = layer_sizes, starts, config.hidden_size, atomic_numbers
            parts.append(DispersionCoefficients(*made))
        else:
            parts.append(LatentCharges(layer_sizes, len(channels), config.hidden_size))
    return parts[0] if len(parts) == 1 else JoinedCharges(parts)


def _starts(
    config: ReadoutOptions, channels: Sequence[int], atomic_numbers: Sequence[int]
) -> Tensor:
    """Values of free atoms, with which all channels of a potential have their energy together."""
    potentials = [config.kernels[i // config.block].build_potential() for i in channels]
    rows = [[x.start(number) for x in potentials] for number in atomic_numbers or (TYPICAL,)]
    return torch.tensor(rows, dtype=torch.float64) / math.sqrt(config.block)
