"""Radial functions sampled on many modes, at a cost that does not depend on the function.

The kernel is evaluated at Chebyshev points of short intervals of k^2, a few for each
factor of two, and every mode reads a polynomial. The interval is the leading bits of the
floating-point number k^2 in units of the cutoff, so no logarithm is needed and both ends of
the taper, where it is not analytic, are ends of intervals. The map from samples to modes is
linear, and its derivatives in the samples and in the reciprocal cell are written out here,
to second order, so that no array of all modes is ever kept for autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Function

from sog_longrange.errors import DerivativeError
from sog_longrange.geometry import taper
from sog_longrange.kernels.kernel import Kernel

from .multipoles import apply_function
from .resolution import Resolution
from .rows import ModeRows

MANTISSA = {torch.float32: 23, torch.float64: 52}
"""Number of bits of the mantissa."""

_BIAS = {torch.float32: 127, torch.float64: 1023}
INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}
"""Integers of the same size."""


class Intervals(NamedTuple):
    """Intervals of k^2, in units of the cutoff, with a polynomial on each.

    Row 0 of a table of coefficients stands for k = 0 and the last row for all k beyond the
    last interval, where the function is zero.

    Attributes
    ----------
    base : int
        Leading bits of the number where the first interval begins.
    bits : int
        Each factor of two in k^2 has 2^bits intervals.
    rows : int
        Number of rows, those of k = 0 and of the far end included.
    dtype : torch.dtype
    """

    base: int
    bits: int
    rows: int
    dtype: torch.dtype

    @property
    def shift(self) -> int:
        """Number of trailing bits, which say where in its interval a number lies."""
        return MANTISSA[self.dtype] - self.bits

    @property
    def degree(self) -> int:
        """Degree of the polynomials: exact to a few rounding errors."""
        return 4 if self.dtype == torch.float32 else 7


class Sampler(Protocol):
    """What evaluates the polynomials on the modes; no argument ever requires a gradient.

    Both methods belong to Phi = sum_m G_m w_m (f_u(k2) + f'_c(k2) s) with
    s = d(k2)/d(reciprocal) . direction, which has both the table and its gradient in it:
    without c and direction f' is left out, and with them dPhi/du is nobody's business.

    Parameters
    ----------
    intervals : Intervals
    rows : ModeRows
    """

    def __init__(self, intervals: Intervals, rows: ModeRows) -> None: ...

    def values(
        self,
        u: Tensor,
        reciprocal: Tensor,
        c: Tensor | None = None,
        direction: Tensor | None = None,
    ) -> Tensor:
        """dPhi/dG, shape (n_channels, n_modes)."""
        ...

    def gradients(
        self,
        grad: Tensor,
        u: Tensor,
        reciprocal: Tensor,
        c: Tensor | None = None,
        direction: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """dPhi/du, or dPhi/dc where c is given, and dPhi/d(reciprocal)."""
        ...


def tapered_fourier(kernel: Kernel, k2: Tensor, taper_start: float) -> Tensor:
    """Khat(k), tapered to zero at the cutoff, and zero at k = 0 where that is dropped.

    Parameters
    ----------
    kernel : Kernel
    k2 : Tensor, any shape
        Squared wave numbers, in 1/Å^2.
    taper_start : float
        Wave number at which the taper begins, in 1/Å.

    Returns
    -------
    Tensor, shape (n_kernels, *k2.shape), in eV Å^3/e^2
    """
    factor = taper(k2, taper_start)
    keeps = kernel.zero_mode
    if all(keeps):
        return kernel.fourier(k2) * factor
    # Made of whole tensors, because a graph for export takes no lists of numbers.
    origin = k2 == 0.0
    dropped = torch.stack([torch.zeros_like(origin) if keep else origin for keep in keeps])
    # Where no kernel keeps k = 0, it may be infinite there.
    values = kernel.fourier(torch.where(dropped.all(0), torch.ones_like(k2), k2))
    return values * torch.where(dropped, torch.zeros_like(factor), factor)


def choose_intervals(longest: float, cutoff: float, dtype: torch.dtype) -> Intervals:
    """Intervals that hold every k from the shortest of a cell to the cutoff, which is 1.

    Parameters
    ----------
    longest : float
        Length of the longest lattice vector, in Å.
    cutoff : float
        Largest wave number, in 1/Å.
    dtype : torch.dtype

    Returns
    -------
    Intervals
    """
    bits = 5 if dtype == torch.float32 else 6
    low = int(math.floor(2.0 * math.log2(2.0 * math.pi / (longest * cutoff)) - 1e-3))
    low = min(low, -1)
    count = -low * 2**bits
    return Intervals((low + _BIAS[dtype]) << bits, bits, count + 2, dtype)


def sample_kernel(
    kernel: Kernel, intervals: Intervals, resolution: Resolution, device: torch.device
) -> Tensor:
    """Polynomial coefficients of the kernel, tapered to zero at the cutoff.

    Parameters
    ----------
    kernel : Kernel
    intervals : Intervals
    resolution : Resolution
    device : torch.device

    Returns
    -------
    Tensor, shape (n_kernels, rows, degree + 1), in eV Å^3/e^2
        Of rising powers of the distance t from the middle of the interval, in its widths.
    """
    key = (intervals, resolution, device)
    if kernel.samples is None:
        return _sample_kernel(kernel, *key)
    return kernel.samples.once(key, lambda: _sample_kernel(kernel, *key))


def _sample_kernel(
    kernel: Kernel, intervals: Intervals, resolution: Resolution, device: torch.device
) -> Tensor:
    keeps = kernel.zero_mode
    points, to_coefficients = _sample_points(intervals, resolution, device, all(keeps))
    values = kernel.fourier(points).unflatten(1, (intervals.rows, -1))
    coefficients = torch.matmul(values[:, :, None], to_coefficients).squeeze(2)
    if any(keeps) and not all(keeps):
        means = kernel.fourier(points.new_zeros(1))[:, 0]
        coefficients[:, 0, 0] = means * means.new_tensor(keeps)
    return coefficients


@lru_cache(maxsize=64)
def _sample_points(
    intervals: Intervals, resolution: Resolution, device: torch.device, keeps_origin: bool
) -> tuple[Tensor, Tensor]:
    """Squared wave numbers of evaluation, and a matrix from values to coefficients for each row.

    The matrices have the taper in them. That of the row beyond the cutoff is zero, and that of
    k = 0 too, unless it is kept.
    """
    d, dtype = intervals.degree, intervals.dtype
    t = -0.5 * np.cos(np.pi * (np.arange(d + 1) + 0.5) / (d + 1))
    matrix = np.linalg.inv(np.vander(t, increasing=True)).T
    edges = interval_edges(intervals)
    points = np.ones((intervals.rows, d + 1))
    points[1:-1] = edges[:-1, None] + np.diff(edges)[:, None] * (t + 0.5)
    matrices = np.zeros((intervals.rows, d + 1, d + 1))
    if keeps_origin:
        points[0], matrices[0, 0, 0] = 0.0, 1.0
    # Kept for later calls, which may be for training, whatever mode this one is in.
    with torch.inference_mode(False):
        k2 = torch.from_numpy(resolution.cutoff**2 * points)
        factors = taper(k2, resolution.taper_start)[1:-1, :, None].numpy()
        matrices[1:-1] = factors * matrix
        return k2.flatten().to(device, dtype), torch.from_numpy(matrices).to(device, dtype)


def interval_edges(intervals: Intervals) -> NDArray[np.float64]:
    """List the ends of all intervals.

    Parameters
    ----------
    intervals : Intervals

    Returns
    -------
    array, shape (rows - 1,)
    """
    number = intervals.base + np.arange(intervals.rows - 1)
    exponent, mantissa = np.divmod(number, 2**intervals.bits)
    exponent -= _BIAS[intervals.dtype]
    edges: NDArray[np.float64] = np.ldexp(1.0 + mantissa / 2.0**intervals.bits, exponent)
    return edges


def kernel_on_modes(
    kernel: Kernel,
    reciprocal: Tensor,
    resolution: Resolution,
    longest: float,
    sampler: type[Sampler],
) -> Callable[[ModeRows], Tensor]:
    """Khat(k) on modes, tapered to zero at the cutoff, times the factors of their rows.

    Parameters
    ----------
    kernel : Kernel
    reciprocal : Tensor, shape (n_graphs, 3, 3), in 1/Å
    resolution : Resolution
    longest : float
        Length of the longest lattice vector, in Å.
    sampler : type of Sampler

    Returns
    -------
    callable
        Makes the table (n_kernels, n_modes), in eV Å^3/e^2, of some rows. It is twice
        differentiable in the kernel's parameters and the reciprocal cell.
    """
    intervals = choose_intervals(longest, resolution.cutoff, reciprocal.dtype)
    coefficients = sample_kernel(kernel, intervals, resolution, reciprocal.device)
    in_cutoffs = reciprocal / resolution.cutoff
    return lambda rows: radial_table(coefficients, in_cutoffs, sampler(intervals, rows))


def radial_table(coefficients: Tensor, reciprocal: Tensor, sampler: Sampler) -> Tensor:
    """Values of the sampled function on all modes, times the factors of their rows.

    Parameters
    ----------
    coefficients : Tensor, shape (n_kernels, rows, degree + 1)
    reciprocal : Tensor, shape (n_graphs, 3, 3)
        In units of the cutoff.
    sampler : Sampler

    Returns
    -------
    Tensor, shape (n_kernels, n_modes)
        Twice differentiable in the coefficients and the reciprocal cell.
    """
    if not (coefficients.requires_grad or reciprocal.requires_grad):
        return sampler.values(coefficients, reciprocal)
    table: Tensor = apply_function(_Sampled, coefficients, reciprocal, sampler)
    return table


class _Sampled(Function):
    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, reciprocal: Tensor, sampler: Sampler) -> Tensor:
        ctx.save_for_backward(coefficients, reciprocal)
        ctx.sampler = sampler
        return sampler.values(coefficients, reciprocal)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = apply_function(_SampledGradient, grad, *ctx.saved_tensors, ctx.sampler)
        return (*gradients, None)


class _SampledGradient(Function):
    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, coefficients: Tensor, reciprocal: Tensor, sampler: Sampler
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(grad, coefficients, reciprocal)
        ctx.sampler = sampler
        return sampler.gradients(grad.contiguous(), coefficients, reciprocal)

    @staticmethod
    def backward(ctx: Any, u: Tensor, direction: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        gradients = apply_function(_SampledCurvature, u, direction, *saved, ctx.sampler)
        return (*gradients, None)


class _SampledCurvature(Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        direction: Tensor,
        grad: Tensor,
        coefficients: Tensor,
        reciprocal: Tensor,
        sampler: Sampler,
    ) -> tuple[Tensor, Tensor, Tensor]:
        point = (u.contiguous(), reciprocal, coefficients, direction)
        return sampler.values(*point), *sampler.gradients(grad.contiguous(), *point)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise DerivativeError(
            "Third derivatives in the cell and in the parameters of a kernel are not available."
        )
