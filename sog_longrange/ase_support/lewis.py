"""Charge of a molecule from its bonds, by the rules of Lewis structures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

_H, _B, _C, _N, _O, _F = 1, 5, 6, 7, 8, 9
_PNICTOGENS: Final = (15, 33, 51)
_CHALCOGENS: Final = (16, 34, 52)
_HALOGENS: Final = (17, 35, 53)
_VALENCES: Final[dict[int, int]] = {
    **{_H: 1, _B: 3, _C: 4, _N: 3, _O: 2, _F: 1, 14: 4, 32: 4},
    **dict.fromkeys(_PNICTOGENS, 3),
    **dict.fromkeys(_CHALCOGENS, 2),
    **dict.fromkeys(_HALOGENS, 1),
}
_ACCEPTORS: Final = (_B, 14, 32, *_PNICTOGENS, *_HALOGENS)
"""Elements whose atoms are negative with a bond too many, as in BF4-, PF6- and I3-."""

_NEGATIVE: Final = (_N, _O, _F, *_PNICTOGENS, *_CHALCOGENS, *_HALOGENS)
"""Elements whose atoms are negative with a bond too few."""

_KNOWN: Final[dict[tuple[tuple[int, int], ...], int]] = {
    ((_C, 1), (_O, 1)): 0,
    ((_C, 1), (_N, 1)): -1,
    ((_N, 3),): -1,
    ((_N, 2), (_O, 1)): 0,
    ((_O, 3),): 0,
}
"""Charges of molecules that the rules below do not know, by composition."""

Bonds = Mapping[int, set[int]]


def lewis_charge(numbers: Mapping[int, int], bonds: Bonds) -> int | None:
    """Estimate the charge of a molecule with closed shells.

    Bonds are made multiple where both atoms lack one. An atom that lacks one then is negative,
    or positive if it is carbon in a molecule with lone pairs; one with a bond too many is
    positive as in NH4+, or negative as in BF4-.

    Parameters
    ----------
    numbers : mapping of int to int
        Atomic number of each atom.
    bonds : mapping of int to set of int
        Atoms that each atom is bonded to.

    Returns
    -------
    int, in e, or None
        None if the rules do not tell, or tell what the number of electrons contradicts.
    """
    composition = tuple(sorted(Counter(numbers.values()).items()))
    if composition in _KNOWN:
        return _KNOWN[composition]
    if not all(element in _VALENCES for element in numbers.values()):
        return None
    lacking, charge = {}, 0
    for atom in numbers:
        valence, own = _valence(atom, numbers, bonds)
        lacking[atom] = max(valence - len(bonds[atom]), 0)
        charge += own
    _add_multiple_bonds(lacking, bonds)
    for atom, missing in lacking.items():
        sign = _sign(atom, numbers, bonds) if missing else 0
        if sign is None:
            return None
        charge += sign * missing
    return charge if (charge - sum(numbers.values())) % 2 == 0 else None


def _valence(atom: int, numbers: Mapping[int, int], bonds: Bonds) -> tuple[int, int]:
    """Find the number of bonds of an atom, and its charge, by its neighbours."""
    element, count = numbers[atom], len(bonds[atom])
    oxides = sum(numbers[n] in (_O, 16) and len(bonds[n]) == 1 for n in bonds[atom])
    if element == _N and count == 3 and oxides:
        return 4, 1
    valence = _VALENCES[element]
    if element in _CHALCOGENS:
        valence = _valence_of_sulfur(count, oxides)
    elif element in _PNICTOGENS and (count > 4 or (count > 2 and oxides > 4 - count)):
        valence = 5
    elif element in _HALOGENS and count > 1 and oxides:
        valence = 2 * count - 1
    surplus = max(count - valence, 0)
    is_acceptor = element in _ACCEPTORS and not (element in _PNICTOGENS and count == 4)
    return valence, -surplus if is_acceptor else surplus


def _valence_of_sulfur(count: int, oxides: int) -> int:
    if count < 3:
        return 4 if oxides == 2 else 2
    if count == 3:
        return 4 if oxides else 2
    return 6 if oxides or count > 4 else 4


def _add_multiple_bonds(lacking: dict[int, int], bonds: Bonds) -> None:
    """Make bonds multiple, first those of atoms that have the fewest choices."""
    while True:
        open_ones = [atom for atom, missing in lacking.items() if missing]
        choices = {atom: [n for n in bonds[atom] if lacking[n]] for atom in open_ones}
        able = [atom for atom in open_ones if choices[atom]]
        if not able:
            return
        atom = min(able, key=lambda a: (len(choices[a]), a))
        partner = min(choices[atom], key=lambda n: (len(choices[n]), n))
        lacking[atom] -= 1
        lacking[partner] -= 1


def _sign(atom: int, numbers: Mapping[int, int], bonds: Bonds) -> int | None:
    """Sign of the charge of an atom that lacks a bond; None if the rules do not tell."""
    if numbers[atom] in _NEGATIVE:
        return -1
    has_lone_pairs = any(
        (element == _N and len(bonds[n]) == 3) or (element == _O and len(bonds[n]) == 2)
        for n, element in numbers.items()
    )
    return 1 if numbers[atom] == _C and has_lone_pairs else None
