"""Projection of latent charges to neutrality or to a given total charge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional

from sog_longrange.geometry import at_atoms, sum_over_atoms, to_device
from sog_longrange.summation.distributed import accumulate, replicate


def project_total_charge(
    charges: Tensor,
    total_charge: Tensor,
    batch: Tensor,
    channels: Sequence[int] | None = None,
    group: ProcessGroup | None = None,
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
    group : ProcessGroup, optional
        Ranks over which the atoms of each structure are spread; all take part, also those
        without atoms.

    Returns
    -------
    Tensor, shape (n_atoms, n_channels), in e
        The closest charges (least squares) with that sum; smooth, and independent
        of the order of the atoms.
    """
    num_graphs = total_charge.shape[0]
    # One sum over atoms: compilers fail at that of a constant.
    counted = torch.cat([charges, torch.ones_like(charges[:, :1])], 1)
    added = accumulate(sum_over_atoms(counted, batch, num_graphs), group)
    excess, counts = added[:, :-1], added[:, -1].clamp_min(1.0)
    sums = list(excess.unbind(1))
    first, *others = range(len(sums)) if channels is None else channels
    sums[first] = total_charge
    for channel in others:
        sums[channel] = torch.zeros_like(total_charge)
    wanted = torch.stack(sums, 1)
    return charges - at_atoms(replicate((excess - wanted) / counts[:, None], group), batch)


def project_known_atoms(
    charges: Tensor,
    total_charge: Tensor | None,
    batch: Tensor,
    counts: Sequence[int],
    channels: Sequence[int],
) -> Tensor:
    """Do what :func:`project_total_charge` does in fewer operations, and not in a graph.

    Parameters
    ----------
    charges, batch, channels
        As there.
    total_charge : Tensor, shape (n_graphs,), in e, or None
        None stands for zeros.
    counts : sequence of int
        Number of atoms of each structure.

    Returns
    -------
    Tensor, shape (n_atoms, n_channels), in e
    """
    width, first = charges.shape[1], channels[0]
    excess = sum_over_atoms(charges, batch, len(counts))
    if total_charge is not None:
        excess = excess - functional.pad(total_charge[:, None], (first, width - first - 1))
    shares = [1.0 / max(count, 1) for count in counts]
    if len(shares) == 1 and len(channels) == width:
        return charges - shares[0] * excess
    changed = [float(channel in channels) for channel in range(width)]
    weights = to_device(np.outer(shares, changed), charges)
    return charges - at_atoms(weights * excess, batch)
