"""What a long-range model learned that was no training target: charges, dipoles, a law of decay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from scipy.optimize import linprog
from torch import Tensor

from sog_longrange import SOGConfig, SOGLongRange, plots
from sog_longrange.ase_support import dipole_of_atoms
from sog_longrange.units import COULOMB_CONSTANT

REACH = 4.0, 12.0  # Å, where laws of decay are compared
CHARGES = ("true_charges", "mbis_charges")
DIPOLE = "REF_dipole"
DISPERSION = "true_c6"  # square roots of C6, in any unit


def coulomb(r: Tensor) -> Tensor:
    """1/r in eV/e^2."""
    return COULOMB_CONSTANT / r


def yukawa(r: Tensor) -> Tensor:
    """1/r in eV/e^2, screened by exp(-0.2 r)."""
    return COULOMB_CONSTANT * torch.exp(-0.2 * r) / r


def fourth_power(r: Tensor) -> Tensor:
    """1/r^4, times any factor."""
    return r**-4


def sixth_power(r: Tensor) -> Tensor:
    """1/r^6, times any factor."""
    return r**-6


class Fit(NamedTuple):
    """Line through predicted over reference values, whose sign is free.

    Attributes
    ----------
    slope, r2 : float
        R^2 is the squared correlation.
    """

    slope: float
    r2: float

    def __str__(self) -> str:
        return f"slope {self.slope:.3f}, R^2 {self.r2:.5f}"


def fit(reference: np.ndarray, predicted: np.ndarray) -> Fit:
    """Fit a line through all values."""
    x, y = reference.ravel(), predicted.ravel()
    return Fit(abs(float(np.polyfit(x, y, 1)[0])), float(np.corrcoef(x, y)[0, 1] ** 2))


def turned(reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Predicted values with the common sign that fits best."""
    return np.sign(np.sum(reference * predicted)) * predicted


def compare_charges(frames: list[Atoms], charges: list[np.ndarray], folder: Path) -> dict:
    """Compare latent with known charges, and draw them by element."""
    latent, results = np.concatenate(charges), {}
    elements = [symbol for frame in frames for symbol in frame.get_chemical_symbols()]
    for key in CHARGES:
        if key not in frames[0].arrays:
            continue
        known = np.concatenate([frame.arrays[key] for frame in frames])
        results[key] = fit(known, latent)._asdict()
        print(f"  latent against {key.replace('_', ' ')}: {fit(known, latent)}")
        ax = plots.draw_charges(known, turned(known, latent), elements)
        plots.save_figure(ax.figure, folder / f"{key}.png")
    return results


def compare_dipoles(frames: list[Atoms], charges: list[np.ndarray], folder: Path) -> dict:
    """Compare dipoles of latent charges with those of the reference, and draw them."""
    if DIPOLE not in frames[0].info:
        return {}
    known = np.array([frame.info[DIPOLE] for frame in frames])
    pairs = zip(charges, frames, strict=True)
    found = turned(known, np.array([dipole_of_atoms(values, frame) for values, frame in pairs]))
    print(f"  dipoles against the reference: {fit(known, found)}")
    plots.save_figure(plots.draw_dipoles(known, found).figure, folder / "dipole.png")
    return {"dipole": fit(known, found)._asdict()}


def compare_dispersion(frames: list[Atoms], charges: list[np.ndarray], config: SOGConfig) -> dict:
    """Compare latent values of dispersion with known square roots of C6, element by element.

    The means over each element of the channel that agrees best are compared; nothing is where no
    channel is one of dispersion.
    """
    latent = np.concatenate(charges)
    known = np.concatenate([frame.arrays[DISPERSION] for frame in frames])
    numbers = np.concatenate([frame.numbers for frame in frames])
    elements = np.unique(numbers)
    exact = np.array([known[numbers == z].mean() for z in elements])
    best: dict = {}
    for channel in set(range(latent.shape[1])) - set(config.conserved_channels):
        means = np.array([latent[numbers == z, channel].mean() for z in elements])
        one_sign = bool(np.all(means > 0) or np.all(means < 0))
        found = {**fit(exact, means)._asdict(), "one_sign": one_sign, "channel": channel}
        best = max(best, found, key=lambda own: own.get("r2", -1.0))
    return {"dispersion": best} if best else {}


def compare_law(part: SOGLongRange, law: Callable[[Tensor], Tensor], folder: Path) -> dict:
    """Largest relative error of a learned law, up to what no energy tells.

    That is a factor, which charges take up, and where they sum to zero also a constant.
    """
    config, kernel = part.config, part.energy.kernel
    neutral = bool(config.constrained_channels) and not config.takes_total_charge
    r = torch.linspace(*REACH, 400, dtype=torch.float64)
    with torch.no_grad():
        found = kernel.radial(r.square().to(next(part.parameters())))[0].double().numpy()
    error, factor, constant = _best_gauge(found, law(r).numpy(), neutral)
    what = "a factor and a constant" if neutral else "a factor"
    print("  learned law over {:g} to {:g} Å:".format(*REACH), end=" ")
    print(f"off by at most {100 * error:.1f} % up to {what}")
    laws = {law.__name__: lambda r: (law(r) + constant) / factor}
    ax = plots.draw_kernel(kernel, potentials=laws, reach=(2.0, 16.0))
    plots.save_figure(ax.figure, folder / "kernel.png")
    return {"law": {"largest_error": error, "factor": factor, "constant": constant}}


def _best_gauge(found: np.ndarray, law: np.ndarray, constant: bool) -> tuple[float, float, float]:
    """Find t, u and v with |u found - v - law| <= t law and the least t; v = 0 without constant."""
    columns = np.stack([law, found, -np.ones_like(law)], 1)
    above, below = columns * [-1, 1, 1], columns * [-1, -1, -1]
    best = linprog(
        [1.0, 0.0, 0.0],
        A_ub=np.concatenate([above, below]),
        b_ub=np.concatenate([law, -law]),
        bounds=[(0, None), (None, None), (None, None) if constant else (0, 0)],
    )
    error, factor, shift = (float(x) for x in best.x)
    return error, factor, shift
