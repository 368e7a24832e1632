"""Potentials that sums of Gaussians begin as: powers of 1/r and the screened 1/r."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sog_longrange.errors import ConfigError, explain
from sog_longrange.units import COULOMB_CONSTANT


class Start(Protocol):
    """A power law or another target that a sum of Gaussians begins as."""

    @property
    def zero_mode(self) -> bool:
        """Whether k = 0 is kept by default."""
        ...

    @property
    def conserved(self) -> bool:
        """Whether the charges of the law are electric charges, whose sum may be prescribed."""
        ...

    def amplitudes(self, widths: Tensor, log_ratio: float) -> Tensor:
        """Amplitudes of log-spaced Gaussians of given widths and spacing ln(s_(l+1)/s_l)."""
        ...

    def law(self, r: Tensor) -> Tensor:
        """Value at distance r of the law that the Gaussians approximate."""
        ...


@dataclass(frozen=True)
class PowerLaw:
    """strength / r^exponent as a start; see :func:`power_law`."""

    exponent: float
    strength: float = 1.0

    @property
    def zero_mode(self) -> bool:
        """Whether the law is integrable over all space, so that k = 0 is finite."""
        return self.exponent > 3.0

    @property
    def conserved(self) -> bool:
        """Whether the sum of charges must be known, because k = 0 is infinite unless it is 0."""
        return not self.zero_mode

    def amplitudes(self, widths: Tensor, log_ratio: float) -> Tensor:
        """Trapezoidal weights in ln s of r^-p ~ int s^-p exp(-r^2 / (2 s^2)) d ln s."""
        p = self.exponent
        log_factor = (p / 2.0 - 1.0) * math.log(2.0) + math.lgamma(p / 2.0)
        factor = self.strength * log_ratio * math.exp(-log_factor)
        values: Tensor = factor * widths**-p
        return values

    def law(self, r: Tensor) -> Tensor:
        """Value strength / r^p."""
        return self.strength * r**-self.exponent


@dataclass(frozen=True)
class Yukawa:
    """strength * exp(-kappa r) / r as a start; see :func:`yukawa`."""

    kappa: float
    strength: float = COULOMB_CONSTANT
    zero_mode: bool = True

    @property
    def conserved(self) -> bool:
        """True: what is screened are electric charges, though k = 0 would allow any sum."""
        return True

    def amplitudes(self, widths: Tensor, log_ratio: float) -> Tensor:
        """Weights of 1/r, damped by exp(-kappa^2 s^2 / 2)."""
        coulombic = PowerLaw(1.0, self.strength).amplitudes(widths, log_ratio)
        return coulombic * torch.exp(-0.5 * (self.kappa * widths) ** 2)

    def law(self, r: Tensor) -> Tensor:
        """Value strength * exp(-kappa r) / r."""
        return self.strength * torch.exp(-self.kappa * r) / r


def coulomb() -> PowerLaw:
    """Start from the Coulomb law 14.4 eV Å/e^2 / r.

    Returns
    -------
    PowerLaw
        With k = 0 dropped (tin-foil boundary, neutralising background).
    """
    return PowerLaw(1.0, COULOMB_CONSTANT)


def power_law(exponent: float, strength: float = 1.0) -> PowerLaw:
    """Start from strength / r^exponent.

    Parameters
    ----------
    exponent : float
        Positive; 1 is Coulomb, 6 dispersion.
    strength : float
        Value at 1 Å in eV/e^2; negative for an attraction of like charges.

    Returns
    -------
    PowerLaw

    Raises
    ------
    ConfigError
        If the exponent is not positive, the strength is zero or either is not finite.
    """
    if not (exponent > 0.0 and math.isfinite(exponent)):
        raise ConfigError(explain("exponent", "positive and finite", str(exponent)))
    _check_strength(strength)
    return PowerLaw(float(exponent), float(strength))


def yukawa(kappa: float, strength: float = COULOMB_CONSTANT) -> Yukawa:
    """Start from the screened law strength * exp(-kappa r) / r.

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
    if not (kappa > 0.0 and math.isfinite(kappa)):
        remedy = "Use coulomb() for kappa = 0."
        raise ConfigError(explain("kappa", "positive and finite", str(kappa), remedy))
    _check_strength(strength)
    return Yukawa(float(kappa), float(strength))


def _check_strength(strength: float) -> None:
    if strength == 0.0 or not math.isfinite(strength):
        raise ConfigError(explain("strength", "finite and not zero", str(strength)))
