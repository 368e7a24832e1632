"""The energy E = 1/2 <S, T S> of sources, and the potential that they make at the atoms.

With S = spread(W) and psi = T S the energy of each structure is half the sum over its atoms of
W . d phi, where d phi = interpolate(psi). Its gradient needs no second pass, because the form
is symmetric:

    dE/dW = d phi      dE/dtheta_c = sum_a W_a d^(a + c) phi      dE/dT = 1/2 correlate(S, S)

All three are parts of the autograd graph, so that second derivatives follow by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributed import ProcessGroup
from torch.utils.checkpoint import checkpoint

from sog_longrange.geometry import at_atoms, sum_over_atoms

from .distributed import accumulate, replicate
from .multipoles import (
    Backend,
    apply_function,
    convolve,
    correlate,
    interpolate,
    phase_gradient,
    spread,
)

Part = tuple[Backend, Callable[[], Tensor]]
"""A backend, and what makes the kernel's table on its modes, in eV/e^2."""

_CHECKPOINT: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}


def quadratic_form(
    parts: Sequence[Part],
    phases: Tensor,
    sources: Tensor,
    order: int,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Energy of each structure, and derivatives of the potential at each atom.

    Parameters
    ----------
    parts : sequence of Part
        Of the modes, which are summed one after another.
    phases : Tensor, shape (n_atoms, 3)
    sources : Tensor, shape (n_atoms, n_sources, n_channels)
    order : int
        Highest order of the derivatives; at least one above that of the sources.
    group : ProcessGroup, optional
        Ranks over which the atoms are spread.

    Returns
    -------
    energy : Tensor, shape (n_graphs,), float64, in eV
    derivatives : Tensor, shape (n_atoms, n_derivatives, n_channels), in eV/e
        In the phases, the potential itself first.
    """

    def derive(backend: Backend, table_of: Callable[[], Tensor]) -> tuple[Tensor, Tensor | None]:
        return _derivatives(backend, table_of(), phases, sources, order, group)

    if len(parts) == 1:
        derivatives, by_table = derive(*parts[0])
    else:
        # Spectra of many modes are computed again where a derivative needs them.
        sums = [checkpoint(derive, *part, **_CHECKPOINT) for part in parts]
        derivatives = torch.stack([own for own, _ in sums]).sum(0)
        carriers = [own for _, own in sums if own is not None]
        by_table = torch.stack(carriers).sum(0) if carriers else None
    # Local atoms are weighted by the replicated gradient of the energy, whose own gradient
    # needs the sum over ranks: `accumulate` brings both.
    local: Tensor = apply_function(_Energy, sources, phases, (derivatives,), parts[0][0])
    energy = accumulate(local, group)
    return energy if by_table is None else energy + by_table, derivatives


def _derivatives(
    backend: Backend,
    table: Tensor,
    phases: Tensor,
    sources: Tensor,
    order: int,
    group: ProcessGroup | None,
) -> tuple[Tensor, Tensor | None]:
    """Differentiate the potential at each atom, and carry the gradient in the table."""
    backend.set_phases(phases.detach())
    factor = accumulate(spread(backend, sources, phases), group)
    psi = convolve(backend, table, factor)
    derivatives = interpolate(backend, replicate(psi, group), phases, order)
    if not table.requires_grad:
        return derivatives, None
    # A node of its own, so that a force evaluation never computes the kernel gradient.
    return derivatives, apply_function(_TableEnergy, table, (factor,), backend)


class _Energy(Function):
    """Half the sum of sources times derivatives, with the gradient of the quadratic form.

    The derivatives come in a tuple, which autograd does not look into: their dependence on
    sources and phases is in that gradient already.
    """

    @staticmethod
    def forward(
        ctx: Any, sources: Tensor, phases: Tensor, derivatives: tuple[Tensor], backend: Backend
    ) -> Tensor:
        ctx.save_for_backward(sources)
        ctx.derivatives, ctx.backend = derivatives, backend
        own = derivatives[0].detach()[:, : sources.shape[1]]
        per_atom = (sources * own).sum((1, 2))
        # In float32 a million terms would lose meV per atom.
        return 0.5 * sum_over_atoms(per_atom.double(), backend.batch, backend.num_graphs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (sources,), (derivatives,) = ctx.saved_tensors, ctx.derivatives
        weight = at_atoms(grad.to(sources.dtype), ctx.backend.batch)[:, None]
        by_sources = by_phases = None
        if ctx.needs_input_grad[0]:
            by_sources = weight[:, None] * derivatives[:, : sources.shape[1]]
        if ctx.needs_input_grad[1]:
            by_phases = weight * phase_gradient(sources, derivatives)
        return by_sources, by_phases, None, None


class _TableEnergy(Function):
    """Zero-valued node that carries dE/dtable; the structure factor is hidden likewise."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, factor: tuple[Tensor], backend: Backend) -> Tensor:
        ctx.save_for_backward(table)
        ctx.factor, ctx.backend = factor, backend
        return table.new_zeros(backend.num_graphs, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (table,), (factor,) = ctx.saved_tensors, ctx.factor
        weight = ctx.backend.per_table(0.5 * grad.to(table.dtype))
        return weight * correlate(ctx.backend, factor, factor, table), None, None
