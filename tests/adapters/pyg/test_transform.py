"""Cells that collate, and the helper that reads them back."""

import ase.build
import numpy as np
import pytest
import torch
from pyg_builders import MODELS, OPEN, PERIODIC, TRICLINIC, make_data, make_model, molecule
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.transforms import Compose

from sog_longrange import HostError, InputError, InputTypeError
from sog_pyg import StoreBoundary, energy_forces_stress


def atoms(**more):
    return Data(pos=torch.rand(4, 3), **more)


FORMS = {
    "tensors": (TRICLINIC, torch.tensor(PERIODIC)),
    "stored already": (TRICLINIC[None], torch.tensor([PERIODIC])),
    "arrays": (TRICLINIC.numpy(), np.array(PERIODIC)),
    "lists": (TRICLINIC.tolist(), list(PERIODIC)),
    "one flag": (TRICLINIC, True),
    "one flag, tensor": (TRICLINIC, torch.tensor(True)),
    "float32": (TRICLINIC.float(), PERIODIC),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["data", "transform"])
def test_every_form_is_stored_alike(form, where):
    cell, pbc = FORMS[form]
    if where == "data":
        data = StoreBoundary()(atoms(cell=cell, pbc=pbc))
    else:
        data = StoreBoundary(cell, pbc)(atoms())
    torch.testing.assert_close(data.cell, TRICLINIC[None], rtol=1e-6, atol=1e-6)
    assert data.cell.dtype == data.pos.dtype
    assert torch.equal(data.pbc, torch.tensor([PERIODIC]))


def test_atoms_of_ase_go_in_as_they_are():
    crystal = ase.build.bulk("NaCl", "rocksalt", a=5.64)
    data = Data(pos=torch.tensor(crystal.positions), cell=crystal.cell, pbc=crystal.pbc)
    stored = StoreBoundary()(data)
    assert torch.equal(stored.cell[0], torch.tensor(crystal.cell.array))
    assert stored.pbc.tolist() == [[True] * 3]


def test_molecules_and_crystals_share_a_batch():
    frames = [
        atoms(),
        atoms(cell=TRICLINIC, pbc=True),
        atoms(cell=TRICLINIC, pbc=(True, True, False)),
    ]
    for batch in DataLoader([StoreBoundary()(frame) for frame in frames], batch_size=3):
        assert batch.cell.shape == (3, 3, 3)
        assert batch.pbc.sum(-1).tolist() == [0, 3, 2]
        assert torch.equal(batch.to_data_list()[2].cell[0], TRICLINIC)


def test_the_original_is_not_changed_and_composes():
    data = atoms(cell=TRICLINIC, pbc=True)
    stored = Compose([StoreBoundary(), StoreBoundary()])(data)
    assert data.cell.shape == (3, 3)
    assert stored.cell.shape == (1, 3, 3)
    assert repr(StoreBoundary(pbc=True)) == "StoreBoundary(cell=None, pbc=True)"


BAD = {
    "no pbc": ({"cell": TRICLINIC}, InputError, "`pbc` must be given with `cell`"),
    "no cell": ({"pbc": True}, InputError, "`cell` must be given with `pbc`"),
    "stacked": ({"cell": TRICLINIC.repeat(2, 1), "pbc": True}, InputError, r"\[3, 3\]"),
    "two flags": ({"cell": TRICLINIC, "pbc": (True, False)}, InputError, r"`pbc` .*\[3\]"),
    "numbers": ({"cell": TRICLINIC, "pbc": (1.0, 1.0, 1.0)}, InputTypeError, "dtype bool"),
    "words": ({"cell": "cubic", "pbc": True}, InputTypeError, "`cell` must be numbers"),
    "singular": ({"cell": 0.0 * TRICLINIC, "pbc": True}, InputError, "non-zero volume"),
    "NaN": ({"cell": torch.nan * TRICLINIC, "pbc": True}, InputError, "finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_cells_are_named(case):
    stored, error, message = BAD[case]
    with pytest.raises(error, match=message):
        StoreBoundary()(atoms(**stored))


@pytest.mark.parametrize("name", ["z", "pos"])
def test_missing_tensors_are_named(name):
    data = make_data(1)
    del data[name]
    with pytest.raises(InputTypeError, match=f"`data.{name}` must be a torch.Tensor, got NoneType"):
        energy_forces_stress(make_model("SchNet"), data)
    if name == "pos":
        with pytest.raises(InputTypeError, match="`data.pos`"):
            StoreBoundary()(data)


def test_the_helper_changes_nothing_and_records_nothing():
    model, data = make_model("SchNet"), make_data(1)
    before = data.clone()
    with torch.no_grad():
        out = energy_forces_stress(model, data)
    assert all(torch.equal(data[key], before[key]) for key in ("pos", "cell"))
    assert not data.pos.requires_grad
    assert not any(part.requires_grad for part in out)
    assert [tuple(part.shape) for part in out] == [(1,), (6, 3), (1, 3, 3)]


@pytest.mark.parametrize("name", MODELS)
def test_inference_mode_changes_nothing(name):
    model, frames = make_model(name), [make_data(1), molecule()]
    expected = energy_forces_stress(model, Batch.from_data_list(frames))
    with torch.inference_mode():
        batch = next(iter(DataLoader(frames, batch_size=2)))
        found = energy_forces_stress(model, batch)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", ["SchNet", "hand-written"])
def test_structures_without_atoms_have_no_energy(name):
    empty = StoreBoundary()(Data(z=torch.zeros(0, dtype=torch.long), pos=torch.zeros(0, 3)))
    model, frames = make_model(name), [empty, make_data(1), empty]
    out = energy_forces_stress(model, Batch.from_data_list(frames))
    expected = energy_forces_stress(model, make_data(1))
    assert out.energy.tolist() == [0.0, pytest.approx(expected.energy.item(), rel=1e-12), 0.0]
    torch.testing.assert_close(out.forces, expected.forces)
    assert out.stress[[0, 2]].isnan().all()


def test_charges_may_be_numbers():
    data = molecule()
    data.total_charge = 2.0
    seen = []

    def model(z, pos, batch, cell, pbc, batch_size, total_charge):
        seen.append(total_charge.tolist())
        return pos.sum()[None]

    energy_forces_stress(model, data)
    energy_forces_stress(model, Batch.from_data_list([data]))
    assert seen == [[2.0], [2.0]]


def test_stress_is_for_what_has_a_volume():
    model = make_model("SchNet")
    batch = Batch.from_data_list([make_data(1), molecule()])
    out = energy_forces_stress(model, batch)
    assert out.stress[0].abs().sum() > 0
    assert out.stress[1].isnan().all()
    torch.testing.assert_close(out.stress[0], out.stress[0].T)
    bare = Data(z=molecule().z, pos=molecule().pos)
    assert energy_forces_stress(model, bare).stress is None
    assert OPEN == (False,) * 3


def test_atoms_that_feel_nothing_have_no_force():
    model, data = make_model("hand-written"), molecule(4, 1)
    out = energy_forces_stress(model, data)
    assert out.forces.tolist() == [[0.0, 0.0, 0.0]]


def test_energies_per_node_are_refused():
    def per_node(z, pos, batch, cell, pbc, batch_size):
        return pos.sum(-1)

    with pytest.raises(HostError, match="one energy for each of 1 graphs"):
        energy_forces_stress(per_node, make_data(1))
