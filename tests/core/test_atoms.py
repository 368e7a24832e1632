"""External fields and dipoles of structures as ASE has them, without ASE."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sog_longrange import BoundaryError, InputError, dipole
from sog_longrange.atoms import (
    dipole_of_atoms,
    external_field,
    is_info_changed,
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
def test_a_field_along_a_periodic_axis_is_refused(pbc):
    assert external_field(atoms(pbc, external_field=[0.0, 0.0, 0.0])) is not None
    with pytest.raises(BoundaryError, match="perpendicular"):
        external_field(atoms(pbc, external_field=[0.1, 0.0, 0.2]))
    assert external_field(atoms((True, True, False), external_field=[0.0, 0.0, 0.2])) is not None


@pytest.mark.parametrize("pbc", [(False, False, False), (True, True, True), (True, True, False)])
def test_the_dipole_is_that_of_the_core(pbc):
    structure, charges = atoms(pbc), np.array([0.3, -0.1, 0.4, -0.6], "f4")
    tensors = [torch.tensor(x) for x in (structure.positions, structure.cell.array, pbc)]
    expected = dipole(torch.tensor(charges).double(), *tensors)[0].numpy()
    assert dipole_of_atoms(charges, structure) == pytest.approx(expected)
