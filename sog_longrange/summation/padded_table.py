"""The kernel on the modes of padded boxes: Gaussians, cut off along non-periodic directions."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sog_longrange.geometry import cell_volume, reciprocal_cell, taper

from .grids import Grids
from .resolution import Resolution
from .windows import influence

_REACH = 9.0
"""Widths from the centre of a Gaussian at which it is below the rounding error of float64."""

_BLOCK = 2**20


class PaddedCells(NamedTuple):
    """Boxes and grids of structures with non-periodic directions.

    Attributes
    ----------
    padded : Tensor, shape (n_graphs, 3, 3), in Å
        Edges of the boxes, the periodic ones first.
    lengths : list of 3 floats for each structure, in Å
        Of the edges.
    periodic : list of int
        Number of periodic directions of each structure.
    grids : Grids
    """

    padded: Tensor
    lengths: list[list[float]]
    periodic: list[int]
    grids: Grids


def kernel_on_padded_modes(
    amplitudes: Tensor, widths: Tensor, cells: PaddedCells, resolution: Resolution
) -> tuple[Tensor, Tensor]:
    """Values of the kernel on all modes, times the window's influence, per volume.

    Parameters
    ----------
    amplitudes, widths : Tensor, shape (n_kernels, n_gaussians), in eV/e^2 and Å
    cells : PaddedCells
    resolution : Resolution

    Returns
    -------
    table : Tensor, shape (n_kernels, modes of all structures), in eV/e^2
        Without k = 0: the potential that a net charge has there is large and exerts no
        force, but on a grid its rounding errors would.
    means : Tensor, shape (n_graphs, n_kernels), in eV/e^2
        The kernel at k = 0, without the window's influence.
    """
    padded, lengths, counts, grids = cells
    # One-dimensional factors cost nothing and hold the wide Gaussians' small values.
    amplitudes, widths = amplitudes.double()[..., None], widths.double()
    tables, means = [], []
    boxes = zip(padded.double(), lengths, grids.shapes, counts, strict=True)
    for box, edges, shape, periodic in boxes:
        first, *others, last = _factors(widths, box, edges, shape, periodic, resolution)
        left, right = amplitudes * first, last[..., : shape[2] // 2 + 1]
        for factor in others:
            left = (left[..., None] * factor[:, :, None]).flatten(2)
        product = left.transpose(1, 2).to(padded.dtype) @ right.to(padded.dtype)
        product[:, 0, 0] = 0.0
        tables.append(product.flatten(1))
        undo = math.prod(float(influence(grids.width, n)[0]) for n in shape)
        means.append((left[..., 0] * right[..., 0]).sum(-1) / undo)
    table = tables[0] if len(tables) == 1 else torch.cat(tables, 1)
    return table, torch.stack(means).to(padded.dtype)


def _factors(
    widths: Tensor,
    padded: Tensor,
    lengths: list[float],
    shape: tuple[int, int, int],
    periodic: int,
    resolution: Resolution,
) -> list[Tensor]:
    """Gaussians on the modes of all periodic directions together, and of each non-periodic one."""
    factors = [
        _free_factor(widths, lengths[axis], shape[axis], resolution) for axis in range(periodic, 3)
    ]
    if periodic:
        waves = _waves(padded, shape[:periodic])
        factors.insert(0, _periodic_factor(widths, *waves, shape[:periodic], resolution))
    return factors


def _waves(padded: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Squared wave numbers along the periodic axes, and the length or area of the cell there."""
    (reciprocal,) = reciprocal_cell(padded[None])
    waves = padded.new_zeros(1, 3)
    for row, n in zip(reciprocal, shape, strict=False):
        modes = torch.fft.fftfreq(n, 1.0 / n, dtype=row.dtype, device=row.device)
        waves = (waves[:, None] + modes[:, None] * row).flatten(0, 1)
    # The non-periodic rows of the reciprocal cell are normal to the others and to each other.
    heights = torch.linalg.vector_norm(reciprocal[len(shape) :], dim=-1) / (2.0 * math.pi)
    return waves.square().sum(-1), cell_volume(padded[None])[0] * heights.prod()


def _periodic_factor(
    widths: Tensor, k2: Tensor, measure: Tensor, shape: tuple[int, ...], resolution: Resolution
) -> Tensor:
    """Gaussians along all periodic axes; (n_kernels, num_gaussians, modes)."""
    s2 = widths.square()[..., None]
    peak = (2.0 * math.pi * s2) ** (0.5 * len(shape)) / measure
    undo = np.ones(1)
    for n in shape:
        undo = np.outer(undo, influence(resolution.window, n)).ravel()
    factor = taper(k2, resolution.taper_start) * torch.from_numpy(undo).to(k2)
    return peak * torch.exp(-0.5 * s2 * k2) * factor


def _free_factor(widths: Tensor, length: float, nodes: int, resolution: Resolution) -> Tensor:
    """Gaussians in the window along a non-periodic direction; (n_kernels, num_gaussians, nodes)."""
    points, rows = _window_points(length, resolution)
    points, rows = points.to(widths.device), rows.to(widths.device)
    k = 2.0 * math.pi / length * torch.from_numpy(np.fft.fftfreq(nodes, 1.0 / nodes))
    # Without the unpaired mode of even grids, which has no mirror image.
    kept = (k.abs() <= resolution.cutoff) * torch.from_numpy(influence(resolution.window, nodes))
    k, kept = k.to(widths.device), kept.to(widths.device)
    values = rows * torch.exp(-0.5 * (points / widths[..., None]).square())
    block = max(1, _BLOCK // len(points))
    parts = [values @ torch.cos(points[:, None] * part) for part in k.split(block)]
    return torch.cat(parts, -1) * kept


def _window_points(length: float, resolution: Resolution) -> tuple[Tensor, Tensor]:
    """Points z of the trapezoidal rule, and the window there times the rule's weights.

    The rule is exact to rounding: all spectra end before its spacing resolves no more.
    """
    edge, w = 0.5 * length, resolution.min_width
    reach = edge + _REACH * w
    count = math.ceil(reach * (resolution.cutoff + _REACH / w) / (2.0 * math.pi))
    weights = np.full(count + 1, 2.0 * reach / (count * length))
    weights[0] *= 0.5
    z = torch.linspace(0.0, reach, count + 1, dtype=torch.float64, device="cpu")
    root = math.sqrt(2.0) * w
    window = 0.5 * (torch.erfc((z - edge) / root) - torch.erfc((z + edge) / root))
    return z, window * torch.from_numpy(weights)
