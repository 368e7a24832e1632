"""The kernel's table in PyTorch: the reference that compiled engines are held against."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sog_longrange.summation.boxes import ModeBoxes
from sog_longrange.summation.kernel_table import INTEGER, MANTISSA, Intervals

_CHUNK = 2**18


class TorchSampler:
    """Reference sampler in pure torch, in chunks of planes.

    Parameters
    ----------
    intervals : Intervals
    boxes : ModeBoxes
    """

    def __init__(self, intervals: Intervals, boxes: ModeBoxes) -> None:
        self.intervals = intervals
        self.boxes = boxes

    def values(
        self,
        u: Tensor,
        reciprocal: Tensor,
        c: Tensor | None = None,
        direction: Tensor | None = None,
    ) -> Tensor:
        """Implement :meth:`Sampler.values`."""
        out = u.new_empty(len(u), self.boxes.starts[-1])
        for part in self._parts(reciprocal, direction):
            value = part.evaluate(u, 0)
            if c is not None:
                value = value + part.evaluate(c, 1) * part.along()
            out[:, part.place] = (value * part.factor).flatten(1)
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
            weight = part.factor * grad[:, part.place].view(-1, *part.factor.shape)
            slope = part.evaluate(u, 1)
            if c is None:
                part.scatter(by_coefficients, weight, 0)
            else:
                s = part.along()
                part.scatter(by_coefficients, weight * s, 1)
                slope = slope + part.evaluate(c, 2) * s
                by_cell[part.graph] += part.moment(weight * part.evaluate(c, 1), part.turned)
            by_cell[part.graph] += part.moment(weight * slope, part.k)
        return by_coefficients.to(u), by_cell.to(u)

    def _parts(self, reciprocal: Tensor, direction: Tensor | None) -> Iterator[_Part]:
        boxes = self.boxes
        modes, factors = boxes.axes(boxes.modes), boxes.axes(boxes.factors)
        for graph, (shape, start) in enumerate(zip(boxes.shapes, boxes.starts, strict=False)):
            plane = shape[1] * shape[2]
            step = max(1, _CHUNK // plane)
            for first in range(0, shape[0], step):
                last = min(first + step, shape[0])
                place = slice(start + first * plane, start + last * plane)
                planes = slice(first, last)
                yield _Part(self.intervals, graph, place, modes[graph], factors[graph], planes).at(
                    reciprocal[graph], None if direction is None else direction[graph]
                )


class _Part:
    """Some planes of the box of one structure."""

    def __init__(
        self,
        intervals: Intervals,
        graph: int,
        place: slice,
        modes: tuple[Tensor, ...],
        factors: tuple[Tensor, ...],
        planes: slice,
    ) -> None:
        self.intervals = intervals
        self.graph = graph
        self.place = place
        (x, y, z), (a, b, c) = modes, factors
        self.modes = (x[planes], y, z)
        self.factor = a[planes] * (b * c)

    def at(self, reciprocal: Tensor, direction: Tensor | None) -> _Part:
        self.k = self._vectors(reciprocal)
        self.turned = self.k if direction is None else self._vectors(direction)
        k2 = self.k.square().sum(0)
        number = k2.view(INTEGER[self.intervals.dtype])
        shift = self.intervals.shift
        row = (number >> shift) - (self.intervals.base - 1)
        self.row = row.clamp(0, self.intervals.rows - 1).flatten()
        self.t = (number & ((1 << shift) - 1)).to(k2) * 2.0**-shift - 0.5
        # An interval is 2^-bits of the power of two below it.
        power = ((number >> MANTISSA[k2.dtype]) << MANTISSA[k2.dtype]).view(k2.dtype)
        self.inverse = torch.where(k2 > 0, 2.0**self.intervals.bits / power, torch.zeros_like(k2))
        return self

    def _vectors(self, rows: Tensor) -> Tensor:
        x, y, z = self.modes
        b1, b2, b3 = rows[:, :, None, None, None].unbind(0)
        return x * b1 + y * b2 + z * b3

    def along(self) -> Tensor:
        """Change of k^2 along the direction."""
        return 2.0 * (self.k * self.turned).sum(0)

    def evaluate(self, coefficients: Tensor, order: int) -> Tensor:
        """Return a derivative of the polynomials in k^2, on every mode."""
        degree = self.intervals.degree
        value = torch.zeros((), dtype=self.t.dtype, device=self.t.device)
        for power in range(degree, order - 1, -1):
            scale = math.perm(power, order)
            c = coefficients[:, :, power].index_select(1, self.row)
            value = value * self.t + scale * c.view(-1, *self.t.shape)
        return value * self.inverse**order

    def scatter(self, out: Tensor, weight: Tensor, order: int) -> None:
        """Add what each coefficient's derivative of the given order is worth."""
        term = (weight * self.inverse**order).flatten(1)
        t = self.t.flatten()
        for power in range(order, self.intervals.degree + 1):
            for channel, row in enumerate(term):
                # A histogram is many times faster than index_add_.
                sums = torch.bincount(self.row, row.double(), out.shape[1])
                out[channel, :, power] += math.perm(power, order) * sums
            term = term * t

    def moment(self, weight: Tensor, vectors: Tensor) -> Tensor:
        """sum_m 2 weight_m m_i v_c as a 3x3 matrix."""
        weighted = 2.0 * weight.sum(0) * vectors
        return torch.stack([(mode * weighted).sum((1, 2, 3)) for mode in self.modes]).double()
