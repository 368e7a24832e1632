"""Covalent bonds between nonmetals: which pairs of atoms have one, and how polar it is."""

from __future__ import annotations

from typing import Final

from torch import Tensor

INTACT: Final = 1.25
"""Distance over the sum of covalent radii up to which a bond is whole, however it vibrates."""

BROKEN: Final = 1.45
"""Distance over the sum of covalent radii at which a bond ends: hydrogen bonds are longer."""

POLARITY: Final = 0.25
"""Charge in e that a bond shifts at the start, over the difference of electronegativities."""

_NONMETALS: Final[dict[int, tuple[float, float]]] = {
    **{1: (0.31, 2.20), 2: (0.28, 2.20), 5: (0.84, 2.04), 6: (0.76, 2.55), 7: (0.71, 3.04)},
    **{8: (0.66, 3.44), 9: (0.57, 3.98), 10: (0.58, 2.20), 14: (1.11, 1.90), 15: (1.07, 2.19)},
    **{16: (1.05, 2.58), 17: (1.02, 3.16), 18: (1.06, 2.20), 32: (1.20, 2.01), 33: (1.19, 2.18)},
    **{34: (1.20, 2.55), 35: (1.20, 2.96), 36: (1.16, 3.00), 51: (1.39, 2.05), 52: (1.38, 2.10)},
    **{53: (1.39, 2.66), 54: (1.40, 2.60), 85: (1.50, 2.20), 86: (1.50, 2.20)},
}
"""Covalent radius in Å and electronegativity of each, where it is known; else that of hydrogen."""

NONMETALS: Final = frozenset(_NONMETALS)
"""Atomic numbers of the elements between which bonds make molecules; half-metals count."""


def covalent_radius(number: int) -> float:
    """Look up the covalent radius of an element.

    Parameters
    ----------
    number : int
        Atomic number.

    Returns
    -------
    float, in Å
        Zero for metals, whose contacts are no covalent bonds.

    References
    ----------
    Cordero et al., Dalton Trans. 2832 (2008).
    """
    return _NONMETALS[number][0] if number in NONMETALS else 0.0


def electronegativity(number: int) -> float:
    """Look up the electronegativity of an element on Pauling's scale.

    Parameters
    ----------
    number : int
        Atomic number.

    Returns
    -------
    float
        Zero for metals.

    References
    ----------
    Pauling, The Nature of the Chemical Bond (Cornell, 1960); Allred, J. Inorg. Nucl. Chem. 17,
    215 (1961).
    """
    return _NONMETALS[number][1] if number in NONMETALS else 0.0


def bond_order(stretch: Tensor) -> Tensor:
    """Tell how much of a bond there is: all of it, none, and a smooth step between.

    A bond that vibrates stays whole, so that what it shifts has no slope: charge that follows each
    vibration would add forces as large as the potential between its ends, volts.

    Parameters
    ----------
    stretch : Tensor
        Distances over the sums of covalent radii.

    Returns
    -------
    Tensor
        From 0 to 1, with two continuous derivatives.
    """
    left = ((BROKEN - stretch) / (BROKEN - INTACT)).clamp(0.0, 1.0)
    return left.pow(3) * (10.0 - 15.0 * left + 6.0 * left.square())
