"""Infrared spectra from dipoles along a trajectory."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sog_longrange.errors import InputError, explain
from sog_longrange.hosts import load_library
from sog_longrange.units import BOLTZMANN_CONSTANT, COULOMB_CONSTANT, LIGHT_SPEED, WAVE_NUMBERS

_FEWEST = 8  # frames of a segment


class InfraredSpectrum(NamedTuple):
    """Infrared absorption of one structure.

    Attributes
    ----------
    wave_numbers : ndarray, shape (n,), in 1/cm
    cross_section : ndarray, shape (n,), in Å^2
        Absorption cross-section of the whole structure times its refractive index. Over the
        volume in Å^3 and times 1e8 it is the absorption coefficient n(w) alpha(w) in 1/cm.
    """

    wave_numbers: NDArray[np.float64]
    cross_section: NDArray[np.float64]


def infrared_spectrum(
    dipoles: ArrayLike,
    time_step: float,
    *,
    temperature: float,
    resolution: float = 10.0,
    rates: bool = False,
) -> InfraredSpectrum:
    """Infrared spectrum of a structure from its dipole along a classical trajectory.

    Parameters
    ----------
    dipoles : array, shape (n_frames, 3), in e Å
        Dipole of each frame, continuous in time: of a periodic cell that of unwrapped
        coordinates, or the polarisation times the volume where no branch changes.
    time_step : float
        Time between frames, in fs.
    temperature : float
        In K.
    resolution : float
        Spacing of the wave numbers, in 1/cm. Coarser spectra are averages over more
        segments of the trajectory, and less noisy; lines are 1.5 times as wide.
    rates : bool
        Whether `dipoles` holds their rates of change, in e Å/fs, instead: sum_j Z_j v_j with
        Born charges and velocities, which no branch can spoil.

    Returns
    -------
    InfraredSpectrum

    Raises
    ------
    InputError
        If an argument is malformed or the trajectory is too short for the resolution.
    MissingLibraryError
        If SciPy is not installed.

    Notes
    -----
    n sigma = 1 / (6 epsilon_0 c k_B T) times the integral of <M'(0).M'(t)> exp(-iwt) dt: linear
    response with the quantum correction that harmonic oscillators have. The spectrum of the
    correlation is Welch's average over overlapping segments under a Hann window.

    References
    ----------
    McQuarrie, Statistical Mechanics (1976), chapter 21; Ramirez, Lopez-Ciudad, Kumar,
    Marx, J. Chem. Phys. 121 (2004) 3973, Eq. (7), for the correction.
    """
    series = _check_series(dipoles)
    _check_positive(time_step=time_step, temperature=temperature, resolution=resolution)
    band = WAVE_NUMBERS / (LIGHT_SPEED * time_step)
    length = round(band / resolution)
    if not _FEWEST <= length <= len(series):
        expected = f"between {band / max(len(series), 1):.4g} and {band / _FEWEST:.4g} 1/cm"
        remedy = "Longer trajectories resolve more."
        raise InputError(explain("resolution", expected, f"{resolution:.4g} 1/cm", remedy))
    signal = load_library("scipy.signal", "spectra")
    frequencies, density = signal.welch(
        series, 1.0 / time_step, "hann", length, axis=0, return_onesided=False
    )
    own = slice(length // 2 + 1)  # the others are their negatives
    frequencies, density = np.abs(frequencies[own]), density[own].sum(1)
    if not rates:
        density = density * (2.0 * math.pi * frequencies) ** 2
    # 1 / (6 epsilon_0) = 4 pi k_e / 6, with charges in e.
    prefactor = 2.0 * math.pi * COULOMB_CONSTANT / (3.0 * LIGHT_SPEED)
    section = prefactor * density / (BOLTZMANN_CONSTANT * temperature)
    return InfraredSpectrum(frequencies / LIGHT_SPEED * WAVE_NUMBERS, section)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0.0 and math.isfinite(value)):
            raise InputError(explain(name, "positive and finite", str(value)))


def _check_series(dipoles: ArrayLike) -> NDArray[np.float64]:
    series = np.asarray(dipoles, dtype=np.float64)
    if series.ndim != 2 or series.shape[1] != 3:
        raise InputError(explain("dipoles", "of shape (n_frames, 3)", f"shape {series.shape}"))
    if not np.isfinite(series).all():
        raise InputError(explain("dipoles", "finite", "NaN or infinity"))
    return series
