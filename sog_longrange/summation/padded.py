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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sog_longrange.errors import BoundaryError, InputTypeError, explain
from sog_longrange.geometry import (
    MAX_NODES,
    cell_reduction,
    largest_mode,
    reciprocal_cell,
    sum_over_atoms,
    to_device,
    wrapped_phases,
)
from sog_longrange.kernels.channels import apply_kernels
from sog_longrange.kernels.kernel import Kernel
from sog_longrange.layout import Layout, read_together
from sog_longrange.validation import Structures, check_no_overflow, check_phases, layout_of

from .cost_model import check_cost, predict_memory, predict_time
from .cost_terms import Size
from .grids import Grids, choose_grids, grid_points
from .interaction import Interaction, Potentials
from .mesh import MeshBackend
from .modes import sum_over_modes
from .multipoles import Multipoles
from .padded_table import PaddedCells, kernel_on_padded_modes
from .resolution import Resolution

_ENDS = ("amin", "amax")


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
    n_fields = sources.memory_factor(field) * charges.shape[1]
    resolution = interaction.resolution(sources.order, padded=True)
    boxes = pad(interaction.kernel, part, n_fields, resolution)
    backend = MeshBackend(boxes.grids, batch, interaction.engine_on(charges.device))
    part_of_modes = [(backend, lambda: boxes.table)]
    geometry = boxes.phases, boxes.reciprocal
    out = sum_over_modes(part_of_modes, sources, *geometry, interaction, field=field)
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
    positions, cell, _, batch = part[:4]
    gaussians, layout = _gaussians(kernel, positions.dtype), layout_of(part)
    known = _known_frames(part, layout, resolution)
    frames = _frames(cell, layout, known)
    change = cell_reduction(known, [True] * len(known))
    if change is not None:
        # Non-periodic directions are normal to all others: only lattice vectors of slabs change.
        known, frames = change @ known, to_device(change, cell) @ frames
    periodic = [sum(own) for own in layout.flags]
    free = np.arange(3) >= np.array(periodic)[:, None]
    low, high = _extents(positions, frames, batch)
    lengths = _lengths(known, free, high - low, resolution)
    grids = choose_grids(lengths.tolist(), resolution.cutoff, resolution.window)
    _check_cost(lengths.tolist(), part, layout.counts, n_fields, resolution)
    scale = np.where(free, lengths, 1.0)[..., None]
    padded = to_device(scale, cell) * frames
    origins = to_device(_origins(0.5 * (low + high), lengths, free, grids)[..., None], cell)
    cells = PaddedCells(padded, lengths.tolist(), periodic, grids)
    table, means = kernel_on_padded_modes(*gaussians, cells, resolution)
    centred = positions - (origins * frames).sum(1)[batch]
    reciprocal = reciprocal_cell(padded)
    phases = wrapped_phases(centred, reciprocal, batch)
    boxed = layout.change(flags=[(True,) * 3] * len(known), cells=scale * known)
    check_phases(phases, part._replace(layout=boxed))
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


def _known_frames(part: Structures, layout: Layout, resolution: Resolution) -> NDArray[np.float64]:
    """Periodic lattice vectors, then unit vectors of the others; (n_graphs, 3, 3)."""
    starts, points = layout.starts, None
    frames = np.tile(np.eye(3), (len(layout.counts), 1, 1))
    for graph, flags in enumerate(layout.flags):
        if all(flags):
            remedy = "Periodic structures belong to the other reciprocal sums."
            raise BoundaryError(explain("pbc", "false for at least one axis", "all true", remedy))
        if any(flags):
            frames[graph] = _partly_periodic_frame(layout.cells[graph][list(flags)])
        elif layout.counts[graph] > 1:
            if points is None:
                points = part.positions.detach().cpu().double().numpy()
            frames[graph] = _open_frame(points[starts[graph] : starts[graph + 1]], resolution)
    return frames


def _open_frame(positions: NDArray[np.float64], resolution: Resolution) -> NDArray[np.float64]:
    """Coordinate axes, or axes along the structure if its box is much smaller with them."""
    with np.errstate(over="ignore", invalid="ignore"):
        points = positions - positions.mean(0)
    if not np.isfinite(points).all():
        check_no_overflow("positions", torch.from_numpy(points))
    scaled = points / max(np.abs(points).max(), resolution.min_width)
    axes = np.linalg.eigh(scaled.T @ scaled)[1]
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0))
    # Rounded, so that they mostly stay the same while the atoms move a little.
    turned = np.linalg.qr(np.round(8.0 * axes) / 8.0)[0].T
    with np.errstate(over="ignore"):
        sizes = [
            (np.ptp(along, axis=0) + resolution.padding).prod()
            for along in (points, points @ turned.T)
        ]
    return turned if sizes[1] < 0.5 * sizes[0] else np.eye(3)


