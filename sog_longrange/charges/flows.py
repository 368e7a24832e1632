"""Charges that flow between neighbours, so that fragments keep theirs at any distance."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from sog_longrange.errors import ConfigError, explain

from .bonds import MONOVALENT, POLARITY, Bonds, covalent, find_bonds
from .element_rows import ElementRows
from .readout import LatentCharges
from .sites import Edges, Sites, edges_of, species_of

REACHES = 4
"""Number of distances, up to the cutoff, at which flows end."""

PER_REACH = 4
"""Number of products of which a flow consists, for each reach and channel."""

SHORTEST = 0.4
"""Shortest reach, relative to the cutoff."""

GENTLE = 0.1
"""Gain at the start of flows of features beside charges that are known from elements."""


class FlowingCharges(ElementRows):
    r"""Readout in which charges flow along edges, from charges that elements bring with them.

    .. math::
        q_i = e_{z_i} + \sum_j p_{ij}, \qquad
        p_{ij} = \frac1M \sum_m w_m(r_{ij}) \,
        (a_{im} (1 + b_{jm}) - (1 + b_{im}) a_{jm})
        + w_\mathrm{b}(r_{ij}) (\chi_{z_j} - \chi_{z_i}) = -p_{ji},

    where :math:`a` and :math:`b` are learned functions of the features, times a gain of their
    channel. Nonmetals share charge along covalent bonds alone: all weights of such a pair are
    :math:`w_\mathrm{b}`, which is one however a bond vibrates and zero where it is broken, and of
    the partners of a hydrogen the nearest one has it, see :mod:`sog_longrange.charges.bonds`. There
    :math:`\chi`, learned for each element, begins as an electronegativity. Where a metal takes
    part, or elements are not told, the weights are :math:`w_m = (1 - r^2 / \rho_m^2)^3`, which end
    smoothly at reaches :math:`\rho_m` of up to the cutoff, and :math:`w_\mathrm{b} = 0`. What one
    atom gains another loses, so the charge of a fragment that is farther than the cutoff from all
    others is the sum of those of its elements: zero without `element_charges`, whatever the weights
    are; that of a molecule is so in contact with others too. Flows of features start random and
    small, as :class:`LatentCharges` do. Where elements tell charges or electronegativities the gain
    of the first channel, which is learned, starts at a tenth: these charges are nearly right, and
    flows between atoms that move would be noise in them.

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
    atomic_numbers : sequence of int
        Elements of the model, in the order of the species, by default those of `element_charges`;
        empty if it does not tell them.

    Raises
    ------
    ConfigError
        If a size or the cutoff is out of range.

    References
    ----------
    Nistor et al., J. Chem. Phys. 125 (2006) 094108, for charges split along bonds.
    """

    by_element = ("element_charges", "electronegativities")
    element_charges: nn.Parameter | None
    electronegativities: nn.Parameter | None
    reaches: Tensor
    radii: Tensor
    monovalent: Tensor

    def __init__(
        self,
        layer_sizes: Sequence[int],
        num_channels: int = 1,
        hidden_size: int = 32,
        *,
        cutoff: float,
        element_charges: Mapping[int, float] | None = None,
        atomic_numbers: Sequence[int] = (),
    ) -> None:
        super().__init__(tuple(element_charges or ()) or atomic_numbers)
        if not 0.0 < cutoff < math.inf:
            raise ConfigError(explain("cutoff", "positive and finite", str(cutoff)))
        count = REACHES * PER_REACH
        self.ends = LatentCharges(layer_sizes, 2 * count * num_channels, hidden_size)
        self.layer_sizes, self.num_channels = self.ends.layer_sizes, num_channels
        self.cutoff = float(cutoff)
        reaches = torch.linspace(SHORTEST, 1.0, REACHES) * cutoff
        self.register_buffer("reaches", reaches.repeat_interleave(PER_REACH), persistent=False)
        self._add_elements(element_charges)

    def _add_elements(self, element_charges: Mapping[int, float] | None) -> None:
        elements = [covalent(number) for number in self.atomic_numbers]
        radii = torch.tensor([element.radius for element in elements])
        self.register_buffer("radii", radii, persistent=False)
        single = torch.tensor([number in MONOVALENT for number in self.atomic_numbers])
        self.register_buffer("monovalent", single, persistent=False)
        polarity = None
        if elements:
            start = [POLARITY * element.electronegativity for element in elements]
            polarity = nn.Parameter(self._in_first_channel(start))
        self.register_parameter("electronegativities", polarity)
        own = None
        if element_charges is not None:
            given = self._in_first_channel(element_charges.values())
            own = nn.Parameter(given if bool(given.any()) else 0.1 * torch.randn_like(given))
        self.register_parameter("element_charges", own)
        gain = torch.ones(self.num_channels)
        if bool(radii.any()) or any((element_charges or {}).values()):
            gain[0] = GENTLE
        self.gain = nn.Parameter(gain)

    def _in_first_channel(self, values: Collection[float]) -> Tensor:
        rows = torch.zeros(len(values), self.num_channels)
        rows[:, 0] = torch.tensor(list(values))
        return rows

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
            With edges, and with the species where elements are told.

        Returns
        -------
        Tensor, shape (n_atoms, num_channels), in e

        Raises
        ------
        InputError, InputTypeError
            If the features have another width, dtype or device than the readout, or edges or
            species are missing.
        """
        edges, shape = edges_of(sites), (2, self.num_channels, self.reaches.shape[0])
        ends = (self.ends(features).unflatten(1, shape) * self.gain[:, None]).flatten(1)
        bonds = None
        if self.electronegativities is not None:
            species = species_of(sites, features.shape[0], images=True)
            radii, monovalent = self.radii[species], self.monovalent[species]
            bonds = find_bonds(radii, monovalent, edges, self.cutoff)
            total = bonds.total(monovalent[: features.shape[0]], edges)
            of_elements = self.electronegativities[species[: features.shape[0]]].double()
            ends = torch.cat([ends.double(), of_elements, total[:, None]], 1)
        if sites is not None and sites.exchange is not None:
            ends = sites.exchange(ends)
        charges = self.flow(ends, edges, features.shape[0], bonds).type_as(features)
        return self.add_elements(charges, sites)

    def flow(self, ends: Tensor, edges: Edges, n_atoms: int, bonds: Bonds | None = None) -> Tensor:
        """Sum what flows to each atom.

        Parameters
        ----------
        ends : Tensor, shape (at least n_atoms, 2 * n_products * num_channels)
            What `ends` makes of the features, times the gains, and with bonds electronegativities
            (num_channels columns) and what all bonds of an atom that has only one ask for (one
            column, zero for others); those of images of other atoms may follow.
        edges : Edges
        n_atoms : int
            Number of atoms that are centres.
        bonds : Bonds, optional
            Of the edges, where elements are told.

        Returns
        -------
        Tensor, shape (n_atoms, num_channels), float64, in e
        """
        # In float64: what two atoms exchange must cancel in the sum over a fragment.
        values, count = ends.double(), self.reaches.shape[0]
        products, of_elements = values.tensor_split([2 * count * self.num_channels], 1)
        a, b = products.unflatten(1, (2, self.num_channels, count)).unbind(1)
        share = edges.to_cutoff.double()[:, None] / self.reaches.double()
        weights = (1.0 - share.square()).clamp_min(0.0).pow(3)
        if bonds is not None:
            polarity = of_elements[:, :-1, None]
            a = torch.cat([a, -count * polarity], 2)
            b = torch.cat([b, torch.zeros_like(polarity)], 2)
            order = bonds.order(of_elements[:, -1], edges)[:, None]
            weights = torch.cat([torch.where(bonds.covalent[:, None], order, weights), order], 1)
        b = 1.0 + b
        swapped = torch.stack([b, -a], 1)[edges.neighbours] * weights[:, None, None]
        sums = swapped.new_zeros((n_atoms, *swapped.shape[1:]))
        sums = sums.index_add(0, edges.centres, swapped)
        own = torch.stack([a, b], 1)[:n_atoms]
        charges: Tensor = (own * sums).sum((1, 3)) / count
        return charges

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
