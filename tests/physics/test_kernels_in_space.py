"""Each kernel is one function: its Fourier transform belongs to its radial form."""

import math

import numpy as np
import pytest
import torch
from references import DOUBLE, all_kernels, sum_of_gaussians, tensor
from scipy.integrate import quad

from sog_longrange import Ewald, yukawa
from sog_longrange.units import COULOMB_CONSTANT

WAVE_NUMBERS = (0.2, 0.7, 1.5, 3.0)


def radial_fourier_integral(function, k, reach):
    """4 pi times the integral of r^2 f(r) sin(kr) / (kr) from 0 to reach."""

    def integrand(r):
        return 4.0 * math.pi * r**2 * function(r) * np.sinc(k * r / math.pi)

    value, _ = quad(integrand, 0.0, reach, limit=800, epsabs=1e-9, epsrel=1e-11)
    return value


def at(function, x):
    return function(tensor([x]))[0].item()


@pytest.mark.parametrize("name", ["coulomb", "dispersion", "yukawa"])
@pytest.mark.parametrize("k", [0.0, *WAVE_NUMBERS])
def test_fourier_transform_of_gaussians_is_the_integral_of_their_radial_form(name, k):
    kernel = all_kernels(max_width=6.0)[name].requires_grad_(False)
    integral = radial_fourier_integral(lambda r: at(kernel.radial, r**2), k, 60.0)
    assert at(kernel.fourier, k**2) == pytest.approx(integral, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("k", WAVE_NUMBERS)
def test_fourier_transform_of_ewald_is_the_integral_of_its_radial_form(k):
    kernel = Ewald(1.3)
    # 1/r has the transform 4 pi / k^2; what remains decays within a few smearings.
    remainder = radial_fourier_integral(
        lambda r: at(kernel.radial, r**2) - COULOMB_CONSTANT / max(r, 1e-300), k, 15.0
    )
    expected = 4.0 * math.pi * COULOMB_CONSTANT / k**2 + remainder
    assert at(kernel.fourier, k**2) == pytest.approx(expected, rel=1e-8)


def test_ewald_kernel_is_the_smeared_coulomb_law():
    smearing = 1.3
    r = torch.linspace(1e-3, 30.0, 500, dtype=DOUBLE)
    expected = COULOMB_CONSTANT * torch.erf(r / (math.sqrt(2.0) * smearing)) / r
    torch.testing.assert_close(Ewald(smearing).radial(r**2)[0], expected, rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("kappa", [0.1, 0.5])
def test_yukawa_start_has_the_screened_transform(kappa):
    kernel = sum_of_gaussians(yukawa(kappa), num_gaussians=40, min_width=0.01, max_width=150.0)
    k2 = tensor([0.0, 0.04, 1.0])
    expected = 4.0 * math.pi * COULOMB_CONSTANT / (k2 + kappa**2)
    found = kernel.fourier(k2)[0].detach()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0.0)
