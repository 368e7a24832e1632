"""Models in ASE: MACE's own calculator and ours."""

import numpy as np
import pytest
import torch
from ase.calculators.fd import calculate_numerical_forces
from mace.calculators import MACECalculator
from mace_builders import make_batch, make_mace, make_sogmace, open_molecule, water_box

from sog_longrange import BoundaryError, HostError, InputError, SOGConfig
from sog_mace import SOGMACECalculator

OPTIONS = {"device": "cpu", "default_dtype": "float64"}


def test_maces_own_calculator_returns_long_range_energy_forces_and_stress():
    model, atoms = make_sogmace(), water_box()
    out = model(make_batch([atoms]), compute_stress=True)
    atoms.calc = MACECalculator(models=model, **OPTIONS)
    assert atoms.get_potential_energy() == pytest.approx(out["energy"].item(), abs=1e-10)
    assert np.allclose(atoms.get_forces(), out["forces"].detach(), atol=1e-10)
    assert np.allclose(atoms.get_stress(voigt=False), out["stress"][0].detach(), atol=1e-12)
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy())


def test_our_calculator_adds_charges_and_energies():
    atoms = water_box()
    atoms.calc = SOGMACECalculator(models=make_sogmace(), **OPTIONS)
    energy, results = atoms.get_potential_energy(), atoms.calc.results
    assert results["latent_charges"].shape == (9, 2)
    assert np.array_equal(atoms.get_charges(), results["latent_charges"][:, 0])
    parts = results["short_range_energy"] + results["long_range_energy"]
    assert parts == pytest.approx(energy, abs=1e-10)
    assert abs(results["long_range_energy"]) > 1e-3


def test_forces_are_the_derivative_of_the_energy():
    atoms = water_box()
    atoms.calc = SOGMACECalculator(models=make_sogmace(), **OPTIONS)
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0, 4])
    assert np.allclose(atoms.get_forces()[[0, 4]], numerical, atol=1e-6)


def test_committee_reports_energies_but_no_mean_charge():
    models = [make_sogmace() for _ in range(2)]
    torch.manual_seed(5)
    torch.nn.init.normal_(models[1].long_range.readout.linear.weight, std=0.3)
    atoms = water_box()
    atoms.calc = SOGMACECalculator(models=models, **OPTIONS)
    atoms.get_potential_energy()
    single = [model(make_batch([atoms]))["latent_charges"].detach().numpy() for model in models]
    assert np.allclose(atoms.calc.results["latent_charges_comm"], single)
    assert "charges" not in atoms.calc.results
    assert atoms.calc.results["energy_var"] > 0


def test_dipole_is_the_sum_of_charges_times_positions():
    atoms = open_molecule()
    atoms.calc = SOGMACECalculator(models=make_sogmace(), **OPTIONS)
    expected = atoms.get_charges() @ atoms.positions
    assert np.abs(expected).max() > 1e-3
    assert atoms.get_dipole_moment() == pytest.approx(expected, abs=1e-12)
    assert "field_energy" not in atoms.calc.results


@pytest.mark.parametrize("make", [open_molecule, water_box])
def test_a_field_of_the_atoms_info_adds_its_energy_and_forces(make):
    atoms, across = make(), np.array([0.1, -0.2, 0.3])
    if atoms.pbc.any():
        atoms.pbc = [True, True, False]
        across[:2] = 0.0
    atoms.calc = SOGMACECalculator(models=make_sogmace(), **OPTIONS)
    energy, dipole = atoms.get_potential_energy(), atoms.get_dipole_moment()
    # MACE does not see a change within an array.
    for field in (np.zeros(3), across):
        atoms.info["external_field"] = field
        added = atoms.get_potential_energy() - energy
        assert added == pytest.approx(-dipole @ field, abs=1e-11)
        assert atoms.calc.results["field_energy"] == pytest.approx(added, abs=1e-11)
    assert atoms.get_dipole_moment() == pytest.approx(dipole)
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0, 2])
    assert np.allclose(atoms.get_forces()[[0, 2]], numerical, atol=1e-6)


@pytest.mark.parametrize("field", [[0.1, 0.2], [[0.1, 0.2, 0.3]], [0.1, 0.2, np.nan], "x"])
def test_malformed_fields_are_refused(field):
    atoms = open_molecule()
    atoms.calc = SOGMACECalculator(models=make_sogmace(), **OPTIONS)
    atoms.info["external_field"] = field
    with pytest.raises(InputError, match="must be 3 finite numbers in V/Å"):
        atoms.get_potential_energy()


