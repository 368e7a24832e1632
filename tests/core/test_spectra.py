"""Infrared spectra against sum rules and lines known in closed form."""

import sys

import numpy as np
import pytest

from sog_longrange import InputError, MissingLibraryError, infrared_spectrum

LIGHT = 2.99792458e-5  # cm/fs
SI_CHARGE, SI_EPSILON, SI_LIGHT, DALTON = (
    1.602176634e-19,
    8.8541878128e-12,
    2.99792458e8,
    1.66054e-27,
)
KELVIN_IN_JOULE = 1.380649e-23


def oscillators(wave_numbers, time_step, n_frames, temperature=300.0, mass=1.0, charge=0.4):
    """Dipoles in e A and rates in e A/fs of classical oscillators with random phases."""
    rng = np.random.default_rng(0)
    time = time_step * np.arange(n_frames)[:, None]
    speed = np.sqrt(KELVIN_IN_JOULE * temperature / (mass * DALTON)) * 1e-5  # A/fs
    dipoles, rates = np.zeros((n_frames, 3)), np.zeros((n_frames, 3))
    for wave_number in wave_numbers:
        omega = 2.0 * np.pi * LIGHT * wave_number
        phase = 2.0 * np.pi * rng.random(3)
        amplitude = charge * np.sqrt(2.0) * speed / omega  # mean square speed is k_B T / m
        dipoles += amplitude * np.sin(omega * time + phase)
        rates += amplitude * omega * np.cos(omega * time + phase)
    return dipoles, rates


@pytest.mark.parametrize("use_rates", [False, True])
def test_the_integral_is_the_classical_sum_rule(use_rates):
    dipoles, rates = oscillators([1200.0], 0.5, 2**15, charge=0.4, mass=2.0)
    series = rates if use_rates else dipoles
    x, y = infrared_spectrum(series, 0.5, temperature=300.0, rates=use_rates)
    # Integral of the cross-section over angular frequency: pi q^2 / (2 epsilon_0 m c), in SI.
    rule = np.pi * (0.4 * SI_CHARGE) ** 2 / (2.0 * SI_EPSILON * 2.0 * DALTON * SI_LIGHT)
    line = (x > 1000.0) & (x < 1400.0)
    integral = y[line].sum() * (x[1] - x[0]) * 1e-20 * 2.0 * np.pi * SI_LIGHT * 100.0
    assert integral == pytest.approx(rule, rel=0.01)


def test_white_noise_is_absorbed_alike_at_all_wave_numbers():
    rates = np.random.default_rng(0).normal(size=(2**17, 3))
    for resolution in (100.0, 101.0):
        x, y = infrared_spectrum(rates, 0.5, temperature=300.0, resolution=resolution, rates=True)
        assert np.all(np.diff(x) > 0.0)
        assert y[2:] == pytest.approx(y[2:].mean(), rel=0.2)


def test_lines_are_where_the_oscillators_are():
    dipoles, _ = oscillators([500.0, 1600.0, 3200.0], 0.5, 2**15)
    x, y = infrared_spectrum(dipoles, 0.5, temperature=300.0, resolution=8.0)
    assert np.diff(x) == pytest.approx(8.0, rel=1e-3)
    for line in (500.0, 1600.0, 3200.0):
        near = np.abs(x - line) < 100.0
        assert x[near][y[near].argmax()] == pytest.approx(line, abs=8.0)
    between = (x > 800.0) & (x < 1300.0)
    assert y[between].max() < 1e-3 * y.max()


def test_rates_and_dipoles_agree_and_a_constant_dipole_absorbs_nothing():
    dipoles, rates = oscillators([900.0, 1500.0], 0.5, 2**14)
    options = {"temperature": 250.0, "resolution": 20.0}
    first = infrared_spectrum(dipoles + 7.0, 0.5, **options).cross_section
    second = infrared_spectrum(rates, 0.5, rates=True, **options).cross_section
    assert np.abs(first - second).max() < 0.03 * second.max()
    still = infrared_spectrum(np.ones((2**14, 3)), 0.5, **options)
    assert np.abs(still.cross_section).max() < 1e-20


def test_absorption_is_proportional_to_the_square_and_over_the_temperature():
    dipoles, _ = oscillators([900.0], 0.5, 2**13)
    one = infrared_spectrum(dipoles, 0.5, temperature=300.0).cross_section
    other = infrared_spectrum(2.0 * dipoles, 0.5, temperature=600.0).cross_section
    np.testing.assert_allclose(other, 2.0 * one)


SERIES = np.zeros((5000, 3))


@pytest.mark.parametrize(
    ("dipoles", "options", "message"),
    [
        (SERIES[:, :2], {}, r"`dipoles` must be of shape \(n_frames, 3\)"),
        (SERIES + np.nan, {}, "`dipoles` must be finite"),
        (SERIES, {"temperature": 0.0}, "`temperature` must be positive"),
        (SERIES, {"time_step": -1.0}, "`time_step` must be positive"),
        (SERIES, {"resolution": 1.0}, "`resolution` must be between 6.67.* and 4170 1/cm, got 1"),
        (SERIES[:0], {}, "`resolution` must be between"),
        (SERIES, {"resolution": 1e5}, "`resolution` must be between"),
    ],
)
def test_a_malformed_argument_is_named(dipoles, options, message):
    with pytest.raises(InputError, match=message):
        infrared_spectrum(dipoles, **{"time_step": 1.0, "temperature": 300.0} | options)


def test_a_missing_scipy_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.signal", None)
    with pytest.raises(MissingLibraryError, match=r"pip install .*sog-longrange\[spectra\]"):
        infrared_spectrum(SERIES, 1.0, temperature=300.0)
