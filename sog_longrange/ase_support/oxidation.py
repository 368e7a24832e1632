"""Charges that fragments of structures may have, the likeliest first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sog_longrange.charges.bonds import NONMETALS
from sog_longrange.charges.elements import NOBLE_GASES

from .fragments import Composition, is_atom

UNLIKELY: Final = 2
"""Cost from which on a charge is one that the rules speak against."""

_STATES: Final[dict[int, tuple[int, ...]]] = {
    **dict.fromkeys((3, 11, 19, 37, 55, 87, 47), (1,)),
    **dict.fromkeys((4, 12, 20, 38, 56, 88, 30, 48), (2,)),
    **dict.fromkeys((13, 31, 21, 39, 49, *range(57, 72)), (3,)),
    **dict.fromkeys((22, 40, 72, 90), (4, 3, 2)),
    **dict.fromkeys((23, 41, 73), (5, 4, 3, 2)),
    **dict.fromkeys((42, 74), (6, 4, 5)),
    **dict.fromkeys((24, 26, 27), (3, 2)),
    **dict.fromkeys((25, 28), (2, 3, 4)),
    **dict.fromkeys((29, 80), (2, 1)),
    **dict.fromkeys((50, 82), (4, 2)),
    **dict.fromkeys((81, 83), (3, 1)),
    **dict.fromkeys((44, 45, 46, 77, 78, 79), (0, 1, 2, 3, 4)),
}
"""Oxidation states of metals, the commonest first."""

_ANIONS: Final[dict[int, int]] = {
    **dict.fromkeys((9, 17, 35, 53, 85), -1),
    **dict.fromkeys((8, 16, 34, 52), -2),
    **dict.fromkeys((7, 15, 33, 51), -3),
}
"""Charges of single atoms of nonmetals; others have none that is usual."""


def is_metal(composition: Composition) -> bool:
    """Tell whether a fragment is an atom of a metal.

    Parameters
    ----------
    composition : tuple of (int, int)

    Returns
    -------
    bool
    """
    return composition[0][0] not in NONMETALS


def possible_charges(composition: Composition, lewis: Iterable[int | None]) -> dict[int, int]:
    """List the charges that a fragment may have.

    Parameters
    ----------
    composition : tuple of (int, int)
        Atomic numbers and the number of atoms of each.
    lewis : iterable of int or None
        What the bonds of fragments of this composition speak for.

    Returns
    -------
    dict of int to int
        What each charge costs: 0 for the usual one, 1 where none is usual, and `UNLIKELY` or
        more for others.
    """
    element = composition[0][0]
    if is_metal(composition):
        usual = _STATES.get(element, (2, 3, 4, 1))
        costs = {charge: min(rank, 1) for rank, charge in enumerate(usual)}
        return costs | ({} if 0 in costs else {0: UNLIKELY})
    if is_atom(composition):
        return _of_single_atom(element)
    if sum(z * n for z, n in composition) % 2:
        return _prefer({0: 1, 1: 1, -1: 1}, {0: 2, 1: 3, -1: 3, 3: 4, -3: 4}, lewis)
    return _prefer({0: 0}, {0: 2, 2: 3, -2: 3}, lewis)


def _of_single_atom(element: int) -> dict[int, int]:
    if element in NOBLE_GASES:
        return {0: 0}
    if element in _ANIONS:
        return {_ANIONS[element]: 0, 0: UNLIKELY}
    return {1: 1, -1: 1, 0: 1} if element == 1 else {0: 1, -4: 1, 4: 1}


def _prefer(
    unknown: dict[int, int], known: dict[int, int], lewis: Iterable[int | None]
) -> dict[int, int]:
    """Costs by what bonds speak for, where they speak with one voice."""
    told = {charge for charge in lewis if charge is not None}
    if len(told) != 1:
        return known | unknown
    return known | dict.fromkeys(told, 0)
