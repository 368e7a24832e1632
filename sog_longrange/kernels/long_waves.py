"""What a kernel is to waves that are long beside its narrowest Gaussians."""

from __future__ import annotations

import math
from typing import Final

import torch

from sog_longrange.units import COULOMB_CONSTANT

from .kernel import Kernel

LONG_WAVE: Final = 0.1
"""Least wave number in 1/Å, of a wave of 63 Å, which kernels of Gaussians up to 100 Å reach."""

_REACHED: Final = 3.0
"""Least wave number times the widest Gaussian: waves that are longer see where the kernel ends."""


def coulomb_strength(kernel: Kernel) -> float:
    """Strength of the kernel of the first channel relative to that of charges in vacuum.

    The spectrum is that of 1/r times 1 - c k^2 where it is smooth at short range, as a sum of
    Gaussians is; two wave numbers give its limit. Sums of Gaussians whose widest is less than ten
    times their narrowest have no such range: 1/r is 2 to 10 % below 1 by these.

    Parameters
    ----------
    kernel : Kernel

    Returns
    -------
    float
        1 for 1/r, and for a sum of Gaussians that begins as it; training may change that.
    """
    twin = kernel.in_double()
    device, longest = None, LONG_WAVE
    if kernel.gaussians is not None:
        widths = kernel.gaussians[1].detach()
        device, longest = widths.device, max(LONG_WAVE, _REACHED / float(widths[0].max()))
    k2 = torch.tensor([longest, 2.0 * longest], dtype=torch.float64, device=device) ** 2
    with torch.no_grad():
        spectrum = twin.fourier(k2)[0]
    at_once, at_twice = (float(x) for x in spectrum * k2 / (4.0 * math.pi * COULOMB_CONSTANT))
    return (4.0 * at_once - at_twice) / 3.0
