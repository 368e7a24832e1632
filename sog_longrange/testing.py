"""Properties that every long-range model must have, as asserts for your own tests.

Each assert evaluates a function ``energy(charges, positions, cell, pbc, batch,
num_graphs)`` that returns one energy per structure, so that it works on
:class:`~sog_longrange.LongRangeEnergy`, on a whole model with invariant features in
place of charges, and on any other code:

>>> import torch
>>> from sog_longrange import Ewald, LongRangeEnergy
>>> from sog_longrange.testing import Structure, assert_invariant
>>> model = LongRangeEnergy(Ewald(smearing=1.5), backend="dense")
>>> charges = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
>>> positions = torch.tensor([[0.0, 0.1, 0.2], [2.0, 2.1, 1.8]], dtype=torch.float64)
>>> cell = 4.0 * torch.eye(3, dtype=torch.float64)
>>> structure = Structure(charges, positions, cell, torch.tensor([True, True, True]))
>>> assert_invariant(lambda *inputs: model(*inputs).energy, structure)

Energies are compared relative to the larger of |E| and 1 eV per atom.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import InputError, explain

EnergyFunction = Callable[..., Tensor]
"""energy(charges, positions, cell, pbc, batch, num_graphs) -> Tensor of shape (n_graphs,)."""

MIRROR: tuple[tuple[int, ...], ...] = ((0, 1, 0), (1, 0, 0), (0, 0, 1))
SHEAR: tuple[tuple[int, ...], ...] = ((1, 1, 0), (0, 1, -1), (0, 0, 1))
SKEW: tuple[tuple[int, ...], ...] = ((1, 0, 2), (-1, 1, 0), (0, -1, -1))
CELL_BASES: tuple[tuple[tuple[int, ...], ...], ...] = (MIRROR, SHEAR, SKEW)
"""Integer changes of the cell basis with determinants -1, 1 and 1."""


class Structure(NamedTuple):
    """One structure to test a model on.

    Attributes
    ----------
    charges : Tensor, shape (n_atoms, n_channels)
        Latent charges in e, or whatever invariant features the model takes.
    positions : Tensor, shape (n_atoms, 3), in Å
    cell : Tensor, shape (3, 3), in Å
        Rows are lattice vectors.
    pbc : Tensor, shape (3,), bool
    """

    charges: Tensor
    positions: Tensor
    cell: Tensor
    pbc: Tensor


def join(structures: Sequence[Structure]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    """Join structures into the arguments of one batched evaluation.

    Parameters
    ----------
    structures : sequence of Structure
        At least one; structures without atoms are allowed.

    Returns
    -------
    tuple
        charges (n_atoms, n_channels), positions (n_atoms, 3) in Å, cell (n_graphs, 3, 3)
        in Å, pbc (n_graphs, 3), batch (n_atoms,) and num_graphs.

    Raises
    ------
    InputError
        If there is no structure.
    """
    if not structures:
        raise InputError(explain("structures", "at least one", "none"))
    first = structures[0].positions
    sizes = torch.tensor([len(s.positions) for s in structures], device=first.device)
    batch = torch.arange(len(structures), device=first.device).repeat_interleave(sizes)
    return (
        torch.cat([s.charges for s in structures]),
        torch.cat([s.positions for s in structures]),
        torch.stack([s.cell for s in structures]),
        torch.stack([s.pbc for s in structures]),
        batch,
        len(structures),
    )


def make_supercell(structure: Structure, repeats: tuple[int, int, int]) -> Structure:
    """Repeat a periodic structure along its lattice vectors.

    Parameters
    ----------
    structure : Structure
    repeats : tuple of 3 int
        Number of copies along each lattice vector.

    Returns
    -------
    Structure
        With the atoms of each copy together.
    """
    like = structure.positions
    ranges = [torch.arange(n, dtype=like.dtype, device=like.device) for n in repeats]
    shifts = torch.cartesian_prod(*ranges) @ structure.cell
    return Structure(
        structure.charges.repeat(len(shifts), 1),
        (like + shifts[:, None]).reshape(-1, 3),
        structure.cell * torch.tensor(repeats, dtype=like.dtype, device=like.device)[:, None],
        structure.pbc,
    )


def assert_invariant(
    energy: EnergyFunction,
    structure: Structure,
    *,
    tolerance: float = 1e-10,
    rotation_tolerance: float = 1e-8,
    seed: int = 0,
) -> None:
    """Assert every invariance that holds for the boundary of a structure.

    Translation, permutation and rotation; for periodic structures also image shifts,
    changes of the cell basis and supercells. The defaults are meant for float64.

    Parameters
    ----------
    energy : callable
        See the head of this module.
    structure : Structure
        Periodic along all three axes or none.
    tolerance, rotation_tolerance : float
        Largest difference allowed, relative to the larger of |E| and 1 eV per atom.
    seed : int
        Seed of the random transformations.

    Raises
    ------
    AssertionError
        If an invariance is broken; the message says which.
    """
    assert_translation_invariant(energy, structure, tolerance=tolerance, seed=seed)
    assert_permutation_invariant(energy, structure, tolerance=tolerance, seed=seed)
    assert_rotation_invariant(energy, structure, tolerance=rotation_tolerance, seed=seed)
    if bool(structure.pbc.all()):
        assert_image_invariant(energy, structure, tolerance=tolerance, seed=seed)
        assert_cell_basis_invariant(energy, structure, tolerance=tolerance)
        assert_extensive(energy, structure, tolerance=tolerance)


def assert_translation_invariant(
    energy: EnergyFunction, structure: Structure, *, tolerance: float = 1e-10, seed: int = 0
) -> None:
    """Assert that moving all atoms together does not change the energy.

    Parameters
    ----------
    energy : callable
        See the head of this module.
    structure : Structure
    tolerance : float
        Largest difference allowed, relative to the larger of |E| and 1 eV per atom.
    seed : int
        Seed of the random translation.

    Raises
    ------
    AssertionError
        If the energy changes.
    """
    shift = 10.0 * _normal(structure, seed, 3)
    moved = structure._replace(positions=structure.positions + shift)
    _compare(energy, structure, moved, 1.0, tolerance, f"a translation by {shift.tolist()} Å")


def assert_image_invariant(
    energy: EnergyFunction, structure: Structure, *, tolerance: float = 1e-10, seed: int = 0
) -> None:
    """Assert that moving atoms by lattice vectors does not change the energy.

    Parameters
    ----------
    energy : callable
        See the head of this module.
    structure : Structure
        Periodic along all three axes.
    tolerance : float
        Largest difference allowed, relative to the larger of |E| and 1 eV per atom.
    seed : int
        Seed of the random lattice vectors, one for each atom.

    Raises
    ------
    AssertionError
        If the energy changes.
    """
    images = (3.0 * _normal(structure, seed, len(structure.positions), 3)).round()
    moved = structure._replace(positions=structure.positions + images @ structure.cell)
    _compare(energy, structure, moved, 1.0, tolerance, "a shift of atoms by lattice vectors")


def assert_permutation_invariant(
    energy: EnergyFunction, structure: Structure, *, tolerance: float = 1e-10, seed: int = 0
) -> None:
    """Assert that the order of the atoms does not change the energy.

    Parameters
    ----------
    energy : callable
        See the head of this module.
    structure : Structure
    tolerance : float
        Largest difference allowed, relative to the larger of |E| and 1 eV per atom.
    seed : int
        Seed of the random order.

    Raises
    ------
    AssertionError
        If the energy changes.
    """
    order = _normal(structure, seed, len(structure.positions)).argsort()
    permuted = structure._replace(
        charges=structure.charges[order], positions=structure.positions[order]
    )
    _compare(energy, structure, permuted, 1.0, tolerance, f"the order of atoms {order.tolist()}")


def assert_rotation_invariant(
    energy: EnergyFunction, structure: Structure, *, tolerance: float = 1e-8, seed: int = 0
) -> None:
    """Assert that rotating or mirroring atoms and cell does not change the energy.

    Parameters
    ----------
    energy : callable
        See the head of this module.
    structure : Structure
    tolerance : float
        Largest difference allowed, relative to the larger of |E| and 1 eV per atom.
    seed : int
        Seed of the random rotation.

    Raises
    ------
    AssertionError
        If the energy changes.
    """
    orthogonal, _ = torch.linalg.qr(_normal(structure, seed, 3, 3))
    for name, matrix in (("a rotation", orthogonal), ("a rotation with inversion", -orthogonal)):
        turned = structure._replace(
            positions=structure.positions @ matrix.T, cell=structure.cell @ matrix.T
        )
        _compare(energy, structure, turned, 1.0, tolerance, name)


def assert_cell_basis_invariant(
    energy: EnergyFunction,
    structure: Structure,
    *,
    bases: Sequence[Sequence[Sequence[int]]] = CELL_BASES,
    tolerance: float = 1e-10,
) -> None:
    """Assert that the choice of lattice vectors does not change the energy.

    Parameters
    ----------
    energy : callable
        See the head of this module.
    structure : Structure
        Periodic along all three axes.
    bases : sequence of integer 3 x 3 matrices
        Each maps the lattice vectors to others of the same lattice; determinants are 1,
        or -1 for a change of handedness.
    tolerance : float
        Largest difference allowed, relative to the larger of |E| and 1 eV per atom.

    Raises
    ------
    AssertionError
        If the energy changes.
    InputError
        If a matrix does not describe the same lattice.
    """
    for rows in bases:
        matrix = torch.tensor(rows, dtype=structure.cell.dtype, device=structure.cell.device)
        determinant = round(float(torch.linalg.det(matrix.double())))
        if abs(determinant) != 1:
            raise InputError(explain("bases", "of determinant 1 or -1", str(determinant)))
        same = structure._replace(cell=matrix @ structure.cell)
        _compare(energy, structure, same, 1.0, tolerance, f"the cell basis {rows}")


def assert_extensive(
    energy: EnergyFunction,
    structure: Structure,
    *,
    repeats: tuple[int, int, int] = (2, 1, 3),
    tolerance: float = 1e-10,
) -> None:
    """Assert that a supercell has the energy of its unit cells.

    Parameters
    ----------
    energy : callable
        See the head of this module.
    structure : Structure
        Periodic along all three axes.
    repeats : tuple of 3 int
        Number of copies along each lattice vector.
    tolerance : float
        Largest difference allowed, relative to the larger of |E| and 1 eV per atom.

    Raises
    ------
    AssertionError
        If the energy is not proportional to the number of cells.
    """
    large = make_supercell(structure, repeats)
    _compare(energy, structure, large, math.prod(repeats), tolerance, f"the supercell {repeats}")


def assert_batch_consistent(
    energy: EnergyFunction, structures: Sequence[Structure], *, tolerance: float = 1e-10
) -> None:
    """Assert that structures have the same energy in a batch as on their own.

    Parameters
    ----------
    energy : callable
        See the head of this module.
    structures : sequence of Structure
        At least one, of any boundary; structures without atoms are allowed.
    tolerance : float
        Largest difference allowed, relative to the larger of |E| and 1 eV per atom.

    Raises
    ------
    AssertionError
        If an energy differs, or if there is not one energy per structure.
    """
    together = energy(*join(structures)).detach()
    if together.shape != (len(structures),):
        shape = tuple(together.shape)
        raise AssertionError(f"{len(structures)} structures have energies of shape {shape}.")
    for index, structure in enumerate(structures):
        alone = float(energy(*join([structure])).detach()[0])
        what = f"Structure {index} of the batch"
        _check_close(float(together[index]), alone, tolerance, structure, what)


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
        See the head of this module.
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
    displacement = _normal(structure, seed, *structure.positions.shape)
    still = torch.zeros_like(structure.cell)
    _check_slope(energy, structure, displacement, still, step, tolerance, "The force")
    if bool(structure.pbc.any()):
        strain = _normal(structure, seed + 1, 3, 3)
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


def _normal(structure: Structure, seed: int, *shape: int) -> Tensor:
    """Random numbers that do not depend on the device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(structure.positions)


def _compare(
    energy: EnergyFunction,
    structure: Structure,
    changed: Structure,
    factor: float,
    tolerance: float,
    change: str,
) -> None:
    """Compare the energy of a changed structure with `factor` times the original's."""
    expected = factor * float(energy(*join([structure])).detach()[0])
    found = float(energy(*join([changed])).detach()[0])
    _check_close(found, expected, tolerance, changed, f"The energy under {change}")


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
    _check_close(found, expected, tolerance, structure, what)


def _steps(like: Tensor, step: float) -> tuple[Tensor, Tensor]:
    return like.new_tensor(step), like.new_tensor(2.0 * step)


def _check_close(
    found: float, expected: float, tolerance: float, structure: Structure, what: str
) -> None:
    allowed = tolerance * max(abs(expected), 1.0, len(structure.positions))
    # Written so that NaN fails.
    if not abs(found - expected) <= allowed:
        raise AssertionError(
            f"{what} is {found:.15g}, expected {expected:.15g}: a difference of "
            f"{abs(found - expected):.3g}, more than {allowed:.3g}."
        )
