"""The potential strength / r^exponent, such as dispersion."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sog_longrange.errors import ConfigError, explain

from .initial import InitialPotential
from .registry import register


@register("power_law")
@dataclass(frozen=True)
class PowerLaw(InitialPotential):
    """strength / r^exponent; exponent 6 and a negative strength for dispersion.

    Parameters
    ----------
    exponent : float
        Positive.
    strength : float
        Value at 1 Å in eV/e^2; negative for an attraction of like charges.

    Raises
    ------
    ConfigError
        If the exponent is not positive, the strength is zero or either is not finite.
    """

    exponent: float
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not (self.exponent > 0.0 and math.isfinite(self.exponent)):
            raise ConfigError(explain("exponent", "positive and finite", str(self.exponent)))
        check_strength(self.strength)

    @property
    def zero_mode(self) -> bool:
        """Whether the potential is integrable over all space, so that k = 0 is finite."""
        return self.exponent > 3.0

    def amplitudes(self, widths: Tensor) -> Tensor:
        """Return the closed form; see :func:`power_law_amplitudes`."""
        return power_law_amplitudes(widths, self.exponent, self.strength)

    def radial(self, r: Tensor) -> Tensor:
        """Value strength / r^p."""
        return self.strength * r**-self.exponent


def power_law(exponent: float, strength: float = 1.0) -> PowerLaw:
    """Return the initial potential strength / r^exponent.

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
    return PowerLaw(float(exponent), float(strength))


def power_law_amplitudes(widths: Tensor, exponent: float, strength: float) -> Tensor:
    """Trapezoidal weights in ln s of r^-p ~ int s^-p exp(-r^2 / (2 s^2)) d ln s.

    Parameters
    ----------
    widths : Tensor, shape (n_gaussians,), in Å
        Log-spaced.
    exponent, strength : float
        Of strength / r^exponent.

    Returns
    -------
    Tensor, shape (n_gaussians,), in eV/e^2
    """
    log_ratio = math.log(widths[1] / widths[0])
    log_factor = (exponent / 2.0 - 1.0) * math.log(2.0) + math.lgamma(exponent / 2.0)
    factor = strength * log_ratio * math.exp(-log_factor)
    return factor * torch.pow(widths, -exponent)


def check_strength(strength: float) -> None:
    """Raise `ConfigError` unless a strength is finite and not zero.

    Parameters
    ----------
    strength : float
    """
    if strength == 0.0 or not math.isfinite(strength):
        raise ConfigError(explain("strength", "finite and not zero", str(strength)))
