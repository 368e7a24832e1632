"""Spreading and interpolation in PyTorch: the reference that compiled engines are held against."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sog_longrange.summation.blocks import running_sum
from sog_longrange.summation.grids import Grids
from sog_longrange.summation.multipoles import monomials, order_of, phase_gradient
from sog_longrange.summation.windows import make_window

from .engine import Engine
from .torch_direct import TorchDirect
from .torch_table import TorchSampler

_CHUNK = 2**19
_TURN = 2.0 * math.pi


class TorchSpreader:
    """Sums between atoms and grids as batched matrix products, over chunks of atoms.

    Parameters
    ----------
    grids : Grids
    phases : Tensor, shape (n_atoms, 3), in [0, 2 pi]
    batch : Tensor, shape (n_atoms,)
    """

    def __init__(self, grids: Grids, phases: Tensor, batch: Tensor) -> None:
        self.grids = grids
        self.window = make_window(grids.width)
        self.phases = phases
        self.sizes = torch.tensor(grids.shapes, device=phases.device)[batch]
        self.starts = torch.tensor(grids.starts, device=phases.device)[batch]
        padded = [a * b * (c + grids.width - 1) for a, b, c in grids.shapes]
        self.row_starts = torch.from_numpy(running_sum(padded)).to(phases.device)[batch]

    def spread(self, sources: Tensor) -> Tensor:
        """Implement :meth:`Spreader.spread`."""
        order = order_of(sources.shape[1])
        points = sources.new_zeros(sources.shape[2], self.grids.starts[-1])
        for part in self._chunks():
            first, t = self._first_points(part)
            x, y, z = torch.stack(self._weights(part, t, order), -1).unbind(1)
            place = self._points(part, first).flatten()
            box = _to_box(sources[part], order)
            for p, own in enumerate(points):
                values = box[:, p] @ z.transpose(1, 2)[:, None]
                values = (y[:, None] @ values).flatten(2)
                own.scatter_add_(0, place, (x @ values).flatten())
        return points

    def interpolate(self, field: Tensor, order: int) -> Tensor:
        """Implement :meth:`Spreader.interpolate`."""
        rows = self._rows(field.contiguous())
        return torch.cat([self._contract(rows, part, order) for part in self._chunks()])

    def interpolate_gradient(self, field: Tensor, weights: Tensor) -> Tensor:
        """Implement :meth:`Spreader.interpolate_gradient`."""
        rows, order = self._rows(field.contiguous()), order_of(weights.shape[1])
        parts = [
            phase_gradient(weights[part], self._contract(rows, part, order + 1))
            for part in self._chunks()
        ]
        return torch.cat(parts)

    def _chunks(self) -> Iterator[slice]:
        """Slices of the atoms whose grid points fit into a cache."""
        step = max(1, _CHUNK // self.window.width**3)
        for first in range(0, max(1, len(self.phases)), step):
            yield slice(first, first + step)

    def _rows(self, points: Tensor) -> Tensor:
        """View (P, n, w) of every run of w points along the last axis, wrapped around its end."""
        w, starts = self.window.width, self.grids.starts
        padded = []
        for start, (a, b, c) in zip(starts, self.grids.shapes, strict=False):
            grid = points[:, start : start + a * b * c].view(-1, a * b, c)
            padded.append(torch.cat((grid, grid[..., : w - 1]), -1).flatten(1))
        flat = torch.cat(padded, 1) if len(padded) > 1 else padded[0]
        n = flat.shape[1]
        return flat.as_strided((len(flat), n - w + 1, w), (n, 1, 1))

    def _first_points(self, part: slice) -> tuple[Tensor, Tensor]:
        """Numbers (n, 3) of the first points, before wrapping, and places t (n, 3) of atoms."""
        window = self.window
        u = self.phases[part] * (self.sizes[part].to(self.phases) / _TURN) + window.shift
        b = torch.floor(u)
        return b.long() + window.first, u - b

    def _weights(self, part: slice, t: Tensor, order: int) -> list[Tensor]:
        """Weights of the grid points (n, 3, w) and their derivatives, per radian."""
        scale = (self.sizes[part].to(t) / _TURN)[..., None]
        powers = t[..., None] ** torch.arange(self.window.coefficients.shape[1], device=t.device)
        return [
            (powers @ torch.as_tensor(self.window.derivative(o).T.copy()).to(t)) * scale**o
            for o in range(order + 1)
        ]

    def _points(self, part: slice, first: Tensor) -> Tensor:
        """Places (n, w, w, w) in the flat grids of the points that atoms touch."""
        sizes, width = self.sizes[part], self.window.width
        index = (first[..., None] + torch.arange(width, device=first.device)) % sizes[..., None]
        x, y, z = index[:, 0, :, None, None], index[:, 1, None, :, None], index[:, 2, None, None]
        _, n_y, n_z = sizes[:, :, None, None, None].unbind(1)
        return self.starts[part, None, None, None] + (x * n_y + y) * n_z + z

    def _contract(self, rows: Tensor, part: slice, order: int) -> Tensor:
        """Phase derivatives of the potentials; (n, n_derivatives, P)."""
        first, t = self._first_points(part)
        sizes, w, o = self.sizes[part], self.window.width, order + 1
        x, y, z = torch.stack(self._weights(part, t, order), -1).unbind(1)
        index = (first[:, :2, None] + torch.arange(w, device=t.device)) % sizes[:, :2, None]
        place = index[:, 0, :, None] * sizes[:, 1, None, None] + index[:, 1, None]
        place = (
            place * (sizes[:, 2] + w - 1)[:, None, None]
            + (first[:, 2] % sizes[:, 2])[:, None, None]
        )
        place = (place + self.row_starts[part, None, None]).flatten()
        n = t.shape[0]
        out = rows.new_empty(n, len(monomials(order)), len(rows))
        for p, potential in enumerate(rows):
            value = potential[place].view(n, w * w, w) @ z
            value = y.transpose(1, 2) @ value.view(n, w, w, o).transpose(1, 2).reshape(n, w, w * o)
            value = value.view(n, o, w, o).transpose(1, 2).reshape(n, w, o * o)
            box = (x.transpose(1, 2) @ value).view(n, o**3)
            out[:, :, p] = box[:, _places(order)]
        return out


def _places(order: int) -> list[int]:
    """Places of the derivatives in a box of all powers up to the order along each axis."""
    o = order + 1
    return [(a * o + b) * o + c for a, b, c in monomials(order)]


def _to_box(sources: Tensor, order: int) -> Tensor:
    """Put sources (n, n_sources, P) in a box of all powers along each axis; (n, P, o, o, o)."""
    n, count, channels = sources.shape
    o = order + 1
    if count == 1:
        return sources.transpose(1, 2)[..., None, None]
    box = sources.new_zeros(n, channels, o**3)
    box[..., _places(order)] = sources.transpose(1, 2)
    return box.view(n, channels, o, o, o)


PURE_TORCH = Engine("torch", TorchSpreader, TorchSampler, TorchDirect)
