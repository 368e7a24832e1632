"""The Coulomb potential k_e / r."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sog_longrange.units import COULOMB_CONSTANT

from .initial import InitialPotential
from .power_law import power_law_amplitudes
from .registry import register


@register("coulomb")
@dataclass(frozen=True)
class Coulomb(InitialPotential):
    """14.4 eV Å/e^2 / r between electric charges; k = 0 is dropped."""

    zero_mode = False

    def amplitudes(self, widths: Tensor) -> Tensor:
        """Return the closed form, that of 1/r."""
        return power_law_amplitudes(widths, 1.0, COULOMB_CONSTANT)

    def radial(self, r: Tensor) -> Tensor:
        """Value k_e / r."""
        return COULOMB_CONSTANT / r


def coulomb() -> Coulomb:
    """Return the initial potential 14.4 eV Å/e^2 / r.

    Returns
    -------
    Coulomb
        With k = 0 dropped (tin-foil boundary, neutralising background).
    """
    return Coulomb()
