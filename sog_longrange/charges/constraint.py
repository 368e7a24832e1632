"""Projection of latent charges to neutrality or to a given total charge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
