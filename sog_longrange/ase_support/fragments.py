"""Molecules, ions and metal atoms that structures consist of, found by distances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sog_longrange.charges.bonds import INTACT, MONOVALENT, NONMETALS, ONLY_INTACT, covalent
from sog_longrange.charges.elements import NOBLE_GASES
from sog_longrange.hosts import load_library

from .lewis import lewis_charge

_HALOGENS: Final = (9, 17, 35, 53, 85)
_BOND_NOBLE: Final = (8, 9)
GAP: Final = 8.0
"""Width in Å of an empty layer across which images are taken as apart."""

_MOST_ATOMS: Final = 300
"""Atoms of a fragment up to which its bonds are looked at."""

Composition = tuple[tuple[int, int], ...]
Bonds = dict[int, dict[int, set[tuple[int, ...]]]]


class Fragment(NamedTuple):
    """Atoms that covalent bonds hold together, or a single atom.

    Attributes
    ----------
    composition : tuple of (int, int)
        Atomic numbers in ascending order, and the number of atoms of each.
    is_network : bool
        Whether bonds go through periodic boundaries without an end.
    lewis : int or None, in e
        Charge that its bonds speak for, see :func:`~sog_longrange.ase_support.lewis.lewis_charge`.
    atoms : tuple of int
        Indices in the structure.
    """

    composition: Composition
    is_network: bool
    lewis: int | None
    atoms: tuple[int, ...]


def is_atom(composition: Composition) -> bool:
    """Tell whether a fragment is a single atom.

    Parameters
    ----------
    composition : tuple of (int, int)

    Returns
    -------
    bool
    """
    return sum(count for _, count in composition) == 1


def find_fragments(atoms: Any) -> list[Fragment]:  # noqa: ANN401
    """Divide a structure into molecules and single atoms.

    Only nonmetals bond: contacts of metals are not taken as covalent, and neither are those of
    halogens with each other where there are metals. Noble gases bond with oxygen and fluorine.

    Parameters
    ----------
    atoms : ase.Atoms

    Returns
    -------
    list of Fragment
        In the order of their first atoms.
    """
    bonds = _find_bonds(without_open_cell(atoms))
    fragments: list[Fragment] = []
    seen: set[int] = set()
    for first in range(len(atoms)):
        if first not in seen:
            places, is_network = reach(first, bonds)
            seen.update(places)
            fragments.append(_describe(atoms, sorted(places), is_network, bonds))
    return fragments


def without_open_cell(atoms: Any) -> Any:  # noqa: ANN401
    """Copy without cell vectors along open axes, where hosts make some of a hundred Å and more.

    ASE would divide all of that cell into bins of the size of a bond.

    Parameters
    ----------
    atoms : ase.Atoms

    Returns
    -------
    ase.Atoms
    """
    copy = atoms.copy()
    copy.set_cell(np.asarray(copy.cell) * np.asarray(copy.pbc)[:, None])
    return copy


def _describe(
    atoms: Any,  # noqa: ANN401
    members: list[int],
    is_network: bool,
    bonds: Bonds,
) -> Fragment:
    numbers = {index: int(atoms.numbers[index]) for index in members}
    composition = tuple(sorted(Counter(numbers.values()).items()))
    lewis = None
    if 1 < len(members) <= _MOST_ATOMS and not is_network:
        lewis = lewis_charge(numbers, {index: set(bonds[index]) for index in members})
    return Fragment(composition, is_network, lewis, tuple(members))


def reach(first: int, bonds: Bonds) -> tuple[dict[int, NDArray[Any]], bool]:
    """Follow bonds, or contacts of another kind, from an atom.

    Parameters
    ----------
    first : int
        The atom.
    bonds : dict
        Atoms that each is bonded to, with the lattice vectors between them, as three whole numbers.

    Returns
    -------
    dict of int to array, shape (3,), of int
        Atoms that bonds lead to, and which of their images in one piece with the first.
    bool
        Whether bonds also lead to another image of an atom.
    """
    places, queue, is_network = {first: np.zeros(3, int)}, [first], False
    while queue:
        atom = queue.pop()
        for other, shifts in bonds[atom].items():
            for shift in shifts:
                place = places[atom] + shift
                if other not in places:
                    places[other] = place
                    queue.append(other)
                is_network = is_network or bool((places[other] != place).any())
    return places, is_network


def _find_bonds(atoms: Any) -> Bonds:  # noqa: ANN401
    """Bonded atoms of each atom, with the lattice vectors between them."""
    numbers = np.asarray(atoms.numbers)
    (bonding,) = np.nonzero(np.isin(numbers, list(NONMETALS)))
    if len(bonding) == 0:
        return connect(len(numbers), (), (), ())
    kinds, with_metals = numbers[bonding], len(bonding) < len(numbers)
    radii = np.array([covalent(number).radius for number in kinds])
    find = load_library("ase.neighborlist", "ase").neighbor_list
    first, second, distances, shifts = find("ijdS", atoms[bonding], ONLY_INTACT * radii)
    allowed = _may_bond(kinds, first, second, with_metals)
    stretch = np.where(allowed, distances / (radii[first] + radii[second]), np.inf)
    nearest = _are_nearest(np.isin(kinds, list(MONOVALENT)), first, second, stretch)
    bonded = allowed & ((stretch <= INTACT) | nearest)
    ends = bonding[first[bonded]], bonding[second[bonded]]
    return connect(len(numbers), *ends, shifts[bonded])


def _are_nearest(
    single: NDArray[np.bool_],
    first: NDArray[Any],
    second: NDArray[Any],
    stretch: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Tell which pairs join an atom that has one bond with its nearest partner."""
    least = np.full(len(single), np.inf)
    np.minimum.at(least, first, stretch)
    is_least = [single[ends] & (stretch <= least[ends] + 1e-9) for ends in (first, second)]
    nearest: NDArray[np.bool_] = is_least[0] | is_least[1]
    return nearest


