"""The reciprocal sum ends where the tolerance says, smoothly."""

import itertools
import math
from collections import Counter

import pytest
import torch
from references import (
    DOUBLE,
    PERIODIC,
    all_kernels,
    as_type,
    dipoles_of,
    energy_value,
    forces_of,
    random_structure,
    relative_error,
    sum_of_gaussians,
    tensor,
)

from sog_longrange import Ewald, LongRangeEnergy, coulomb
from sog_longrange.geometry import (
    TAPER,
    reciprocal_cell,
    taper,
    wrapped_phases,
)
from sog_longrange.summation import kernel_table
from sog_longrange.summation.resolution import Resolution
from sog_longrange.summation.rows import sphere_rows
from sog_longrange.testing import join

CPU = torch.device("cpu")

SLACK = 5.0
"""Relative l2 error of forces over tolerance that is accepted."""


def narrowest_kernel():
    """Every width at its lower bound: the slowest decay that training can reach."""
    kernel = sum_of_gaussians(coulomb(), num_gaussians=3, max_width=4.0).requires_grad_(False)
    kernel.raw_widths.fill_(-60.0)
    return kernel


CUTOFF_KERNELS = {"narrowest": narrowest_kernel(), "ewald": Ewald(1.0), **all_kernels()}


def forces_and_torques(kernel, structures, tolerance, order):
    """Gradients in positions and, of dipoles, in the dipoles, as far as modes are summed."""
    energy = LongRangeEnergy(kernel, tolerance=tolerance, backend="dense", remove_self=False)
    charges, positions, *rest = join(structures)
    leaves = [positions.clone().requires_grad_()]
    dipoles = None
    if order:
        dipoles = dipoles_of(charges).requires_grad_()
        leaves.append(dipoles)
    total = energy(charges, leaves[0], *rest, dipoles=dipoles).energy.sum()
    return torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", CUTOFF_KERNELS)
@pytest.mark.parametrize("exponent", [2, 4, 6, 10])
def test_error_of_forces_stays_below_five_tolerances(name, exponent, order):
    # Of several structures together: the forces of a single sparse one may happen to be small.
    kernel = CUTOFF_KERNELS[name]
    structures = [random_structure(seed, 12, edge=6.0) for seed in range(6)]
    exact = forces_and_torques(kernel, structures, 1e-14, order)
    found = forces_and_torques(kernel, structures, 10.0**-exponent, order)
    for own, expected in zip(found, exact, strict=True):
        assert relative_error(own, expected) <= SLACK * 10.0**-exponent


def test_a_coarser_tolerance_has_a_larger_error():
    structure = random_structure(0, 12, edge=6.0)
    exact = forces_of(LongRangeEnergy(Ewald(1.0), tolerance=1e-14, backend="dense"), structure)
    errors = [
        relative_error(
            forces_of(LongRangeEnergy(Ewald(1.0), tolerance=t, backend="dense"), structure), exact
        )
        for t in (1e-2, 1e-4, 1e-6, 1e-8)
    ]
    assert all(b < 0.1 * a for a, b in itertools.pairwise(errors))


def curvatures(n_points):
    """d2E / d(scale)2 of one structure at `n_points` scales of its cell."""
    structure = random_structure(1, 4, edge=6.0)
    scale = torch.linspace(0.97, 1.03, n_points, dtype=DOUBLE, requires_grad=True)
    charges = structure.charges.repeat(n_points, 1)
    positions = (scale[:, None, None] * structure.positions).reshape(-1, 3)
    cell = scale[:, None, None] * structure.cell
    batch = torch.arange(n_points).repeat_interleave(4)
    model = LongRangeEnergy(Ewald(1.0), tolerance=0.05, backend="dense")
    energy = model(charges, positions, cell, PERIODIC.expand(n_points, 3), batch).energy
    (slope,) = torch.autograd.grad(energy.sum(), scale, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), scale)
    return energy.detach(), curvature


def largest_jump(values):
    return float(values.diff().abs().max())


def test_second_derivative_in_the_cell_has_no_jump():
    coarse, fine = (largest_jump(curvatures(n)[1]) for n in (400, 1600))
    assert fine < 0.3 * coarse


def test_a_sharp_cutoff_would_jump(monkeypatch):
    monkeypatch.setattr(kernel_table, "taper", lambda k2, start: (k2 < start**2).to(k2))
    sample_points = kernel_table._sample_points.__wrapped__
    monkeypatch.setattr(kernel_table, "_sample_points", sample_points)
    coarse, fine = (largest_jump(curvatures(n)[0]) for n in (400, 1600))
    assert fine > 0.5 * coarse


def test_differences_of_energies_agree_with_the_second_derivative():
    energy, curvature = curvatures(3201)
    step = 0.06 / 3200
    differences = (energy[2:] - 2.0 * energy[1:-1] + energy[:-2]) / step**2
    error = (differences - curvature[1:-1]).abs().max()
    assert float(error) < 1e-3 * float(curvature.abs().max())


