"""Periodic and open structures follow one law."""

import math

import pytest
import torch
from references import (
    DOUBLE,
    OPEN,
    PERIODIC,
    all_kernels,
    energy_value,
    evaluate,
    random_structure,
    tensor,
)

from sog_longrange import LongRangeEnergy
from sog_longrange.testing import Structure
from sog_longrange.units import COULOMB_CONSTANT

BOXES = (12.0, 18.0, 26.0, 38.0)
CUBIC_WIGNER = 2.837297479  # of a point charge in a neutralising background


def molecule(total_charge, pbc=OPEN, box=0.0):
    charges = tensor([[0.8], [-0.5], [-0.3], [0.0]])
    charges[-1] = total_charge
    positions = tensor([[0.0, 0.0, 0.0], [1.1, 0.4, 0.0], [-0.7, 1.0, 0.3], [0.2, -1.0, 0.9]])
    return Structure(charges, positions, box * torch.eye(3, dtype=DOUBLE), pbc)


def image_energies(kernel, total_charge):
    """Energy in each box less the energy in open space."""
    model = LongRangeEnergy(kernel, tolerance=1e-9)
    free = evaluate(model, molecule(total_charge)).energy
    boxed = [evaluate(model, molecule(total_charge, PERIODIC, box)).energy for box in BOXES]
    return [float((energy - free).detach()) for energy in boxed]


def assert_decreasing(errors, floor):
    for before, after in zip(errors[:-1], errors[1:], strict=True):
        assert abs(after) < max(0.9 * abs(before), floor)


@pytest.mark.parametrize("name", ["coulomb", "dispersion", "yukawa", "ewald"])
@pytest.mark.parametrize("total_charge", [0.0, 1.0])
def test_a_molecule_in_growing_boxes_tends_to_its_open_energy(name, total_charge):
    kernel = all_kernels(min_width=1.2, max_width=4.0)[name]
    errors = image_energies(kernel, total_charge)
    assert_decreasing(errors, floor=1e-7)


@pytest.mark.parametrize("name", ["coulomb", "dispersion", "yukawa"])
def test_a_neutral_molecule_reaches_its_open_energy_where_gaussians_end(name):
    kernel = all_kernels(min_width=1.2, max_width=4.0)[name]
    assert abs(image_energies(kernel, 0.0)[-1]) < 1e-7


def test_a_charge_without_zero_mode_misses_the_analytic_background_only():
    kernel = all_kernels(min_width=1.2, max_width=4.0)["coulomb"]
    at_zero = float(kernel.fourier(tensor([0.0])).detach())
    background = -at_zero / (2.0 * BOXES[-1] ** 3)
    assert image_energies(kernel, 1.0)[-1] == pytest.approx(background, abs=1e-7)


def test_ewald_of_a_neutral_molecule_misses_the_energy_of_dipoles_in_tin_foil():
    errors = image_energies(all_kernels(min_width=1.2)["ewald"], 0.0)
    structure = molecule(0.0)
    dipole2 = float((structure.charges * structure.positions).sum(0).square().sum())
    expected = -2.0 * math.pi / 3.0 * COULOMB_CONSTANT * dipole2 / BOXES[-1] ** 3
    assert errors[-1] == pytest.approx(expected, rel=0.05)


def test_ewald_of_a_charge_misses_the_wigner_energy():
    errors = image_energies(all_kernels(min_width=1.2)["ewald"], 1.0)
    expected = -0.5 * COULOMB_CONSTANT * CUBIC_WIGNER / BOXES[-1]
    assert errors[-1] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("name", ["coulomb", "dispersion", "ewald"])
def test_self_interaction_is_half_the_kernel_at_zero_in_both_boundaries(name, periodic):
    kernel = all_kernels()[name]
    structure = random_structure(0, 4, 2, periodic=periodic)
    kept = evaluate(LongRangeEnergy(kernel, remove_self=False), structure)
    removed = evaluate(LongRangeEnergy(kernel, remove_self=True), structure)
    at_zero = kernel.radial(tensor([0.0]))[0, 0]
    expected = 0.5 * at_zero * structure.charges.square().sum()
    torch.testing.assert_close((kept.energy - removed.energy)[0], expected, rtol=1e-12, atol=0)
    difference = kept.potential - removed.potential
    torch.testing.assert_close(difference, at_zero * structure.charges, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["coulomb", "dispersion", "yukawa"])
def test_zero_mode_adds_the_analytic_term_of_the_total_charge(name):
    structure = random_structure(1, 4)
    energies = {}
    for keep in (True, False):
        kernel = all_kernels()[name]
        kernel.zero_mode = (keep,)
        energies[keep] = evaluate(LongRangeEnergy(kernel), structure).energy
    volume = torch.linalg.det(structure.cell).abs()
    at_zero = kernel.fourier(tensor([0.0]))[0, 0].detach()
    expected = at_zero * structure.charges.sum() ** 2 / (2.0 * volume)
    torch.testing.assert_close((energies[True] - energies[False])[0], expected)
    assert float(expected.abs()) > 1e-3


@pytest.mark.parametrize("keep", [True, False])
def test_a_cell_too_small_for_any_wave_has_the_mean_and_the_self_term_only(keep):
    kernel = all_kernels()["yukawa"]
    kernel.zero_mode = (keep,)
    structure = random_structure(2, 3, edge=0.4)
    total, squares = structure.charges.sum(), structure.charges.square().sum()
    volume = torch.linalg.det(structure.cell).abs()
    mean = keep * kernel.fourier(tensor([0.0]))[0, 0] * total**2 / (2.0 * volume)
    expected = mean - 0.5 * kernel.radial(tensor([0.0]))[0, 0] * squares
    found = evaluate(LongRangeEnergy(kernel, tolerance=1e-12), structure).energy[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["coulomb", "dispersion", "yukawa", "ewald"])
def test_an_open_pair_has_the_energy_of_its_distance(name):
    kernel = all_kernels()[name]
    structure = Structure(tensor([[1.5], [-0.5]]), tensor([[0, 0, 0], [1, 2, 2.0]]), *EMPTY_CELL)
    found = evaluate(LongRangeEnergy(kernel), structure).energy[0]
    torch.testing.assert_close(found, -0.75 * kernel.radial(tensor([9.0]))[0, 0])


EMPTY_CELL = torch.zeros(3, 3, dtype=DOUBLE), OPEN


@pytest.mark.parametrize("name", ["coulomb", "ewald"])
def test_distant_charges_interact_ever_less(name):
    model = LongRangeEnergy(all_kernels(max_width=30.0)[name])
    energies = []
    for distance in (3.0, 6.0, 12.0, 24.0, 48.0):
        positions = tensor([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])
        pair = Structure(tensor([[1.0], [1.0]]), positions, *EMPTY_CELL)
        energies.append(energy_value(model, pair))
    assert all(0.0 < b < 0.6 * a for a, b in zip(energies[:-1], energies[1:], strict=True))
