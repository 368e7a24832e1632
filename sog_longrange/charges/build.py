"""Readouts of charges as options ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sog_longrange.errors import ConfigError, explain

from .elements import initial_charges
from .flows import FlowingCharges
from .readout import LatentCharges

if TYPE_CHECKING:
    from sog_longrange.config import SOGConfig

Readout = LatentCharges | FlowingCharges


def build_readout(
    config: SOGConfig,
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
        Elements that the model is made for.

    Returns
    -------
    Readout

    Raises
    ------
    ConfigError
        If an option is out of range, or the host does not say what it needs.
    """
    sizes = layer_sizes, config.num_channels, config.hidden_size
    if not config.has_flows:
        return LatentCharges(*sizes)
    if cutoff is None:
        expected = "'atoms' for a model without edges"
        raise ConfigError(explain("readout", expected, repr(config.readout)))
    if config.readout == "flows":
        return FlowingCharges(*sizes, cutoff=cutoff)
    if not atomic_numbers:
        expected = "'atoms' or 'flows' for a model that does not tell its elements"
        raise ConfigError(explain("readout", expected, repr(config.readout)))
    charges = initial_charges(config.element_charges, atomic_numbers)
    return FlowingCharges(*sizes, cutoff=cutoff, element_charges=charges)
