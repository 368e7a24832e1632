"""Structures with non-periodic directions, on grids padded along these.

Every Gaussian is a product of one function for each axis. Along a non-periodic direction it is
cut off by a smooth window, which is 1 wherever two atoms of the structure can be and 0 before
the nearest image of the padded box. The edges of the window are Gaussians of the kernel's
smallest width, so that the spectrum of the product ends where the kernel's own does, and
the kernel on all modes of the grid is a matrix product of few columns. Structures keep the
kernel of the pair sum, and nothing of the box that was put around them remains but an error
within the tolerance.

References
----------
Vico, Greengard, Ferrando, J. Comput. Phys. 323, 191 (2016) (kernels cut off beyond the
structure); Ji, Liang, Xu, arXiv:2502.04668 (sums of Gaussians).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sog_longrange.errors import BoundaryError, InputTypeError, explain
from sog_longrange.geometry import (
    MAX_NODES,
    largest_mode,
    reciprocal_cell,
    reduced_cell,
    sum_over_atoms,
    wrapped_phases,
)
from sog_longrange.kernels.channels import apply_kernels
from sog_longrange.kernels.kernel import Kernel
from sog_longrange.validation import Structures, check_no_overflow

from .cost_model import check_cost, predict_memory, predict_time
from .cost_terms import Size
from .grids import Grids, choose_grids, grid_points
from .interaction import Interaction, Potentials
from .mesh import MeshBackend
from .modes import sum_over_modes
from .multipoles import Multipoles
from .padded_table import PaddedCells, kernel_on_padded_modes
from .resolution import Resolution


def padded_sum(
    interaction: Interaction, sources: Multipoles, part: Structures, *, field: bool = False
) -> Potentials:
    """Sum over all atoms and the images along periodic directions, self-interaction included.

    Parameters
    ----------
    interaction : Interaction
        Its kernel is a sum of Gaussians.
    sources : Multipoles
    part : Structures
        At least one direction of each is not periodic; the rows of its cell are never read:
        non-periodic directions are normal to the periodic ones.
    field : bool
        Whether the field of charges is wanted, too.

    Returns
    -------
    Potentials
        Of the energy 1/2 sum_ij q_i q_j sum_n K(|r_i - r_j - n|) over the images n along the
        periodic directions, i = j included, whatever `zero_mode` is: such sums converge.
        Gradients are exact for what is computed.

    Raises
    ------
    BoundaryError
        If a structure is periodic, or the kernel is no sum of Gaussians.
    InputError, InputTypeError
        If positions are so large that they overflow, or the kernel has another dtype.
    SizeError
        If the grids fit into no memory.
    """
    charges, batch = sources.charges, part.batch
    n_fields = sources.fields(field) * charges.shape[1]
    resolution = interaction.resolution(sources.order, padded=True)
    boxes = pad(interaction.kernel, part, n_fields, resolution)
    backend = MeshBackend(boxes.grids, batch, interaction.engine_on(charges.device))
    geometry = boxes.phases, boxes.table, boxes.reciprocal
    out = sum_over_modes(backend, sources, *geometry, interaction, field=field)
    total = sum_over_atoms(charges, batch, part.num_graphs)
    mean = apply_kernels(boxes.means, total, 1)
    energy = out.energy + 0.5 * (mean * total).sum(-1)
    return Potentials(energy, out.potential + mean[batch], out.field)


class PaddedBoxes(NamedTuple):
    """Structures in boxes that are padded along their non-periodic directions.

    Attributes
    ----------
    grids : Grids
    reciprocal : Tensor, shape (n_graphs, 3, 3), in 1/Å
        Reciprocal lattice vectors of the boxes.
    phases : Tensor, shape (n_atoms, 3)
        Of the atoms, for these vectors.
    table : Tensor, shape (n_kernels, modes of all structures), in eV/e^2
        Kernel per volume on all modes but k = 0, times the window's influence.
    means : Tensor, shape (n_graphs, n_kernels), in eV/e^2
        The kernel at k = 0.
    """

    grids: Grids
    reciprocal: Tensor
    phases: Tensor
    table: Tensor
    means: Tensor


def pad(kernel: Kernel, part: Structures, n_fields: int, resolution: Resolution) -> PaddedBoxes:
    """Put structures into padded boxes, and the kernel on the modes of their grids.

    Parameters
    ----------
    kernel : Kernel
    part : Structures
    n_fields : int
        Number of channels, times more than one where more than their energies is computed.
    resolution : Resolution

    Returns
    -------
    PaddedBoxes

    Raises
    ------
    BoundaryError, InputError, InputTypeError, SizeError
        As :func:`padded_sum`.
    """
    positions, cell, pbc, batch = part[:4]
    gaussians = _gaussians(kernel, positions.dtype)
    flags = [tuple(row) for row in pbc.tolist()]
    frames = _frames(positions.detach(), cell, flags, batch, resolution)
    free = torch.arange(3, device=pbc.device) >= pbc.sum(-1, keepdim=True)
    low, high = _extents(positions, frames, batch)
    lengths = _lengths(frames, free, high - low, resolution)
    grids = choose_grids(lengths.tolist(), resolution.cutoff, resolution.window)
    _check_cost(lengths, part, n_fields, resolution)
    padded = torch.where(free, lengths, torch.ones_like(lengths)).to(cell)[..., None] * frames
    origins = _origins(0.5 * (low + high), lengths, free, grids).to(cell)
    cells = PaddedCells(padded, lengths, free, grids)
    table, means = kernel_on_padded_modes(*gaussians, cells, resolution)
    centred = positions - (origins[..., None] * frames).sum(1)[batch]
    reciprocal = reciprocal_cell(padded)
    phases = wrapped_phases(centred, reciprocal, batch)
    check_no_overflow("positions", phases)
    return PaddedBoxes(grids, reciprocal, phases, table, means)


def _gaussians(kernel: Kernel, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Amplitudes and widths of a kernel that has them."""
    gaussians = kernel.gaussians
    if gaussians is None:
        remedy = (
            "Structures with non-periodic directions need the Gaussians of the kernel one by one; "
            "non-periodic structures with other kernels are summed over pairs."
        )
        expected = "a sum of Gaussians for structures with non-periodic directions"
        raise BoundaryError(explain("kernel", expected, type(kernel).__name__, remedy))
    amplitudes, widths = gaussians
    if amplitudes.dtype != dtype:
        expected = f"{dtype} like `positions`"
        remedy = "Use `kernel.to()`."
        raise InputTypeError(explain("kernel", expected, str(amplitudes.dtype), remedy))
    return amplitudes, widths


