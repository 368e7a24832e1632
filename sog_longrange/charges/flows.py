"""Charges that flow between neighbours, so that fragments keep theirs at any distance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sog_longrange.errors import ConfigError, explain

from .element_rows import ElementRows
from .readout import LatentCharges
from .sites import Edges, Sites, edges_of, species_of

REACHES = 4
"""Number of distances, up to the cutoff, at which flows end."""

PER_REACH = 4
"""Number of products of which a flow consists, for each reach and channel."""

SHORTEST = 0.4
"""Shortest reach, relative to the cutoff."""


class FlowingCharges(ElementRows):
    r"""Readout in which charges flow along edges, from charges that elements bring with them.

    .. math::
        q_i = e_{z_i} + \sum_j p_{ij}, \qquad
        p_{ij} = \frac1M \sum_m w_m(r_{ij}) \,
        (a_{im} (1 + b_{jm}) - (1 + b_{im}) a_{jm}) = -p_{ji},

    where :math:`a`, which acts as an electronegativity, and :math:`b` are learned functions of the
    features, and the weights :math:`w_m = (1 - r^2 / \rho_m^2)^3` end smoothly at reaches
    :math:`\rho_m` of up to the cutoff. What one atom gains another loses, so the charge of a
    fragment that is farther than the cutoff from all others is the sum of those of its elements:
    zero without `element_charges`, whatever the weights are. Flows start random and small, as
    :class:`LatentCharges` do.

    Parameters
    ----------
    layer_sizes : sequence of int
        Number of invariant features of each layer of the host model.
    num_channels : int
        Number of latent charges of each atom.
    hidden_size : int
        Width of the perceptron; 0 leaves it out.
    cutoff : float, in Å
        Of the edges.
    element_charges : mapping of int to float, in e, optional
        By atomic number, in the order of the species: what each brings with it at the start, in the
        first channel; learned. Small random numbers where all are zero; None leaves them out.

    Raises
    ------
    ConfigError
        If a size or the cutoff is out of range.

    References
    ----------
    Nistor et al., J. Chem. Phys. 125 (2006) 094108, for charges split along bonds.
    """

    by_element = "element_charges"
    element_charges: nn.Parameter | None
    reaches: Tensor

    def __init__(
        self,
        layer_sizes: Sequence[int],
        num_channels: int = 1,
        hidden_size: int = 32,
        *,
        cutoff: float,
        element_charges: Mapping[int, float] | None = None,
    ) -> None:
        super().__init__(() if element_charges is None else tuple(element_charges))
        if not 0.0 < cutoff < math.inf:
            raise ConfigError(explain("cutoff", "positive and finite", str(cutoff)))
        count = REACHES * PER_REACH
        self.ends = LatentCharges(layer_sizes, 2 * count * num_channels, hidden_size)
        self.layer_sizes, self.num_channels = self.ends.layer_sizes, num_channels
        self.cutoff = float(cutoff)
        reaches = torch.linspace(SHORTEST, 1.0, REACHES) * cutoff
        self.register_buffer("reaches", reaches.repeat_interleave(PER_REACH), persistent=False)
        own = None
        if element_charges is not None:
            start = torch.zeros(len(element_charges), num_channels)
            start[:, 0] = torch.tensor(list(element_charges.values()))
            own = nn.Parameter(start if bool(start.any()) else 0.1 * torch.randn_like(start))
        self.register_parameter("element_charges", own)

    @property
    def weight(self) -> Tensor:
        """A parameter, whose dtype and device are those of the features."""
        return self.ends.linear.weight

    def forward(self, features: Tensor, sites: Sites | None = None) -> Tensor:
        """Charges of each atom.

        Parameters
        ----------
        features : Tensor, shape (n_atoms, sum(layer_sizes))
            Invariant features, layer after layer.
        sites : Sites
            With edges, and with `element_charges` with the species.

        Returns
        -------
        Tensor, shape (n_atoms, num_channels), in e

        Raises
        ------
        InputError, InputTypeError
            If the features have another width, dtype or device than the readout, or edges or
            species are missing.
        """
        edges, ends = edges_of(sites), self.ends(features)
        if sites is not None and sites.exchange is not None:
            ends = sites.exchange(ends)
        charges = self.flow(ends, edges, features.shape[0])
        return self.add_elements(charges, sites)

    def flow(self, ends: Tensor, edges: Edges, n_atoms: int) -> Tensor:
        """Sum what flows to each atom.

        Parameters
        ----------
        ends : Tensor, shape (at least n_atoms, 2 * n_products * num_channels)
            What `ends` makes of the features; those of images of other atoms may follow.
        edges : Edges
        n_atoms : int
            Number of atoms that are centres.

        Returns
        -------
        Tensor, shape (n_atoms, num_channels), in e
        """
        # In float64: what two atoms exchange must cancel in the sum over a fragment.
        reaches, r = self.reaches.double(), edges.to_cutoff.double()
        weights = (1.0 - (r[:, None] / reaches).square()).clamp_min(0.0).pow(3)
        a, b = ends.double().unflatten(1, (2, self.num_channels, -1)).unbind(1)
        b = 1.0 + b
        swapped = torch.stack([b, -a], 1)[edges.neighbours] * weights[:, None, None]
        sums = swapped.new_zeros((n_atoms, *swapped.shape[1:]))
        sums = sums.index_add(0, edges.centres, swapped)
        own = torch.stack([a, b], 1)[:n_atoms]
        charges: Tensor = (own * sums).sum((1, 3)) / reaches.shape[0]
        return charges.type_as(ends)

    def add_elements(self, charges: Tensor, sites: Sites | None) -> Tensor:
        """Add the charges that elements bring with them.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, num_channels), in e
        sites : Sites
            With the species, unless `element_charges` are left out.

        Returns
        -------
        Tensor, shape (n_atoms, num_channels), in e
        """
        if self.element_charges is None:
            return charges
        return charges + self.element_charges[species_of(sites, charges.shape[0])]
