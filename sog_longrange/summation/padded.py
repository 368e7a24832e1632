"""Slabs, wires and large open structures on a mesh that is padded along their free axes.

Every Gaussian is a product of one function for each axis. Along a free axis it is cut off
by a smooth window, which is 1 wherever two atoms of the structure can be and 0 before the
nearest image of the padded box. The edges of the window are Gaussians of the kernel's
smallest width, so that the spectrum of the product ends where the kernel's own does, and
the kernel on all modes of the mesh is a matrix product of few columns. Structures keep the
law of the pair sum, and nothing of the box that was put around them remains but an error
within the tolerance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sog_longrange.errors import BoundaryError, InputTypeError, explain
from sog_longrange.geometry import (
    MAX_NODES,
    TAPER,
    cell_volume,
    fade_out,
    largest_mode,
    reciprocal_cell,
    reduced_cell,
    wave_number_onset,
    wrapped_phases,
)
from sog_longrange.kernels.channels import apply_kernels
from sog_longrange.kernels.kernel import Kernel
from sog_longrange.validation import check_no_overflow

from .autograd import quadratic_energy
from .cost_model import Size, check_cost, predict_memory, predict_time
from .mesh import Engine, MeshBackend, Meshes, choose_meshes, fast_length
from .windows import influence, window_width

_REACH = 9.0
"""Widths from the centre of a Gaussian at which it is below the rounding error of float64."""

_BLOCK = 2**20


class Resolution(NamedTuple):
    """What the modes of all structures have in common.

    Attributes
    ----------
    min_width : float
        Smallest width of the kernel and width of the windows' edges, in Å.
    onset : float
        Wave number at which the kernel has decayed to the tolerance, in 1/Å.
    width : int
        Number of nodes along each axis that an atom touches.
    """

    min_width: float
    onset: float
    width: int

    @classmethod
    def of(cls, kernel: Kernel, tolerance: float) -> Resolution:
        """Resolution that a kernel needs for a tolerance."""
        onset = wave_number_onset(kernel.min_width, tolerance)
        return cls(kernel.min_width, onset, window_width(tolerance))

    @property
    def cutoff(self) -> float:
        """Largest wave number, in 1/Å."""
        return TAPER * self.onset

    @property
    def padding(self) -> float:
        """Distance from the middle of an edge at which the edge is below the tolerance, in Å."""
        return self.onset * self.min_width**2


def padded_energy(
    kernel: Kernel,
    charges: Tensor,
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    batch: Tensor,
    tolerance: float,
    engine: Engine,
) -> tuple[Tensor, Tensor]:
    """Energy of structures with free axes on padded meshes, self-interaction included.

    Parameters
    ----------
    kernel : Kernel
        A sum of Gaussians, with `amplitudes` and `widths` of shape (n_kernels,
        num_gaussians).
    charges : Tensor, shape (n_atoms, n_channels), in e
    positions : Tensor, shape (n_atoms, 3), in Å
        Any image along the periodic axes.
    cell : Tensor, shape (n_graphs, 3, 3), in Å
        Rows of free axes are never read: free axes are normal to the periodic ones.
    pbc : Tensor, shape (n_graphs, 3), bool
        At least one axis of each structure is free.
    batch : Tensor, shape (n_atoms,), sorted
    tolerance : float
        Sets the k cutoff as in the direct sum, and with it meshes and padding.
    engine : Engine

    Returns
    -------
    energy : Tensor, shape (n_graphs,), in eV
        1/2 sum_ij q_i q_j sum_n K(|r_i - r_j - n|) over the images n along the periodic
        axes, i = j included, whatever `zero_mode` is: with free axes the sum converges.
        Twice differentiable; its gradient is exact for the energy as computed.
    potential : Tensor, shape (n_atoms, n_channels), in eV/e
        Once differentiable.

    Raises
    ------
    BoundaryError
        If a structure has no free axis, or the kernel is no sum of Gaussians.
    InputError, InputTypeError
        If positions are so large that they overflow, or the kernel has another dtype.
    SizeError
        If the meshes fit into no memory.

    References
    ----------
    Vico, Greengard, Ferrando, J. Comput. Phys. 323, 191 (2016) (kernels cut off beyond the
    structure); Ji, Liang, Xu, arXiv:2502.04668 (sums of Gaussians).
    """
    box = pad(kernel, positions, cell, pbc, batch, tolerance, charges.shape[1])
    backend = MeshBackend(box.meshes, batch, engine)
    energy, potential = quadratic_energy(backend, box.phases, charges, box.table)
    total = charges.new_zeros(len(cell), charges.shape[1]).index_add(0, batch, charges)
    shift = apply_kernels(box.means, total, 1)
    return energy + 0.5 * (shift * total).sum(-1), potential + shift[batch]


class PaddedBoxes(NamedTuple):
    """Structures in boxes that are padded along their free axes.

    Attributes
    ----------
    meshes : Meshes
    reciprocal : Tensor, shape (n_graphs, 3, 3), in 1/Å
        Reciprocal lattice vectors of the boxes.
    phases : Tensor, shape (n_atoms, 3)
        Of the atoms, for these vectors.
    table : Tensor, shape (n_kernels, modes of all structures), in eV/e^2
        Kernel per volume on all modes but k = 0, times the window's influence.
    means : Tensor, shape (n_graphs, n_kernels), in eV/e^2
        The kernel at k = 0.
    """

    meshes: Meshes
    reciprocal: Tensor
    phases: Tensor
    table: Tensor
    means: Tensor


def pad(
    kernel: Kernel,
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    batch: Tensor,
    tolerance: float,
    n_fields: int,
) -> PaddedBoxes:
    """Put structures with free axes into boxes, and the kernel on the modes of their meshes.

    Parameters
    ----------
    kernel, positions, cell, pbc, batch, tolerance
        As in :func:`padded_energy`.
    n_fields : int
        Number of channels, times more than one where more than their energies is computed.

    Returns
    -------
    PaddedBoxes

    Raises
    ------
    BoundaryError, InputError, InputTypeError, SizeError
        As :func:`padded_energy`.
    """
    amplitudes, widths = _gaussians(kernel, positions.dtype)
    flags = [tuple(row) for row in pbc.tolist()]
    resolution = Resolution.of(kernel, tolerance)
    frames = _frames(positions.detach(), cell, flags, batch, resolution)
    free = torch.arange(3, device=pbc.device) >= pbc.sum(-1, keepdim=True)
    low, high = _extents(positions, frames, batch)
    lengths = _lengths(frames, free, high - low, resolution)
    meshes = choose_meshes(lengths.tolist(), resolution.cutoff, resolution.width)
    _check_cost(lengths, positions, batch, n_fields, kernel.min_width, tolerance)
    padded = torch.where(free, lengths, torch.ones_like(lengths)).to(cell)[..., None] * frames
    origins = _origins(0.5 * (low + high), lengths, free, meshes).to(cell)
    table, means = _table(amplitudes, widths, padded, lengths, free, meshes, resolution)
    centred = positions - (origins[..., None] * frames).sum(1)[batch]
    reciprocal = reciprocal_cell(padded)
    phases = wrapped_phases(centred, reciprocal, batch)
    check_no_overflow("positions", phases)
    return PaddedBoxes(meshes, reciprocal, phases, table, means)


def _gaussians(kernel: Kernel, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Amplitudes and widths of a kernel that has them."""
    if not (hasattr(kernel, "amplitudes") and hasattr(kernel, "widths")):
        remedy = (
            "Slabs, wires and padded meshes need the Gaussians of the kernel one by one; "
            "open structures with other kernels are summed over pairs."
        )
        expected = "a sum of Gaussians for structures with free axes"
        raise BoundaryError(explain("kernel", expected, type(kernel).__name__, remedy))
    amplitudes: Tensor = kernel.amplitudes
    widths: Tensor = kernel.widths
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
    """Periodic lattice vectors, then unit vectors of the free axes; (n_graphs, 3, 3)."""
    counts = torch.bincount(batch, minlength=len(cell)).tolist()
    frames = [
        _partly_periodic_frame(rows, own) if any(own) else _open_frame(points, resolution)
        for rows, own, points in zip(cell, flags, positions.split(counts), strict=True)
    ]
    # Free axes are normal to all others, so that only lattice vectors of slabs change.
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
        remedy = "Structures without free axes belong to the other reciprocal sums."
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