def _frames(
    positions: Tensor,
    cell: Tensor,
    flags: list[tuple[bool, ...]],
    batch: Tensor,
    resolution: Resolution,
) -> Tensor:
    """Periodic lattice vectors, then unit vectors of the others; (n_graphs, 3, 3)."""
    counts = torch.bincount(batch, minlength=len(cell)).tolist()
    frames = [
        _partly_periodic_frame(rows, own) if any(own) else _open_frame(points, resolution)
        for rows, own, points in zip(cell, flags, positions.split(counts), strict=True)
    ]
    # Non-periodic directions are normal to all others: only lattice vectors of slabs change.
    return reduced_cell(torch.stack(frames), [True] * len(frames))


def _open_frame(positions: Tensor, resolution: Resolution) -> Tensor:
    """Coordinate axes, or axes along the structure if its box is much smaller with them."""
    plain = torch.eye(3, dtype=positions.dtype, device=positions.device)
    if len(positions) < 2:
        return plain
    points = positions.double()
    points = points - points.mean(0)
    check_no_overflow("positions", points)
    scaled = points / points.abs().max().clamp_min(resolution.min_width)
    axes = torch.linalg.eigh(scaled.T @ scaled)[1]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    # Rounded, so that they mostly stay the same while the atoms move a little.
    turned = torch.linalg.qr(torch.round(8.0 * axes) / 8.0)[0].T
    sizes = [
        (along.amax(0) - along.amin(0) + resolution.padding).prod()
        for along in (points, points @ turned.T)
    ]
    return turned.to(plain) if bool(sizes[1] < 0.5 * sizes[0]) else plain


