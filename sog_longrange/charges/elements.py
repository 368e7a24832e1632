"""Charges of elements as text, such as "Na=1,Cl=-1"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from sog_longrange.errors import ConfigError, explain

_SYMBOLS = """
X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br
Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er
Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md
No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""

SYMBOLS = _SYMBOLS.split()
"""Symbol of each atomic number; that of 0 stands for no element."""

NOBLE_GASES: Final = (2, 10, 18, 36, 54, 86)
"""Their atomic numbers."""


def parse_element_charges(text: str) -> dict[str, float]:
    """Read charges of elements.

    Parameters
    ----------
    text : str
        Such as "Na=1,Cl=-1"; empty for none.

    Returns
    -------
    dict of str to float, in e
        By chemical symbol.

    Raises
    ------
    ConfigError
        If the text is malformed, a symbol is unknown or is there twice.
    """
    charges: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        symbol, _, number = (piece.strip() for piece in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if symbol not in SYMBOLS[1:] or symbol in charges or not math.isfinite(value):
            expected = "chemical symbols with charges, each once, such as 'Na=1,Cl=-1'"
            raise ConfigError(explain("element_charges", expected, repr(part)))
        charges[symbol] = value
    return charges


def format_element_charges(charges: Mapping[str, float]) -> str:
    """Write charges of elements in the order of atomic numbers.

    Parameters
    ----------
    charges : mapping of str to float, in e

    Returns
    -------
    str
        As :func:`parse_element_charges` reads it.
    """
    known = (symbol for symbol in SYMBOLS if symbol in charges)
    return ",".join(f"{own}={float(charges[own])!r}".removesuffix(".0") for own in known)


def isoelectronic(number: int, charge: float) -> int:
    """Tell which free atom an ion resembles, whose electrons are much harder or softer.

    Parameters
    ----------
    number : int
        Atomic number.
    charge : float, in e

    Returns
    -------
    int
        The noble gas with as many electrons; the atom itself if it is no ion, or there is none.
    """
    electrons = number - round(charge)
    return electrons if round(charge) and electrons in NOBLE_GASES else number


def initial_charges(text: str, atomic_numbers: Sequence[int]) -> dict[int, float]:
    """Charges that the elements of a model begin with.

    Parameters
    ----------
    text : str
        See :func:`parse_element_charges`.
    atomic_numbers : sequence of int
        Elements of the model.

    Returns
    -------
    dict of int to float, in e
        By atomic number; zero where none is given.

    Raises
    ------
    ConfigError
        If the model has not all of the elements.
    """
    charges = parse_element_charges(text)
    own = {number: SYMBOLS[number] for number in atomic_numbers}
    others = sorted(set(charges) - set(own.values()))
    if others:
        expected = f"of the elements of the model, {', '.join(own.values())}"
        raise ConfigError(explain("element_charges", expected, ", ".join(others)))
    return {number: charges.get(symbol, 0.0) for number, symbol in own.items()}
