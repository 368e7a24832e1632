"""Covalent bonds between nonmetals: which pairs of atoms have one, and how polar it is."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from sog_longrange.geometry import fade

from .sites import Edges

INTACT: Final = 1.25
"""Distance over the sum of covalent radii up to which a bond is whole, however it vibrates."""

BROKEN: Final = 1.45
"""Distance over the sum of covalent radii at which a bond ends."""

ONLY_INTACT: Final = 1.5
"""The same where an end has no other bond: that to its nearest partner is whole for longer."""

ONLY_BROKEN: Final = 1.9
"""And where that ends."""

PREFERENCE: Final = 25.0
"""Rate at which a longer bond loses against a shorter one of the same hydrogen, over the stretch.

A hydrogen bond that is 0.25 Å longer than the bond to oxygen has a share of 0.2 %.
"""

_FARTHEST: Final = 3.0
"""Stretch beyond which bonds lose no more, so that quotients of their shares are finite."""

POLARITY: Final = 0.25
"""Charge in e that a bond shifts at the start, over the difference of electronegativities."""


class Covalent(NamedTuple):
    """How an element bonds.

    Attributes
    ----------
    radius : float, in Å
        Of covalent bonds.
    electronegativity : float
        On Pauling's scale; that of hydrogen where none is known.
    """

    radius: float
    electronegativity: float


_NONMETALS: Final[dict[int, tuple[float, float]]] = {
    **{1: (0.31, 2.20), 2: (0.28, 2.20), 5: (0.84, 2.04), 6: (0.76, 2.55), 7: (0.71, 3.04)},
    **{8: (0.66, 3.44), 9: (0.57, 3.98), 10: (0.58, 2.20), 14: (1.11, 1.90), 15: (1.07, 2.19)},
    **{16: (1.05, 2.58), 17: (1.02, 3.16), 18: (1.06, 2.20), 32: (1.20, 2.01), 33: (1.19, 2.18)},
    **{34: (1.20, 2.55), 35: (1.20, 2.96), 36: (1.16, 3.00), 51: (1.39, 2.05), 52: (1.38, 2.10)},
    **{53: (1.39, 2.66), 54: (1.40, 2.60), 85: (1.50, 2.20), 86: (1.50, 2.20)},
}

NONMETALS: Final = frozenset(_NONMETALS)
"""Atomic numbers of the elements between which bonds make molecules; half-metals count."""


MONOVALENT: Final = frozenset({1})
"""Atomic numbers of the elements that have one bond, whatever else they touch."""


def covalent(number: int) -> Covalent:
    """Look up how an element bonds.

    Parameters
    ----------
    number : int
        Atomic number.

    Returns
    -------
    Covalent
        Of zeros for metals, whose contacts are no covalent bonds.

    References
    ----------
    Cordero et al., Dalton Trans. 2832 (2008), for radii; Pauling, The Nature of the Chemical Bond
    (Cornell, 1960), and Allred, J. Inorg. Nucl. Chem. 17, 215 (1961), for electronegativities.
    """
    return Covalent(*_NONMETALS.get(number, (0.0, 0.0)))


def bond_order(stretch: Tensor, only: Tensor) -> Tensor:
    """Tell how much of a bond there is: all of it, none, and a smooth step between.

    A bond that vibrates stays whole, so that what it shifts has no slope: charge that follows each
    vibration would add forces as large as the potential between its ends, volts.

    Parameters
    ----------
    stretch : Tensor
        Distances over the sums of covalent radii.
    only : Tensor of bool
        Whether one of the ends has no other bond.

    Returns
    -------
    Tensor
        From 0 to 1, with two continuous derivatives.
    """
    steps = (INTACT, BROKEN), (ONLY_INTACT, ONLY_BROKEN)
    others, own = (fade((stretch - first) / (last - first)) for first, last in steps)
    return torch.where(only, own, others)


def preference(stretch: Tensor) -> Tensor:
    """Tell how strongly a bond asks for the share of an atom that has one bond only.

    Hydrogen bonds become as short as bonds that break. Which of two oxygens a hydrogen belongs to
    is told by both distances; a proton halfway belongs to each by half.

    Parameters
    ----------
    stretch : Tensor
        Distances over the sums of covalent radii.

    Returns
    -------
    Tensor
        Positive; shares are these over their sum.
    """
    return torch.exp(PREFERENCE * (1.0 - stretch.clamp_max(_FARTHEST)))


class Bonds(NamedTuple):
    """Covalent bonds among edges.

    Attributes
    ----------
    covalent : Tensor, shape (n_edges,), bool
        Whether both ends are nonmetals.
    whole : Tensor, shape (n_edges,)
        How much of a bond there is by its length.
    asked : Tensor, shape (n_edges,)
        What it asks of an end that has one bond only.
    """

    covalent: Tensor
    whole: Tensor
    asked: Tensor

    def total(self, monovalent: Tensor, edges: Edges) -> Tensor:
        """Sum what the bonds of atoms that have one only ask for.

        Parameters
        ----------
        monovalent : Tensor, shape (n_atoms,), bool
        edges : Edges

        Returns
        -------
        Tensor, shape (n_atoms,)
            Zero for other atoms.
        """
        asked = self.asked.new_zeros(monovalent.shape).index_add(0, edges.centres, self.asked)
        return asked * monovalent

    def order(self, totals: Tensor, edges: Edges) -> Tensor:
        """Tell how much of a bond there is beside the other bonds of its ends.

        Parameters
        ----------
        totals : Tensor, shape (at least n_atoms,)
            From :meth:`total`.
        edges : Edges

        Returns
        -------
        Tensor, shape (n_edges,)
        """
        order = self.whole
        for ends in (edges.centres, edges.neighbours):
            total = totals[ends]
            some = total > 0.0
            order = order * torch.where(some, self.asked / torch.where(some, total, 1.0), 1.0)
        return order


def find_bonds(radii: Tensor, monovalent: Tensor, edges: Edges, cutoff: float) -> Bonds:
    """Find the covalent bonds among edges by their lengths.

    Parameters
    ----------
    radii : Tensor, shape (at least n_atoms,), in Å
        Of covalent bonds; zero for metals.
    monovalent : Tensor, shape (at least n_atoms,), bool
        Which atoms have one bond.
    edges : Edges
    cutoff : float, in Å
        Where all bonds end.

    Returns
    -------
    Bonds
        In float64.
    """
    first, second = radii.double()[edges.centres], radii.double()[edges.neighbours]
    nonmetals = (first > 0.0) & (second > 0.0)
    stretch = edges.distances.double() / torch.where(nonmetals, first + second, 1.0)
    end = (1.0 - (edges.to_cutoff.double() / cutoff).pow(6)).clamp_min(0.0).pow(3) * nonmetals
    only = monovalent[edges.centres] | monovalent[edges.neighbours]
    return Bonds(nonmetals, bond_order(stretch, only) * end, preference(stretch) * end)
