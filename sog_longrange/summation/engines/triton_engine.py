"""Spreading and gathering on GPUs, compiled by Triton for one window width and one dtype.

Atoms are sorted by blocks of mesh nodes, so that programs that run at the same time share
cache lines, and the weights of each atom along the three axes are tabulated once. The lanes
of a program are the y-z nodes of a few atoms; it steps through their x planes. Spreading adds
atomically, in no fixed order: its results repeat to rounding errors only.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from sog_longrange.errors import SizeError
from sog_longrange.summation.kernel_table import TorchSampler
from sog_longrange.summation.mesh import Engine, Meshes
from sog_longrange.summation.windows import make_window

_BLOCK = 8
_LANES = 128
# One warp adds up its lanes without a barrier; Triton's versions differ in the default of fusion.
_OPTIONS = {"num_warps": 1, "enable_fp_fusion": True}


class TritonStencil:
    """Stencils as Triton kernels, on the device of the phases.

    Parameters
    ----------
    meshes : Meshes
    phases : Tensor, shape (n_atoms, 3), in [0, 2 pi]
    batch : Tensor, shape (n_atoms,)

    Raises
    ------
    SizeError
        If a window is wider than a mesh.
    """

    def __init__(self, meshes: Meshes, phases: Tensor, batch: Tensor) -> None:
        self.meshes = meshes
        self.phases = phases.contiguous()
        self.geometry = _geometry(meshes, phases.dtype, phases.device)
        self.coefficients = _coefficients(meshes.width, phases.dtype, phases.device)
        self.order = torch.argsort(self._blocks(batch))
        self.graphs = batch[self.order]
        self.corners = phases.new_empty(phases.shape, dtype=torch.int32)
        self.weights = self._weights(2)

    def spread(self, charges: Tensor, dipoles: Tensor | None) -> Tensor:
        """Implement :meth:`Stencil.spread`."""
        channels = charges.shape[1]
        nodes = charges.new_zeros(channels, self.meshes.starts[-1])
        charges = charges.contiguous()
        sources = charges if dipoles is None else dipoles.contiguous()
        self._run(_spread, nodes, self.weights, charges, sources, DIPOLES=dipoles is not None)
        return nodes

    def gather(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Implement :meth:`Stencil.gather`."""
        n_atoms, channels = len(self.phases), len(nodes)
        value, slope = nodes.new_empty(n_atoms, channels), nodes.new_empty(n_atoms, 3, channels)
        self._run(_gather, nodes.contiguous(), self.weights, value, slope)
        return value, slope

    def gather_hessian(self, nodes: Tensor, direction: Tensor) -> Tensor:
        """Implement :meth:`Stencil.gather_hessian`."""
        product = nodes.new_empty(len(self.phases), 3, len(nodes))
        weights = self._weights(3)
        self._run(_gather_hessian, nodes.contiguous(), weights, direction.contiguous(), product)
        return product

    def _blocks(self, batch: Tensor) -> Tensor:
        """Find the block of nodes that each atom is in, numbered through all structures."""
        own = self.geometry
        place = (self.phases * own.scales[batch] / _BLOCK).long()
        return (place * own.strides[batch]).sum(1) + own.first_blocks[batch]

    def _weights(self, orders: int) -> Tensor:
        """Weights of sorted atoms and their phase derivatives; (n_atoms, 3, orders, width)."""
        own, width = self.geometry, self.meshes.width
        window = make_window(width)
        weights = self.phases.new_empty(len(self.phases), 3, orders, width)
        tile = _tile(width)
        rows = max(1, _LANES // tile)
        with torch.cuda.device_of(self.phases):
            _weigh[(triton.cdiv(3 * len(self.phases), rows),)](
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
        return weights

    def _run(
        self, kernel: Any, nodes: Tensor, weights: Tensor, *args: Tensor, **flags: bool
    ) -> None:
        """Launch a kernel for all atoms and the channels of some nodes."""
        own, width = self.geometry, self.meshes.width
        tile = _tile(width**2)
        atoms = max(1, _LANES // tile)
        with torch.cuda.device_of(nodes):
            kernel[(triton.cdiv(len(self.phases), atoms), len(nodes))](
                *(self.order, self.graphs, self.corners, weights, own.sizes, own.starts),
                *(nodes, *args, len(self.phases), nodes.shape[1]),
                WIDTH=width,
                TILE=tile,
                ATOMS=atoms,
                **_OPTIONS,
                **flags,
            )


TRITON = Engine("triton", TritonStencil, TorchSampler)


class _Geometry(NamedTuple):
    """Meshes as the kernels read them, one row for each structure.

    Attributes
    ----------
    sizes : Tensor of int32, shape (n_graphs, 3)
    starts : Tensor of int64, shape (n_graphs,)
    scales : Tensor, shape (n_graphs, 3)
        Nodes per radian.
    strides : Tensor of int64, shape (n_graphs, 3)
        Of the numbers of blocks, which are in the order of nodes.
    first_blocks : Tensor of int64, shape (n_graphs,)
    """

    sizes: Tensor
    starts: Tensor
    scales: Tensor
    strides: Tensor
    first_blocks: Tensor


@lru_cache(maxsize=32)
def _geometry(meshes: Meshes, dtype: torch.dtype, device: torch.device) -> _Geometry:
    sizes = np.array(meshes.shapes, np.int64).reshape(-1, 3)
    if (sizes < meshes.width).any():
        raise SizeError(
            f"Every mesh needs at least as many nodes along each axis as its window of "
            f"{meshes.width} nodes, got a mesh of {min(meshes.shapes, key=min)} nodes."
        )
    blocks = -(-sizes // _BLOCK)
    strides = np.stack((blocks[:, 1] * blocks[:, 2], blocks[:, 2], np.ones_like(blocks[:, 0])), 1)
    first_blocks = np.cumsum(blocks.prod(1)) - blocks.prod(1)
    return _Geometry(
        torch.as_tensor(sizes, dtype=torch.int32, device=device),
        torch.tensor(meshes.starts[:-1], dtype=torch.int64, device=device),
        torch.as_tensor(sizes / (2.0 * math.pi), dtype=dtype, device=device),
        torch.as_tensor(strides, device=device),
        torch.as_tensor(first_blocks, device=device),
    )


@lru_cache(maxsize=32)
def _coefficients(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Window polynomials, one row for each power from the highest down to zero."""
    rows = make_window(width).coefficients.T[::-1]
    return torch.as_tensor(rows.copy(), dtype=dtype, device=device)


def _tile(count: int) -> int:
    """Round a number of lanes up: Triton wants a power of two."""
    return 1 << (count - 1).bit_length()


# Sizes are not specialised on, or every divisibility by 16 would compile the kernels anew.
_SIZES = ["n_atoms", "n_nodes"]


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
    """First nodes of sorted atoms and their weights; a row is one axis of one atom."""
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
    for d in tl.static_range(1, DEGREE + 1):
        bend = bend * t + slope
        slope = slope * t + value
        value = value * t + tl.load(coefficients + d * WIDTH + node, node < WIDTH, 0.0)
    place = weights + row * (ORDERS * WIDTH) + node
    inside = present & (node < WIDTH)
    tl.store(place, value, inside)
    tl.store(place + WIDTH, slope * scale, inside)
    if ORDERS > 2:
        tl.store(place + 2 * WIDTH, bend * (2.0 * scale * scale), inside)


@triton.jit
def _wrap(node: tl.tensor, size: tl.tensor) -> tl.tensor:
    """Take back into the mesh a node that is less than a mesh beyond its end."""
    return tl.where(node < size, node, node - size)


@triton.jit
def _locate(
    order: tl.tensor,
    graphs: tl.tensor,
    corners: tl.tensor,
    sizes: tl.tensor,
    starts: tl.tensor,
    n_atoms: tl.tensor,
    n_nodes: tl.tensor,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    ATOMS: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Sorted and own numbers of this program's atoms, the x axis, and nodes in a y-z plane."""
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
    # Several channels of one large mesh have more nodes than 32 bits can count.
    plane = tl.program_id(1).to(tl.int64) * n_nodes + tl.load(starts + graph, present, 0)
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
    """Where the weights of x begin, and pointers to those of y and z; which lanes are nodes."""
    lane = tl.arange(0, TILE)[None, :]
    along_x = weights + row * (3 * ORDERS * WIDTH)
    along_y = along_x + ORDERS * WIDTH + lane // WIDTH
    along_z = along_x + 2 * ORDERS * WIDTH + lane % WIDTH
    return along_x, along_y, along_z, present & (lane < WIDTH * WIDTH)


@triton.jit(do_not_specialize=_SIZES)
def _spread(
    order: tl.tensor,
    graphs: tl.tensor,
    corners: tl.tensor,
    weights: tl.tensor,
    sizes: tl.tensor,
    starts: tl.tensor,
    nodes: tl.tensor,
    charges: tl.tensor,
    dipoles: tl.tensor,
    n_atoms: tl.tensor,
    n_nodes: tl.tensor,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    ATOMS: tl.constexpr,
    DIPOLES: tl.constexpr,
) -> None:
    """Add charges, and dipoles if there are any, to the nodes of one channel."""
    channel, channels = tl.program_id(1), tl.num_programs(1)
    row, atom, present, x, n_x, area, plane = _locate(
        order, graphs, corners, sizes, starts, n_atoms, n_nodes, WIDTH, TILE, ATOMS
    )
    along_x, along_y, along_z, inside = _lane_weights(weights, row, present, WIDTH, TILE, 2)
    y, z = tl.load(along_y, inside, 0.0), tl.load(along_z, inside, 0.0)
    level = tl.load(charges + atom * channels + channel, present, 0.0) * y * z
    if DIPOLES:
        dipole = dipoles + atom * 3 * channels + channel
        tilt = tl.load(dipole, present, 0.0) * y * z
        y_1, z_1 = tl.load(along_y + WIDTH, inside, 0.0), tl.load(along_z + WIDTH, inside, 0.0)
        level += tl.load(dipole + channels, present, 0.0) * y_1 * z
        level += tl.load(dipole + 2 * channels, present, 0.0) * y * z_1
    for i in tl.static_range(WIDTH):
        value = tl.load(along_x + i, present, 0.0) * level
        if DIPOLES:
            value += tl.load(along_x + WIDTH + i, present, 0.0) * tilt
        tl.atomic_add(nodes + (plane + _wrap(x + i, n_x) * area), value, inside, sem="relaxed")


@triton.jit(do_not_specialize=_SIZES)
def _gather(
    order: tl.tensor,
    graphs: tl.tensor,
    corners: tl.tensor,
    weights: tl.tensor,
    sizes: tl.tensor,
    starts: tl.tensor,
    nodes: tl.tensor,
    values: tl.tensor,
    slopes: tl.tensor,
    n_atoms: tl.tensor,
    n_nodes: tl.tensor,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    ATOMS: tl.constexpr,
) -> None:
    """Value and gradient of one channel."""
    channel, channels = tl.program_id(1), tl.num_programs(1)
    row, atom, present, x, n_x, area, plane = _locate(
        order, graphs, corners, sizes, starts, n_atoms, n_nodes, WIDTH, TILE, ATOMS
    )
    along_x, along_y, along_z, inside = _lane_weights(weights, row, present, WIDTH, TILE, 2)
    y, z = tl.load(along_y, inside, 0.0), tl.load(along_z, inside, 0.0)
    x_0 = tl.zeros_like(y)
    x_1 = tl.zeros_like(y)
    for i in tl.static_range(WIDTH):
        node = tl.load(nodes + (plane + _wrap(x + i, n_x) * area), inside, 0.0)
        x_0 += tl.load(along_x + i, present, 0.0) * node
        x_1 += tl.load(along_x + WIDTH + i, present, 0.0) * node
    y_1, z_1 = tl.load(along_y + WIDTH, inside, 0.0), tl.load(along_z + WIDTH, inside, 0.0)
    slope = slopes + atom * 3 * channels + channel
    tl.store(values + atom * channels + channel, tl.sum(x_0 * y * z, 1, keep_dims=True), present)
    tl.store(slope, tl.sum(x_1 * y * z, 1, keep_dims=True), present)
    tl.store(slope + channels, tl.sum(x_0 * y_1 * z, 1, keep_dims=True), present)
    tl.store(slope + 2 * channels, tl.sum(x_0 * y * z_1, 1, keep_dims=True), present)


@triton.jit(do_not_specialize=_SIZES)
def _gather_hessian(
    order: tl.tensor,
    graphs: tl.tensor,
    corners: tl.tensor,
    weights: tl.tensor,
    sizes: tl.tensor,
    starts: tl.tensor,
    nodes: tl.tensor,
    directions: tl.tensor,
    products: tl.tensor,
    n_atoms: tl.tensor,
    n_nodes: tl.tensor,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    ATOMS: tl.constexpr,
) -> None:
    """Second derivatives of one channel times a direction."""
    channel, channels = tl.program_id(1), tl.num_programs(1)
    row, atom, present, x, n_x, area, plane = _locate(
        order, graphs, corners, sizes, starts, n_atoms, n_nodes, WIDTH, TILE, ATOMS
    )
    along_x, along_y, along_z, inside = _lane_weights(weights, row, present, WIDTH, TILE, 3)
    y, z = tl.load(along_y, inside, 0.0), tl.load(along_z, inside, 0.0)
    x_0 = tl.zeros_like(y)
    x_1 = tl.zeros_like(y)
    x_2 = tl.zeros_like(y)
    for i in tl.static_range(WIDTH):
        node = tl.load(nodes + (plane + _wrap(x + i, n_x) * area), inside, 0.0)
        x_0 += tl.load(along_x + i, present, 0.0) * node
        x_1 += tl.load(along_x + WIDTH + i, present, 0.0) * node
        x_2 += tl.load(along_x + 2 * WIDTH + i, present, 0.0) * node
    y_1, z_1 = tl.load(along_y + WIDTH, inside, 0.0), tl.load(along_z + WIDTH, inside, 0.0)
    y_2, z_2 = tl.load(along_y + 2 * WIDTH, inside, 0.0), tl.load(along_z + 2 * WIDTH, inside, 0.0)
    v_x = tl.load(directions + atom * 3, present, 0.0)
    v_y = tl.load(directions + atom * 3 + 1, present, 0.0)
    v_z = tl.load(directions + atom * 3 + 2, present, 0.0)
    by_x = v_x * x_2 * y * z + x_1 * (v_y * y_1 * z + v_z * y * z_1)
    by_y = v_x * x_1 * y_1 * z + x_0 * (v_y * y_2 * z + v_z * y_1 * z_1)
    by_z = v_x * x_1 * y * z_1 + x_0 * (v_y * y_1 * z_1 + v_z * y * z_2)
    product = products + atom * 3 * channels + channel
    tl.store(product, tl.sum(by_x, 1, keep_dims=True), present)
    tl.store(product + channels, tl.sum(by_y, 1, keep_dims=True), present)
    tl.store(product + 2 * channels, tl.sum(by_z, 1, keep_dims=True), present)
