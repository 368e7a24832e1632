"""How energies of changed structures are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from .structures import EnergyFunction, Structure, join


def normal(structure: Structure, seed: int, *shape: int) -> Tensor:
    """Draw normal random numbers that do not depend on the device.

    Parameters
    ----------
    structure : Structure
        Whose dtype and device the result has.
    seed : int
    *shape : int

    Returns
    -------
    Tensor, of that shape
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(structure.positions)


def compare(
    energy: EnergyFunction,
    structure: Structure,
    changed: Structure,
    factor: float,
    tolerance: float,
    change: str,
) -> None:
    """Compare the energy of a changed structure with a multiple of the original's.

    Parameters
    ----------
    energy : callable
    structure, changed : Structure
    factor : float
        Energy expected, in energies of `structure`.
    tolerance : float
        Largest difference allowed, relative to the larger of abs(E) and 1 eV per atom.
    change : str
        What was changed, for the message.

    Raises
    ------
    AssertionError
        If the energy is another.
    """
    expected = factor * float(energy(*join([structure])).detach()[0])
    found = float(energy(*join([changed])).detach()[0])
    check_close(found, expected, tolerance, changed, f"The energy under {change}")


def check_close(
    found: float, expected: float, tolerance: float, structure: Structure, what: str
) -> None:
    """Compare two numbers of one structure.

    Parameters
    ----------
    found, expected : float
    tolerance : float
        Largest difference allowed, relative to the larger of |expected| and 1 per atom.
    structure : Structure
    what : str
        Name of the number, for the message.

    Raises
    ------
    AssertionError
        If they differ, or if either is NaN.
    """
    allowed = tolerance * max(abs(expected), 1.0, len(structure.positions))
    # Written so that NaN fails.
    if not abs(found - expected) <= allowed:
        raise AssertionError(
            f"{what} is {found:.15g}, expected {expected:.15g}: a difference of "
            f"{abs(found - expected):.3g}, more than {allowed:.3g}."
        )
