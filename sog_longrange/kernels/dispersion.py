"""Damped dispersion between values of one sign."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sog_longrange.errors import ConfigError, explain

from .free_atoms import TYPICAL, free_atom_c6
from .initial import InitialPotential
from .power_law import power_law_amplitudes
from .registry import register

_STEEPNESS: Final = 12
"""Number of terms of the damping: the more there are, the narrower is the step between Gaussians
that are left out and those that are kept whole. Those of the default grid resolve this one."""

_CONTACT: Final = 4.0
"""Distance in Å at which atoms begin with the energy of 1/r^6 whatever the exponent is."""


@register("dispersion")
@dataclass(frozen=True)
class Dispersion(InitialPotential):
    r"""-1 / r^exponent, damped at short distances, between values that are sqrt(C_n).

    All amplitudes attract, and stay so in a training. They are those of the power law times
    the share that is left of each by damping,

    .. math::
        a(s) = -\frac{2^{1-n/2}}{\Gamma(n/2)} \frac{\ln b}{s^n} \, Q(12, \rho^2 / (2 s^2)),

    at widths s of ratio b, with Q the regularised upper incomplete gamma function. In real space
    that is

    .. math::
        K(r) = -(r^2 + \rho^2)^{-n/2}
        \sum_{k < 12} \binom{n/2 + k - 1}{k} \Bigl(\frac{\rho^2}{r^2 + \rho^2}\Bigr)^k,

    which is -1/r^n far away and, by the choice of :math:`\rho`, -1/R^n at r = 0, as
    Becke's and Johnson's -1/(r^n + R^n) is, whose Gaussians have amplitudes of either sign.

    Parameters
    ----------
    exponent : float
        Above 3, so that the energy of a crystal is finite.
    radius : float
        R in Å, positive.
    near : bool
        Whether pairs within the cutoff of the host interact too, and are not left to its network.

    Raises
    ------
    ConfigError
        If an option is out of range.

    References
    ----------
    Becke, Johnson, J. Chem. Phys. 123, 154101 (2005).
    """

    exponent: float = 6.0
    radius: float = 2.5
    near: bool = False

    zero_mode = True
    positive = True

    def __post_init__(self) -> None:
        if not (self.exponent > 3.0 and math.isfinite(self.exponent)):
            remedy = "Use power_law for slower decays."
            raise ConfigError(explain("exponent", "above 3", str(self.exponent), remedy))
        if not (self.radius > 0.0 and math.isfinite(self.radius)):
            remedy = "Use power_law for a potential without damping."
            raise ConfigError(explain("radius", "positive and finite", str(self.radius), remedy))

    @property
    def far_only(self) -> bool:
        """Whether pairs within the cutoff of the host are left to its network."""
        return not self.near

    @property
    def _rho(self) -> float:
        """Distance at which damping sets in, in Å."""
        half, terms = 0.5 * self.exponent, _STEEPNESS
        log_sum = math.lgamma(half + terms) - math.lgamma(terms) - math.lgamma(half + 1.0)
        return self.radius * math.exp(log_sum / self.exponent)

    def amplitudes(self, widths: Tensor) -> Tensor:
        """Return the closed form: those of the power law, as far as damping leaves them."""
        x = self._rho**2 / (2.0 * widths**2)
        kept = torch.special.gammaincc(torch.full_like(x, float(_STEEPNESS)), x)
        amplitudes: Tensor = power_law_amplitudes(widths, self.exponent, -1.0) * kept
        return amplitudes

    def radial(self, r: Tensor) -> Tensor:
        """Value of the closed form."""
        squares = r**2 + self._rho**2
        share, half = self._rho**2 / squares, 0.5 * self.exponent
        term = total = torch.ones_like(r)
        for k in range(1, _STEEPNESS):
            term = term * share * ((half + k - 1.0) / k)
            total = total + term
        return -total * squares**-half

    def start(self, atomic_number: int = TYPICAL) -> float:
        """Square root of C6 of two free atoms, in sqrt(eV) Å^3.

        For another exponent n the number, in sqrt(eV) Å^(n/2), has the same energy at 4 Å.

        Parameters
        ----------
        atomic_number : int
            By default that of carbon.

        Returns
        -------
        float
        """
        excess = 0.5 * self.exponent - 3.0
        return math.sqrt(free_atom_c6(atomic_number)) * math.pow(_CONTACT, excess)


def dispersion(exponent: float = 6.0, radius: float = 2.5, near: bool = False) -> Dispersion:
    """Return the initial potential -1 / r^exponent, damped at short distances.

    Parameters
    ----------
    exponent : float
        Above 3.
    radius : float
        In Å; the potential at r = 0 is -1 / radius^exponent.
    near : bool
        Whether pairs within the cutoff of the host interact too.

    Returns
    -------
    Dispersion

    Raises
    ------
    ConfigError
        If an option is out of range.
    """
    return Dispersion(float(exponent), float(radius), near)