def _partly_periodic_frame(cell: Tensor, periodic: tuple[bool, ...]) -> Tensor:
    """Periodic lattice vectors, then unit vectors normal to them and to each other."""
    rows = [cell[axis] for axis in range(3) if periodic[axis]]
    if len(rows) == 3:
        remedy = "Periodic structures belong to the other reciprocal sums."
        raise BoundaryError(explain("pbc", "false for at least one axis", "all true", remedy))
    if len(rows) == 1:
        # The coordinate axis that is closest to normal cannot be parallel.
        other = torch.zeros_like(rows[0])
        other[int(rows[0].detach().abs().argmin())] = 1.0
        rows.append(_normal(rows[0], other))
    return torch.stack([*rows, _normal(*rows)])


def _normal(first: Tensor, second: Tensor) -> Tensor:
    """Return the unit vector that is normal to two others."""
    normal = torch.linalg.cross(first, second)
    unit: Tensor = normal / torch.linalg.vector_norm(normal)
    return unit


def _extents(positions: Tensor, frames: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest coordinate of each structure along the rows of its frame."""
    along = torch.einsum("nc,nac->na", positions.detach(), frames.detach()[batch]).double()
    check_no_overflow("positions", along)
    index = batch[:, None].expand(-1, 3)
    zeros = along.new_zeros(len(frames), 3)
    low = zeros.scatter_reduce(0, index, along, "amin", include_self=False)
    return low, zeros.scatter_reduce(0, index, along, "amax", include_self=False)


def _lengths(frames: Tensor, free: Tensor, extents: Tensor, resolution: Resolution) -> Tensor:
    """Edges of the padded cells; shape (n_graphs, 3), in float64 and without gradients."""
    own = torch.linalg.vector_norm(frames.detach().double(), dim=-1)
    # An image must be `padding` beyond the edge, which is as far beyond the structure.
    needed = 2.0 * (extents + resolution.padding)
    check_no_overflow("positions", needed)
    boxes = [[_round_up(a, resolution) for a in row] for row in needed.tolist()]
    return torch.where(free, needed.new_tensor(boxes), own)


def _check_cost(lengths: Tensor, part: Structures, n_fields: int, resolution: Resolution) -> None:
    """Refuse grids that fit into no memory, and warn of those that are expensive."""
    device, dtype = part.positions.device, part.positions.dtype
    counts = torch.bincount(part.batch, minlength=len(lengths)).tolist()
    sizes = [
        Size(count, n_fields, edges, resolution, dtype, compiled=True, device=device.type)
        for count, edges in zip(counts, lengths.tolist(), strict=True)
    ]
    memory = sum(predict_memory("padded", size) for size in sizes)
    wasted = sum(predict_time("padded", size) for size in sizes if size.is_empty)
    check_cost(memory, wasted, device)


def _round_up(length: float, resolution: Resolution) -> float:
    """Longest edge for which the grid points suffice that this one needs anyway.

    So boxes and grids stay the same while a structure changes its extent by a little.
    """
    if largest_mode(length, resolution.cutoff) > MAX_NODES:
        return length
    points = grid_points(length, resolution.cutoff, resolution.window)
    return (1.0 - 1e-9) * math.pi / resolution.cutoff * points


def _origins(middles: Tensor, lengths: Tensor, free: Tensor, grids: Grids) -> Tensor:
    """Where the boxes are along non-periodic directions, close to the middle of the structure.

    They move by whole grid spacings, which changes no energy, but keeps float32 coordinates small.
    """
    spacing = lengths / torch.tensor(grids.shapes).to(lengths)
    return torch.where(free, torch.round(middles / spacing) * spacing, torch.zeros_like(middles))
