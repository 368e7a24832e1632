"""What follows from physical charges: multipoles, polarisation, Born charges and fields.

Charges here are one number per atom, in e: the latent charges of the channel that stands
for them, ``out.charges[:, 0]`` of a model with one channel. A model with a Coulomb start
learns them screened by the electrons: they are the physical ones over sqrt(eps_inf), the
high-frequency dielectric constant, which is 1 in vacuum.

Charges alone define the dipole of a periodic cell only up to a choice of images: moving
atom j by a lattice vector a changes it by q_j a, its quantum. Here each atom is taken at
its image nearest to an origin, and for Born charges each atom is its own origin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import BoundaryError, InputError, explain
from .geometry import cell_volume, reciprocal_cell, reduced_cell, wrapped_phases
from .validation import (
    Structures,
    check_finite,
    check_float,
    check_like,
    check_shape,
    check_structures,
)

ChargeFunction = Callable[[Tensor], Tensor]
"""charges(positions): one charge in e for each of the atoms, differentiable."""

DipoleFunction = Callable[[Tensor], Tensor]
"""dipoles(positions): one dipole (n_atoms, 3) in e Å for each of the atoms, differentiable."""

_NEIGHBOURS = 2  # along each axis of a compact cell, among which is the nearest image


class BornCharges(NamedTuple):
    """Born effective charges and how well they obey the acoustic sum rule.

    Attributes
    ----------
    values : Tensor, shape (n_atoms, 3, 3), in e
        Z_jab = sqrt(eps_inf) dP_a / dr_jb, P the dipole of the cell: the first index is
        that of the dipole, the second that of the displacement.
    sum_rule : Tensor, shape (n_graphs, 3, 3), in e
        Sum of the charges of all atoms less sqrt(eps_inf) times the total charge, before
        anything was enforced. It vanishes where displacements conserve charge and are felt
        over less than half the width of a periodic cell.
    """

    values: Tensor
    sum_rule: Tensor


class FieldOutput(NamedTuple):
    """Charges in a uniform external electric field.

    Attributes
    ----------
    energy : Tensor, shape (n_graphs,), in eV
        See :func:`field_energy`.
    atomic_energies : Tensor, shape (n_atoms,), in eV
        -sqrt(eps_inf) (q_j d_j + mu_j).E, d_j the vector from the origin to the nearest image of
        atom j, mu_j its own dipole, if any. They sum to the energy, and each depends on the origin.
    dipole : Tensor, shape (n_graphs, 3), in e Å
        See :func:`dipole`.
    """

    energy: Tensor
    atomic_energies: Tensor
    dipole: Tensor


def centre(
    positions: Tensor,
    weights: Tensor | None = None,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
) -> Tensor:
    """Weighted centre of each structure, as an origin of its multipoles.

    Parameters
    ----------
    positions : Tensor, shape (n_atoms, 3), in Å
        Of open structures: a periodic one has no centre.
    weights : Tensor, shape (n_atoms,), optional
        Masses or nuclear charges; by default all atoms count alike.
    batch, num_graphs
        As in :meth:`~sog_longrange.LongRangeEnergy.forward`.

    Returns
    -------
    Tensor, shape (n_graphs, 3), in Å
        Zero for structures without atoms.

    Raises
    ------
    InputError, InputTypeError
        If an argument is malformed.
    """
    if weights is None:
        weights = positions.new_ones(positions.shape[:1])
    structures = _check("weights", weights, positions, None, None, batch, num_graphs)
    moments, totals = _sum(weights[:, None] * positions, structures), _sum(weights, structures)
    return moments / torch.where(totals == 0, torch.ones_like(totals), totals)[:, None]


def dipole(
    charges: Tensor,
    positions: Tensor,
    cell: Tensor | None = None,
    pbc: Tensor | None = None,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    *,
    origin: Tensor | None = None,
    dipoles: Tensor | None = None,
) -> Tensor:
    """Dipole of each structure.

    Along periodic axes each atom is taken at its image nearest to the origin. So the result
    depends neither on the images of the atoms nor on the cell basis, and jumps by q_j a where
    an atom j passes from one nearest image to the next, with a lattice vector a. Like any
    dipole of a periodic cell it is known modulo these quanta.

    Parameters
    ----------
    charges : Tensor, shape (n_atoms,), in e
    positions, cell, pbc, batch, num_graphs
        As in :meth:`~sog_longrange.LongRangeEnergy.forward`.
    origin : Tensor, shape (3,) or (n_graphs, 3), in Å, optional
        By default the origin of the coordinates. The dipole of an open, neutral
        structure does not depend on it; that of total charge Q falls by Q o if it moves
        by o. See :func:`centre`.
    dipoles : Tensor, shape (n_atoms, 3), in e Å, optional
        Of the atoms themselves, such as ``out.dipoles[:, :, 0]``; they add to the dipole of the
        structure and know no branch.

    Returns
    -------
    Tensor, shape (n_graphs, 3), in e Å
        sum_j q_j (r_j - origin) + mu_j. Twice differentiable; 1 e Å is 4.803 debye.

    Raises
    ------
    InputError, InputTypeError
        If an argument is malformed or a periodic cell is singular.
    """
    structures = _check("charges", charges, positions, cell, pbc, batch, num_graphs)
    return _sum(_moments(charges, dipoles, structures, origin), structures)


def quadrupole(
    charges: Tensor,
    positions: Tensor,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    *,
    origin: Tensor | None = None,
    traceless: bool = True,
) -> Tensor:
    """Quadrupole of each open structure.

    Parameters
    ----------
    charges : Tensor, shape (n_atoms,), in e
    positions : Tensor, shape (n_atoms, 3), in Å
    batch, num_graphs
        As in :meth:`~sog_longrange.LongRangeEnergy.forward`.
    origin : Tensor, shape (3,) or (n_graphs, 3), in Å, optional
        By default the origin of the coordinates. The quadrupole does not depend on it only
        if charge and dipole vanish. See :func:`centre`.
    traceless : bool
        Whether the traceless form is returned or the raw second moment.

    Returns
    -------
    Tensor, shape (n_graphs, 3, 3), in e Å^2
        Traceless: sum_j q_j (3 x_a x_b - x^2 delta_ab) / 2, raw: sum_j q_j x_a x_b, with
        x = r_j - origin.

    Raises
    ------
    InputError, InputTypeError
        If an argument is malformed.

    References
    ----------
    Buckingham, Q. Rev. Chem. Soc. 13 (1959) 183, for the factor of the traceless form.
    """
    structures = _check("charges", charges, positions, None, None, batch, num_graphs)
    arms = _arms(structures, origin)
    moments = _sum(charges[:, None, None] * arms[:, :, None] * arms[:, None, :], structures)
    if not traceless:
        return moments
    trace = moments.diagonal(dim1=-2, dim2=-1).sum(-1)
    return 1.5 * moments - 0.5 * trace[:, None, None] * torch.eye(3).to(moments)


def polarisation(
    charges: Tensor,
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    *,
    origin: Tensor | None = None,
    dipoles: Tensor | None = None,
) -> Tensor:
    """Polarisation of each periodic cell, on the branch nearest to an origin.

    The phases b_k . r_j of the reciprocal lattice vectors fix where an atom is modulo the
    lattice, and so the polarisation modulo the quanta q_j a_k / V, e a_k / V for integer
    charges. :func:`dipole` says which branch is taken. Changes of the polarisation, not its
    values, are physical; :func:`born_charges` are on no branch.

    Parameters
    ----------
    charges, positions, cell, pbc, batch, num_graphs, origin, dipoles
        As in :func:`dipole`. Of a charged cell the polarisation depends on the origin.

    Returns
    -------
    Tensor, shape (n_graphs, 3), in e/Å^2
        :func:`dipole` over the volume. Twice differentiable; 1 e/Å^2 is 16.02 C/m^2.

    Raises
    ------
    InputError, InputTypeError
        If an argument is malformed or a cell is singular.
    BoundaryError
        If a structure is not periodic along all three axes, so that it has no volume.

    References
    ----------
    King-Smith, Vanderbilt, Phys. Rev. B 47 (1993) 1651, for the quantum; King, Kim, Zhong,
    Cheng, arXiv:2412.15455, for latent charges.
    """
    structures = _check("charges", charges, positions, cell, pbc, batch, num_graphs)
    if not bool(structures.pbc.all()):
        remedy = "Use `dipole`, which needs no volume."
        got = str(structures.pbc.tolist())
        raise BoundaryError(explain("pbc", "True along all axes", got, remedy))
    moments = _sum(_moments(charges, dipoles, structures, origin), structures)
    return moments / cell_volume(structures.cell)[:, None]


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
        Largest distance in Å at which an atom feels a displacement: for message passing the
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
    root = _root(eps_inf)
    charges, dipoles, positions = _linked(charges, dipoles, positions, create_graph)
    structures = _check("charges", charges, positions, cell, pbc, batch, num_graphs)
    pull = _Pull(charges, positions, create_graph) if charges.requires_grad else None
    with torch.set_grad_enabled(create_graph):
        response = torch.zeros_like(positions[:, :, None] * positions[:, None])
        if pull is not None:
            response = response + _response(pull, structures, reach)
        if dipoles is not None:
            _check_dipoles(dipoles, charges)
            response = response + _dipole_response(dipoles, positions, create_graph)
        return _born(charges, structures, response, root, enforce_sum_rule)


def field_energy(
    charges: Tensor,
    positions: Tensor,
    field: Tensor,
    cell: Tensor | None = None,
    pbc: Tensor | None = None,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    *,
    origin: Tensor | None = None,
    eps_inf: float = 1.0,
    dipoles: Tensor | None = None,
) -> Tensor:
    """Energy of charges in a uniform external electric field, to be added to a model's.

    Its negative gradient is the force of the field, with the response of charges that
    depend on the positions. The gauge: the field's potential vanishes at the origin; along
    periodic axes it falls over the cell around the origin and jumps back half a cell from
    it. An atom that crosses the jump changes the energy by q_j a.E and its force not at
    all; but charge that flows across it feels a force of the jump. Put it where there is
    no charge, as in the vacuum around a slab, or take the force Z^T E of
    :func:`born_charges`, which knows no jump and is the gradient everywhere else.

    Parameters
    ----------
    charges, positions, cell, pbc, batch, num_graphs, origin, dipoles
        As in :func:`dipole`.
    field : Tensor, shape (3,) or (n_graphs, 3), in V/Å
        Of periodic cells the macroscopic field, which the electrons screen already.
    eps_inf : float
        High-frequency dielectric constant, as in :func:`born_charges`.

    Returns
    -------
    Tensor, shape (n_graphs,), in eV
        -sqrt(eps_inf) P.E with the dipole P. Twice differentiable.

    Raises
    ------
    InputError, InputTypeError
        If an argument is malformed or a periodic cell is singular.

    References
    ----------
    Souza, Iniguez, Vanderbilt, Phys. Rev. Lett. 89 (2002) 117602, for the energy -P.E of a
    periodic cell and its branches.
    """
    rest = (cell, pbc, batch, num_graphs)
    return uniform_field(
        charges, positions, field, *rest, origin=origin, eps_inf=eps_inf, dipoles=dipoles
    ).energy


def uniform_field(
    charges: Tensor,
    positions: Tensor,
    field: Tensor,
    cell: Tensor | None = None,
    pbc: Tensor | None = None,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    *,
    origin: Tensor | None = None,
    eps_inf: float = 1.0,
    dipoles: Tensor | None = None,
) -> FieldOutput:
    """Energy of charges in a uniform external electric field, by atoms, and the dipole.

    Parameters
    ----------
    charges, positions, field, cell, pbc, batch, num_graphs, origin, eps_inf, dipoles
        As in :func:`field_energy`, which also tells the gauge.

    Returns
    -------
    FieldOutput
        Twice differentiable.

    Raises
    ------
    InputError, InputTypeError
        If an argument is malformed or a periodic cell is singular.
    """
    root = _root(eps_inf)
    structures = _check("charges", charges, positions, cell, pbc, batch, num_graphs)
    fields = _per_graph("field", field, structures)
    moments = _moments(charges, dipoles, structures, origin)
    energies = -root * (moments * fields[structures.batch]).sum(-1)
    return FieldOutput(_sum(energies, structures), energies, _sum(moments, structures))


def _born(
    charges: Tensor,
    structures: Structures,
    response: Tensor,
    root: float,
    enforce: bool,
) -> BornCharges:
    identity = torch.eye(3).to(charges)
    values = charges[:, None, None] * identity + response
    total = _sum(charges, structures)[:, None, None] * identity
    excess = root * (_sum(values, structures) - total)
    values = root * values
    if enforce:
        values = values - (excess / _counts(structures)[:, None, None])[structures.batch]
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
    counts = torch.where(periodic, _counts(structures), 0)
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
    positions, batch, lattice = structures.positions, structures.batch, _lattice(structures)
    first = torch.searchsorted(batch, torch.arange(len(counts), device=batch.device))
    found = torch.zeros_like(positions[:, :, None] * positions[:, None])
    for i in range(int(counts.max())):
        present = i < counts
        atoms = torch.where(present, first + i, 0)
        weights = torch.zeros_like(positions[:, 0])
        weights[atoms[present]] = 1.0
        arms = _nearest(positions[atoms[batch]] - positions, lattice, batch, mean=True)
        # Of structures with fewer atoms the pull is zero.
        found = found + arms[:, :, None] * pull(weights)[:, None]
    return found


def _count_windows(structures: Structures, reach: float) -> int | None:
    """Windows along each axis within which one cut is far from all that an atom feels."""
    if not (reach > 0.0 and math.isfinite(reach)):
        raise InputError(explain("reach", "positive and finite", str(reach)))
    pbc = structures.pbc
    if bool((pbc.any(-1) & ~pbc.all(-1)).any()):
        return None
    cells = _lattice(structures).detach()[pbc.all(-1)]
    heights = 2.0 * math.pi / torch.linalg.vector_norm(reciprocal_cell(cells), dim=-1)
    room = 1.0 - 2.0 * reach / float(heights.min())
    return math.ceil(1.0 / room) if room > 0.0 else None


def _windowed_response(pull: _Pull, structures: Structures, windows: int) -> Tensor:
    """Axis by axis, with the cut of the images opposite to each window in turn."""
    positions, batch, lattice = structures.positions, structures.batch, _lattice(structures)
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


def _nearest(vectors: Tensor, lattice: Tensor, batch: Tensor, *, mean: bool) -> Tensor:
    """Shortest periodic image of each vector, or the mean of those that are equally short."""
    if not bool(lattice.any()):
        return vectors
    with torch.no_grad():
        steps = torch.arange(-_NEIGHBOURS, _NEIGHBOURS + 1).to(vectors)
        turns = torch.einsum("nc,nck->nk", vectors, torch.linalg.pinv(lattice)[batch])
        shifts = torch.cartesian_prod(steps, steps, steps) - turns.round()[:, None]
        images = vectors[:, None] + torch.einsum("nsk,nkc->nsc", shifts, lattice[batch])
        squares = images.square().sum(-1)
        shift = shifts.take_along_dim(squares.argmin(1)[:, None, None], 1)[:, 0]
        if mean:
            # Atoms of crystals are where symmetry wants them to rounding only.
            slack = torch.finfo(vectors.dtype).eps ** 0.5 * lattice.square().sum(-1).amax(-1)
            shortest = squares <= squares.amin(1, keepdim=True) + slack[batch, None]
            weights = shortest / shortest.sum(1, keepdim=True)
            shift = (weights[:, :, None] * shifts).sum(1)
    return vectors + torch.einsum("nk,nkc->nc", shift, lattice[batch])


def _lattice(structures: Structures) -> Tensor:
    """Short lattice vectors, zero along open axes."""
    _, cell, pbc, _, _ = structures
    own = pbc[:, :, None]
    rows = torch.where(own, cell, torch.zeros_like(cell))
    # With its normal in place of the open row, a slab is reduced within its plane.
    normals = torch.linalg.cross(rows[:, [1, 2, 0]], rows[:, [2, 0, 1]])
    compact = reduced_cell(torch.where(own, rows, normals), (pbc.sum(-1) > 1).tolist())
    return torch.where(own, compact, torch.zeros_like(compact))


def _arms(structures: Structures, origin: Tensor | None) -> Tensor:
    """Vector from the origin to the nearest image of each atom."""
    positions, batch = structures.positions, structures.batch
    if origin is not None:
        positions = positions - _per_graph("origin", origin, structures)[batch]
    return _nearest(positions, _lattice(structures), batch, mean=False)


def _moments(
    charges: Tensor, dipoles: Tensor | None, structures: Structures, origin: Tensor | None
) -> Tensor:
    """Dipole of each atom about the origin."""
    moments = charges[:, None] * _arms(structures, origin)
    if dipoles is None:
        return moments
    _check_dipoles(dipoles, charges)
    return moments + dipoles


def _check_dipoles(dipoles: Tensor, charges: Tensor) -> None:
    n = len(charges)
    check_float("dipoles", dipoles)
    expected = f"(n_atoms={n}, 3), one channel such as `dipoles[:, :, 0]`"
    check_shape("dipoles", dipoles, (n, 3), expected)
    check_like("dipoles", dipoles, charges, "`charges`")
    check_finite("dipoles", dipoles)


def _sum(values: Tensor, structures: Structures) -> Tensor:
    sums = values.new_zeros(structures.num_graphs, *values.shape[1:])
    return sums.index_add(0, structures.batch, values)


def _counts(structures: Structures) -> Tensor:
    return torch.bincount(structures.batch, minlength=structures.num_graphs)


def _root(eps_inf: float) -> float:
    if not (eps_inf > 0.0 and math.isfinite(eps_inf)):
        raise InputError(explain("eps_inf", "positive and finite", str(eps_inf)))
    return math.sqrt(eps_inf)


def _check(
    name: str,
    values: Tensor,
    positions: Tensor,
    cell: Tensor | None,
    pbc: Tensor | None,
    batch: Tensor | None,
    num_graphs: int | None,
) -> Structures:
    """Check structures and one number for each of their atoms."""
    structures = check_structures(positions, cell, pbc, batch, num_graphs)
    n = len(positions)
    check_float(name, values)
    check_shape(name, values, (n,), f"(n_atoms={n},), one channel such as `charges[:, 0]`")
    check_like(name, values, positions)
    check_finite(name, values)
    return structures


def _per_graph(name: str, value: Tensor, structures: Structures) -> Tensor:
    """Check a vector of all structures or one of each."""
    check_float(name, value)
    n = structures.num_graphs
    if value.shape != (3,):
        check_shape(name, value, (n, 3), f"(3,) or (n_graphs={n}, 3)")
    check_like(name, value, structures.positions)
    check_finite(name, value)
    return value.expand(n, 3)


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