def _partly_periodic_frame(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Periodic lattice vectors, then unit vectors normal to them and to each other."""
    first, second = rows[0], rows[-1]
    if len(rows) == 1:
        normal = np.cross(first, _other_axis(first))
        second = normal / math.hypot(*normal)
    third = np.cross(first, second)
    return np.stack([first, second, third / math.hypot(*third)])


def _other_axis(row: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinate axis that is closest to normal to a vector, and so cannot be parallel to it."""
    axis: NDArray[np.float64] = np.eye(3)[np.abs(row).argmin()]
    return axis


def _frames(cell: Tensor, layout: Layout, known: NDArray[np.float64]) -> Tensor:
    """Frames that depend on the lattice vectors, for all structures at once."""
    frames = to_device(known, cell)
    graphs = [graph for graph, own in enumerate(layout.flags) if any(own)]
    if not graphs:
        return frames
    axes = [[axis for axis, own in enumerate(layout.flags[g]) if own] for g in graphs]
    index = to_device(graphs, cell, torch.int64)
    rows = cell[index[:, None], to_device([(own[0], own[-1]) for own in axes], index)]
    first, given = rows.unbind(1)
    others = np.stack([_other_axis(known[g, 0]) for g in graphs])
    made = _normal(first, to_device(others, cell))
    has_two = to_device([[len(own) == 2] for own in axes], index, torch.bool)
    second = torch.where(has_two, given, made)
    own = torch.stack([first, second, _normal(first, second)], 1)
    return own if len(graphs) == len(known) else frames.index_copy(0, index, own)


def _normal(first: Tensor, second: Tensor) -> Tensor:
    """Return the unit vectors that are normal to two others."""
    normal = torch.linalg.cross(first, second)
    unit: Tensor = normal / torch.linalg.vector_norm(normal, dim=-1, keepdim=True)
    return unit


def _extents(
    positions: Tensor, frames: Tensor, batch: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest coordinate of each structure along the rows of its frame."""
    along = (positions.detach()[:, None] * frames.detach()[batch]).sum(-1)
    index = batch[:, None].expand(-1, 3)
    zeros = along.new_zeros(len(frames), 3)
    ends = [zeros.scatter_reduce(0, index, along, end, include_self=False) for end in _ENDS]
    low, high = read_together(ends)
    if not np.isfinite([low, high]).all():
        check_no_overflow("positions", along)
    return low, high


def _lengths(
    frames: NDArray[np.float64],
    free: NDArray[np.bool_],
    extents: NDArray[np.float64],
    resolution: Resolution,
) -> NDArray[np.float64]:
    """Edges of the padded cells; shape (n_graphs, 3)."""
    # An image must be `padding` beyond the edge, which is as far beyond the structure.
    needed = 2.0 * (extents + resolution.padding)
    if not np.isfinite(needed).all():
        check_no_overflow("positions", torch.from_numpy(needed))
    boxes = [[_round_up(a, resolution) for a in row] for row in needed.tolist()]
    return np.where(free, boxes, np.hypot.reduce(frames, axis=-1))


def _check_cost(
    lengths: list[list[float]],
    part: Structures,
    counts: list[int],
    n_fields: int,
    resolution: Resolution,
) -> None:
    """Refuse grids that fit into no memory, and warn of those that are expensive."""
    device, dtype = part.positions.device, part.positions.dtype
    sizes = [
        Size(count, n_fields, edges, resolution, dtype, compiled=True, device=device.type)
        for count, edges in zip(counts, lengths, strict=True)
    ]
    memory = float(sum(predict_memory("padded", size) for size in sizes))
    wasted = float(sum(predict_time("padded", size) for size in sizes if size.is_empty))
    check_cost(memory, wasted, device)


def _round_up(length: float, resolution: Resolution) -> float:
    """Longest edge for which the grid points suffice that this one needs anyway.

    So boxes and grids stay the same while a structure changes its extent by a little.
    """
    if largest_mode(length, resolution.cutoff) > MAX_NODES:
        return length
    points = grid_points(length, resolution.cutoff, resolution.window)
    return (1.0 - 1e-9) * math.pi / resolution.cutoff * points


def _origins(
    middles: NDArray[np.float64],
    lengths: NDArray[np.float64],
    free: NDArray[np.bool_],
    grids: Grids,
) -> NDArray[np.float64]:
    """Where the boxes are along non-periodic directions, close to the middle of the structure.

    They move by whole grid spacings, which changes no energy, but keeps float32 coordinates small.
    """
    spacing = lengths / np.array(grids.shapes)
    origins: NDArray[np.float64] = np.round(np.where(free, middles, 0.0) / spacing) * spacing
    return origins