def connect(
    count: int, first: Iterable[Any], second: Iterable[Any], shifts: Iterable[Any]
) -> Bonds:
    """Arrange pairs of atoms, such as ASE's neighbour lists have them, by the first one.

    Parameters
    ----------
    count : int
        Number of atoms.
    first, second : iterable of int
        Both atoms of each pair, which is there in both orders.
    shifts : iterable of 3 int
        Lattice vectors from the first to that image of the second.

    Returns
    -------
    dict
        As :func:`reach` takes it.
    """
    bonds: Bonds = {index: {} for index in range(count)}
    for i, j, shift in zip(first, second, shifts, strict=True):
        bonds[int(i)].setdefault(int(j), set()).add(tuple(int(x) for x in shift))
    return bonds


def _may_bond(
    numbers: NDArray[Any], first: NDArray[Any], second: NDArray[Any], with_metals: bool
) -> NDArray[np.bool_]:
    """Tell which contacts can be bonds."""
    halogens, noble = np.isin(numbers, _HALOGENS), np.isin(numbers, NOBLE_GASES)
    partners = np.isin(numbers, _BOND_NOBLE)
    ions = halogens[first] & halogens[second] & with_metals
    allowed: NDArray[np.bool_] = (
        ~ions & (~noble[first] | partners[second]) & (~noble[second] | partners[first])
    )
    return allowed


def open_axes(atoms: Any) -> int:  # noqa: ANN401
    """Count the axes along which a structure is not continued.

    Parameters
    ----------
    atoms : ase.Atoms

    Returns
    -------
    int
        0 for crystals and liquids, 1 for slabs, 2 for chains, 3 for molecules and clusters: axes
        that are not periodic, or along which an empty layer divides the images.
    """
    return sum(not periodic or _gap(atoms, axis) > GAP for axis, periodic in enumerate(atoms.pbc))


def _gap(atoms: Any, axis: int) -> float:  # noqa: ANN401
    """Width of the widest empty layer across a periodic axis, in Å."""
    cell = np.asarray(atoms.cell.complete())
    others = np.cross(cell[axis - 2], cell[axis - 1])
    height = abs(np.linalg.det(cell)) / np.linalg.norm(others)
    places = np.sort(np.asarray(atoms.get_scaled_positions())[:, axis] % 1.0)
    return float(height * np.diff([*places, places[0] + 1.0]).max())
