"""Energies, potentials and forces against independent plain sums and against torch-pme."""

import pytest
import torch
from references import (
    DOUBLE,
    OPEN,
    PERIODIC,
    all_kernels,
    energy_value,
    evaluate,
    forces_of,
    lattice_pair_sum,
    lattice_pairs,
    loop_mode_sum,
    random_structure,
    relative_error,
    screened_coulomb,
    tensor,
)

from sog_longrange import Ewald, LongRangeEnergy
from sog_longrange.testing import Structure, join
from sog_longrange.units import COULOMB_CONSTANT

KERNELS = ("coulomb", "dispersion", "yukawa", "ewald")


def on_the_boundary():
    """Atoms on faces, edges and corners of a hexagonal cell, two of them the same image."""
    cell = tensor([[3.0, 0.0, 0.0], [-1.5, 1.5 * 3.0**0.5, 0.0], [0.0, 0.0, 4.0]])
    fractional = tensor([[0, 0, 0], [1, 0, 0.5], [0.5, 1, 1], [0.5, 0, 0], [0.0, -1e-17, 2.0]])
    charges = tensor([[1.0], [-0.7], [0.4], [0.9], [-0.2]])
    return Structure(charges, fractional @ cell, cell, PERIODIC)


CASES = {
    "triclinic": random_structure(0, 3, edge=3.0),
    "left-handed": random_structure(1, 3, edge=3.0),
    "one atom": random_structure(2, 1, edge=3.0),
    "on the boundary": on_the_boundary(),
    "flat": random_structure(4, 2)._replace(cell=torch.diag(tensor([6.0, 2.0, 0.6]))),
    "only k = 0": random_structure(5, 2, edge=0.4),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", KERNELS)
def test_periodic_energy_equals_the_loop_over_modes_and_atoms(case, name):
    kernel, structure = all_kernels()[name].requires_grad_(False), CASES[case]
    model = LongRangeEnergy(kernel, tolerance=1e-13, remove_self=False)
    found = energy_value(model, structure)
    expected = loop_mode_sum(structure, kernel.fourier, 8.0, kernel.zero_mode[0])
    assert found == pytest.approx(expected, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("name", KERNELS)
def test_open_energy_equals_the_loop_over_pairs(name):
    kernel = all_kernels()[name].requires_grad_(False)
    charges, positions, *_ = structure = random_structure(6, 5, periodic=False)
    expected = 0.0
    for i in range(5):
        for j in range(i):
            r2 = (positions[i] - positions[j]).square().sum()
            expected += float(charges[i] * charges[j] * kernel.radial(r2)[0])
    found = energy_value(LongRangeEnergy(kernel), structure)
    assert found == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("name", ["coulomb", "dispersion", "yukawa"])
def test_periodic_energy_equals_the_sum_over_images_in_real_space(name):
    kernel = all_kernels(max_width=3.0)[name].requires_grad_(False)
    kernel.zero_mode = (True,)  # the sum over images holds k = 0
    structure = random_structure(7, 4)
    model = LongRangeEnergy(kernel, tolerance=1e-13)
    expected = float(lattice_pair_sum(structure, lambda r: kernel.radial(r**2)[0], 24.0))
    assert energy_value(model, structure) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shared", [True, False])
def test_channels_add_up(shared):
    kernel = all_kernels()["coulomb"]
    structure = random_structure(8, 4, 3)
    model = LongRangeEnergy(kernel)
    channels = [structure._replace(charges=structure.charges[:, [p]]) for p in range(3)]
    if shared:
        expected = sum(evaluate(model, channel).energy for channel in channels)
    else:
        own, expected = _own_kernels(kernel, channels)
        model = LongRangeEnergy(own)
    torch.testing.assert_close(evaluate(model, structure).energy, expected)


def _own_kernels(kernel, channels):
    from references import sum_of_gaussians

    own = sum_of_gaussians(num_channels=3, num_gaussians=6, max_width=8.0)
    total = 0.0
    for p, channel in enumerate(channels):
        with torch.no_grad():
            own.raw_widths[p] += 0.3 * p
            own.log_amplitudes[p, 0] -= 0.2 * p
            kernel.raw_widths[0] = own.raw_widths[p]
            kernel.log_amplitudes[0] = own.log_amplitudes[p]
        total = total + evaluate(LongRangeEnergy(kernel), channel).energy
    return own, total


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("remove_self", [True, False])
def test_atomic_energies_sum_to_the_energy(name, remove_self):
    structures = [random_structure(s, 3 + s, 2, periodic=s != 1) for s in range(4)]
    out = LongRangeEnergy(all_kernels()[name], remove_self=remove_self)(*join(structures))
    sums = torch.stack([part.sum() for part in out.atomic_energies.split([3, 4, 5, 6])])
    torch.testing.assert_close(sums, out.energy, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("remove_self", [True, False])
def test_potential_is_the_derivative_of_the_energy_in_the_charges(name, remove_self):
    structures = [random_structure(s, 3 + s, 2, periodic=s != 1) for s in range(3)]
    charges, *rest = join(structures)
    charges.requires_grad_()
    out = LongRangeEnergy(all_kernels()[name], remove_self=remove_self)(charges, *rest)
    (derivative,) = torch.autograd.grad(out.energy.sum(), charges)
    torch.testing.assert_close(out.potential, derivative, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("periodic", [True, False])
def test_forces_sum_to_zero(periodic):
    structure = random_structure(9, 6, periodic=periodic)
    forces = forces_of(LongRangeEnergy(all_kernels()["coulomb"]), structure)
    assert float(forces.sum(0).abs().max()) < 1e-12 * float(forces.norm())
    assert float(forces.norm()) > 0.1


def torchpme_long_range(structure, smearing):
    torchpme = pytest.importorskip("torchpme")
    potential = torchpme.CoulombPotential(smearing=smearing, prefactor=COULOMB_CONSTANT)
    # Its modes end at half the wave number that this wavelength stands for.
    calculator = torchpme.EwaldCalculator(potential, lr_wavelength=0.35 * smearing).to(DOUBLE)
    none = torch.zeros(0, 2, dtype=torch.int64)

    def energy(positions):
        charges, _, cell, _ = structure
        half = calculator(charges, cell, positions, none, positions.new_zeros(0))
        return (charges * half).sum()

    return energy


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("smearing", [0.8, 1.5])
def test_ewald_energy_and_forces_equal_torchpme(seed, smearing):
    structure = random_structure(seed, 6, neutral=True, edge=5.0)
    model = LongRangeEnergy(Ewald(smearing), tolerance=1e-13)
    positions = structure.positions.clone().requires_grad_()
    reference = torchpme_long_range(structure, smearing)(positions)
    (gradient,) = torch.autograd.grad(reference, positions)
    energy = energy_value(model, structure)
    assert energy == pytest.approx(float(reference.detach()), rel=1e-9)
    assert relative_error(forces_of(model, structure), -gradient) < 1e-9


def test_short_range_pairs_of_the_references_equal_torchpme():
    torchpme = pytest.importorskip("torchpme")
    structure = random_structure(3, 5, neutral=True, edge=5.0)
    distances, first, second = lattice_pairs(structure, 6.0)
    potential = torchpme.CoulombPotential(smearing=0.9, prefactor=COULOMB_CONSTANT)
    calculator = torchpme.EwaldCalculator(potential, lr_wavelength=0.3, full_neighbor_list=True)
    args = structure.charges, structure.cell, structure.positions
    half = calculator.to(DOUBLE)(*args, torch.stack([first, second], 1), distances)
    total = (structure.charges * half).sum()
    long_range = evaluate(LongRangeEnergy(Ewald(0.9), tolerance=1e-13), structure).energy
    found = long_range + lattice_pair_sum(structure, screened_coulomb(0.9), 6.0)
    assert float(found) == pytest.approx(float(total), rel=1e-9)


def test_open_structures_ignore_their_cell():
    structure = random_structure(10, 4, periodic=False)
    other = structure._replace(cell=torch.zeros(3, 3, dtype=DOUBLE), pbc=OPEN)
    model = LongRangeEnergy(all_kernels()["coulomb"])
    assert torch.equal(evaluate(model, structure).energy, evaluate(model, other).energy)