def _check_cost(
    lengths: Tensor,
    positions: Tensor,
    batch: Tensor,
    n_fields: int,
    min_width: float,
    tolerance: float,
) -> None:
    """Refuse meshes that fit into no memory, and warn of those that are expensive."""
    device, how = positions.device, (min_width, tolerance, positions.dtype, True)
    counts = torch.bincount(batch, minlength=len(lengths)).tolist()
    sizes = [
        Size(count, n_fields, edges, *how, device.type)
        for count, edges in zip(counts, lengths.tolist(), strict=True)
    ]
    memory = sum(predict_memory("padded", size) for size in sizes)
    wasted = sum(predict_time("padded", size) for size in sizes if size.is_empty)
    check_cost(memory, wasted, device)


def _round_up(length: float, resolution: Resolution) -> float:
    """Longest edge for which the nodes suffice that this one needs anyway.

    So boxes and meshes stay the same while a structure changes its extent by a little.
    """
    needed = 2 * largest_mode(length, resolution.cutoff) + 1
    if needed > MAX_NODES:
        return length
    nodes = fast_length(max(needed, resolution.width + 1))
    return (1.0 - 1e-9) * 2.0 * math.pi / resolution.cutoff * ((nodes + 1) // 2)


def _origins(middles: Tensor, lengths: Tensor, free: Tensor, meshes: Meshes) -> Tensor:
    """Where the boxes are along their free axes, close to the middle of the structure.

    They move by whole nodes, which changes no energy, but keeps float32 coordinates small.
    """
    spacing = lengths / torch.tensor(meshes.shapes).to(lengths)
    return torch.where(free, torch.round(middles / spacing) * spacing, torch.zeros_like(middles))


def _table(
    amplitudes: Tensor,
    widths: Tensor,
    padded: Tensor,
    lengths: Tensor,
    free: Tensor,
    meshes: Meshes,
    resolution: Resolution,
) -> tuple[Tensor, Tensor]:
    """Values of the kernel on all modes, times the window's influence, per volume.

    Returns
    -------
    table : Tensor, shape (n_kernels, modes of all structures), in eV/e^2
        Without k = 0: the potential that a net charge has there is large and exerts no
        force, but on a mesh its rounding errors would.
    means : Tensor, shape (n_graphs, n_kernels), in eV/e^2
        The kernel at k = 0, without the window's influence.
    """
    # One-dimensional factors cost nothing and hold the wide Gaussians' small values.
    amplitudes, widths = amplitudes.double()[..., None], widths.double()
    tables, means = [], []
    counts = (~free).sum(-1).tolist()
    boxes = zip(padded.double(), lengths.tolist(), meshes.shapes, counts, strict=True)
    for box, edges, shape, periodic in boxes:
        first, *others, last = _factors(widths, box, edges, shape, periodic, resolution)
        left, right = amplitudes * first, last[..., : shape[2] // 2 + 1]
        for factor in others:
            left = (left[..., None] * factor[:, :, None]).flatten(2)
        product = left.transpose(1, 2).to(padded.dtype) @ right.to(padded.dtype)
        product[:, 0, 0] = 0.0
        tables.append(product.flatten(1))
        undo = math.prod(float(influence(meshes.width, n)[0]) for n in shape)
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
    """Gaussians on the modes of all periodic axes together, and of each free axis."""
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
    # The free rows of the reciprocal cell are normal to the others and to each other.
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
        undo = np.outer(undo, influence(resolution.width, n)).ravel()
    factor = fade_out(k2, resolution.onset) * torch.from_numpy(undo).to(k2)
    return peak * torch.exp(-0.5 * s2 * k2) * factor


def _free_factor(widths: Tensor, length: float, nodes: int, resolution: Resolution) -> Tensor:
    """Gaussians in the window along a free axis; (n_kernels, num_gaussians, nodes)."""
    points, rows = _window_points(length, resolution)
    points, rows = points.to(widths.device), rows.to(widths.device)
    k = 2.0 * math.pi / length * torch.from_numpy(np.fft.fftfreq(nodes, 1.0 / nodes))
    # Without the unpaired mode of even meshes, which has no mirror image.
    kept = (k.abs() <= resolution.cutoff) * torch.from_numpy(influence(resolution.width, nodes))
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
