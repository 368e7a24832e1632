"""Initial potentials: what sums of Gaussians begin as."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from sog_longrange.errors import ConfigError, explain

from .free_atoms import TYPICAL

_FLOOR = 1e-8
"""Share of the largest value below which values of a potential do not count in a fit."""
_RCOND = 1e-4
"""Relative size of singular values that a fit leaves out, for amplitudes that do not cancel."""
_WORST = 0.1
"""Largest error of a fit, relative to the potential."""


class InitialPotential:
    """Base of the potentials that a sum of Gaussians can begin as.

    A potential of your own has `radial` and sets `zero_mode`. Its amplitudes are fitted, unless
    `amplitudes` has them in closed form. Options are parameters of the constructor, best the
    fields of a frozen dataclass.

    Attributes
    ----------
    zero_mode : bool
        Whether the potential is integrable over all space, so that k = 0 is finite and kept.
    positive : bool
        Whether the values that interact through it are positive, and begin as `start` says; False
        by default.
    """

    name: ClassVar[str] = ""
    positive: ClassVar[bool] = False

    @property
    def zero_mode(self) -> bool:
        """Whether k = 0 is kept; a class of your own sets it, ``zero_mode = True``.

        Raises
        ------
        ConfigError
            If it does not.
        """
        got = f"no such attribute of {type(self).__name__}"
        remedy = "True for a potential that is integrable over all space, as 1/r^6 is."
        raise ConfigError(explain("zero_mode", "True or False", got, remedy))

    @property
    def far_only(self) -> bool:
        """Whether pairs within the cutoff of the host's network are left to it; False."""
        return False

    @property
    def conserved(self) -> bool:
        """Whether the charges are electric charges, whose sum may be prescribed.

        By default where k = 0 is infinite unless their sum is 0.
        """
        return not self.zero_mode

    def start(self, atomic_number: int = TYPICAL) -> float:
        """Latent value that atoms of an element begin with, where values are positive.

        Parameters
        ----------
        atomic_number : int
            By default that of an element that stands for all.

        Returns
        -------
        float
            Positive.
        """
        raise NotImplementedError

    def radial(self, r: Tensor) -> Tensor:
        """Value of the potential.

        Parameters
        ----------
        r : Tensor, any shape, in Å
            Above zero.

        Returns
        -------
        Tensor, of the shape of r, in eV/e^2
        """
        raise NotImplementedError

    def amplitudes(self, widths: Tensor) -> Tensor:
        """Amplitudes of the Gaussians, by a fit of `radial`.

        Parameters
        ----------
        widths : Tensor, shape (n_gaussians,), float64, in Å
            Log-spaced and ascending.

        Returns
        -------
        Tensor, shape (n_gaussians,), in eV/e^2

        Raises
        ------
        ConfigError
            If Gaussians of these widths cannot follow the potential to 10 %.
        """
        return fit_amplitudes(self, widths)


def fit_amplitudes(potential: InitialPotential, widths: Tensor) -> Tensor:
    """Fit amplitudes of Gaussians to a potential by linear least squares.

    Distances are log-spaced from twice the narrowest width to the largest. Errors count relative
    to the largest value at any larger distance, so that all decades count alike and zeros
    of the potential not more than their surroundings.

    Parameters
    ----------
    potential : InitialPotential
    widths : Tensor, shape (n_gaussians,), float64, in Å, ascending

    Returns
    -------
    Tensor, shape (n_gaussians,), in eV/e^2

    Raises
    ------
    ConfigError
        If the potential is not finite, or the error reached, as of :func:`fit_error`,
        is above 10 %.
    """
    r = log_spaced(2.0 * float(widths[0]), max(float(widths[-1]), 3.0 * float(widths[0])), 400)
    values = potential.radial(r)
    if not bool(values.isfinite().all()) or not bool(values.any()):
        expected = f"finite and not zero from {float(r[0]):.3g} to {float(r[-1]):.3g} Å"
        raise ConfigError(explain("initial", expected, str(potential)))
    weights = 1.0 / _envelope(values)
    columns = weights[:, None] * _gaussians(r, widths)
    sizes = columns.norm(dim=0)
    target = (weights * values)[:, None]
    # The driver that leaves out small singular values.
    found = torch.linalg.lstsq(columns / sizes, target, rcond=_RCOND, driver="gelsd").solution
    amplitudes: Tensor = found[:, 0] / sizes
    error = fit_error(potential, amplitudes, widths)
    if not error <= _WORST:
        expected = f"a sum of {len(widths)} Gaussians of {float(widths[0]):.3g} to "
        expected += f"{float(widths[-1]):.3g} Å to {_WORST:.0%}"
        remedy = "Use more Gaussians, a smaller max_width or a smaller min_width."
        raise ConfigError(explain("initial", expected, f"{error:.0%} for {potential}", remedy))
    return amplitudes


def fit_error(potential: InitialPotential, amplitudes: Tensor, widths: Tensor) -> float:
    """Error of Gaussians beside the potential that they stand for.

    Parameters
    ----------
    potential : InitialPotential
    amplitudes, widths : Tensor, shape (n_gaussians,), in eV/e^2 and Å

    Returns
    -------
    float
        Largest deviation from 3.4 times the narrowest width to 0.15 times the widest, or
        at least to 7 times the narrowest, relative to the largest value of the potential at
        any larger distance of this range.
    """
    near, far = float(widths[0]), float(widths[-1])
    r = log_spaced(3.4 * near, max(7.0 * near, 0.15 * far), 1000)
    values = potential.radial(r)
    found = _gaussians(r, widths) @ amplitudes
    return float(((found - values).abs() / _envelope(values)).max())


def log_spaced(low: float, high: float, count: int) -> Tensor:
    """Numbers in float64 from `low` to `high` in equal ratios.

    Parameters
    ----------
    low, high : float
        Positive.
    count : int

    Returns
    -------
    Tensor, shape (count,)
    """
    ends = torch.tensor([low, high], dtype=torch.float64).log()
    return torch.linspace(float(ends[0]), float(ends[1]), count, dtype=torch.float64).exp()


def _gaussians(r: Tensor, widths: Tensor) -> Tensor:
    return torch.exp(-0.5 * (r[:, None] / widths) ** 2)


def _envelope(values: Tensor) -> Tensor:
    """Largest size of a value at the same or a larger distance."""
    largest = values.abs().flip(0).cummax(0).values.flip(0)
    return largest.clamp(min=_FLOOR * float(largest[0]))
