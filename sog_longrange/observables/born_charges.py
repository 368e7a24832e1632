"""Born effective charges: how polarisation follows the atoms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sog_longrange.errors import InputError, explain
from sog_longrange.geometry import reciprocal_cell, wrapped_phases
from sog_longrange.validation import Structures, check_float

from .images import (
    check_one_channel,
    check_one_dipole,
    compact_lattice,
    count_atoms,
    nearest_images,
    refractive_index,
    sum_by_graph,
)

ChargeFunction = Callable[[Tensor], Tensor]
"""charges(positions): one charge in e for each of the atoms, differentiable."""

DipoleFunction = Callable[[Tensor], Tensor]
"""dipoles(positions): one dipole (n_atoms, 3) in e Å for each of the atoms, differentiable."""


class BornCharges(NamedTuple):
    """Born effective charges and how well they obey the acoustic sum rule.

    Attributes
    ----------
    values : Tensor, shape (n_atoms, 3, 3), in e
        Z_jab = sqrt(eps_inf) dP_a / dr_jb, P the dipole of the cell: the first index is
        that of the dipole, the second that of the displacement.
    sum_rule : Tensor, shape (n_graphs, 3, 3), in e
        Sum of the charges of all atoms less sqrt(eps_inf) times the total charge, before
        anything was enforced. It vanishes where displacements conserve charge and act
        over less than half the width of a periodic cell.
    """

    values: Tensor
    sum_rule: Tensor


def born_charges(
    charges: Tensor | ChargeFunction,
    positions: Tensor,
    cell: Tensor | None = None,
    pbc: Tensor | None = None,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    *,
    eps_inf: float = 1.0,
    reach: float | None = None,
    enforce_sum_rule: bool = False,
    create_graph: bool = False,
    dipoles: Tensor | DipoleFunction | None = None,
) -> BornCharges:
    """Born effective charges, with the response of the charges to displacements.

    Z_j = sqrt(eps_inf) (q_j 1 + sum_i d(r_i - r_j) dq_i/dr_j), where d is the vector from
    the displaced atom itself: in periodic cells to the nearest image, and to the mean of
    images that are equally near. This is the derivative of :func:`dipole` with the origin
    where atom j was. It holds for responses that end within half the width of the cell;
    of what reaches farther the images overlap. A broken `sum_rule` tells it, though one that
    holds is no proof; larger cells mend what images broke.

    Open structures take four backward passes. Periodic ones take as many as the largest has
    atoms or, without slabs and with `reach`, 3 n + 1 if that is less: n = 1 / (1 - 2 reach /
    height) of the cell, rounded up.

    Parameters
    ----------
    charges : Tensor, shape (n_atoms,), in e, or callable
        Charges in the autograd graph of `positions`, or a function of the positions that
        returns them.
    positions, cell, pbc, batch, num_graphs
        As in :meth:`~sog_longrange.LongRangeEnergy.forward`.
    eps_inf : float
        High-frequency dielectric constant, of all structures.
    reach : float, optional
        Largest distance in Å at which a displacement acts on an atom: for message passing the
        number of layers times the cutoff. A projection to a total charge reaches all
        atoms: leave this out for charges that were projected.
    enforce_sum_rule : bool
        Whether what violates the acoustic sum rule is taken evenly from all atoms.
    create_graph : bool
        Whether the result can be differentiated in turn.
    dipoles : Tensor, shape (n_atoms, 3), in e Å, or callable, optional
        Of the atoms themselves, a tensor or a function as `charges` is; the sum of their
        responses d mu_i / dr_j adds to Z_j, by three more passes.

    Returns
    -------
    BornCharges

    Raises
    ------
    InputError, InputTypeError
        If an argument is malformed, or charges are not in the graph of the positions.

    References
    ----------
    King, Kim, Zhong, Cheng, arXiv:2412.15455: sqrt(eps_inf) and the derivative of the phase
    form exp(-ik.r_j) d/dr_j sum_i q_i exp(ik.r_i) / (ik). Its real part takes sin(k.d)/k for
    d, which is 4.5 % short for 1 Å in a cell of 12 Å; nearest images make no such error.

    Examples
    --------
    >>> import torch
    >>> from sog_longrange import born_charges
    >>> def charges(positions):
    ...     bond = (positions[1] - positions[0]).norm()
    ...     return torch.stack([bond, -bond]) / 4
    >>> positions = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    >>> born_charges(charges, positions).values[0].diagonal().tolist()
    [1.0, 0.5, 0.5]
    """
    root = refractive_index(eps_inf)
    charges, dipoles, positions = _linked(charges, dipoles, positions, create_graph)
    structures = check_one_channel("charges", charges, positions, cell, pbc, batch, num_graphs)
    pull = _Pull(charges, positions, create_graph) if charges.requires_grad else None
    with torch.set_grad_enabled(create_graph):
        response = torch.zeros_like(positions[:, :, None] * positions[:, None])
        if pull is not None:
            response = response + _response(pull, structures, reach)
        if dipoles is not None:
            check_one_dipole(dipoles, charges)
            response = response + _dipole_response(dipoles, positions, create_graph)
        return _born(charges, structures, response, root, enforce_sum_rule)


def _born(
    charges: Tensor,
    structures: Structures,
    response: Tensor,
    root: float,
    enforce: bool,
) -> BornCharges:
    identity = torch.eye(3).to(charges)
    values = charges[:, None, None] * identity + response
    total = sum_by_graph(charges, structures)[:, None, None] * identity
    excess = root * (sum_by_graph(values, structures) - total)
    values = root * values
    if enforce:
        values = values - (excess / count_atoms(structures)[:, None, None])[structures.batch]
    return BornCharges(values, excess)


class _Pull:
    """Weighted sums over i of dq_i/dr_j, or of dmu_i/dr_j; one backward pass each."""

    def __init__(self, charges: Tensor, positions: Tensor, create_graph: bool) -> None:
        self.charges, self.positions, self.create_graph = charges, positions, create_graph

    def __call__(self, weights: Tensor) -> Tensor:
        # As grad_outputs the weights are part of the graph, but are not differentiated.
        (gradient,) = torch.autograd.grad(
            self.charges,
            self.positions,
            weights,
            retain_graph=True,
            create_graph=self.create_graph,
            materialize_grads=True,
        )
        return gradient


def _dipole_response(dipoles: Tensor, positions: Tensor, create_graph: bool) -> Tensor:
    """Sum over i of dmu_i/dr_j, shape (n_atoms, 3, 3)."""
    if not dipoles.requires_grad:
        return torch.zeros_like(positions[:, :, None] * positions[:, None])
    pull = _Pull(dipoles, positions, create_graph)
    return torch.stack([pull(axis.expand_as(dipoles)) for axis in torch.eye(3).to(dipoles)], 1)


def _response(pull: _Pull, structures: Structures, reach: float | None) -> Tensor:
    """Sum over i of d(r_i - r_j) dq_i/dr_j, shape (n_atoms, 3, 3)."""
    periodic = structures.pbc.any(-1)
    inside = periodic[structures.batch]
    if not bool(periodic.any()):
        return _open_response(pull, structures.positions)
    counts = torch.where(periodic, count_atoms(structures), 0)
    windows = None if reach is None else _count_windows(structures, reach)
    if windows is not None and 3 * windows + 1 < int(counts.max()):
        found = _windowed_response(pull, structures, windows)
    else:
        found = _full_response(pull, structures, counts)
    if bool(inside.all()):
        return found
    return torch.where(inside[:, None, None], found, _open_response(pull, structures.positions))


def _open_response(pull: _Pull, positions: Tensor) -> Tensor:
    moments = torch.stack([pull(x) for x in positions.unbind(1)], 1)
    return moments - positions[:, :, None] * pull(torch.ones_like(positions[:, 0]))[:, None]


def _full_response(pull: _Pull, structures: Structures, counts: Tensor) -> Tensor:
    """One atom i of every periodic structure after the other."""
    positions, batch, lattice = structures.positions, structures.batch, compact_lattice(structures)
    first = torch.searchsorted(batch, torch.arange(len(counts), device=batch.device))
    found = torch.zeros_like(positions[:, :, None] * positions[:, None])
    for i in range(int(counts.max())):
        present = i < counts
        atoms = torch.where(present, first + i, 0)
        weights = torch.zeros_like(positions[:, 0])
        weights[atoms[present]] = 1.0
        arms = nearest_images(positions[atoms[batch]] - positions, lattice, batch, mean=True)
        # Of structures with fewer atoms the pull is zero.
        found = found + arms[:, :, None] * pull(weights)[:, None]
    return found


def _count_windows(structures: Structures, reach: float) -> int | None:
    """Windows along each axis within which one cut is far from all that acts on an atom."""
    if not (reach > 0.0 and math.isfinite(reach)):
        raise InputError(explain("reach", "positive and finite", str(reach)))
    pbc = structures.pbc
    if bool((pbc.any(-1) & ~pbc.all(-1)).any()):
        return None
    cells = compact_lattice(structures).detach()[pbc.all(-1)]
    heights = 2.0 * math.pi / torch.linalg.vector_norm(reciprocal_cell(cells), dim=-1)
    room = 1.0 - 2.0 * reach / float(heights.min())
    return math.ceil(1.0 / room) if room > 0.0 else None


def _windowed_response(pull: _Pull, structures: Structures, windows: int) -> Tensor:
    """Axis by axis, with the cut of the images opposite to each window in turn."""
    positions, batch, lattice = structures.positions, structures.batch, compact_lattice(structures)
    periodic = structures.pbc.all(-1)[:, None, None]
    filled = torch.where(periodic, lattice, torch.eye(3).to(lattice))
    turns = wrapped_phases(positions, reciprocal_cell(filled), batch) / (2.0 * math.pi)
    own = torch.floor(turns.detach() * windows).clamp(max=windows - 1)
    even = pull(torch.ones_like(turns[:, 0]))
    found = torch.zeros_like(positions[:, :, None] * positions[:, None])
    for axis in range(3):
        edge = filled[batch, axis, :, None]
        for window in range(windows):
            apart = turns[:, axis] - (window + 0.5) / windows
            apart = apart - torch.round(apart.detach())
            flow = pull(apart) - apart[:, None] * even
            mine = own[:, axis] == window
            found = found + torch.where(mine[:, None, None], edge * flow[:, None], 0.0)
    return found


def _linked(
    charges: Tensor | ChargeFunction,
    dipoles: Tensor | DipoleFunction | None,
    positions: Tensor,
    create_graph: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Charges, dipoles, and the positions whose graph they are in."""
    check_float("positions", positions)
    if dipoles is not None and isinstance(dipoles, Tensor) != isinstance(charges, Tensor):
        expected = "a tensor or a function, as `charges` is"
        raise InputError(explain("dipoles", expected, type(dipoles).__name__))
    if isinstance(charges, Tensor):
        _check_in_graph("charges", charges, positions)
        if isinstance(dipoles, Tensor):
            _check_in_graph("dipoles", dipoles, positions)
        return charges, dipoles if isinstance(dipoles, Tensor) else None, positions
    if not (create_graph and positions.requires_grad):
        positions = positions.detach().requires_grad_()
    with torch.enable_grad():
        return charges(positions), dipoles(positions) if callable(dipoles) else None, positions


def _check_in_graph(name: str, values: Tensor, positions: Tensor) -> None:
    if not (values.requires_grad and positions.requires_grad):
        remedy = "Call `positions.requires_grad_()` before the model, or pass a function."
        got = "a tensor without one"
        raise InputError(explain(name, "in the graph of `positions`", got, remedy))
