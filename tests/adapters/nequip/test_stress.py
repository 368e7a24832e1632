"""Stress of slabs, wires and open structures in NequIP: that of the cell of the data."""

import copy

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from nequip.data import AtomicDataDict
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip_builders import R_MAX, TYPES, build, to_data
from stress_cases import (
    CHARGES,
    FLAT,
    NUMBERS,
    OPTIONS,
    STENCIL,
    STRUCTURES,
    committed_stress,
)

from sog_longrange import InputError
from sog_nequip.calculator import SOGNequIPCalculator
from sog_nequip.labels import check_stress_labels
from sog_nequip.parts import long_range_parts
from sog_nequip.train import WarmUp

ALL = STRUCTURES | FLAT


def to_atoms(case):
    return Atoms(NUMBERS, case.positions, cell=case.cell, pbc=case.pbc)


def batch_of(names):
    frames = [to_data(to_atoms(ALL[name])) for name in names]
    return AtomicDataDict.batched_from_list(frames)


@pytest.fixture(scope="module")
def model():
    return build(sog=OPTIONS).eval()


@pytest.fixture
def calculator(model):
    mapper = ChemicalSpeciesToAtomTypeMapper(
        model_type_names=TYPES, chemical_species_to_atom_type_map={t: t for t in TYPES}
    )
    transforms = [mapper, NeighborListTransform(r_max=R_MAX)]
    return SOGNequIPCalculator(model, "cpu", transforms=transforms)


def test_fixed_charges_have_the_committed_stress(model):
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if all(parameter is not p for p in long_range_parts(model)[0].parameters()):
                parameter.zero_()
    charges = torch.tensor(CHARGES * len(STRUCTURES))[:, None]
    long_range_parts(model)[0].long_range.readout.forward = lambda features, sites: charges
    found = model(batch_of(STRUCTURES))["stress"].detach().numpy()
    expected = np.array([committed_stress()[name] for name in STRUCTURES])
    assert np.abs(found - expected).max() < 1e-8


def test_gradients_of_a_stress_loss_equal_finite_differences(model):
    model, data = copy.deepcopy(model).train(), batch_of(["slab", "wire"])

    def loss():
        return 1e3 * (model(dict(data))["stress"] - 0.01).square().sum()

    parameter = long_range_parts(model)[0].long_range.readout.linear.weight
    (slope,) = torch.autograd.grad(loss(), parameter)
    direction = torch.randn(slope.shape, generator=torch.Generator().manual_seed(0))
    original, expected = parameter.detach().clone(), 0.0
    for offset, weight in STENCIL:
        parameter.data = original + offset * 1e-4 * direction
        expected += weight * loss().item() / 1e-4
    assert (slope * direction).sum().item() == pytest.approx(expected, rel=1e-6)


def test_labels_of_frames_without_a_volume_are_refused():
    data = batch_of(["slab", *FLAT])
    check_stress_labels(dict(data), "batch 2")
    data["stress"] = torch.full((3, 3, 3), torch.nan)
    data["stress"][0] = 1.0
    check_stress_labels(dict(data), "batch 2")
    data["stress"][2] = 0.0
    callback = WarmUp(3)
    message = r"one of structure 2 \(4 atoms, cell .*\) of training batch 5"
    with pytest.raises(InputError, match=message):
        callback.on_train_batch_start(None, None, data, 5)
    callback.on_train_epoch_end(None, None)
    callback.on_train_batch_start(None, None, data, 5)


def test_the_calculator_divides_by_the_volume_of_the_structure(calculator):
    found = []
    for name in ("slab", "displaced slab"):
        atoms = to_atoms(STRUCTURES[name])
        atoms.calc = calculator
        found.append(atoms.get_stress(voigt=False))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-7, atol=1e-10)
    out = calculator.model(batch_of(["slab"]))["stress"][0].detach().numpy()
    np.testing.assert_allclose(found[0], out, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", FLAT)
def test_a_structure_without_a_volume_has_energy_and_forces_only(calculator, name):
    atoms = to_atoms(FLAT[name])
    atoms.calc = calculator
    assert np.isfinite(atoms.get_potential_energy())
    assert np.isfinite(atoms.get_forces()).all()
    assert "stress" not in calculator.results
    with pytest.raises(PropertyNotImplementedError, match="whose cell has no volume"):
        atoms.get_stress()