def test_fields_along_a_periodic_axis_are_refused():
    atoms = water_box()
    atoms.calc = SOGMACECalculator(models=make_sogmace(), **OPTIONS)
    atoms.info["external_field"] = [0.0, 0.0, 0.1]
    with pytest.raises(BoundaryError, match="perpendicular"):
        atoms.get_potential_energy()


def test_committee_has_no_mean_dipole_and_refuses_fields():
    atoms = open_molecule()
    atoms.calc = SOGMACECalculator(models=[make_sogmace(), make_sogmace()], **OPTIONS)
    atoms.get_potential_energy()
    assert atoms.calc.results["dipole_comm"].shape == (2, 3)
    assert "dipole" not in atoms.calc.results
    atoms.info["external_field"] = [0.0, 0.0, 0.1]
    with pytest.raises(HostError, match="committee cannot be in an external field"):
        atoms.get_potential_energy()


def test_charge_of_the_atoms_info_reaches_the_model():
    atoms = water_box()
    atoms.calc = SOGMACECalculator(
        models=make_sogmace(SOGConfig(charge_constraint="total")), **OPTIONS
    )
    sums = []
    for charge in (0.0, 2.0):
        atoms.info["charge"] = charge
        sums.append(atoms.get_charges().sum())
    assert np.allclose(sums, [0.0, 2.0], atol=1e-10)


@pytest.mark.parametrize("key", ["charge", "total_charge"])
@pytest.mark.parametrize("options", [{}, {"charge_embedding": 3}], ids=str)
def test_either_key_of_the_charge_is_read_and_none_is_refused(key, options):
    atoms = water_box()
    model = make_sogmace(SOGConfig(charge_constraint="total", **options))
    atoms.calc = SOGMACECalculator(models=model, **OPTIONS)
    with pytest.raises(InputError, match="`atoms.info` must be with 'charge'"):
        atoms.get_potential_energy()
    atoms.info[key] = 1.0
    assert atoms.get_charges().sum() == pytest.approx(1.0)


def test_charge_states_have_energies_of_their_own():
    model, atoms = make_sogmace(SOGConfig(charge_embedding=3)), water_box()
    torch.nn.init.constant_(model.long_range.states.perceptron[2].bias, 2.0)
    atoms.calc = SOGMACECalculator(models=[model], **OPTIONS)
    with pytest.raises(InputError, match="`atoms.info` must be with 'charge'"):
        atoms.get_potential_energy()
    found = {}
    for charge in (-1, 0, 1):
        atoms.info["charge"] = charge
        energy, results = atoms.get_potential_energy(), atoms.calc.results
        found[charge] = results["charge_state_energy"]
        parts = results["short_range_energy"] + results["long_range_energy"] + found[charge]
        assert parts == pytest.approx(energy, abs=1e-10)
        assert atoms.get_potential_energies().sum() == pytest.approx(energy)
    # Electronegativity and hardness of 2 eV, of a charge shared by nine atoms.
    assert found == pytest.approx({-1: -2 + 2 / 9, 0: 0.0, 1: 2 + 2 / 9})
    atoms.info["charge"] = 0.5
    with pytest.raises(InputError, match="a whole number of e"):
        atoms.get_potential_energy()


def test_a_committee_averages_the_energies_of_charge_states():
    models = [make_sogmace(SOGConfig(charge_embedding=3)) for _ in range(2)]
    for model, value in zip(models, (1.0, 3.0), strict=True):
        torch.nn.init.constant_(model.long_range.states.perceptron[2].bias, value)
    atoms = water_box()
    atoms.info["charge"] = 1
    atoms.calc = SOGMACECalculator(models=models, **OPTIONS)
    atoms.get_potential_energy()
    assert atoms.calc.results["charge_state_energy"] == pytest.approx(2 + 2 / 9)


def test_calculator_leaves_no_trace_on_the_model():
    model, atoms = make_sogmace(), water_box()
    atoms.calc = SOGMACECalculator(models=model, **OPTIONS)
    atoms.get_potential_energy()
    assert not model._forward_hooks


def test_models_without_long_range_and_accelerators_are_refused():
    with pytest.raises(HostError, match="must be SOGMACE models, got ScaleShiftMACE"):
        SOGMACECalculator(models=make_mace(), **OPTIONS)
    with pytest.raises(HostError, match="does not support compile_mode"):
        SOGMACECalculator(models=make_sogmace(), compile_mode="default", **OPTIONS)
