"""The long-range energy as one function with analytic first and second derivatives.

Every backend computes, for each structure g, the quadratic form

    E_g = 1/2 sum_(i in g) q_i . phi_i,        phi = gather(field(table * spread(q))),

where `table` is the kernel on the backend's modes (or pairs), `spread` and `gather` are
adjoint sums over atoms with phases theta, and `field` is the Fourier transform of a mesh.
Backends never see autograd: the gradients of E in theta, q and table, and the gradients of
those, are written out here once. With u and v the cotangents of phi = dE/dq and G = dE/dtheta,

    R = spread(u, q v)      charges u and dipoles q v
    psi' = table * R
    d/dq     = gather(psi') + v . grad phi
    d/dtheta = q grad gather(psi') + u grad phi + q (grad grad phi) v
    d/dtable = correlate(S, R)

Third derivatives are refused. (PyTorch's `once_differentiable` would not do: it cuts the
graph, so that `torch.autograd.grad` passes by and returns what the other terms give.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from sog_longrange.errors import DerivativeError


class Backend(Protocol):
    """The adjoint sums that a backend supplies; no argument ever requires a gradient.

    Sources, spectra (S, psi) and tables have shapes of the backend's own choice.
    """

    batch: Tensor
    num_graphs: int

    def set_phases(self, phases: Tensor) -> None:
        """Take the phases of all atoms, shape (n_atoms, n_dim)."""
        ...

    def spread(self, charges: Tensor, dipoles: Tensor | None = None) -> Tensor:
        """Spectrum of charges (n_atoms, P) and of dipoles (n_atoms, n_dim, P) in phase space."""
        ...

    def convolve(self, table: Tensor, spectrum: Tensor) -> Tensor:
        """Multiply the spectrum by the kernel: sum_q T_pq S_q where channels are coupled."""
        ...

    def field(self, spectrum: Tensor) -> Tensor:
        """Turn a spectrum into what atoms gather from; the spectrum is not used again."""
        ...

    def gather(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Potential (n_atoms, P) and its phase gradient (n_atoms, n_dim, P)."""
        ...

    def gather_hessian(self, field: Tensor, direction: Tensor) -> Tensor:
        """Second phase derivatives times a direction (n_atoms, n_dim); (n_atoms, n_dim, P)."""
        ...

    def correlate(self, first: Tensor, second: Tensor, table: Tensor) -> Tensor:
        """Re(S* R) for each law of the kernel: d(S.T.R)/dT, in `table`'s shape."""
        ...

    def per_table(self, per_graph: Tensor) -> Tensor:
        """Expand one number per structure to the shape of the table."""
        ...


def quadratic_energy(
    backend: Backend,
    phases: Tensor,
    charges: Tensor,
    table: Tensor,
    reduce: Callable[[Tensor], Tensor] = lambda local: local,
) -> tuple[Tensor, Tensor]:
    """Energy of each structure and potential at each atom.

    Parameters
    ----------
    backend : Backend
    phases : Tensor, shape (n_atoms, n_dim)
        Phases of the atoms; n_dim = 0 for a backend whose table holds all geometry.
    charges : Tensor, shape (n_atoms, n_channels)
    table : Tensor
        The kernel on the backend's modes or pairs, in eV/e^2.
    reduce : callable
        Differentiable sum over the ranks that hold the atoms, if there are several.

    Returns
    -------
    energy : Tensor, shape (n_graphs,), float64, in eV
        Twice differentiable in phases, charges and table.
    potential : Tensor, shape (n_atoms, n_channels), in eV/e
        Once differentiable.
    """
    state = _State(backend, phases.detach(), charges.detach(), table.detach(), reduce)
    # Local atoms are weighted by the replicated gradient of the energy, whose own gradient
    # needs the sum over ranks: `reduce` brings both.
    energy: Tensor = reduce(apply_function(_Energy, phases, charges, table, state))
    if table.requires_grad:
        # A node of its own, so that a force evaluation never computes the kernel gradient.
        energy = energy + apply_function(_TableEnergy, table, (phases, charges), state)
    potential, _ = apply_function(_Field, phases, charges, table, state)
    return energy, potential


def apply_function(function: type[Function], *args: object) -> Any:  # noqa: ANN401
    """Call `Function.apply`, which PyTorch leaves untyped.

    Parameters
    ----------
    function : type of Function
    *args : object
        Its arguments.

    Returns
    -------
    Any
        What its forward returns.
    """
    return function.apply(*args)


