"""Sums of Gaussians with their gradients in closed form, a third of the operations of autograd.

A training step samples the kernel and differentiates it once. Where a graph of the gradient is
asked for, or a tracer records, the formulas are those of autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sog_longrange.validation import is_traced

_VOLUME = (2.0 * math.pi) ** 1.5


def sum_of_transforms(k2: Tensor, amplitudes: Tensor, widths: Tensor) -> Tensor:
    """Fourier transforms of sums of Gaussians.

    Parameters
    ----------
    k2 : Tensor, shape (n_waves,), in 1/Å^2
    amplitudes, widths : Tensor, shape (n_kernels, n_gaussians), in eV/e^2 and Å

    Returns
    -------
    Tensor, shape (n_kernels, n_waves), in eV Å^3/e^2
        Differentiable to any order.
    """
    if k2.requires_grad or is_traced():
        return _transforms(k2, amplitudes, widths)[0]
    values: Tensor = _Transforms.apply(k2, amplitudes, widths)  # type: ignore[no-untyped-call]
    return values


def pinned_amplitudes(
    initial: Tensor, logs: Tensor, widths: Tensor, value: Tensor, radius: float
) -> Tensor:
    """Amplitudes initial exp(logs), scaled so that each kernel has a given value at a distance.

    Parameters
    ----------
    initial, logs, widths : Tensor, shape (n_kernels, n_gaussians)
        Initial amplitudes in eV/e^2, which may broadcast, logarithms of what they are multiplied
        by, and widths in Å.
    value : Tensor, shape (n_kernels,) or (1,), in eV/e^2
    radius : float
        In Å.

    Returns
    -------
    Tensor, shape (n_kernels, n_gaussians), in eV/e^2
        Differentiable in `logs` and `widths` to any order.
    """
    if is_traced():
        return _pinned(initial, logs, widths, value, radius)[0]
    pinned: Tensor = _Pinned.apply(initial, logs, widths, value, radius)  # type: ignore[no-untyped-call]
    return pinned


def _transforms(k2: Tensor, amplitudes: Tensor, widths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the transforms, exp(-s^2 k^2 / 2) and s^2."""
    squares = widths.square()
    decays = torch.exp((-0.5 * squares)[:, :, None] * k2)
    weights = amplitudes * (squares * widths)
    return _VOLUME * torch.bmm(weights[:, None], decays)[:, 0], decays, squares


class _Transforms(Function):
    @staticmethod
    def forward(ctx: Any, k2: Tensor, amplitudes: Tensor, widths: Tensor) -> Tensor:
        values, *parts = _transforms(k2, amplitudes, widths)
        ctx.save_for_backward(k2, amplitudes, widths)
        ctx.parts = parts
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        k2, amplitudes, widths = ctx.saved_tensors
        if torch.is_grad_enabled():
            own = _differentiate(lambda *x: _transforms(k2, *x)[0], grad, amplitudes, widths)
            return None, *own
        decays, squares = ctx.parts
        grads = torch.stack((grad, grad * k2), 2)
        first, second = (_VOLUME * torch.bmm(decays, grads)).unbind(2)
        slopes = amplitudes * squares * torch.sub(3.0 * first, squares * second)
        return None, squares * widths * first, slopes


def _pinned(
    initial: Tensor, logs: Tensor, widths: Tensor, value: Tensor, radius: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return amplitudes, what each Gaussian adds at the distance, and the sums of that."""
    free = initial * torch.exp(logs)
    terms = free * torch.exp(-0.5 * radius**2 * widths.pow(-2))
    total = terms.sum(-1, keepdim=True)
    # Not unsqueezed itself: compilers fail at that of a constant.
    return free * (value / total[:, 0])[:, None], terms, total


class _Pinned(Function):
    @staticmethod
    def forward(
        ctx: Any, initial: Tensor, logs: Tensor, widths: Tensor, value: Tensor, radius: float
    ) -> Tensor:
        amplitudes, *parts = _pinned(initial, logs, widths, value, radius)
        ctx.save_for_backward(initial, logs, widths, value, amplitudes)
        ctx.radius, ctx.parts = radius, parts
        return amplitudes

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        initial, logs, widths, value, amplitudes = ctx.saved_tensors
        radius = ctx.radius
        if torch.is_grad_enabled():
            own = _differentiate(
                lambda x, s: _pinned(initial, x, s, value, radius)[0], grad, logs, widths
            )
            return None, *own, None, None
        terms, total = ctx.parts
        own = amplitudes * grad
        shared = (own.sum(-1, keepdim=True) / total) * terms
        return None, own - shared, (-(radius**2) * shared) * widths.pow(-3), None, None


def _differentiate(
    function: Callable[..., Tensor], grad: Tensor, *inputs: Tensor
) -> tuple[Tensor, ...]:
    """Gradients in the inputs, as parts of the graph of inputs and `grad`."""
    # Views: of an input that depends on another one, only the part of its own is wanted.
    leaves = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*leaves), leaves, grad, create_graph=True)