def test_the_taper_is_one_below_and_zero_above_with_flat_ends():
    k2 = tensor([0.0, 1.0, TAPER**2, 9.0]).requires_grad_()
    factor = taper(k2, 1.0)
    (slope,) = torch.autograd.grad(factor.sum(), k2, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), k2)
    assert factor.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert slope.tolist() == [0.0] * 4
    assert float(curvature.abs().max()) < 1e-9


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-12])
def test_the_sum_ends_where_forces_lack_less_than_five_tolerances(tolerance, order):
    resolution = Resolution.of(1.7, tolerance, order)

    def lost(cutoff):
        """Relative l2 error of forces of random sources in a Gaussian, summed up to a cutoff."""
        k = torch.linspace(0.0, 20.0, 200_001, dtype=DOUBLE)
        power = k ** (4 * order + 4) * torch.exp(-k.square())
        return float((power[k > 1.7 * cutoff].sum() / power.sum()).sqrt())

    assert lost(resolution.cutoff) < SLACK * tolerance
    # Neither does it go on for long after that.
    assert lost(0.95 * resolution.taper_start) > SLACK * tolerance


SKEWED = {
    "cubic": torch.eye(3, dtype=DOUBLE) * 5.0,
    "hexagonal": tensor([[4.0, 0, 0], [-2.0, 2.0 * 3**0.5, 0], [0, 0, 6.5]]),
    "fcc": tensor([[0, 3.0, 3.0], [3.0, 0, 3.0], [3.0, 3.0, 0]]),
    "acute": tensor([[5.0, 0, 0], [4.9, 1.0, 0], [4.9, 0.5, 0.8]]),
    "sheared": tensor([[3.0, 0, 0], [21.0, 4.0, 0], [-12.0, 8.0, 5.0]]),
    "left-handed": tensor([[0, 0, 3.0], [1.0, 4.0, 9.0], [5.0, -2.0, 0]]),
}


def modes_of(rows):
    """All modes of rows, with their factors."""
    modes, numbers = rows.modes(DOUBLE, torch.device("cpu")), rows.tensors(DOUBLE, CPU)
    row = torch.repeat_interleave(torch.arange(len(numbers.factors)), numbers.starts.diff())
    return modes, numbers.factors[row], numbers.graphs[row]


@pytest.mark.parametrize("name", SKEWED)
@pytest.mark.parametrize("cutoff", [1.0, 3.7])
def test_rows_hold_every_mode_within_the_cutoff_or_its_mirror_image_once(name, cutoff):
    # m_i = a_i . k / 2 pi, so |m_i| <= |a_i| k / 2 pi for any angles between the a_i.
    cell = SKEWED[name]
    reciprocal = reciprocal_cell(cell[None])[0]
    reach = (cell.norm(dim=1) * cutoff / (2.0 * math.pi)).long().tolist()
    every = torch.cartesian_prod(*(torch.arange(-n - 1, n + 2).to(DOUBLE) for n in reach))
    inside = {tuple(m) for m in every[(every @ reciprocal).norm(dim=1) <= cutoff].tolist()}
    found, factors, _ = modes_of(sphere_rows(cell[None].numpy(), cutoff))
    assert bool(((found @ reciprocal).norm(dim=1) <= cutoff * (1.0 + 1e-5)).all())
    counted = Counter()
    for mode, factor in zip(found.tolist(), factors.tolist(), strict=True):
        counted[tuple(mode)] += 1
        if factor == 2.0:
            counted[tuple(-m for m in mode)] += 1
    assert set(counted.values()) == {1}
    assert counted.keys() >= inside


def test_rows_of_a_batch_are_those_of_its_members_in_parts_of_any_size():
    cells = torch.stack([SKEWED["fcc"], SKEWED["sheared"], SKEWED["cubic"]]).numpy()
    together = sphere_rows(cells, 3.0)
    expected = [modes_of(sphere_rows(cell[None], 3.0))[0] for cell in cells]
    for most in (1, 20, 10**6):
        parts = [modes_of(part) for part in together.parts(most)]
        assert len(parts) == {1: len(together.graphs), 10**6: 1}.get(most, len(parts))
        modes, graphs = (torch.cat([part[i] for part in parts]) for i in (0, 2))
        for graph, own in enumerate(expected):
            assert torch.equal(modes[graphs == graph], own)


def test_float32_forces_survive_a_very_skewed_cell():
    shear = tensor([[1.0, 0, 0], [30.0, 1.0, 0], [-30.0, 30.0, 1.0]])
    cell = shear @ torch.diag(tensor([5.0, 6.0, 7.0]))
    structure = random_structure(2, 4)._replace(cell=cell)
    model = LongRangeEnergy(Ewald(1.5))
    expected = forces_of(model, structure)
    found = forces_of(model, as_type(structure, torch.float32)).double()
    assert relative_error(found, expected) < 1e-3


def test_wrapped_phases_are_those_of_the_first_cell():
    structure = random_structure(3, 5)
    reciprocal = reciprocal_cell(structure.cell[None])
    batch = torch.zeros(5, dtype=torch.int64)
    phases = wrapped_phases(structure.positions, reciprocal, batch)
    shifted = structure.positions + tensor([3.0, -5.0, 7.0]) @ structure.cell
    assert bool(((phases >= 0.0) & (phases < 2.0 * math.pi + 1e-12)).all())
    moved = wrapped_phases(shifted, reciprocal, batch)
    torch.testing.assert_close(torch.exp(1j * moved), torch.exp(1j * phases), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["coulomb", "ewald"])
def test_energy_converges_to_the_untruncated_sum(name):
    structure = random_structure(4, 6, edge=5.0)
    energies = [
        energy_value(LongRangeEnergy(all_kernels()[name], tolerance=t, backend="dense"), structure)
        for t in (1e-8, 1e-14)
    ]
    assert energies[0] == pytest.approx(energies[1], rel=1e-7)
