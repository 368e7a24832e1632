"""Lattice energies against constants known to many digits and against plain lattice sums."""

import math

import pytest
import torch
from references import (
    DOUBLE,
    PERIODIC,
    crystal,
    energy_value,
    evaluate,
    lattice_pair_sum,
    random_structure,
    screened_coulomb,
    sum_of_gaussians,
)

from sog_longrange import Ewald, LongRangeEnergy, coulomb, power_law, yukawa
from sog_longrange.testing import Structure, assert_forces_match_finite_differences
from sog_longrange.units import COULOMB_CONSTANT

CRYSTALS = ("NaCl", "CsCl", "ZnS")
SIMPLE_CUBIC = {4: 16.532315959761669, 6: 8.401923974827539}
"""Sums of r^-p over the simple cubic lattice of edge 1, without the origin."""


def lattice_energy(structure, distance, madelung):
    formula_units = len(structure.charges) // 2
    return -formula_units * COULOMB_CONSTANT * madelung / distance


@pytest.mark.parametrize("name", CRYSTALS)
def test_coulomb_start_gives_the_madelung_constant(name):
    structure, distance, madelung = crystal(name)
    # Widths far beyond the cell carry the part of K(0) that 1/r does not have.
    kernel = sum_of_gaussians(coulomb(), num_gaussians=36, min_width=0.35, max_width=5e4)
    energy = energy_value(LongRangeEnergy(kernel), structure)
    assert energy == pytest.approx(lattice_energy(structure, distance, madelung), rel=1e-4)


@pytest.mark.parametrize("name", CRYSTALS)
@pytest.mark.parametrize("smearing", [0.7, 1.1])
def test_ewald_and_its_short_range_pairs_give_the_madelung_constant(name, smearing):
    structure, distance, madelung = crystal(name)
    model = LongRangeEnergy(Ewald(smearing), tolerance=1e-13)
    long_range = energy_value(model, structure)
    short_range = float(lattice_pair_sum(structure, screened_coulomb(smearing), 8.0 * smearing))
    expected = lattice_energy(structure, distance, madelung)
    assert long_range + short_range == pytest.approx(expected, rel=1e-8)


def simple_cubic(edge):
    one = torch.ones(1, 1, dtype=DOUBLE)
    cell = edge * torch.eye(3, dtype=DOUBLE)
    return Structure(one, torch.full((1, 3), 0.3, dtype=DOUBLE), cell, PERIODIC)


@pytest.mark.parametrize(
    ("exponent", "max_width", "num_gaussians"), [(6, 100.0, 24), (4, 3e4, 44), (6, 100.0, 12)]
)
def test_power_law_gives_the_lattice_sum_within_its_stated_error(
    exponent, max_width, num_gaussians
):
    edge, reach = 3.0, max_width / 4.0
    kernel = sum_of_gaussians(
        power_law(exponent), num_gaussians=num_gaussians, min_width=0.3, max_width=max_width
    )
    stated = kernel.initial_error(edge, reach)
    # No Gaussian is wider than max_width: of the law beyond reach, nothing is certain.
    rest = 4.0 * math.pi / (exponent - 3) * (edge / reach) ** (exponent - 3)
    exact = 0.5 * SIMPLE_CUBIC[exponent] / edge**exponent
    model = LongRangeEnergy(kernel, tolerance=1e-12)
    energy = energy_value(model, simple_cubic(edge))
    allowed = stated + rest / SIMPLE_CUBIC[exponent]
    assert allowed < 0.02
    assert abs(energy / exact - 1.0) <= allowed


def test_a_fine_start_of_dispersion_has_a_small_error():
    kernel = sum_of_gaussians(power_law(6.0), num_gaussians=30, min_width=0.3, max_width=300.0)
    model = LongRangeEnergy(kernel, tolerance=1e-12)
    energy = energy_value(model, simple_cubic(3.0))
    assert energy == pytest.approx(0.5 * SIMPLE_CUBIC[6] / 3.0**6, rel=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_yukawa_start_equals_the_screened_lattice_sum(seed):
    kappa, structure = 0.8, random_structure(seed, 3, edge=5.0)
    spread = structure._replace(positions=torch.eye(3, dtype=DOUBLE) * 2.5)
    initial = yukawa(kappa)
    kernel = sum_of_gaussians(initial, num_gaussians=30, min_width=0.25, max_width=60.0)
    found = energy_value(LongRangeEnergy(kernel), spread)
    expected = float(lattice_pair_sum(spread, initial.radial, 40.0))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", [2, 3])
def test_ewald_energy_does_not_depend_on_the_split(seed):
    structure = random_structure(seed, 5, edge=5.0, neutral=True)

    def total(smearing):
        model = LongRangeEnergy(Ewald(smearing), tolerance=1e-13)
        pairs = lattice_pair_sum(structure, screened_coulomb(smearing), 8.5 * smearing)
        return float(evaluate(model, structure).energy + pairs)

    assert total(0.6) == pytest.approx(total(1.0), rel=1e-9)


@pytest.mark.parametrize("name", CRYSTALS)
def test_stress_of_a_coulomb_crystal_is_its_energy_over_three(name):
    structure, *_ = crystal(name)
    kernel = sum_of_gaussians(coulomb(), num_gaussians=36, min_width=0.35, max_width=5e4)
    model = LongRangeEnergy(kernel)
    scale = torch.ones((), dtype=DOUBLE, requires_grad=True)
    scaled = structure._replace(positions=scale * structure.positions, cell=scale * structure.cell)
    energy = evaluate(model, scaled).energy.sum()
    (slope,) = torch.autograd.grad(energy, scale)
    assert float(slope) == pytest.approx(-float(energy.detach()), rel=2e-3)


@pytest.mark.parametrize("kernel", [Ewald(1.0), sum_of_gaussians(power_law(6.0, -50.0))])
@pytest.mark.parametrize("seed", [0, 1])
def test_forces_and_stress_match_finite_differences(kernel, seed):
    model = LongRangeEnergy(kernel, tolerance=1e-6)
    structure = random_structure(seed, 4)
    assert_forces_match_finite_differences(lambda *x: model(*x).energy, structure)
