"""Sums over the ranks of a process group that holds the atoms of one batch.

A loss is meant as the sum of its replicated terms (of energies and what derives from them,
equal on every rank, counted once) and of the local terms of all ranks (of forces,
potentials, charges). Gradients in atoms are then right on their own rank, and gradients
in cells and kernels are right, and equal, on all. Where other replicated numbers act on
local ones (a strain on positions, the weights of a network on features), pass them through
:func:`replicate` first; otherwise each rank finds its own part of their gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from .multipoles import apply_function


def accumulate(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Replicated sum of local tensors; its gradient is handed to each rank as it is.

    Parameters
    ----------
    local : Tensor, any shape
        Of one shape on all ranks.
    group : ProcessGroup, optional

    Returns
    -------
    Tensor, of the same shape
        Differentiable to any order.
    """
    total: Tensor = local if group is None else apply_function(_Accumulate, local, group)
    return total


def replicate(shared: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Replicated tensor for local use; its gradient is the sum of what the ranks find.

    Parameters
    ----------
    shared : Tensor, any shape
        The same on all ranks.
    group : ProcessGroup, optional

    Returns
    -------
    Tensor, of the same shape
        Differentiable to any order.
    """
    local: Tensor = shared if group is None else apply_function(_Replicate, shared, group)
    return local


class _Accumulate(Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = local.clone(memory_format=torch.contiguous_format)
        real = torch.view_as_real(total) if total.is_complex() else total
        dist.all_reduce(real, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return replicate(grad, ctx.group), None


class _Replicate(Function):
    @staticmethod
    def forward(ctx: Any, shared: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return shared.view_as(shared)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return accumulate(grad, ctx.group), None
