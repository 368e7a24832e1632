"""Stencils whose results autograd differentiates to any order.

The jet of a potential at an atom is the array of its mixed phase derivatives
d^(a+b+c) phi / d theta_1^a d theta_2^b d theta_3^c with a, b, c <= order. Gathering the jet of
one order has its derivative in the phases in the jet of the next, and its derivative in the
nodes is spreading, which takes one source for each entry of a jet. So the two functions
below, each the other's adjoint, hold all derivatives of each other, and nothing larger than
a jet for each atom is ever kept for autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .autograd import apply_function
from .engines.torch_engine import TorchStencil
from .mesh import Meshes


class JetStencil(TorchStencil):
    """Stencil for use inside models: spreading and gathering are parts of the autograd graph.

    Parameters
    ----------
    meshes : Meshes
    phases : Tensor, shape (n_atoms, 3), in [0, 2 pi)
    batch : Tensor, shape (n_atoms,)
    """

    def __init__(self, meshes: Meshes, phases: Tensor, batch: Tensor) -> None:
        super().__init__(meshes, phases.detach(), batch)
        self.graph_phases = phases
        count = len(self.window.coefficients.T)
        self.coefficients = [
            torch.as_tensor(self.window.derivative(order).T.copy()).to(phases)
            for order in range(count)
        ]

    def spread(self, charges: Tensor, dipoles: Tensor | None = None) -> Tensor:
        """Densities (P, n_nodes) of charges (N, P) and phase-space dipoles (N, 3, P)."""
        jets = charges[..., None, None, None]
        if dipoles is not None:
            jets = _sources(charges, dipoles)
        nodes: Tensor = apply_function(_Spread, jets, self.graph_phases, self)
        return nodes

    def gather(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Value (N, P) and phase gradient (N, 3, P) of potentials (P, n_nodes)."""
        jets = apply_function(_Gather, nodes, self.graph_phases, self, 1)
        return jets[..., 0, 0, 0], torch.stack(_first(jets), 1)

    def spread_jets(self, jets: Tensor) -> Tensor:
        """Densities (P, n_nodes) of sources (N, P, o, o, o), one for each entry of a jet."""
        order = jets.shape[-1] - 1
        nodes = jets.new_zeros(jets.shape[1], self.meshes.starts[-1])
        for part in self._chunks():
            first, t = self._first_nodes(part)
            x, y, z = torch.stack(self._weights(part, t, order), -1).unbind(1)
            place = self._nodes(part, first).flatten()
            for p, own in enumerate(nodes):
                values = jets[part, p] @ z.transpose(1, 2)[:, None]
                values = (y[:, None] @ values).flatten(2)
                own.scatter_add_(0, place, (x @ values).flatten())
        return nodes

    def gather_jets(self, nodes: Tensor, order: int) -> Tensor:
        """Jets (N, P, o, o, o), o = order + 1, of potentials (P, n_nodes)."""
        rows = self._rows(nodes.contiguous())
        return torch.cat([self._contract(rows, part, order) for part in self._chunks()])


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, nodes: Tensor, phases: Tensor, stencil: JetStencil, order: int) -> Tensor:
        ctx.save_for_backward(nodes, phases)
        ctx.stencil, ctx.order = stencil, order
        return stencil.gather_jets(nodes, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        nodes, phases = ctx.saved_tensors
        by_nodes = by_phases = None
        if ctx.needs_input_grad[0]:
            by_nodes = apply_function(_Spread, grad, phases, ctx.stencil)
        if ctx.needs_input_grad[1]:
            higher = apply_function(_Gather, nodes, phases, ctx.stencil, ctx.order + 1)
            by_phases = _contract_gradient(grad, higher)
        return by_nodes, by_phases, None, None


class _Spread(Function):
    @staticmethod
    def forward(ctx: Any, jets: Tensor, phases: Tensor, stencil: JetStencil) -> Tensor:
        ctx.save_for_backward(jets, phases)
        ctx.stencil = stencil
        return stencil.spread_jets(jets)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        jets, phases = ctx.saved_tensors
        order = jets.shape[-1] - 1
        wants_phases = ctx.needs_input_grad[1]
        found = apply_function(_Gather, grad, phases, ctx.stencil, order + wants_phases)
        by_jets = found[..., : order + 1, : order + 1, : order + 1]
        by_phases = _contract_gradient(jets, found) if wants_phases else None
        return by_jets, by_phases, None


def _sources(charges: Tensor, dipoles: Tensor) -> Tensor:
    """Charges and dipoles at their entries of a jet; (N, P, 2, 2, 2)."""
    none = torch.zeros_like(charges)
    x, y, z = dipoles.unbind(1)
    entries = torch.stack((charges, z, y, none, x, none, none, none), -1)
    return entries.view(*charges.shape, 2, 2, 2)


def _first(jets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First derivatives along each axis."""
    return jets[..., 1, 0, 0], jets[..., 0, 1, 0], jets[..., 0, 0, 1]


def _contract_gradient(weights: Tensor, jets: Tensor) -> Tensor:
    """Phase gradient (N, 3) of sum(weights * jet), from the jet of the next order."""
    shifted = jets[..., 1:, :-1, :-1], jets[..., :-1, 1:, :-1], jets[..., :-1, :-1, 1:]
    return torch.stack([(weights * own).sum((1, 2, 3, 4)) for own in shifted], 1)
