"""Asserts that derivatives are those of the energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sog_longrange.errors import InputError, explain

from .comparison import check_close, normal
from .structures import EnergyFunction, Structure, join


def assert_forces_match_finite_differences(
    energy: EnergyFunction,
    structure: Structure,
    *,
    step: float = 1e-3,
    tolerance: float = 1e-7,
    seed: int = 0,
) -> None:
    """Assert that forces, and the stress of a periodic structure, derive from the energy.

    The derivative along a random displacement of all atoms, and along a random strain of
    atoms and cell, is compared with a five-point difference of energies. Charges are held
    fixed. The defaults are meant for float64.

    Parameters
    ----------
    energy : callable
        See :mod:`sog_longrange.testing`.
    structure : Structure
    step : float
        Step of the difference, in Å (for strain: relative).
    tolerance : float
        Largest difference allowed, relative to the larger of the derivative and 1 eV/Å
        (for strain: 1 eV) per atom.
    seed : int
        Seed of the random directions.

    Raises
    ------
    AssertionError
        If a derivative differs.
    """
    displacement = normal(structure, seed, *structure.positions.shape)
    still = torch.zeros_like(structure.cell)
    _check_slope(energy, structure, displacement, still, step, tolerance, "The force")
    if bool(structure.pbc.any()):
        strain = normal(structure, seed + 1, 3, 3)
        moves = structure.positions @ strain, structure.cell @ strain
        _check_slope(energy, structure, *moves, step, tolerance, "The stress")


def assert_twice_differentiable(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    *,
    step: float = 1e-6,
    tolerance: float = 1e-6,
) -> None:
    """Assert that first and second derivatives are those of the function itself.

    Parameters
    ----------
    function : callable
        Takes `inputs`, returns one or several tensors.
    inputs : sequence of Tensor, float64
        Point at which the derivatives are taken; derivatives are taken in every input.
    step : float
        Step of the finite differences.
    tolerance : float
        Largest difference allowed, relative and absolute.

    Raises
    ------
    AssertionError
        If a derivative is wrong or missing.
    InputError
        If an input is not float64: differences in float32 show nothing.
    """
    for index, value in enumerate(inputs):
        if value.dtype != torch.float64:
            raise InputError(explain(f"inputs[{index}]", "float64", str(value.dtype)))
    leaves = tuple(value.detach().clone().requires_grad_() for value in inputs)
    order = "First"
    try:
        torch.autograd.gradcheck(function, leaves, eps=step, atol=tolerance, rtol=tolerance)
        order = "Second"
        torch.autograd.gradgradcheck(function, leaves, eps=step, atol=tolerance, rtol=tolerance)
    except RuntimeError as error:
        raise AssertionError(f"{order} derivatives are wrong: {error}") from error


def _check_slope(
    energy: EnergyFunction,
    structure: Structure,
    shift: Tensor,
    stretch: Tensor,
    step: float,
    tolerance: float,
    what: str,
) -> None:
    """Compare the derivative along (shift, stretch) with differences of the energy."""

    def along(x: Tensor) -> Tensor:
        moved = structure._replace(
            positions=structure.positions + x * shift, cell=structure.cell + x * stretch
        )
        return energy(*join([moved]))[0]

    x = shift.new_zeros((), requires_grad=True)
    found = float(torch.autograd.grad(along(x), x)[0])
    near, far = (float((along(d) - along(-d)).detach()) for d in _steps(shift, step))
    expected = (8.0 * near - far) / (12.0 * step)
    check_close(found, expected, tolerance, structure, what)


def _steps(like: Tensor, step: float) -> tuple[Tensor, Tensor]:
    return like.new_tensor(step), like.new_tensor(2.0 * step)
