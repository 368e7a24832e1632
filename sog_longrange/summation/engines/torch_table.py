"""The kernel's table in PyTorch: the reference that compiled engines are held against."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sog_longrange.summation.kernel_table import INTEGER, MANTISSA, Intervals
from sog_longrange.summation.rows import ModeRows

_CHUNK = {"cpu": 2**18, "cuda": 2**24}
"""Modes at a time: on CPUs as many as a cache holds."""


class TorchSampler:
    """Reference sampler in pure torch, in chunks of modes of all structures.

    Parameters
    ----------
    intervals : Intervals
    rows : ModeRows
    """

    def __init__(self, intervals: Intervals, rows: ModeRows) -> None:
        self.intervals = intervals
        self.rows = rows

    def values(
        self,
        u: Tensor,
        reciprocal: Tensor,
        c: Tensor | None = None,
        direction: Tensor | None = None,
    ) -> Tensor:
        """Implement :meth:`Sampler.values`."""
        out = u.new_empty(len(u), self.rows.total)
        for part in self._parts(reciprocal, direction):
            value = part.evaluate(u, 0)
            if c is not None:
                value = value + part.evaluate(c, 1) * part.change()
            out[:, part.place] = value * part.factor
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
        by_coefficients = u.new_zeros(u.shape, dtype=torch.float64)
        by_cell = torch.zeros_like(reciprocal, dtype=torch.float64)
        for part in self._parts(reciprocal, direction):
            weight = part.factor * grad[:, part.place]
            slope = part.evaluate(u, 1)
            if c is None:
                part.add_powers(by_coefficients, weight, 0)
            else:
                change = part.change()
                part.add_powers(by_coefficients, weight * change, 1)
                slope = slope + part.evaluate(c, 2) * change
                part.add_moments(by_cell, weight * part.evaluate(c, 1), part.turned)
            part.add_moments(by_cell, weight * slope, part.k)
        return by_coefficients.to(u), by_cell.to(u)

    def _parts(self, reciprocal: Tensor, direction: Tensor | None) -> Iterator[_Part]:
        step = _CHUNK.get(reciprocal.device.type, _CHUNK["cuda"])
        for first in range(0, self.rows.total, step):
            place = slice(first, min(first + step, self.rows.total))
            yield _Part(self.intervals, self.rows, place, reciprocal, direction)


class _Part:
    """Some of the modes."""

    def __init__(
        self,
        intervals: Intervals,
        rows: ModeRows,
        place: slice,
        reciprocal: Tensor,
        direction: Tensor | None,
    ) -> None:
        self.intervals = intervals
        self.place = place
        dtype, device = reciprocal.dtype, reciprocal.device
        own = rows.tensors(dtype, device)
        self.modes = rows.modes(dtype, device, place)
        numbers = torch.arange(place.start, place.stop, device=device)
        row = torch.searchsorted(own.starts, numbers, right=True) - 1
        self.graphs = own.graphs[row]
        self.factor = own.factors[row] * own.along[own.places[row] + numbers - own.starts[row]]
        self.k = self._vectors(reciprocal)
        self.turned = self.k if direction is None else self._vectors(direction)
        self._locate(self.k.square().sum(-1))

    def _locate(self, k2: Tensor) -> None:
        """Find the interval of each mode, its place there and the inverse of its width."""
        number = k2.view(INTEGER[self.intervals.dtype])
        shift = self.intervals.shift
        row = (number >> shift) - (self.intervals.base - 1)
        self.row = row.clamp(0, self.intervals.rows - 1)
        self.t = (number & ((1 << shift) - 1)).to(k2) * 2.0**-shift - 0.5
        # An interval is 2^-bits of the power of two below it.
        power = ((number >> MANTISSA[k2.dtype]) << MANTISSA[k2.dtype]).view(k2.dtype)
        self.inverse = torch.where(k2 > 0, 2.0**self.intervals.bits / power, torch.zeros_like(k2))

    def _vectors(self, matrices: Tensor) -> Tensor:
        """Combine the rows of the matrix of each structure, m . rows; (n_modes, 3)."""
        if matrices.shape[0] == 1:
            return self.modes @ matrices[0]
        return torch.bmm(self.modes[:, None], matrices[self.graphs])[:, 0]

    def change(self) -> Tensor:
        """Change of k^2 along the direction."""
        return 2.0 * (self.k * self.turned).sum(-1)

    def evaluate(self, coefficients: Tensor, order: int) -> Tensor:
        """Return a derivative of the polynomials in k^2; (n_kernels, n_modes)."""
        value = torch.zeros((), dtype=self.t.dtype, device=self.t.device)
        for power in range(self.intervals.degree, order - 1, -1):
            scale = math.perm(power, order)
            value = value * self.t + scale * coefficients[:, :, power].index_select(1, self.row)
        return value * self.inverse**order

    def add_powers(self, out: Tensor, weight: Tensor, order: int) -> None:
        """Add what each coefficient's derivative of the given order is worth."""
        term = weight * self.inverse**order
        for power in range(order, self.intervals.degree + 1):
            for channel, row in enumerate(term):
                # A histogram is many times faster than index_add_.
                sums = torch.bincount(self.row, row.double(), out.shape[1])
                out[channel, :, power] += math.perm(power, order) * sums
            term = term * self.t

    def add_moments(self, out: Tensor, weight: Tensor, vectors: Tensor) -> None:
        """Add sum_m 2 weight_m m_i v_c to the matrix of each structure."""
        weighted = 2.0 * weight.sum(0)[:, None] * vectors
        if len(out) == 1:
            out += self.modes.double().T @ weighted.double()
            return
        moments = (self.modes[:, :, None] * weighted[:, None]).double()
        out.index_add_(0, self.graphs, moments)
