"""Spreading and interpolation on GPUs, compiled by Triton for one window width and one dtype.

Atoms are sorted by blocks of grid points, so that programs that run at the same time share
cache lines, and the weights of each atom along the three axes are tabulated once. The lanes
of a program are the y-z points of a few atoms; it steps through their x planes. Spreading adds
atomically, in no fixed order: its results repeat to rounding errors only.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sog_longrange.summation.grids import Grids
from sog_longrange.summation.multipoles import monomials, order_of, phase_gradient
from sog_longrange.summation.windows import make_window

from .engine import Engine
from .torch_engine import TorchSpreader
from .triton_direct import TritonDirect
from .triton_grids import block_numbers, coefficients, geometry
from .triton_launch import launch, power_of_two
from .triton_table import TritonSampler

MAX_ORDER: int = 3
"""Highest order of the derivatives that are compiled; higher ones are PyTorch's."""

_LANES = 128
# One warp adds up its lanes without a barrier.
_OPTIONS = {"num_warps": 1}


class TritonSpreader:
    """Sums between atoms and grids as Triton kernels, on the device of the phases.

    Parameters
    ----------
    grids : Grids
    phases : Tensor, shape (n_atoms, 3), in [0, 2 pi]
    batch : Tensor, shape (n_atoms,)

    Raises
    ------
    SizeError
        If a window is wider than a grid.
    """

    def __init__(self, grids: Grids, phases: Tensor, batch: Tensor) -> None:
        self.grids = grids
        self.batch = batch.contiguous()
        self.phases = phases.contiguous()
        self.geometry = geometry(grids, phases.dtype, phases.device)
        self.coefficients = coefficients(grids.width, phases.dtype, phases.device)
        self.order = torch.argsort(block_numbers(self.geometry, self.phases, self.batch))
        self.graphs = batch[self.order]
        self.corners = phases.new_empty(phases.shape, dtype=torch.int32)
        self.weights: dict[int, Tensor] = {}

    def spread(self, sources: Tensor) -> Tensor:
        """Implement :meth:`Spreader.spread`."""
        order = order_of(sources.shape[1])
        if order > MAX_ORDER:
            return TorchSpreader(self.grids, self.phases, self.batch).spread(sources)
        points = sources.new_zeros(sources.shape[2], self.grids.starts[-1])
        self._run(_spread, points, order, sources.contiguous())
        return points

    def interpolate(self, field: Tensor, order: int) -> Tensor:
        """Implement :meth:`Spreader.interpolate`."""
        if order > MAX_ORDER:
            return TorchSpreader(self.grids, self.phases, self.batch).interpolate(field, order)
        out = field.new_empty(len(self.phases), len(monomials(order)), len(field))
        self._run(_interpolate, field.contiguous(), order, out)
        return out

    def interpolate_gradient(self, field: Tensor, weights: Tensor) -> Tensor:
        """Implement :meth:`Spreader.interpolate_gradient`."""
        higher = self.interpolate(field, order_of(weights.shape[1]) + 1)
        return phase_gradient(weights, higher)

    def _weights_of(self, order: int) -> Tensor:
        """Weights of sorted atoms and phase derivatives; (n_atoms, 3, order + 1, width)."""
        known = [own for own in self.weights if own >= order]
        if known:
            return self.weights[min(known)]
        own, width = self.geometry, self.grids.width
        window, orders = make_window(width), max(order, 1) + 1
        weights = self.phases.new_empty(len(self.phases), 3, orders, width)
        tile = power_of_two(width)
        rows = max(1, _LANES // tile)
        launch(
            *(_weigh, (triton.cdiv(3 * len(self.phases), rows),)),
            *(self.order, self.graphs, self.phases, own.sizes, own.scales),
            *(self.coefficients, self.corners, weights, len(self.phases)),
            SHIFT=window.shift,
            FIRST=window.first,
            WIDTH=width,
            DEGREE=len(self.coefficients) - 1,
            ORDERS=orders,
            TILE=tile,
            ROWS=rows,
            **_OPTIONS,
        )
        self.weights[orders - 1] = weights
        return weights

    def _run(self, kernel: Any, points: Tensor, order: int, values: Tensor) -> None:
        """Launch a kernel for all atoms and the channels of some grids."""
        own, width, weights = self.geometry, self.grids.width, self._weights_of(order)
        tile = power_of_two(width**2)
        atoms = max(1, _LANES // tile)
        launch(
            *(kernel, (triton.cdiv(len(self.phases), atoms), len(points))),
            *(self.order, self.graphs, self.corners, weights, own.sizes, own.starts),
            *(points, values, len(self.phases), points.shape[1]),
            WIDTH=width,
            TILE=tile,
            ATOMS=atoms,
            ORDER=order,
            ORDERS=weights.shape[2],
            **_OPTIONS,
        )


TRITON = Engine("triton", TritonSpreader, TritonSampler, TritonDirect)


# Sizes are not specialised on, or every divisibility by 16 would compile the kernels anew.
_SIZES = ["n_atoms", "n_points"]


@triton.jit(do_not_specialize=_SIZES)
def _weigh(
    order: tl.tensor,
    graphs: tl.tensor,
    phases: tl.tensor,
    sizes: tl.tensor,
    scales: tl.tensor,
    coefficients: tl.tensor,
    corners: tl.tensor,
    weights: tl.tensor,
    n_atoms: tl.tensor,
    SHIFT: tl.constexpr,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    DEGREE: tl.constexpr,
    ORDERS: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """First grid points of sorted atoms and their weights; a row is one axis of one atom."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    node = tl.arange(0, TILE)[None, :]
    atom, axis = row // 3, row % 3
    present = atom < n_atoms
    graph = tl.load(graphs + atom, present, 0)
    size = tl.load(sizes + graph * 3 + axis, present, 1)
    scale = tl.load(scales + graph * 3 + axis, present, 0.0)
    u = tl.load(phases + tl.load(order + atom, present, 0) * 3 + axis, present, 0.0) * scale + SHIFT
    below = tl.floor(u)
    t = u - below
    # A phase that is not finite must not lead out of the mesh.
    corner = (below.to(tl.int32) + FIRST) % size
    tl.store(corners + row, tl.where(corner < 0, corner + size, corner), present)
    value = tl.load(coefficients + node, node < WIDTH, 0.0)
    slope = tl.zeros_like(value)
    bend = tl.zeros_like(value)
    third = tl.zeros_like(value)
    for d in tl.static_range(1, DEGREE + 1):
        third = third * t + bend
        bend = bend * t + slope
        slope = slope * t + value
        value = value * t + tl.load(coefficients + d * WIDTH + node, node < WIDTH, 0.0)
    place = weights + row * (ORDERS * WIDTH) + node
    inside = present & (node < WIDTH)
    tl.store(place, value, inside)
    tl.store(place + WIDTH, slope * scale, inside)
    if ORDERS > 2:
        tl.store(place + 2 * WIDTH, bend * (2.0 * scale * scale), inside)
    if ORDERS > 3:
        tl.store(place + 3 * WIDTH, third * (6.0 * scale * scale * scale), inside)


@triton.jit
def _wrap(node: tl.tensor, size: tl.tensor) -> tl.tensor:
    """Take back into the grid a point that is less than a grid beyond its end."""
    return tl.where(node < size, node, node - size)


@triton.jit
def _locate(
    order: tl.tensor,
    graphs: tl.tensor,
    corners: tl.tensor,
    sizes: tl.tensor,
    starts: tl.tensor,
    n_atoms: tl.tensor,
    n_points: tl.tensor,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    ATOMS: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Sorted and own numbers of this program's atoms, the x axis, and points in a y-z plane."""
    row = tl.program_id(0).to(tl.int64) * ATOMS + tl.arange(0, ATOMS)[:, None]
    present = row < n_atoms
    atom = tl.load(order + row, present, 0)
    graph = tl.load(graphs + row, present, 0)
    n_x = tl.load(sizes + graph * 3, present, 1)
    n_y = tl.load(sizes + graph * 3 + 1, present, 1)
    n_z = tl.load(sizes + graph * 3 + 2, present, 1).to(tl.int64)
    lane = tl.arange(0, TILE)[None, :]
    x = tl.load(corners + row * 3, present, 0)
    y = _wrap(tl.load(corners + row * 3 + 1, present, 0) + lane // WIDTH, n_y)
    z = _wrap(tl.load(corners + row * 3 + 2, present, 0) + lane % WIDTH, n_z)
    # Several channels of one large grid have more points than 32 bits can count.
    plane = tl.program_id(1).to(tl.int64) * n_points + tl.load(starts + graph, present, 0)
    return row, atom, present, x, n_x, n_y * n_z, plane + y * n_z + z


@triton.jit
def _lane_weights(
    weights: tl.tensor,
    row: tl.tensor,
    present: tl.tensor,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    ORDERS: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Where the weights of x begin, and pointers to those of y and z; which lanes are points."""
    lane = tl.arange(0, TILE)[None, :]
    along_x = weights + row * (3 * ORDERS * WIDTH)
    along_y = along_x + ORDERS * WIDTH + lane // WIDTH
    along_z = along_x + 2 * ORDERS * WIDTH + lane % WIDTH
    return along_x, along_y, along_z, present & (lane < WIDTH * WIDTH)


@triton.jit
def _level(
    own: tl.tensor,
    channels: tl.tensor,
    along_y: tl.tensor,
    along_z: tl.tensor,
    present: tl.tensor,
    inside: tl.tensor,
    A: tl.constexpr,
    ORDER: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """Sum the sources of power A along x over those along y and z, for the lanes of a plane."""
    total = tl.load(along_y, inside, 0.0) * 0.0
    for b in tl.static_range(ORDER + 1 - A):
        y = tl.load(along_y + b * WIDTH, inside, 0.0)
        for c in tl.static_range(ORDER + 1 - A - b):
            # Places of monomials: those of lower orders, then of higher powers along x, come first.
            d = A + b + c
            place = d * (d + 1) * (d + 2) // 6 + (b + c) * (b + c + 1) // 2 + c
            z = tl.load(along_z + c * WIDTH, inside, 0.0)
            total += tl.load(own + place * channels, present, 0.0) * y * z
    return total


@triton.jit
def _store(
    own: tl.tensor,
    channels: tl.tensor,
    along_y: tl.tensor,
    along_z: tl.tensor,
    present: tl.tensor,
    inside: tl.tensor,
    total: tl.tensor,
    A: tl.constexpr,
    ORDER: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Store the derivatives of power A along x, from sums over x for the lanes of a plane."""
    for b in tl.static_range(ORDER + 1 - A):
        y = tl.load(along_y + b * WIDTH, inside, 0.0)
        for c in tl.static_range(ORDER + 1 - A - b):
            d = A + b + c
            place = d * (d + 1) * (d + 2) // 6 + (b + c) * (b + c + 1) // 2 + c
            z = tl.load(along_z + c * WIDTH, inside, 0.0)
            tl.store(own + place * channels, tl.sum(total * y * z, 1, keep_dims=True), present)


@triton.jit(do_not_specialize=_SIZES)
def _spread(
    order: tl.tensor,
    graphs: tl.tensor,
    corners: tl.tensor,
    weights: tl.tensor,
    sizes: tl.tensor,
    starts: tl.tensor,
    points: tl.tensor,
    values: tl.tensor,
    n_atoms: tl.tensor,
    n_points: tl.tensor,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    ATOMS: tl.constexpr,
    ORDER: tl.constexpr,
    ORDERS: tl.constexpr,
) -> None:
    """Add sources up to an order to the points of one channel."""
    channel, channels = tl.program_id(1), tl.num_programs(1)
    row, atom, present, x, n_x, area, plane = _locate(
        order, graphs, corners, sizes, starts, n_atoms, n_points, WIDTH, TILE, ATOMS
    )
    along_x, along_y, along_z, inside = _lane_weights(weights, row, present, WIDTH, TILE, ORDERS)
    count: tl.constexpr = (ORDER + 1) * (ORDER + 2) * (ORDER + 3) // 6
    own = values + atom * (count * channels) + channel
    level_0 = _level(own, channels, along_y, along_z, present, inside, 0, ORDER, WIDTH)
    if ORDER > 0:
        level_1 = _level(own, channels, along_y, along_z, present, inside, 1, ORDER, WIDTH)
    if ORDER > 1:
        level_2 = _level(own, channels, along_y, along_z, present, inside, 2, ORDER, WIDTH)
    if ORDER > 2:
        level_3 = _level(own, channels, along_y, along_z, present, inside, 3, ORDER, WIDTH)
    for i in tl.static_range(WIDTH):
        value = tl.load(along_x + i, present, 0.0) * level_0
        if ORDER > 0:
            value += tl.load(along_x + WIDTH + i, present, 0.0) * level_1
        if ORDER > 1:
            value += tl.load(along_x + 2 * WIDTH + i, present, 0.0) * level_2
        if ORDER > 2:
            value += tl.load(along_x + 3 * WIDTH + i, present, 0.0) * level_3
        target = points + (plane + _wrap(x + i, n_x) * area)
        tl.atomic_add(target, value, inside, sem="relaxed")


@triton.jit(do_not_specialize=_SIZES)
def _interpolate(
    order: tl.tensor,
    graphs: tl.tensor,
    corners: tl.tensor,
    weights: tl.tensor,
    sizes: tl.tensor,
    starts: tl.tensor,
    points: tl.tensor,
    values: tl.tensor,
    n_atoms: tl.tensor,
    n_points: tl.tensor,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    ATOMS: tl.constexpr,
    ORDER: tl.constexpr,
    ORDERS: tl.constexpr,
) -> None:
    """Store derivatives up to an order of the potential of one channel."""
    channel, channels = tl.program_id(1), tl.num_programs(1)
    row, atom, present, x, n_x, area, plane = _locate(
        order, graphs, corners, sizes, starts, n_atoms, n_points, WIDTH, TILE, ATOMS
    )
    along_x, along_y, along_z, inside = _lane_weights(weights, row, present, WIDTH, TILE, ORDERS)
    count: tl.constexpr = (ORDER + 1) * (ORDER + 2) * (ORDER + 3) // 6
    own = values + atom * (count * channels) + channel
    zeros = tl.load(along_y, inside, 0.0) * 0.0
    x_0, x_1, x_2, x_3 = zeros, zeros, zeros, zeros
    for i in tl.static_range(WIDTH):
        source = tl.load(points + (plane + _wrap(x + i, n_x) * area), inside, 0.0)
        x_0 += tl.load(along_x + i, present, 0.0) * source
        if ORDER > 0:
            x_1 += tl.load(along_x + WIDTH + i, present, 0.0) * source
        if ORDER > 1:
            x_2 += tl.load(along_x + 2 * WIDTH + i, present, 0.0) * source
        if ORDER > 2:
            x_3 += tl.load(along_x + 3 * WIDTH + i, present, 0.0) * source
    _store(own, channels, along_y, along_z, present, inside, x_0, 0, ORDER, WIDTH)
    if ORDER > 0:
        _store(own, channels, along_y, along_z, present, inside, x_1, 1, ORDER, WIDTH)
    if ORDER > 1:
        _store(own, channels, along_y, along_z, present, inside, x_2, 2, ORDER, WIDTH)
    if ORDER > 2:
        _store(own, channels, along_y, along_z, present, inside, x_3, 3, ORDER, WIDTH)
