"""External fields and dipoles of structures as ASE has them, without ASE."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sog_longrange import InputError, born_charges, dipole
from sog_longrange.atoms import (
    add_periodic_field,
    born_charges_of_atoms,
    dipole_of_atoms,
    external_field,
    is_info_changed,
    keep_info,
    periodic_field,
    total_charge_key,
)


def atoms(pbc=(False, False, False), **info):
    positions = np.random.default_rng(0).normal(size=(4, 3))
    cell = SimpleNamespace(array=4.0 * np.eye(3) * np.array(pbc))
    return SimpleNamespace(info=info, positions=positions, cell=cell, pbc=np.array(pbc))


@pytest.mark.parametrize("field", [[0, 0, 1], (0.0, 0.0, 1.0), np.array([0.0, 0.0, 1.0], "f4")])
def test_a_field_is_read_in_double_precision(field):
    expected = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    assert torch.equal(external_field(atoms(external_field=field)), expected)


def test_no_field_is_none():
    assert external_field(atoms(energy=1.0)) is None


@pytest.mark.parametrize("field", [None, 0.1, [0.1], [[0, 0, 1]], [0, 0, np.inf], "z", [[1], 2, 3]])
def test_malformed_fields_are_refused(field):
    with pytest.raises(InputError, match='`atoms.info."external_field".` must be 3 finite numbers'):
        external_field(atoms(external_field=field))


def test_a_field_that_changes_is_told_from_one_that_does_not():
    without, field = atoms(), np.array([0.0, 0.0, 1.0])
    assert not is_info_changed(without, atoms(energy=1.0))
    assert is_info_changed(without, atoms(external_field=field))
    assert is_info_changed(atoms(external_field=-field), atoms(external_field=field))
    assert not is_info_changed(atoms(external_field=field), atoms(external_field=field.tolist()))


@pytest.mark.parametrize("key", ["charge", "total_charge"])
def test_a_total_charge_is_found_under_either_key_and_its_change_told(key):
    assert total_charge_key(atoms(energy=1.0)) is None
    assert total_charge_key(atoms(**{key: 0})) == key
    assert is_info_changed(atoms(**{key: 0}), atoms(**{key: 1}))
    assert is_info_changed(atoms(), atoms(**{key: 1}))
    assert not is_info_changed(atoms(**{key: 1}), atoms(**{key: 1.0}, energy=2.0))


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, False)])
def test_a_field_along_a_periodic_axis_is_told_from_one_across(pbc):
    assert periodic_field(atoms(pbc)) is None
    assert periodic_field(atoms(pbc, external_field=[0.0, 0.0, 0.0])) is None
    found = periodic_field(atoms(pbc, external_field=[0.1, 0.0, 0.2]))
    assert found.tolist() == [0.1, 0.0, 0.2]
    assert periodic_field(atoms((True, True, False), external_field=[0.0, 0.0, 0.2])) is None
    with pytest.raises(InputError, match="3 finite numbers"):
        periodic_field(atoms(pbc, external_field=[0.1]))


def linked(structure):
    positions = torch.tensor(structure.positions, requires_grad=True)
    distances = (positions[:, None] - positions).square().sum(-1)
    charges = torch.exp(-distances).sum(1)
    return charges - charges.mean(), positions


def test_born_charges_of_atoms_are_those_of_the_core():
    structure = atoms((True, True, True))
    charges, positions = linked(structure)
    cell, pbc = torch.tensor(structure.cell.array), torch.tensor(structure.pbc)
    expected = born_charges(charges, positions, cell, pbc, eps_inf=2.0)
    found = born_charges_of_atoms(*linked(structure), structure, eps_inf=2.0)
    assert found.values == pytest.approx(expected.values.numpy())
    assert found.sum_rule == pytest.approx(expected.sum_rule[0].numpy())


def test_charges_that_depend_on_nothing_are_born_charges():
    structure = atoms()
    charges = torch.tensor([0.5, -0.5, 1.0, -1.0], dtype=torch.float64)
    positions = torch.tensor(structure.positions, requires_grad=True)
    found = born_charges_of_atoms(charges, positions, structure)
    assert found.values == pytest.approx(charges.numpy()[:, None, None] * np.eye(3))
    assert np.abs(found.sum_rule).max() < 1e-12


def test_a_periodic_field_changes_energies_and_forces_and_takes_the_stress_away():
    structure, field = atoms((True, True, True)), np.array([0.1, 0.2, -0.3])
    rng = np.random.default_rng(2)
    charges, born = rng.normal(size=4), rng.normal(size=(4, 3, 3))
    energies, forces = rng.normal(size=4), rng.normal(size=(4, 3))
    before = {"charges": charges, "energy": energies.sum(), "energies": energies}
    results = before | {"forces": forces, "stress": np.zeros(6)}
    add_periodic_field(results, born, structure, field, 2.0, 0.5)
    added = -2.0 * charges @ structure.positions @ field
    assert results["energy"] == pytest.approx(energies.sum() + added)
    assert results["energies"].sum() == pytest.approx(results["energy"])
    assert results["field_energy"] == pytest.approx(added)
    expected = forces + 4.0 * np.stack([z.T @ field for z in born])
    assert results["forces"] == pytest.approx(expected)
    assert "stress" not in results
    assert "free_energy" not in results


@pytest.mark.parametrize("pbc", [(False, False, False), (True, True, True), (True, True, False)])
def test_the_dipole_is_that_of_the_core(pbc):
    structure, charges = atoms(pbc), np.array([0.3, -0.1, 0.4, -0.6], "f4")
    tensors = [torch.tensor(x) for x in (structure.positions, structure.cell.array, pbc)]
    expected = dipole(torch.tensor(charges).double(), *tensors)[0].numpy()
    assert dipole_of_atoms(charges, structure) == pytest.approx(expected)


@pytest.mark.parametrize("charge", [None, "1", [1.0], np.nan, True])
def test_malformed_total_charges_are_refused(charge):
    with pytest.raises(InputError, match="must be one finite number in e"):
        total_charge_key(atoms(charge=charge))


def test_a_kept_copy_does_not_share_what_is_in_info():
    field = np.array([0.0, 0.0, 1.0])
    original, copy = atoms(external_field=field, charge=1), atoms(external_field=field, charge=1)
    keep_info(copy)
    field *= -1.0
    assert is_info_changed(copy, original)
