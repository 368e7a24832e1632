"""What is known of the structures of a set of data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sog_longrange.hosts import load_library

from .fragments import Composition, is_atom
from .oxidation import is_metal


@dataclass(frozen=True)
class DataSummary:
    """What structures consist of.

    Attributes
    ----------
    frames : int
        Structures that were looked at.
    fragments : dict of tuple to int
        How many fragments of each composition there are.
    charges : dict of tuple to int, in e, or None
        Charge of each of them; None where the data do not tell.
    element_charges : dict of str to float, in e, or None
        Charges of elements that sum to them, or where charges are None the usual ones of ions if
        there is nothing else; None where there are none.
    reason : str
        Why charges are None.
    open_axes : tuple of int
        Each number of axes that occurs, along which a structure is not continued, see
        :func:`~sog_longrange.ase_support.fragments.open_axes`.
    has_several : bool
        Whether there are structures of more than one fragment.
    has_charge_states : bool
        Whether every structure has a total charge, and these differ among structures of the same
        atoms, or of one fragment each.
    """

    frames: int
    fragments: Mapping[Composition, int]
    charges: Mapping[Composition, int] | None
    element_charges: Mapping[str, float] | None
    reason: str
    open_axes: tuple[int, ...]
    has_several: bool
    has_charge_states: bool = False

    @property
    def has_metals(self) -> bool:
        """Whether there are atoms of metals."""
        return any(is_metal(composition) for composition in self.fragments)

    @property
    def has_molecules(self) -> bool:
        """Whether there are fragments of several atoms."""
        return not all(is_atom(composition) for composition in self.fragments)

    @property
    def has_neutral_atoms(self) -> bool:
        """Whether there are single atoms without a charge, which only dispersion attracts."""
        charges = self.charges or {}
        return any(is_atom(own) and charges.get(own) == 0 for own in self.fragments)

    @property
    def has_slabs(self) -> bool:
        """Whether there are structures that are continued along two axes only."""
        return 1 in self.open_axes

    @property
    def has_ions(self) -> bool:
        """Whether there are charges, or none are known."""
        return self.charges is None or any(self.charges.values())

    def describe(self, most: int = 6) -> str:
        """Say in one line what was found.

        Parameters
        ----------
        most : int
            How many kinds of fragments are named.

        Returns
        -------
        str
        """
        kinds = Counter(dict(self.fragments)).most_common()
        names = [self._name(composition) for composition, _ in kinds[:most]]
        more = len(kinds) - most
        names += [f"{more} more kinds"] if more > 0 else []
        places = ["bulk", "slabs", "chains", "molecules or clusters"]
        shapes = " and ".join(places[axes] for axes in self.open_axes)
        found = f"{self.frames} frames ({shapes}) with {', '.join(names)}"
        return f"{found}; {self.reason}" if self.reason else found

    def _name(self, composition: Composition) -> str:
        charge = f" {self.charges[composition]:+d}" if self.charges is not None else ""
        return formula(composition) + charge.replace("+0", "0")


def formula(composition: Composition) -> str:
    """Write a composition as chemists do: carbon, hydrogen, and the others by name.

    Parameters
    ----------
    composition : tuple of (int, int)

    Returns
    -------
    str
        Such as "C2H3O2".
    """
    named = sorted((symbol_of(element), count) for element, count in composition)
    if any(symbol == "C" for symbol, _ in named):
        named.sort(key=lambda part: (part[0] != "C", part[0] != "H", part[0]))
    return "".join(symbol + (str(count) if count > 1 else "") for symbol, count in named)


def symbol_of(element: int) -> str:
    """Return the chemical symbol of an atomic number.

    Parameters
    ----------
    element : int

    Returns
    -------
    str
    """
    return str(load_library("ase.data", "ase").chemical_symbols[element])
