"""Pairs that the network of the host sees, left out of the interaction of some channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from .charges.sites import Sites, edges_of
from .energy import LongRangeOutput
from .errors import ConfigError, explain
from .geometry import sum_over_atoms
from .kernels.channels import apply_kernels
from .kernels.kernel import Kernel
from .summation.distributed import accumulate

_POWER: Final = 12
"""Of the switch: the larger it is, the closer to the cutoff pairs come in."""


class NearPairs(NamedTuple):
    """Neighbours whose interaction is left to the network of the host, which sees them.

    The kernel of two atoms at a distance r is multiplied by 1 - w(r), where w is 1 for neighbours
    and falls to 0 at the cutoff, with two derivatives that vanish there. What the network would
    have to cancel inside molecules is never added, so that both parts are learned at once.

    Attributes
    ----------
    cutoff : float, in Å
        Of the host's edges.
    channels : tuple of int
        For which this is so.
    """

    cutoff: float
    channels: tuple[int, ...]

    def leave_out(
        self,
        out: LongRangeOutput,
        kernel: Kernel,
        sites: Sites | None,
        batch: Tensor,
        group: ProcessGroup | None = None,
    ) -> LongRangeOutput:
        """Subtract what neighbours add to a result.

        Parameters
        ----------
        out : LongRangeOutput
            Of all pairs.
        kernel : Kernel
        sites : Sites
            With the edges of the host.
        batch : Tensor, shape (n_atoms,)
        group : ProcessGroup, optional
            Ranks over which the atoms are spread.

        Returns
        -------
        LongRangeOutput

        Raises
        ------
        InputError
            If there are no edges.
        """
        charges, edges = out.charges, edges_of(sites)
        mask = charges.new_tensor([float(i in self.channels) for i in range(charges.shape[1])])
        masked = charges * mask
        others = masked
        if sites is not None and sites.exchange is not None:
            others = sites.exchange(masked)
        values = kernel.snapshot().radial(edges.distances.to(charges).square())
        values = values * switch(edges.to_cutoff.to(charges), self.cutoff)
        pairs = apply_kernels(values, others[edges.neighbours].T, 0).T
        potential = torch.zeros_like(charges).index_add(0, edges.centres, -mask * pairs)
        energies = 0.5 * (charges * potential).sum(1)
        total = accumulate(sum_over_atoms(energies, batch, out.energy.shape[0]), group)
        return out._replace(energy=out.energy + total, potential=out.potential + potential)


def near_pairs(channels: Sequence[int], cutoff: float | None) -> NearPairs | None:
    """Return what is left out; None where nothing is.

    Parameters
    ----------
    channels : sequence of int
        Channels whose pairs of neighbours are left to the network.
    cutoff : float, in Å, optional
        Of the host's edges.

    Returns
    -------
    NearPairs or None

    Raises
    ------
    ConfigError
        If a channel needs edges of a host that has none.
    """
    if not channels:
        return None
    if cutoff is None:
        expected = "with near=True for a model without edges, as in dispersion(near=True)"
        raise ConfigError(explain("kernel", expected, "near=False"))
    return NearPairs(float(cutoff), tuple(channels))


def switch(distances: Tensor, cutoff: float) -> Tensor:
    """Smooth step from 1 at zero to 0 at the cutoff and beyond.

    Parameters
    ----------
    distances : Tensor, in Å
    cutoff : float, in Å

    Returns
    -------
    Tensor, shape of `distances`
        Twice differentiable in them.
    """
    x, p = (distances / cutoff).clamp(max=1.0), _POWER
    inner = 0.5 * (p + 1) * (p + 2) - x * (p * (p + 2) - 0.5 * p * (p + 1) * x)
    return 1.0 - x**p * inner
