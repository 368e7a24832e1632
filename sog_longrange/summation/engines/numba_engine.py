"""Spreading, interpolation and kernel tables by numba, on all the cores that PyTorch uses."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sog_longrange.summation.grids import Grids
from sog_longrange.summation.kernel_table import Intervals
from sog_longrange.summation.multipoles import monomials, order_of
from sog_longrange.summation.rows import ModeRows
from sog_longrange.summation.windows import make_window

from .engine import Engine
from .numba_direct import NumbaDirect
from .numba_spread import MAX_ORDER, interpolation_loop, padded_width, sort_atoms, spread_loop
from .numba_table import SamplerLoops, sampler_loops
from .numba_threads import launch, split, threads_for
from .torch_engine import TorchSpreader


class NumbaSpreader:
    """Sums between atoms and grids as compiled loops over sorted atoms.

    Parameters
    ----------
    grids : Grids
    phases : Tensor, shape (n_atoms, 3), in [0, 2 pi]
    batch : Tensor, shape (n_atoms,)
    """

    def __init__(self, grids: Grids, phases: Tensor, batch: Tensor) -> None:
        self.grids = grids
        self.tensors = (phases, batch)
        self.phases = phases.contiguous().numpy()
        self.batch = batch.contiguous().numpy()
        self.sizes = np.array(grids.shapes, np.int64)
        self.starts = np.array(grids.starts, np.int64)
        self.order, self.slabs = sort_atoms(self.phases, self.batch, self.sizes, grids.width)
        self.dtype = self.phases.dtype.name
        self.coefficients = _padded_coefficients(grids.width, self.dtype)

    def spread(self, sources: Tensor) -> Tensor:
        """Implement :meth:`Spreader.spread`."""
        order = order_of(sources.shape[1])
        if order > MAX_ORDER:
            return TorchSpreader(self.grids, *self.tensors).spread(sources)
        points = sources.new_zeros(sources.shape[2], self.grids.starts[-1])
        loop = spread_loop(self.grids.width, self.dtype, order)
        shared = (self.phases, sources.contiguous().numpy(), *self._geometry(), points.numpy())
        # Slabs of one parity share no grid point; those of the other wait for them.
        for parity in (0, 1):
            tasks = np.stack((self.slabs[:-1][parity::2], self.slabs[1:][parity::2]), 1)
            shares = split(tasks, tasks[:, 1] - tasks[:, 0], self._threads(len(points)))
            launch(loop, [(self.order, share, *shared) for share in shares])
        return points

    def interpolate(self, field: Tensor, order: int) -> Tensor:
        """Implement :meth:`Spreader.interpolate`."""
        if order > MAX_ORDER:
            return TorchSpreader(self.grids, *self.tensors).interpolate(field, order)
        out = field.new_empty(len(self.phases), len(monomials(order)), len(field))
        self._interpolate(field, order, out.numpy(), weighted=False)
        return out

    def interpolate_gradient(self, field: Tensor, weights: Tensor) -> Tensor:
        """Implement :meth:`Spreader.interpolate_gradient`."""
        order = order_of(weights.shape[1]) + 1
        if order > MAX_ORDER:
            reference = TorchSpreader(self.grids, *self.tensors)
            return reference.interpolate_gradient(field, weights)
        out = field.new_zeros(len(self.phases), 3)
        own = weights.contiguous().numpy()
        self._interpolate(field, order, own, out.numpy(), weighted=True)
        return out

    def _interpolate(self, field: Tensor, order: int, *target: np.ndarray, weighted: bool) -> None:
        loop = interpolation_loop(self.grids.width, self.dtype, order, weighted=weighted)
        source = field.contiguous().numpy()
        n_atoms, threads = len(self.phases), self._threads(len(source))
        ends = [n_atoms * i // threads for i in range(threads + 1)]
        ranges = zip(ends[:-1], ends[1:], strict=True)
        shared = (self.phases, *self._geometry(), source, *target)
        launch(loop, [(self.order, *ends, *shared) for ends in ranges])

    def _geometry(self) -> tuple[np.ndarray, ...]:
        return self.batch, self.sizes, self.starts, self.coefficients

    def _threads(self, channels: int) -> int:
        return threads_for(len(self.phases) * channels * self.grids.width**3)


class NumbaSampler:
    """Sampler as compiled loops over rows of modes.

    Parameters
    ----------
    intervals : Intervals
    rows : ModeRows
    """

    def __init__(self, intervals: Intervals, rows: ModeRows) -> None:
        self.intervals = intervals
        self.rows = rows
        parts = threads_for(4 * rows.total)
        wanted = rows.total * np.arange(1, parts) // parts
        cuts = [0, *np.searchsorted(rows.starts, wanted), len(rows.graphs)]
        self.shares = list(pairwise(cuts))

    def values(
        self,
        u: Tensor,
        reciprocal: Tensor,
        c: Tensor | None = None,
        direction: Tensor | None = None,
    ) -> Tensor:
        """Implement :meth:`Sampler.values`."""
        out = u.new_empty(len(u), self.rows.total)
        point = self._point(u, reciprocal, c, direction)
        shared = (self._geometry(u), point, out.numpy())
        launch(self._loops(c).values, [(*share, *shared) for share in self.shares])
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
        shared = (self._geometry(u), point, grad.numpy())
        sums = [[np.zeros(shape) for shape in (u.shape, reciprocal.shape)] for _ in self.shares]
        launch(
            self._loops(c).gradients,
            [(*share, *shared, *own) for share, own in zip(self.shares, sums, strict=True)],
        )
        own = grad.numpy().dtype
        by_coefficients, by_cell = (
            torch.from_numpy(sum(parts).astype(own)) for parts in zip(*sums, strict=True)
        )
        return by_coefficients, by_cell

    def _geometry(self, like: Tensor) -> tuple[np.int64 | np.ndarray, ...]:
        own = self.rows.tensors(like.dtype, like.device)
        return (np.int64(self.intervals.base), *(x.numpy() for x in own))

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


NUMBA = Engine("numba", NumbaSpreader, NumbaSampler, NumbaDirect)
