"""Spreading and gathering in pure torch: the reference that engines are held against."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sog_longrange.summation.fourier import SECOND_ORDERS, hessian_product
from sog_longrange.summation.kernel_table import TorchSampler, running_sum
from sog_longrange.summation.mesh import Engine, Meshes
from sog_longrange.summation.windows import make_window

_CHUNK = 2**19
_TURN = 2.0 * math.pi


class TorchStencil:
    """Stencils as batched matrix products, over chunks of atoms.

    Parameters
    ----------
    meshes : Meshes
    phases : Tensor, shape (n_atoms, 3), in [0, 2 pi]
    batch : Tensor, shape (n_atoms,)
    """

    def __init__(self, meshes: Meshes, phases: Tensor, batch: Tensor) -> None:
        self.meshes = meshes
        self.window = make_window(meshes.width)
        self.phases = phases
        self.sizes = torch.tensor(meshes.shapes, device=phases.device)[batch]
        self.starts = torch.tensor(meshes.starts, device=phases.device)[batch]
        padded = [a * b * (c + meshes.width - 1) for a, b, c in meshes.shapes]
        self.row_starts = torch.tensor(running_sum(padded), device=phases.device)[batch]
        self.coefficients = [
            torch.as_tensor(self.window.derivative(order).T.copy(), device=phases.device).to(phases)
            for order in range(3)
        ]

    def spread(self, charges: Tensor, dipoles: Tensor | None) -> Tensor:
        """Implement :meth:`Stencil.spread`."""
        channels = charges.shape[1]
        nodes = charges.new_zeros(channels, self.meshes.starts[-1])
        for part in self._chunks():
            first, t = self._first_nodes(part)
            weights = self._weights(part, t, 0 if dipoles is None else 1)
            place = self._nodes(part, first).flatten()
            for p in range(channels):
                dipole = None if dipoles is None else dipoles[part, :, p]
                values = _outer(weights, charges[part, p], dipole)
                nodes[p].scatter_add_(0, place, values.flatten())
        return nodes

    def gather(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Implement :meth:`Stencil.gather`."""
        rows = self._rows(nodes)
        values, slopes = [], []
        for part in self._chunks():
            d = self._contract(rows, part, 1)
            values.append(d[..., 0, 0, 0])
            slopes.append(torch.stack((d[..., 1, 0, 0], d[..., 0, 1, 0], d[..., 0, 0, 1]), 1))
        return torch.cat(values), torch.cat(slopes)

    def gather_hessian(self, nodes: Tensor, direction: Tensor) -> Tensor:
        """Implement :meth:`Stencil.gather_hessian`."""
        rows = self._rows(nodes)
        products = []
        for part in self._chunks():
            d = self._contract(rows, part, 2)
            second = [d[..., a, b, c] for a, b, c in SECOND_ORDERS]
            products.append(hessian_product(second, direction[part]))
        return torch.cat(products)

    def _chunks(self) -> Iterator[slice]:
        step = max(1, _CHUNK // self.window.width**3)
        for first in range(0, max(1, len(self.phases)), step):
            yield slice(first, first + step)

    def _rows(self, nodes: Tensor) -> Tensor:
        """View (P, n, w) of every run of w nodes along the last axis, wrapped around its end."""
        w, starts = self.window.width, self.meshes.starts
        padded = []
        for start, (a, b, c) in zip(starts, self.meshes.shapes, strict=False):
            mesh = nodes[:, start : start + a * b * c].view(-1, a * b, c)
            padded.append(torch.cat((mesh, mesh[..., : w - 1]), -1).flatten(1))
        flat = torch.cat(padded, 1) if len(padded) > 1 else padded[0]
        n = flat.shape[1]
        return flat.as_strided((len(flat), n - w + 1, w), (n, 1, 1))

    def _first_nodes(self, part: slice) -> tuple[Tensor, Tensor]:
        """Numbers (n, 3) of the first nodes, before wrapping, and places t (n, 3) of atoms."""
        window = self.window
        u = self.phases[part] * (self.sizes[part].to(self.phases) / _TURN) + window.shift
        b = torch.floor(u)
        return b.long() + window.first, u - b

    def _weights(self, part: slice, t: Tensor, order: int) -> list[Tensor]:
        """Weights of the nodes (n, 3, w) and their derivatives, per radian."""
        scale = (self.sizes[part].to(t) / _TURN)[..., None]
        powers = t[..., None] ** torch.arange(len(self.coefficients[0]), device=t.device)
        return [(powers @ self.coefficients[o]) * scale**o for o in range(order + 1)]

    def _nodes(self, part: slice, first: Tensor) -> Tensor:
        """Places (n, w, w, w) in the flat meshes of the nodes that atoms touch."""
        sizes, width = self.sizes[part], self.window.width
        index = (first[..., None] + torch.arange(width, device=first.device)) % sizes[..., None]
        x, y, z = index[:, 0, :, None, None], index[:, 1, None, :, None], index[:, 2, None, None]
        _, n_y, n_z = sizes[:, :, None, None, None].unbind(1)
        return self.starts[part, None, None, None] + (x * n_y + y) * n_z + z

    def _contract(self, rows: Tensor, part: slice, order: int) -> Tensor:
        """Mixed phase derivatives of the potentials; (n, P, o_x, o_y, o_z)."""
        first, t = self._first_nodes(part)
        sizes, w, o = self.sizes[part], self.window.width, order + 1
        x, y, z = torch.stack(self._weights(part, t, order), -1).unbind(1)
        index = (first[:, :2, None] + torch.arange(w, device=t.device)) % sizes[:, :2, None]
        place = index[:, 0, :, None] * sizes[:, 1, None, None] + index[:, 1, None]
        place = (
            place * (sizes[:, 2] + w - 1)[:, None, None]
            + (first[:, 2] % sizes[:, 2])[:, None, None]
        )
        place = (place + self.row_starts[part, None, None]).flatten()
        n = len(t)
        out = rows.new_empty(n, len(rows), o, o, o)
        for p, potential in enumerate(rows):
            value = potential[place].view(n, w * w, w) @ z
            value = y.transpose(1, 2) @ value.view(n, w, w, o).transpose(1, 2).reshape(n, w, w * o)
            value = value.view(n, o, w, o).transpose(1, 2).reshape(n, w, o * o)
            out[:, p] = (x.transpose(1, 2) @ value).view(n, o, o, o)
        return out


def _outer(weights: list[Tensor], charge: Tensor, dipole: Tensor | None) -> Tensor:
    """Weights of charges q + d.grad on their nodes; (n, w, w, w)."""
    x, y, z = weights[0].unbind(1)
    yz = y[:, :, None] * z[:, None]
    along_x = x * charge[:, None]
    if dipole is None:
        return along_x[:, :, None, None] * yz[:, None]
    dx, dy, dz = (weights[1] * dipole[..., None]).unbind(1)
    tilted = dy[:, :, None] * z[:, None] + y[:, :, None] * dz[:, None]
    along_x = along_x + dx
    return along_x[:, :, None, None] * yz[:, None] + x[:, :, None, None] * tilted[:, None]


PURE_TORCH = Engine("torch", TorchStencil, TorchSampler)
