"""Kernels between channels: one for all, one for each channel, or one for each pair.

Tables of kernels have these along one axis, as many as one of these three:

    1              every channel has the same kernel and interacts only with itself
    P              each of the P channels has its own kernel and interacts only with itself
    P (P + 1) / 2  each pair of channels p <= q has a kernel K_pq = K_qp: coupled channels

Their number says which it is. The energy is 1/2 sum_pq K_pq q_p q_q in all cases, so that all
sums over modes and over pairs of atoms are the same ones.
"""

from __future__ import annotations

import torch
from torch import Tensor


def channel_pairs(num_channels: int) -> list[tuple[int, int]]:
    """Pairs of channels p <= q in the order of their kernels: (0, 0), (0, 1), ..., (1, 1), ...

    Parameters
    ----------
    num_channels : int

    Returns
    -------
    list of 2-tuples of int
        num_channels (num_channels + 1) / 2 of them.
    """
    return [(p, q) for p in range(num_channels) for q in range(p, num_channels)]


def apply_kernels(kernels: Tensor, values: Tensor, axis: int) -> Tensor:
    """sum_q K_pq v_q for each channel p.

    Parameters
    ----------
    kernels : Tensor
        With 1, P or P (P + 1) / 2 kernels along `axis`.
    values : Tensor
        With P channels along `axis`, real or complex; other axes broadcast.
    axis : int

    Returns
    -------
    Tensor
        With P channels along `axis`.
    """
    count, channels = kernels.shape[axis], values.shape[axis]
    if count == 1 or count == channels:  # `in` is more than tracers follow
        return kernels * values
    parts = values.unbind(axis)
    sums: list[Tensor | None] = [None] * channels
    for kernel, (p, q) in zip(kernels.unbind(axis), channel_pairs(channels), strict=True):
        for to, own in ((p, q), (q, p)) if p != q else ((p, q),):
            term, so_far = kernel * parts[own], sums[to]
            sums[to] = term if so_far is None else so_far + term
    return torch.stack([x for x in sums if x is not None], axis)


def correlate_channels(first: Tensor, second: Tensor, count: int, axis: int) -> Tensor:
    """Differentiate Re sum_pq K_pq u_p* v_q in the kernels.

    Parameters
    ----------
    first, second : Tensor, same shape
        u and v with P channels along `axis`, both real or both complex.
    count : int
        Number of kernels: 1, P or P (P + 1) / 2.
    axis : int

    Returns
    -------
    Tensor
        With `count` kernels along `axis`.
    """
    channels = first.shape[axis]
    if count == channels:
        return _product(first, second)
    if count == 1:
        return _product(first, second).sum(axis, keepdim=True)
    u, v = first.unbind(axis), second.unbind(axis)
    rows = []
    for p, q in channel_pairs(channels):
        row = _product(u[p], v[q])
        rows.append(row if p == q else row + _product(u[q], v[p]))
    return torch.stack(rows, axis)


def _product(u: Tensor, v: Tensor) -> Tensor:
    """Re(u* v)."""
    if not u.is_complex():
        return u * v
    return (torch.view_as_real(u.resolve_conj()) * torch.view_as_real(v.resolve_conj())).sum(-1)
