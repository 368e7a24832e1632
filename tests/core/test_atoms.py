"""External fields and dipoles of structures as ASE has them, without ASE."""

import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sog_longrange import InputError, born_charges, dipole
from sog_longrange.ase_support import (
    ChargesInASE,
    add_periodic_field,
    born_charges_of_atoms,
    check_results,
    dipole_of_atoms,
    external_field,
    is_info_changed,
    keep_info,
    periodic_field,
    total_charge,
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
    assert total_charge(atoms(energy=1.0)) is None
    assert total_charge(atoms(**{key: 0})) == 0.0
    assert is_info_changed(atoms(**{key: 0}), atoms(**{key: 1}))
    assert is_info_changed(atoms(), atoms(**{key: 1}))
    assert not is_info_changed(atoms(**{key: 1}), atoms(**{key: 1.0}, energy=2.0))


ONE = [1, 1.0, "1", "+1", " 1.0", [1], (1.0,), np.int64(1), np.float32(1), np.array([1]), [["1"]]]


@pytest.mark.parametrize("charge", [*ONE, np.array("1"), torch.tensor([1])], ids=repr)
def test_what_means_one_number_is_a_total_charge(charge):
    assert total_charge(atoms(charge=charge)) == 1.0
    assert total_charge(atoms(charge=-2, total_charge="-2")) == -2.0


def test_keys_of_the_total_charge_that_disagree_are_refused():
    message = '"total_charge".. must be equal to .*"charge"., 1, got -1. Remove the wrong'
    with pytest.raises(InputError, match=message):
        total_charge(atoms(charge=1, total_charge="-1"))


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


WORDS = [None, "neutral", "nan", "1-", [1.0, 0.0], [], [[1], [2, 3]], np.nan, np.inf, True, {}, 1j]


@pytest.mark.parametrize("charge", WORDS, ids=repr)
def test_malformed_total_charges_are_refused(charge):
    got = re.escape(f"one finite number in e, got {charge!r}. Set the total charge")
    with pytest.raises(InputError, match=f'`atoms.info."total_charge".` must be {got}'):
        total_charge(atoms(total_charge=charge))


class Base:
    """A calculator that looks at nothing."""

    def check_state(self, atoms, tol):
        return []


class Calculator(ChargesInASE, Base):
    """With the methods that calculators share."""


def test_a_charge_that_a_neutral_model_ignores_is_told_once():
    calculator = Calculator()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calculator._ignore_charge(atoms(charge=1), ["none"])
        for charge in (0, "0", None, "x", np.nan):
            calculator._ignore_charge(atoms(charge=charge), ["none", "neutral"])
    with pytest.warns(UserWarning, match="total charge -2 e in atoms.info is ignored.*sum to zero"):
        calculator._ignore_charge(atoms(total_charge=["-2"]), ["neutral"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calculator._ignore_charge(atoms(charge=1), ["neutral"])


@pytest.mark.parametrize("pbc", [(False, False, False), (True, True, True)])
def test_results_that_are_not_finite_are_explained_and_thrown_away(pbc):
    structure, forces = atoms(pbc), np.zeros((4, 3))
    check_results({"energy": 1.0, "forces": forces, "stress": np.full(6, np.nan)}, structure)
    forces[2, 1] = np.nan
    results = {"energy": 1.0, "forces": forces}
    with pytest.raises(InputError, match=r"`forces` must be finite, .* \(2, 1\).* Perhaps. No two"):
        check_results(results, structure, " Perhaps.")
    assert results == {}
    with pytest.raises(InputError, match="`energy` must be finite, got NaN or infinity. No two"):
        check_results({"energy": np.array(np.inf)}, structure)
    structure.positions[3] = structure.positions[1] - structure.cell.array[0]
    with pytest.raises(InputError, match="`forces` .* Atoms 1 and 3 of structure 0 are 0 Å"):
        check_results({"forces": forces}, structure)


def test_a_kept_copy_does_not_share_what_is_in_info():
    field = np.array([0.0, 0.0, 1.0])
    original, copy = atoms(external_field=field, charge=1), atoms(external_field=field, charge=1)
    keep_info(copy)
    field *= -1.0
    assert is_info_changed(copy, original)
