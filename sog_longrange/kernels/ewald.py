"""The smeared Coulomb potential K(r) = k_e erf(r / (sqrt(2) sigma)) / r."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sog_longrange.errors import ConfigError, explain
from sog_longrange.units import COULOMB_CONSTANT

from .kernel import Kernel
from .registry import register


@register("ewald")
class Ewald(nn.Module, Kernel):
    """14.4 eV Å/e^2 erf(r / (sqrt(2) smearing)) / r between smeared charges, nothing learned.

    Parameters
    ----------
    smearing : float
        Width of the Gaussian charges in Å; sigma of latent Ewald summation.

    Raises
    ------
    ConfigError
        If the smearing is not positive.

    References
    ----------
    Cheng, arXiv:2408.15165; King, Kim, Zhong, Cheng, arXiv:2412.15455:
    Khat(k) = 4 pi k_e exp(-sigma^2 k^2 / 2) / k^2.
    """

    def __init__(self, smearing: float = 1.0) -> None:
        super().__init__()
        if not (smearing > 0.0 and math.isfinite(smearing)):
            raise ConfigError(explain("smearing", "positive and finite", str(smearing)))
        self.smearing = float(smearing)
        self.min_width = self.smearing

    def to_options(self) -> str:
        """Everything as JSON; that of a derived class, which may have another K(r), as given."""
        if type(self) is not Ewald:
            return super().to_options()
        return f'{{"spec": "ewald(smearing={self.smearing!r})"}}'

    def fourier(self, k2: Tensor) -> Tensor:
        """Khat(k) = 4 pi k_e exp(-sigma^2 k^2 / 2) / k^2, infinite at k = 0."""
        decay = torch.exp(-0.5 * self.smearing**2 * k2)
        return (4.0 * math.pi * COULOMB_CONSTANT * decay / k2)[None]

    def radial(self, r2: Tensor) -> Tensor:
        """K(r) = k_e erf(r / (sqrt(2) sigma)) / r, finite and smooth at r = 0."""
        scale = COULOMB_CONSTANT * math.sqrt(2.0 / math.pi) / self.smearing
        return scale * boys_zero(0.5 * r2 / self.smearing**2)[None]

    def extra_repr(self) -> str:
        """Summary shown by ``print(module)``."""
        return f"smearing={self.smearing}"


def boys_zero(t: Tensor) -> Tensor:
    """Boys function F_0(t) = sqrt(pi / t) erf(sqrt(t)) / 2, smooth at t = 0.

    Parameters
    ----------
    t : Tensor, non-negative

    Returns
    -------
    Tensor, shape of `t`
        Exact to rounding, with exact derivatives of every order.
    """
    small = t < 1.0
    series_t = torch.where(small, t, torch.zeros_like(t))
    series = torch.zeros_like(t)
    for n in range(17, -1, -1):
        series = series * (-series_t / (n + 1)) + 1.0 / (2 * n + 1)
    root = torch.sqrt(torch.where(small, torch.ones_like(t), t))
    closed = 0.5 * math.sqrt(math.pi) * torch.erf(root) / root
    return torch.where(small, series, closed)