class _State:
    """What the nodes of one evaluation share."""

    def __init__(
        self,
        backend: Backend,
        phases: Tensor,
        charges: Tensor,
        table: Tensor,
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        self.backend = backend
        self.reduce = reduce
        backend.set_phases(phases)
        self.spectrum = self.spread(charges)
        self.field = backend.field(backend.convolve(table, self.spectrum))
        self.potential, self.slope = backend.gather(self.field)

    def spread(self, charges: Tensor, dipoles: Tensor | None = None) -> Tensor:
        return self.reduce(self.backend.spread(charges, dipoles))

    def per_graph(self, per_atom: Tensor) -> Tensor:
        # In float32 a million terms would lose meV per atom.
        zeros = per_atom.new_zeros(self.backend.num_graphs, dtype=torch.float64)
        return zeros.index_add_(0, self.backend.batch, per_atom.double())


class _Energy(Function):
    @staticmethod
    def forward(ctx: Any, phases: Tensor, charges: Tensor, table: Tensor, state: _State) -> Tensor:
        ctx.save_for_backward(phases, charges, table)
        ctx.state = state
        return 0.5 * state.per_graph((charges * state.potential).sum(-1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        phases, charges, table = ctx.saved_tensors
        potential, force = apply_function(_Field, phases, charges, table, ctx.state)
        weight = grad.to(charges.dtype)[ctx.state.backend.batch][:, None]
        return weight * force, weight * potential, None, None


class _Field(Function):
    """Potential dE/dq and negative generalised force dE/dtheta."""

    @staticmethod
    def forward(
        ctx: Any, phases: Tensor, charges: Tensor, table: Tensor, state: _State
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(phases, charges, table)
        ctx.state = state
        ctx.set_materialize_grads(False)
        return state.potential.clone(), (charges[:, None] * state.slope).sum(-1)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, v: Tensor | None) -> tuple[Tensor | None, ...]:
        wants_table = ctx.needs_input_grad[2]
        gradients = apply_function(_FieldGradient, u, v, *ctx.saved_tensors, wants_table, ctx.state)
        return (*gradients, None)


class _FieldGradient(Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor | None,
        v: Tensor | None,
        phases: Tensor,
        charges: Tensor,
        table: Tensor,
        wants_table: bool,
        state: _State,
    ) -> tuple[Tensor | None, ...]:
        backend = state.backend
        u = torch.zeros_like(charges) if u is None else u
        v = torch.zeros_like(phases) if v is None else v
        sources = state.spread(u, charges[:, None] * v[:, :, None])
        grad_table = backend.correlate(state.spectrum, sources, table) if wants_table else None
        potential, slope = backend.gather(backend.field(backend.convolve(table, sources)))
        curvature = backend.gather_hessian(state.field, v)
        q = charges[:, None]
        grad_phases = (q * (slope + curvature) + u[:, None] * state.slope).sum(-1)
        grad_charges = potential + (v[:, :, None] * state.slope).sum(1)
        return grad_phases, grad_charges, grad_table

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        refuse_third_derivatives()


class _TableEnergy(Function):
    """Zero-valued node that carries dE/dtable.

    Phases and charges come as a pair, which autograd does not look into: as inputs they
    would put this node on the way from the energy to the forces.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, atoms: tuple[Tensor, Tensor], state: _State) -> Tensor:
        ctx.save_for_backward(table)
        ctx.atoms, ctx.state = atoms, state
        return table.new_zeros(state.backend.num_graphs, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (table,) = ctx.saved_tensors
        weight = ctx.state.backend.per_table(grad.to(table.dtype))
        gradient = apply_function(_TableGradient, *ctx.atoms, table, ctx.state)
        return weight * gradient, None, None


class _TableGradient(Function):
    @staticmethod
    def forward(ctx: Any, phases: Tensor, charges: Tensor, table: Tensor, state: _State) -> Tensor:
        ctx.save_for_backward(phases, charges)
        ctx.state = state
        return 0.5 * state.backend.correlate(state.spectrum, state.spectrum, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = apply_function(_TableCurvature, grad, *ctx.saved_tensors, ctx.state)
        return (*gradients, None, None)


class _TableCurvature(Function):
    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, phases: Tensor, charges: Tensor, state: _State
    ) -> tuple[Tensor, Tensor]:
        backend = state.backend
        potential, slope = backend.gather(backend.field(backend.convolve(grad, state.spectrum)))
        return (charges[:, None] * slope).sum(-1), potential

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        refuse_third_derivatives()


def refuse_third_derivatives() -> None:
    """Raise `DerivativeError`."""
    raise DerivativeError(
        "Third derivatives of the long-range energy, and second derivatives of its potential, "
        "are not available."
    )
