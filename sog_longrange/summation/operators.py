"""The long-range energy as opaque operators, for compilers that cannot look inside.

Grids depend on the cell, which no tracer follows. So under `torch.compile` and `make_fx`
the whole evaluation is one node of the graph:

    sog_longrange::evaluate          energy, potential dE/dq, field -dE/dmu and gradient dE/dr
    sog_longrange::backward          gradients of weighted sums of these four
    sog_longrange::double_backward   gradients of those, which training on stress needs

All run the same eager code. Bodies of operators are called below autograd, and perhaps in
inference mode, which are states of the calling thread: the eager code runs in another one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sog_longrange.errors import DerivativeError

N_DIFFERENTIABLE = 6
FIELD = "+field"
"""What options end with that ask for the field of charges."""


class Inputs(NamedTuple):
    """What an evaluation depends on; gradients exist for the first six.

    Attributes
    ----------
    charges, dipoles, positions, cell : Tensor
        As in :meth:`~sog_longrange.LongRangeEnergy.forward`; cell is (n_graphs, 3, 3), dipoles
        are (n_atoms, 0, n_channels) where there are none.
    amplitudes, widths : Tensor, shape (num_channels, num_gaussians)
        Of the kernel; empty for a kernel without parameters.
    pbc : Tensor, shape (n_graphs, 3), bool
    batch : Tensor, shape (n_atoms,), int64, sorted
    options : str
        Everything else, for the function that evaluates.
    """

    charges: Tensor
    dipoles: Tensor
    positions: Tensor
    cell: Tensor
    amplitudes: Tensor
    widths: Tensor
    pbc: Tensor
    batch: Tensor
    options: str

    @property
    def differentiable(self) -> list[Tensor]:
        """The entries that gradients exist for."""
        of_atoms = [self.charges, self.dipoles, self.positions]
        return [*of_atoms, self.cell, self.amplitudes, self.widths]


N_INPUTS = 8
Evaluate = Callable[[Inputs], tuple[Tensor, Tensor, Tensor]]
Operator = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


def define_operators(evaluate: Evaluate) -> Operator:
    """Register the three operators.

    Parameters
    ----------
    evaluate : callable
        Takes `Inputs` and returns energy, potential and field, the latter (n_atoms, 0,
        n_channels) where none is wanted; twice differentiable.

    Returns
    -------
    callable
        The operator `sog_longrange::evaluate`, which takes the entries of `Inputs` and
        returns energy (n_graphs,), potential (n_atoms, n_channels), field (n_atoms, 3 or 0,
        n_channels) and gradient dE/dr (n_atoms, 3).
    """
    double = _define_double_backward(evaluate)
    backward = _define_backward(evaluate, double)
    operator: Operator = _define_evaluate(evaluate, backward)
    return operator


def _define_evaluate(evaluate: Evaluate, backward: Any) -> Any:
    @torch.library.custom_op("sog_longrange::evaluate", mutates_args=())
    def operator(
        charges: Tensor,
        dipoles: Tensor,
        positions: Tensor,
        cell: Tensor,
        amplitudes: Tensor,
        widths: Tensor,
        pbc: Tensor,
        batch: Tensor,
        options: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inputs = Inputs(charges, dipoles, positions, cell, amplitudes, widths, pbc, batch, options)
        return _aside(lambda: _forward(evaluate, _leaves(inputs, (2,))), charges)

    @operator.register_fake
    def _(
        charges: Tensor, dipoles: Tensor, positions: Tensor, cell: Tensor, *rest: object
    ) -> tuple[Tensor, ...]:
        outputs = _outputs(charges, dipoles, positions, cell, str(rest[-1]))
        return tuple(x.new_empty(x.shape) for x in outputs)

    def differentiate(
        ctx: Any,
        by_energy: Tensor | None,
        by_potential: Tensor | None,
        by_field: Tensor | None,
        by_gradient: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        *tensors, potential, field, gradient = ctx.saved_tensors
        dipoles, batch = tensors[1], tensors[7]
        others = (by_potential, by_field, by_gradient)
        only_energy = all(x is None for x in others)
        if by_energy is not None and only_energy and not any(ctx.needs_input_grad[3:6]):
            weight = by_energy[batch][:, None]
            by_dipoles = -weight[..., None] * field if dipoles.shape[1] else None
            return weight * potential, by_dipoles, weight * gradient, *[None] * 6
        gradients = backward(*tensors, ctx.options, by_energy, *others)
        return *gradients, None, None, None

    def remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.options = inputs[-1]
        ctx.save_for_backward(*inputs[:-1], *output[1:])

    operator.register_autograd(differentiate, setup_context=remember)
    return operator


def _define_backward(evaluate: Evaluate, double: Any) -> Any:
    @torch.library.custom_op("sog_longrange::backward", mutates_args=())
    def operator(
        charges: Tensor,
        dipoles: Tensor,
        positions: Tensor,
        cell: Tensor,
        amplitudes: Tensor,
        widths: Tensor,
        pbc: Tensor,
        batch: Tensor,
        options: str,
        by_energy: Tensor | None,
        by_potential: Tensor | None,
        by_field: Tensor | None,
        by_gradient: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        inputs = Inputs(charges, dipoles, positions, cell, amplitudes, widths, pbc, batch, options)
        weights = (by_energy, by_potential, by_field, by_gradient)
        return _aside(lambda: _backward(evaluate, _leaves(inputs), _copies(weights)), charges)

    @operator.register_fake
    def _(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(x.new_empty(x.shape) for x in arguments[:N_DIFFERENTIABLE])

    def differentiate(ctx: Any, *by_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        weights = tensors[N_INPUTS:]
        gradients = double(*tensors[:N_INPUTS], ctx.options, *weights, *by_gradients)
        inputs, by_weights = gradients[:N_DIFFERENTIABLE], gradients[N_DIFFERENTIABLE:]
        by_weights = [
            None if weight is None else grad
            for weight, grad in zip(weights, by_weights, strict=True)
        ]
        return *inputs, None, None, None, *by_weights

    def remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.options = inputs[N_INPUTS]
        ctx.save_for_backward(*inputs[:N_INPUTS], *inputs[N_INPUTS + 1 :])

    operator.register_autograd(differentiate, setup_context=remember)
    return operator


def _define_double_backward(evaluate: Evaluate) -> Any:
    @torch.library.custom_op("sog_longrange::double_backward", mutates_args=())
    def operator(
        charges: Tensor,
        dipoles: Tensor,
        positions: Tensor,
        cell: Tensor,
        amplitudes: Tensor,
        widths: Tensor,
        pbc: Tensor,
        batch: Tensor,
        options: str,
        by_energy: Tensor | None,
        by_potential: Tensor | None,
        by_field: Tensor | None,
        by_gradient: Tensor | None,
        for_charges: Tensor | None,
        for_dipoles: Tensor | None,
        for_positions: Tensor | None,
        for_cell: Tensor | None,
        for_amplitudes: Tensor | None,
        for_widths: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        inputs = Inputs(charges, dipoles, positions, cell, amplitudes, widths, pbc, batch, options)
        weights = (by_energy, by_potential, by_field, by_gradient)
        of_atoms = (for_charges, for_dipoles, for_positions)
        cotangents = (*of_atoms, for_cell, for_amplitudes, for_widths)

        def job() -> tuple[Any, ...]:
            return _double_backward(evaluate, _leaves(inputs), weights, _copies(cotangents))

        return _aside(job, charges)

    @operator.register_fake
    def _(*arguments: Any) -> tuple[Tensor, ...]:
        charges, dipoles, positions, cell = arguments[:4]
        outputs = _outputs(charges, dipoles, positions, cell, arguments[N_INPUTS])
        return tuple(x.new_empty(x.shape) for x in (*arguments[:N_DIFFERENTIABLE], *outputs))

    def refuse(ctx: Any, *grads: Tensor | None) -> None:
        raise DerivativeError("Third derivatives of compiled sums are not available.")

    operator.register_autograd(refuse)
    return operator


def _outputs(
    charges: Tensor, dipoles: Tensor, positions: Tensor, cell: Tensor, options: str
) -> tuple[Tensor, ...]:
    """Tensors of the shapes of energy, potential, field and gradient."""
    field = charges[:, None].expand(-1, 3, -1) if has_field(options) else dipoles
    return charges.new_empty(cell.shape[0]), charges, field, positions


def has_field(options: str) -> bool:
    """Tell whether options ask for the field of charges.

    Parameters
    ----------
    options : str
    """
    return options.endswith(FIELD)


def _forward(evaluate: Evaluate, inputs: Inputs, create_graph: bool = False) -> tuple[Any, ...]:
    energy, potential, field = evaluate(inputs)
    (gradient,) = _gradients(energy.sum(), [inputs.positions], create_graph)
    return energy, potential, field, gradient


def _backward(
    evaluate: Evaluate,
    inputs: Inputs,
    weights: Sequence[Tensor | None],
    create_graph: bool = False,
) -> tuple[Any, ...]:
    outputs = _forward(evaluate, inputs, create_graph=True)
    total = _inner_product(outputs, weights)
    return _gradients(total, inputs.differentiable, create_graph)


def _double_backward(
    evaluate: Evaluate,
    inputs: Inputs,
    weights: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
) -> tuple[Any, ...]:
    charges, dipoles, positions, cell, *_ = inputs.differentiable
    like = _outputs(charges, dipoles, positions, cell, inputs.options)
    own = [
        (torch.zeros_like(x) if w is None else w).detach().clone().requires_grad_(w is not None)
        for x, w in zip(like, weights, strict=True)
    ]
    given = [x if x.requires_grad else None for x in own]
    gradients = _backward(evaluate, inputs, given, create_graph=True)
    total = _inner_product(gradients, cotangents)
    return _gradients(total, [*inputs.differentiable, *own], create_graph=False)


def _inner_product(outputs: Sequence[Tensor], weights: Sequence[Tensor | None]) -> Tensor:
    terms = [(x * w).sum() for x, w in zip(outputs, weights, strict=True) if w is not None]
    return torch.stack(terms).sum()


def _gradients(total: Tensor, inputs: list[Tensor], create_graph: bool) -> tuple[Tensor, ...]:
    """Gradients of a number, zero where it does not depend on an input."""
    wanted = [x for x in inputs if x.requires_grad]
    if not total.requires_grad:
        return tuple(torch.zeros_like(x) for x in inputs)
    found = iter(
        torch.autograd.grad(
            total, wanted, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    )
    return tuple(next(found) if x.requires_grad else torch.zeros_like(x) for x in inputs)


def _leaves(inputs: Inputs, which: Sequence[int] = range(N_DIFFERENTIABLE)) -> Inputs:
    """Ordinary copies of the tensors, those wanted with gradients."""
    leaves = [x.detach().clone() for x in inputs.differentiable]
    for i in which:
        leaves[i].requires_grad_()
    charges, dipoles, positions, cell, amplitudes, widths = leaves
    pbc, batch = inputs.pbc.clone(), inputs.batch.clone()
    return Inputs(charges, dipoles, positions, cell, amplitudes, widths, pbc, batch, inputs.options)


def _copies(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Ordinary copies: tensors of inference mode cannot enter a graph."""
    return [None if x is None else x.detach().clone() for x in tensors]


def _aside(job: Callable[[], tuple[Any, ...]], like: Tensor) -> tuple[Any, ...]:
    """Run a job in another thread, on the device and stream of this one."""

    def run() -> tuple[Tensor, ...]:
        if not like.is_cuda:
            return job()
        with torch.cuda.device(like.device), torch.cuda.stream(stream):
            return job()

    stream = torch.cuda.current_stream(like.device) if like.is_cuda else None
    result = _pool(os.getpid()).submit(run).result()
    return tuple(x.detach().contiguous() for x in result)


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked one makes its own."""
    return ThreadPoolExecutor(thread_name_prefix="sog-longrange-operator")
