"""How forces fall with distance between parts that the model of a host sees apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sog_longrange.hosts import load_library

from .fragments import Bonds, connect, reach, without_open_cell

_LEAST_PAIRS: Final = 12
_LARGEST_SPREAD: Final = 0.2
"""Relative error of forces up to which one law describes them."""

_TURNED: Final = 0.2
"""Spread of how parts are turned towards each other: 0.45 is at random, a scan has next to 0."""

_OF_NOISE: Final = 5.0
"""Times the net force on a whole structure: what is smaller is noise of the labels."""

_IMAGES: Final = 2.0
"""Times their distance that any other image of a part is away."""

_MOST_ATOMS: Final = 300
"""Atoms of a structure up to which it is divided."""

_RANGE: Final = 0.0, 12.0
_OF_DISPERSION: Final = 3.5, 8.5
"""From between 1/r^3 of dipoles and 1/r^4."""

_OF_SCREENING: Final = 1.6, 3.5
"""Charges of parts of several atoms in boxes are found with exponents up to 1.4."""

_STEP: Final = 0.02
_SCREENINGS: Final = tuple(round(0.02 * i, 2) for i in range(1, 51))
_ALIKE: Final = 1.1
"""Times the spread by a power law up to which a screened potential is as good."""

Array = NDArray[np.float64]
Law = Callable[[Array], Array]


class Decay(NamedTuple):
    """A potential r^-exponent that describes the attraction of parts, however they are turned.

    Attributes
    ----------
    exponent : float
    error : float
        Standard error of the exponent.
    pairs : int
        Structures that consist of two parts.
    cutoff : float, in Å
        Distance that is between the parts at least.
    kappa : float, in 1/Å, or None
        Of the potential exp(-kappa r) / r that describes it as well; None where none does.
    """

    exponent: float
    error: float
    pairs: int
    cutoff: float
    kappa: float | None = None

    @property
    def of_dispersion(self) -> int | None:
        """The whole exponent if it is surely above that of dipoles, None where it may not be."""
        return round(self.exponent) if self._is_in(_OF_DISPERSION) else None

    @property
    def of_screening(self) -> float | None:
        """Inverse screening length in 1/Å of charges, None where they may be bare, or dipoles."""
        return self.kappa if self._is_in(_OF_SCREENING) else None

    def _is_in(self, limits: tuple[float, float]) -> bool:
        low, high = limits
        return low < self.exponent - 2.0 * self.error and self.exponent + 2.0 * self.error < high

    def describe(self) -> str:
        """Say in one line what was measured.

        Returns
        -------
        str
        """
        law = f"a potential r^-({self.exponent:.2f} ± {self.error:.2f})"
        law += f", or exp(-{self.of_screening:.2g} r)/r" if self.of_screening else ""
        return f"{self.pairs} pairs farther apart than {self.cutoff:g} Å attract by {law}"


class _Pair(NamedTuple):
    """Two parts: distances of their atoms and cosines to the line of centres, forces, turns."""

    lengths: Array
    along: Array
    pull: float
    noise: float
    turns: tuple[float | None, float | None]
    composition: str


def measure_decay(frames: Sequence[Any], forces: Sequence[Any], cutoff: float) -> Decay | None:
    """Find the power law by which parts attract each other beyond a cutoff.

    No atom of one part is closer than the cutoff to one of the other, so that a model of that
    cutoff has no force between them: the net force on a part is of the long range alone. It is
    compared with the sum of one power law over all pairs of atoms, logarithms in least squares.
    Forces of multipoles change their sign with how the parts are turned; the law of a scan, in
    which they are not, is not told.

    Parameters
    ----------
    frames : sequence of ase.Atoms
        Single atoms are left out.
    forces : sequence of array, shape (n_atoms, 3), in eV/Å, or None
        Zeros throughout count as none.
    cutoff : float, in Å
        Of the model of the host.

    Returns
    -------
    Decay or None
        None where fewer than 12 structures consist of two parts, or others consist of other
        elements; where one part does not attract the other, parts of several atoms are not
        turned at random, or no power law is right to 20 %.
    """
    known = [
        (frame, np.asarray(own, dtype=np.float64))
        for frame, own in zip(frames, forces, strict=True)
        if own is not None and len(frame) > 1 and np.any(own)
    ]
    found = (_two_parts(*own, cutoff) for own in known)
    pairs = _above_noise([pair for pair in found if pair is not None])
    kinds = {pair.composition for pair in pairs}
    if (
        len(pairs) < _LEAST_PAIRS
        or any(frame.get_chemical_formula() not in kinds for frame, _ in known)
        or any(pair.pull <= 0.0 for pair in pairs)
        or not all(_are_turned([pair.turns[side] for pair in pairs]) for side in (0, 1))
    ):
        return None
    return _fit(pairs, cutoff)


def _fit(pairs: Sequence[_Pair], cutoff: float) -> Decay | None:
    """Exponent with the smallest spread of logarithms, None where that is not small."""
    coarse = min(np.arange(*_RANGE, 10.0 * _STEP), key=lambda x: _spread(_power(x), pairs))
    fine = coarse + _STEP * np.arange(-10, 11)
    best = float(min(fine, key=lambda x: _spread(_power(x), pairs)))
    steps = [_log_pulls(_power(best + step), pairs) for step in (-_STEP, _STEP)]
    slopes = (steps[1] - steps[0]) / (2.0 * _STEP)
    spread, lever = _spread(_power(best), pairs), float(np.std(slopes)) * np.sqrt(len(pairs) - 2.0)
    at_edge = min(abs(best - edge) for edge in _RANGE) < 10.0 * _STEP
    if at_edge or spread > _LARGEST_SPREAD * min(1.0, lever):
        return None
    kappa = min(_SCREENINGS, key=lambda x: _spread(_screened(x), pairs))
    is_alike = _spread(_screened(kappa), pairs) < _ALIKE * spread
    return Decay(best, float(spread / lever), len(pairs), cutoff, kappa if is_alike else None)


def _power(exponent: float) -> Law:
    """Force of a potential r^-exponent, but for a constant."""
    return lambda r: r ** -(exponent + 1.0)


def _screened(kappa: float) -> Law:
    """Force of a potential exp(-kappa r) / r."""
    return lambda r: (1.0 + kappa * r) * np.exp(-kappa * r) / r**2


def _spread(law: Law, pairs: Sequence[_Pair]) -> float:
    """Relative error of forces by a law, whatever its strength is."""
    return float(np.std(np.log([pair.pull for pair in pairs]) - _log_pulls(law, pairs)))


def _log_pulls(law: Law, pairs: Sequence[_Pair]) -> Array:
    """Logarithms of the forces between centres by a law between all pairs of atoms."""
    pulls = [(pair.along * law(pair.lengths)).sum() for pair in pairs]
    logs: Array = np.log(pulls)
    return logs


def _above_noise(pairs: Sequence[_Pair]) -> list[_Pair]:
    """Leave out what labels do not resolve; they sum to zero where they are exact."""
    noise = float(np.sqrt(np.mean([pair.noise**2 for pair in pairs]))) if pairs else 0.0
    return [pair for pair in pairs if abs(pair.pull) > _OF_NOISE * noise]


def _are_turned(turns: Sequence[float | None]) -> bool:
    """Tell whether parts face each other with all sides; single atoms have none."""
    told = [turn for turn in turns if turn is not None]
    return not told or float(np.std(told)) > _TURNED


def _two_parts(atoms: Any, forces: Array, cutoff: float) -> _Pair | None:  # noqa: ANN401
    """Divide a structure in two, None where it consists of one or more."""
    if len(atoms) > _MOST_ATOMS:
        return None
    contacts = _contacts(atoms, cutoff)
    first, is_endless = reach(0, contacts)
    rest = [index for index in contacts if index not in first]
    if is_endless or not rest:
        return None
    second, is_endless = reach(rest[0], contacts)
    if is_endless or len(second) < len(rest):
        return None
    one, other = (_places(atoms, part) for part in (first, second))
    shift = _to_nearest(atoms, other.mean(0) - one.mean(0))
    if shift is None:
        return None
    other = other + shift
    apart = other.mean(0) - one.mean(0)
    direction: Array = apart / np.linalg.norm(apart)
    vectors: Array = (other[None] - one[:, None]).reshape(-1, 3)
    lengths: Array = np.linalg.norm(vectors, axis=-1)
    along: Array = vectors @ direction / lengths
    if not (along > 0.0).all():
        return None  # One part goes around the other.
    net = [forces[list(part)].sum(0) for part in (first, second)]
    return _Pair(
        lengths,
        along,
        # Both halves of the law of action and reaction, since labels have noise.
        float((net[0] - net[1]) @ direction) / 2.0,
        float(np.linalg.norm(net[0] + net[1])) / np.sqrt(3.0),
        (_turn(one, direction), _turn(other, direction)),
        atoms.get_chemical_formula(),
    )


def _turn(places: Array, direction: Array) -> float | None:
    """Which side faces a direction: from 1, along the longest axis, to -1/2; None for an atom."""
    if len(places) == 1:
        return None
    centred = places - places.mean(0)
    shape = centred.T @ centred
    values, axes = np.linalg.eigh(shape - np.eye(3) * np.trace(shape) / 3.0)
    main = axes[:, int(np.abs(values).argmax())]
    return float(1.5 * (main @ direction) ** 2 - 0.5)


def _contacts(atoms: Any, cutoff: float) -> Bonds:  # noqa: ANN401
    """Atoms that each sees."""
    find = load_library("ase.neighborlist", "ase").neighbor_list
    return connect(len(atoms), *find("ijS", without_open_cell(atoms), cutoff))


def _places(atoms: Any, part: dict[int, Array]) -> Array:  # noqa: ANN401
    """Positions of a part in one piece."""
    shifts = np.array(list(part.values())) @ np.asarray(atoms.cell)
    places: Array = np.asarray(atoms.positions)[list(part)] + shifts
    return places


def _to_nearest(atoms: Any, apart: Array) -> Array | None:  # noqa: ANN401
    """Lattice vector that brings the second part nearest, None if its next image is near too."""
    cell, pbc = np.asarray(atoms.cell.complete()), np.asarray(atoms.pbc)
    around = np.round(apart @ np.linalg.inv(cell))
    steps = np.array(list(itertools.product((-1, 0, 1), repeat=3))) - around
    shifts = np.unique(steps * pbc, axis=0) @ cell
    distances = np.linalg.norm(apart + shifts, axis=1)
    order = np.argsort(distances)
    if len(order) > 1 and distances[order[1]] < _IMAGES * distances[order[0]]:
        return None
    nearest: Array = shifts[order[0]]
    return nearest
