"""The screened Coulomb (Yukawa) potential strength * exp(-kappa r) / r."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sog_longrange.errors import ConfigError, explain
from sog_longrange.units import COULOMB_CONSTANT

from .initial import InitialPotential
from .power_law import check_strength, power_law_amplitudes
from .registry import register


@register("yukawa")
@dataclass(frozen=True)
class Yukawa(InitialPotential):
    """strength * exp(-kappa r) / r between screened electric charges.

    Parameters
    ----------
    kappa : float
        Inverse screening length in 1/Å, positive.
    strength : float
        In eV Å/e^2; by default that of Coulomb.

    Raises
    ------
    ConfigError
        If `kappa` is not positive, the strength is zero or either is not finite.
    """

    kappa: float = 0.1
    strength: float = COULOMB_CONSTANT

    def __post_init__(self) -> None:
        if not (self.kappa > 0.0 and math.isfinite(self.kappa)):
            remedy = "Use coulomb for kappa = 0."
            raise ConfigError(explain("kappa", "positive and finite", str(self.kappa), remedy))
        check_strength(self.strength)

    zero_mode = True

    @property
    def conserved(self) -> bool:
        """True: what is screened are electric charges, though k = 0 would allow any sum."""
        return True

    def amplitudes(self, widths: Tensor) -> Tensor:
        """Return the closed form: those of 1/r, damped by exp(-kappa^2 s^2 / 2)."""
        coulombic = power_law_amplitudes(widths, 1.0, self.strength)
        return coulombic * torch.exp(-0.5 * (self.kappa * widths) ** 2)

    def radial(self, r: Tensor) -> Tensor:
        """Value strength * exp(-kappa r) / r."""
        return self.strength * torch.exp(-self.kappa * r) / r


def yukawa(kappa: float = 0.1, strength: float = COULOMB_CONSTANT) -> Yukawa:
    """Return the initial potential strength * exp(-kappa r) / r.

    Parameters
    ----------
    kappa : float
        Inverse screening length in 1/Å, positive.
    strength : float
        In eV Å/e^2.

    Returns
    -------
    Yukawa

    Raises
    ------
    ConfigError
        If `kappa` is not positive, the strength is zero or either is not finite.
    """
    return Yukawa(float(kappa), float(strength))
