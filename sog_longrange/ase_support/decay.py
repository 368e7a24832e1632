"""How forces fall with distance between parts that the model of a host sees apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sog_longrange.hosts import load_library

from .fragments import Bonds, reach, without_open_cell

_LEAST_PAIRS: Final = 12
_LARGEST_SPREAD: Final = 0.2
"""Relative error of forces up to which one law describes them."""

_EXPONENTS: Final = np.arange(0.5, 12.01, 0.05)
_MOST_ATOMS: Final = 300
"""Atoms of a structure up to which it is divided."""

_OF_DISPERSION: Final = 3.5, 8.5
"""From between 1/r^3 of dipoles, which attract or repel by how they are turned, and 1/r^4."""

Array = NDArray[np.float64]


class Decay(NamedTuple):
    """A potential r^-exponent that describes attraction in all structures with two parts.

    Attributes
    ----------
    exponent : float
    error : float
        Standard error of the exponent.
    pairs : int
        Structures that consist of two parts.
    cutoff : float, in Å
        Distance that is between the parts at least.
    """

    exponent: float
    error: float
    pairs: int
    cutoff: float

    @property
    def of_dispersion(self) -> int | None:
        """The whole exponent of an attraction that no charges have, None where they may."""
        low, high = _OF_DISPERSION
        return round(self.exponent) if low < self.exponent < high else None

    def describe(self) -> str:
        """Say in one line what was measured.

        Returns
        -------
        str
        """
        law = f"a potential r^-({self.exponent:.2f} ± {self.error:.2f})"
        return f"{self.pairs} pairs farther apart than {self.cutoff:g} Å attract by {law}"


class _Pair(NamedTuple):
    """Vectors between the atoms of two parts, the direction between their centres, attraction."""

    vectors: Array
    direction: Array
    pull: float


def measure_decay(frames: Sequence[Any], forces: Sequence[Any], cutoff: float) -> Decay | None:
    """Find the power law by which parts attract each other beyond a cutoff.

    No atom of one part is closer than the cutoff to one of the other, so that a model of that
    cutoff has no force between them: the net force on a part is of the long range alone. It is
    compared with the sum of one power law over all pairs of atoms, logarithms in least squares.

    Parameters
    ----------
    frames : sequence of ase.Atoms
    forces : sequence of array, shape (n_atoms, 3), in eV/Å
    cutoff : float, in Å
        Of the model of the host.

    Returns
    -------
    Decay or None
        None where fewer than 12 structures consist of two parts, one of them does not attract
        the other, or no power law is right to 20 %.
    """
    found = (_two_parts(*own, cutoff) for own in zip(frames, forces, strict=True))
    pairs = [pair for pair in found if pair is not None]
    if len(pairs) < _LEAST_PAIRS or any(not pair.pull > 0.0 for pair in pairs):
        return None
    pulls = np.log([pair.pull for pair in pairs])
    laws = np.array([_log_pulls(exponent, pairs) for exponent in _EXPONENTS])
    spreads = np.std(pulls - laws, axis=1)
    best = int(spreads[1:-1].argmin()) + 1
    if spreads[best] > _LARGEST_SPREAD:
        return None
    slopes = (laws[best + 1] - laws[best - 1]) / (_EXPONENTS[best + 1] - _EXPONENTS[best - 1])
    error = spreads[best] / (np.std(slopes) * np.sqrt(len(pairs)))
    return Decay(float(_EXPONENTS[best]), float(error), len(pairs), cutoff)


def _log_pulls(exponent: float, pairs: Sequence[_Pair]) -> Array:
    """Logarithms of the forces between centres by a sum of r^-exponent, but for a constant."""
    pulls = []
    for pair in pairs:
        lengths = np.linalg.norm(pair.vectors, axis=-1)
        pulls.append((pair.vectors @ pair.direction / lengths ** (exponent + 2.0)).sum())
    logs: Array = np.log(pulls)
    return logs


def _two_parts(atoms: Any, forces: Any, cutoff: float) -> _Pair | None:  # noqa: ANN401
    """Divide a structure in two, None where it consists of one or more."""
    if not 1 < len(atoms) <= _MOST_ATOMS or len(forces) != len(atoms):
        return None
    contacts = _contacts(atoms, cutoff)
    if contacts is None:
        return None
    first, is_endless = reach(0, contacts)
    second, other_is = reach(next(i for i in contacts if i not in first), contacts)
    if is_endless or other_is:
        return None
    one, other = (_places(atoms, part) for part in (first, second))
    apart = other.mean(0) - one.mean(0)
    shift = _to_nearest(atoms, apart)
    distance = np.linalg.norm(apart + shift)
    direction: Array = (apart + shift) / distance
    net = [np.asarray(forces, dtype=np.float64)[list(part)].sum(0) for part in (first, second)]
    vectors: Array = (other[None] + shift - one[:, None]).reshape(-1, 3)
    if not (vectors @ direction > 0.0).all():
        return None  # One part goes around the other.
    # Both halves of the law of action and reaction, since labels have noise.
    return _Pair(vectors, direction, float((net[0] - net[1]) @ direction) / 2.0)


def _contacts(atoms: Any, cutoff: float) -> Bonds | None:  # noqa: ANN401
    """Atoms that each sees, None unless all fall into two parts."""
    graphs = load_library("scipy.sparse.csgraph", "ase")
    find = load_library("ase.neighborlist", "ase").neighbor_list
    first, second, shifts = find("ijS", without_open_cell(atoms), cutoff)
    seen = np.zeros((len(atoms), len(atoms)), dtype=bool)
    seen[first, second] = True
    if graphs.connected_components(seen, directed=False, return_labels=False) != 2:  # noqa: PLR2004
        return None
    contacts: Bonds = {index: {} for index in range(len(atoms))}
    for i, j, shift in zip(first, second, shifts, strict=True):
        contacts[int(i)].setdefault(int(j), set()).add(tuple(int(x) for x in shift))
    return contacts


def _places(atoms: Any, part: dict[int, Array]) -> Array:  # noqa: ANN401
    """Positions of a part in one piece."""
    shifts = np.array(list(part.values())) @ np.asarray(atoms.cell)
    places: Array = np.asarray(atoms.positions)[list(part)] + shifts
    return places


def _to_nearest(atoms: Any, apart: Array) -> Array:  # noqa: ANN401
    """Lattice vector that brings the second part near the first, in cells that are not skewed."""
    cell = np.asarray(atoms.cell.complete())
    steps = np.round(apart @ np.linalg.inv(cell)) * np.asarray(atoms.pbc)
    shift: Array = -steps @ cell
    return shift
