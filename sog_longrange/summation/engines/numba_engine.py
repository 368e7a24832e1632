"""Spreading, gathering and sampling compiled by numba, on all the cores that PyTorch uses."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sog_longrange.summation.kernel_table import Intervals, ModeBoxes
from sog_longrange.summation.mesh import Engine, Meshes
from sog_longrange.summation.windows import make_window

from .numba_loops import SamplerLoops, mesh_loops, padded_width, sampler_loops, sort_atoms

_WORTH_A_THREAD = 2**17


class NumbaStencil:
    """Stencils as compiled loops over sorted atoms.

    Parameters
    ----------
    meshes : Meshes
    phases : Tensor, shape (n_atoms, 3), in [0, 2 pi]
    batch : Tensor, shape (n_atoms,)
    """

    def __init__(self, meshes: Meshes, phases: Tensor, batch: Tensor) -> None:
        self.meshes = meshes
        self.phases = phases.contiguous().numpy()
        self.batch = batch.contiguous().numpy()
        self.sizes = np.array(meshes.shapes, np.int64)
        self.starts = np.array(meshes.starts, np.int64)
        self.order, self.slabs = sort_atoms(self.phases, self.batch, self.sizes, meshes.width)
        dtype = self.phases.dtype.name
        self.loops = mesh_loops(meshes.width, dtype)
        self.coefficients = _padded_coefficients(meshes.width, dtype)

    def spread(self, charges: Tensor, dipoles: Tensor | None) -> Tensor:
        """Implement :meth:`Stencil.spread`."""
        nodes = charges.new_zeros(charges.shape[1], self.meshes.starts[-1])
        loop = self.loops.spread if dipoles is None else self.loops.spread_dipoles
        q = charges.contiguous().numpy()
        d = np.empty((0, 3, 0), q.dtype) if dipoles is None else dipoles.contiguous().numpy()
        out = nodes.numpy()
        # Slabs of one parity share no node; those of the other wait for them.
        for parity in (0, 1):
            tasks = np.stack((self.slabs[:-1][parity::2], self.slabs[1:][parity::2]), 1)
            shares = _split(tasks, tasks[:, 1] - tasks[:, 0], self._threads(q.shape[1]))
            _run(
                loop,
                [
                    (self.order, share, self.phases, q, d, *self._geometry(), out)
                    for share in shares
                ],
            )
        return nodes

    def gather(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Implement :meth:`Stencil.gather`."""
        n_atoms, channels = len(self.phases), len(nodes)
        value, slope = nodes.new_empty(n_atoms, channels), nodes.new_empty(n_atoms, 3, channels)
        self._gather(self.loops.gather, nodes, value.numpy(), slope.numpy())
        return value, slope

    def gather_hessian(self, nodes: Tensor, direction: Tensor) -> Tensor:
        """Implement :meth:`Stencil.gather_hessian`."""
        product = nodes.new_empty(len(self.phases), 3, len(nodes))
        v = direction.contiguous().numpy()
        self._gather(self.loops.gather_hessian, nodes, v, product.numpy())
        return product

    def _gather(self, loop: Callable[..., None], nodes: Tensor, *target: np.ndarray) -> None:
        source = nodes.contiguous().numpy()
        n_atoms, threads = len(self.phases), self._threads(len(source))
        ends = [n_atoms * i // threads for i in range(threads + 1)]
        ranges = zip(ends[:-1], ends[1:], strict=True)
        shared = (self.phases, *self._geometry(), source, *target)
        _run(loop, [(self.order, *ends, *shared) for ends in ranges])

    def _geometry(self) -> tuple[np.ndarray, ...]:
        return self.batch, self.sizes, self.starts, self.coefficients

    def _threads(self, channels: int) -> int:
        return _threads(len(self.phases) * channels * self.meshes.width**3)


class NumbaSampler:
    """Sampler as compiled loops over planes of modes.

    Parameters
    ----------
    intervals : Intervals
    boxes : ModeBoxes
    """

    def __init__(self, intervals: Intervals, boxes: ModeBoxes) -> None:
        self.intervals = intervals
        self.boxes = boxes
        shapes = np.array(boxes.shapes, np.int64)
        ends = shapes.ravel().cumsum().reshape(-1, 3)
        self.geometry = (
            np.int64(intervals.base),
            shapes,
            ends - shapes,
            np.array(boxes.starts, np.int64),
            boxes.modes.numpy(),
            boxes.factors.numpy(),
        )
        planes = [(g, x) for g, shape in enumerate(boxes.shapes) for x in range(shape[0])]
        tasks = np.array(planes, np.int64).reshape(-1, 2)
        sizes = shapes[tasks[:, 0], 1] * shapes[tasks[:, 0], 2]
        self.shares = _split(tasks, sizes, _threads(4 * boxes.starts[-1]))

    def values(
        self,
        u: Tensor,
        reciprocal: Tensor,
        c: Tensor | None = None,
        direction: Tensor | None = None,
    ) -> Tensor:
        """Implement :meth:`Sampler.values`."""
        out = u.new_empty(len(u), self.boxes.starts[-1])
        point = self._point(u, reciprocal, c, direction)
        shared = (self.geometry, point, out.numpy())
        _run(self._loops(c).values, [(share, *shared) for share in self.shares])
        return out

    def gradients(
        self,
        grad: Tensor,
        u: Tensor,
        reciprocal: Tensor,
        c: Tensor | None = None,
        direction: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Implement :meth:`Sampler.gradients`."""
        point = self._point(u, reciprocal, c, direction)
        shared = (self.geometry, point, grad.numpy())
        sums = [[np.zeros(shape) for shape in (u.shape, reciprocal.shape)] for _ in self.shares]
        _run(
            self._loops(c).gradients,
            [(share, *shared, *own) for share, own in zip(self.shares, sums, strict=True)],
        )
        by_coefficients, by_cell = (
            torch.from_numpy(sum(parts)).to(u) for parts in zip(*sums, strict=True)
        )
        return by_coefficients, by_cell

    def _loops(self, c: Tensor | None) -> SamplerLoops:
        own = self.intervals
        name = str(own.dtype).removeprefix("torch.")
        return sampler_loops(name, own.degree, own.bits, directed=c is not None)

    @staticmethod
    def _point(
        u: Tensor, reciprocal: Tensor, c: Tensor | None, v: Tensor | None
    ) -> tuple[np.ndarray, ...]:
        c, v = (u if c is None else c), (reciprocal if v is None else v)
        return tuple(x.detach().contiguous().numpy() for x in (reciprocal, u, c, v))


@lru_cache(maxsize=32)
def _padded_coefficients(width: int, dtype: str) -> np.ndarray:
    """Rows of rising powers, each as long as the loops' vectors."""
    rows = make_window(width).coefficients.T
    padding = padded_width(width) - width
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, padding))), dtype).ravel()


def _threads(work: int) -> int:
    """Return the number of threads that pay for a number of elementary steps."""
    return max(1, min(torch.get_num_threads(), work // _WORTH_A_THREAD))


def _split(tasks: np.ndarray, sizes: np.ndarray, parts: int) -> list[np.ndarray]:
    """Cut a list of tasks into runs of about equal total size."""
    if parts == 1:
        return [tasks]
    total = np.cumsum(sizes)
    cuts = np.searchsorted(total, total[-1] * np.arange(1, parts) / parts)
    return [part for part in np.split(tasks, cuts) if len(part)]


def _run(loop: Callable[..., None], jobs: list[tuple[Any, ...]]) -> None:
    """Call a loop with several sets of arguments at the same time, the last in this thread."""
    waiting = [_pool(os.getpid(), torch.get_num_threads()).submit(loop, *job) for job in jobs[:-1]]
    loop(*jobs[-1])
    for job in waiting:
        job.result()


@lru_cache(maxsize=8)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked one makes its own."""
    return ThreadPoolExecutor(max(1, threads - 1), "sog-longrange")


NUMBA = Engine("numba", NumbaStencil, NumbaSampler)
