"""Particle mesh: a non-uniform FFT of real densities whose forces are exact gradients."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from sog_longrange.geometry import box_shapes
from sog_longrange.kernels.kernel import Kernel

from .fourier import FlatBackend, flat_energy
from .kernel_table import ModeBoxes, Sampler, blocks, running_sum
from .windows import influence, window_width


class Meshes(NamedTuple):
    """Meshes of a batch of structures, one after another in flat arrays.

    Attributes
    ----------
    shapes : tuple of 3-tuples of int
        Number of nodes of each structure's mesh along its three lattice vectors.
    width : int
        Number of nodes along each axis that an atom touches.
    """

    shapes: tuple[tuple[int, int, int], ...]
    width: int

    @property
    def starts(self) -> list[int]:
        """Where each mesh begins in a flat array, and where the last one ends."""
        return running_sum([math.prod(shape) for shape in self.shapes])

    @property
    def half_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Shapes of the spectra: a real density needs half of the last axis."""
        return tuple((a, b, c // 2 + 1) for a, b, c in self.shapes)


class Stencil(Protocol):
    """What carries atoms to meshes and back; no argument ever requires a gradient.

    Parameters
    ----------
    meshes : Meshes
    phases : Tensor, shape (n_atoms, 3), in [0, 2 pi]
    batch : Tensor, shape (n_atoms,), sorted
    """

    def __init__(self, meshes: Meshes, phases: Tensor, batch: Tensor) -> None: ...

    def spread(self, charges: Tensor, dipoles: Tensor | None) -> Tensor:
        """Densities (P, n_nodes) of charges (N, P) and phase-space dipoles (N, 3, P)."""
        ...

    def gather(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Value (N, P) and phase gradient (N, 3, P) of potentials (P, n_nodes)."""
        ...

    def gather_hessian(self, nodes: Tensor, direction: Tensor) -> Tensor:
        """Second phase derivatives times a direction (N, 3); (N, 3, P)."""
        ...


class Engine(NamedTuple):
    """Code that runs the inner loops of the mesh.

    Attributes
    ----------
    name : str
    stencil : type of Stencil
    sampler : type of Sampler
    """

    name: str
    stencil: type[Stencil]
    sampler: type[Sampler]


def mesh_energy(
    kernel: Kernel,
    charges: Tensor,
    positions: Tensor,
    cell: Tensor,
    batch: Tensor,
    tolerance: float,
    engine: Engine,
    meshes: Meshes | None = None,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Reciprocal-space energy of periodic structures on meshes, self-interaction included.

    Parameters
    ----------
    kernel : Kernel
    charges : Tensor, shape (n_atoms, n_channels), in e
    positions : Tensor, shape (n_atoms, 3), in Å
    cell : Tensor, shape (n_graphs, 3, 3), in Å
    batch : Tensor, shape (n_atoms,), sorted
    tolerance : float
        Sets the k cutoff as in the direct sum, and with it the meshes and the window.
    engine : Engine
    meshes : Meshes, optional
        Instead of those that :func:`choose_meshes` finds.
    group : ProcessGroup, optional
        Ranks over which the atoms are spread; each has the same cells.

    Returns
    -------
    energy : Tensor, shape (n_graphs,), in eV
        1/(2V) sum_k Khat(k) |S(k)|^2; its gradient is exact for the energy as computed.
    potential : Tensor, shape (n_atoms, n_channels), in eV/e

    Raises
    ------
    SizeError
        If the meshes fit into no memory.

    References
    ----------
    Ji, Liang, Xu, arXiv:2502.04668 (the sum); Hockney, Eastwood, Computer Simulation
    Using Particles (1988) (meshes); Barnett, arXiv:1808.06736 (the window).
    """

    def plan(lengths: list[list[float]], cutoff: float) -> tuple[MeshBackend, ModeBoxes]:
        own = choose_meshes(lengths, cutoff, window_width(tolerance)) if meshes is None else meshes
        return MeshBackend(own, batch, engine), mode_boxes(own, cell)

    sampler = engine.sampler
    return flat_energy(kernel, charges, positions, cell, tolerance, sampler, plan, group)


def choose_meshes(lengths: list[list[float]], cutoff: float, width: int) -> Meshes:
    """Smallest meshes with fast transforms that hold every |k| <= cutoff.

    Parameters
    ----------
    lengths : list of 3 floats for each structure
        Lengths of the lattice vectors, in Å.
    cutoff : float
        Largest wave number, in 1/Å.
    width : int
        Of the window, in nodes.

    Returns
    -------
    Meshes

    Raises
    ------
    SizeError
        If the meshes have more nodes than any memory holds.
    """
    shapes = [
        tuple(fast_length(max(n, width + 1)) for n in row) for row in box_shapes(lengths, cutoff)
    ]
    return Meshes(tuple(shapes), width)  # type: ignore[arg-type]


def fast_length(n: int) -> int:
    """Smallest length of at least n whose prime factors are 2, 3, 5 and 7.

    Parameters
    ----------
    n : int

    Returns
    -------
    int
    """
    while True:
        rest = n
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


def mode_boxes(meshes: Meshes, like: Tensor) -> ModeBoxes:
    """Modes of the meshes' spectra, with the factors that undo the window.

    Parameters
    ----------
    meshes : Meshes
    like : Tensor
        Its dtype and device are used.

    Returns
    -------
    ModeBoxes
    """
    modes, factors = [], []
    for shape, half in zip(meshes.shapes, meshes.half_shapes, strict=True):
        for full, n in zip(shape, half, strict=True):
            modes.append(np.fft.fftfreq(full, 1.0 / full)[:n])
            factors.append(influence(meshes.width, full)[:n])
    return ModeBoxes(
        meshes.half_shapes,
        *(torch.from_numpy(np.concatenate(parts)).to(like) for parts in (modes, factors)),
    )


class MeshBackend(FlatBackend):
    """Adjoint sums by spreading to meshes, real FFTs and gathering.

    Parameters
    ----------
    meshes : Meshes
    batch : Tensor, shape (n_atoms,), sorted
    engine : Engine
    """

    def __init__(self, meshes: Meshes, batch: Tensor, engine: Engine) -> None:
        super().__init__(running_sum([math.prod(shape) for shape in meshes.half_shapes]), batch)
        self.meshes = meshes
        self._stencil = engine.stencil
        places = blocks(meshes.starts), blocks(self.mode_starts)
        # Shape of each mesh, and its places in the flat arrays of nodes and modes.
        self._boxes = list(zip(meshes.shapes, *places, strict=True))

    def set_phases(self, phases: Tensor) -> None:
        """Take the phases of all atoms, shape (n_atoms, 3)."""
        self.stencil = self._stencil(self.meshes, phases, self.batch)

    def spread(self, charges: Tensor, dipoles: Tensor | None = None) -> Tensor:
        """Structure factor, still convolved with the window."""
        nodes = self.stencil.spread(charges, dipoles)
        boxes = [
            torch.fft.rfftn(nodes[:, real].view(-1, *shape), dim=(1, 2, 3)).flatten(1)
            for shape, real, _ in self._boxes
        ]
        return boxes[0] if len(boxes) == 1 else torch.cat(boxes, 1)

    def field(self, spectrum: Tensor) -> Tensor:
        """Return the potentials on the nodes of all meshes."""
        boxes = []
        for (a, b, c), _, half in self._boxes:
            box = spectrum[:, half].view(-1, a, b, c // 2 + 1)
            nodes = torch.fft.irfftn(box, s=(a, b, c), dim=(1, 2, 3), norm="forward")
            boxes.append(nodes.flatten(1))
        return boxes[0] if len(boxes) == 1 else torch.cat(boxes, 1)

    def gather(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Potential and its phase gradient at the atoms."""
        return self.stencil.gather(field)

    def gather_hessian(self, field: Tensor, direction: Tensor) -> Tensor:
        """Second phase derivatives of the potential, times a direction."""
        return self.stencil.gather_hessian(field, direction)

    def correlate(self, first: Tensor, second: Tensor, table: Tensor) -> Tensor:
        """Re(S* R) of each mode and its mirror image, for each law of the kernel."""
        product = super().correlate(first, second, table)
        for (a, b, c), _, half in self._boxes:
            box = product[:, half].view(-1, a, b, c // 2 + 1)
            box[..., 1:] *= 2.0
        return product
