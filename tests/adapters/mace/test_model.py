"""SOGMACE against finite differences, against the bare model and against its own promises."""

import copy
import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from e3nn.util import jit
from mace import modules
from mace.modules.extensions import MACELES
from mace_builders import (
    make_batch,
    make_mace,
    make_sogmace,
    mixed_frames,
    open_molecule,
    water_box,
)

from sog_longrange import BoundaryError, Ewald, HostError, InputError, LongRangeEnergy, SOGConfig
from sog_longrange.kernels.free_atoms import free_atom_c6
from sog_longrange.testing.operations import Operations
from sog_mace import SOGMACE

MODELS = {
    "scalars": {"max_l": 0},
    "vectors": {"max_l": 1},
    "tensors": {"max_l": 2, "layers": 3},
    "one layer": {"layers": 1},
    "plain MACE": {"cls": modules.MACE},
    "two heads": {"heads": ("first", "second")},
    "pair repulsion": {"pair_repulsion": True},
}
# Fourth-order central difference: offsets in steps and weights.
STENCIL = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
STEP = 2e-3


def energy(model, frames, heads=("Default",)):
    return model(make_batch(frames, heads), compute_force=False)["energy"].detach()


def numerical_force(model, data, atom, axis):
    total = 0.0
    for offset, weight in STENCIL:
        positions = data["positions"].detach().clone()
        positions[atom, axis] += offset * STEP
        out = model(dict(data, positions=positions), compute_force=False)
        total -= weight * out["energy"].sum().item() / STEP
    return total


def numerical_stress(model, frame, heads, row, column):
    total = 0.0
    for offset, weight in STENCIL:
        strain = np.zeros((3, 3))
        strain[row, column] += 0.5 * offset * STEP
        strain[column, row] += 0.5 * offset * STEP
        strained = frame.copy()
        strained.set_cell(frame.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        total += weight * energy(model, [strained], heads).item() / STEP
    return total / abs(np.linalg.det(frame.cell.array))


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_forces_equal_finite_differences_on_mixed_batch(options):
    model = make_sogmace(**options)
    data = make_batch(mixed_frames(), options.get("heads", ("Default",)))
    forces = model(data, compute_stress=True)["forces"]
    for atom, axis in [(0, 0), (4, 1), (8, 2), (9, 0), (11, 2), (14, 1), (20, 0)]:
        expected = numerical_force(model, data, atom, axis)
        assert abs(forces[atom, axis].item() - expected) < 1e-8


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_stress_equals_finite_differences_on_mixed_batch(options):
    model, frames = make_sogmace(**options), mixed_frames()
    heads = options.get("heads", ("Default",))
    stress = model(make_batch(frames, heads), compute_stress=True)["stress"]
    for graph in (0, 2):
        for row, column in [(0, 0), (0, 1), (1, 2), (2, 2)]:
            expected = numerical_stress(model, frames[graph], heads, row, column)
            assert abs(stress[graph, row, column].item() - expected) < 1e-9


def test_virials_of_open_structure_follow_from_forces():
    model, frame = make_sogmace(), open_molecule()
    out = model(make_batch([frame]), compute_virials=True)
    moment = out["forces"].T @ torch.tensor(frame.positions)
    assert torch.allclose(out["virials"][0], 0.5 * (moment + moment.T), atol=1e-10)


class StandInLes(torch.nn.Module):
    """The call that MACELES makes of the les package, answered by our own Ewald energy."""

    def __init__(self, les_arguments):
        super().__init__()
        self.energy = LongRangeEnergy(Ewald(), tolerance=1e-8)

    def forward(self, latent_charges, positions, cell, batch, **_):
        pbc = torch.ones(len(cell), 3, dtype=torch.bool)
        charges = latent_charges.reshape(len(positions), -1)
        return {"E_lr": self.energy(charges, positions, cell, pbc, batch).energy, "BEC": None}


def test_stress_fault_of_maceles_is_not_ours(monkeypatch):
    """With the same energy, MACELES' stress misses the long range; SOGMACE's does not."""
    monkeypatch.setitem(sys.modules, "les", SimpleNamespace(Les=StandInLes))
    frame, default = water_box(), ("Default",)
    for model, is_right in [(make_mace(MACELES), False), (make_sogmace(), True)]:
        stress = model(make_batch([frame]), compute_stress=True)["stress"][0, 0, 0].item()
        error = abs(stress - numerical_stress(model, frame, default, 0, 0))
        assert (error < 1e-9) == is_right
        assert error < 1e-9 or error > 1e-6


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_closed_gate_equals_the_bare_model(options):
    model, heads = make_sogmace(**options), options.get("heads", ("Default",))
    model.long_range.gate.zero_()
    frames = mixed_frames()
    ours = model(make_batch(frames, heads), compute_stress=True)
    bare = model.mace(make_batch(frames, heads), compute_stress=True)
    assert ours["stress"][1].isnan().all()  # The molecule has no cell.
    ours["stress"], bare["stress"] = ours["stress"][::2], bare["stress"][::2]
    for key in ("energy", "forces", "stress", "virials", "node_energy"):
        assert (ours[key] - bare[key]).abs().max() <= 1e-14, key


def test_long_range_energy_is_there_and_adds_up():
    model = make_sogmace()
    data = make_batch(mixed_frames())
    out = model(data)
    assert out["long_range_energy"].abs().min() > 1e-3
    parts = out["short_range_energy"] + out["long_range_energy"]
    assert torch.allclose(out["energy"], parts, atol=1e-13)
    atoms = torch.zeros(3).index_add(0, data["batch"], out["node_energy"])
    assert torch.allclose(atoms, out["energy"], atol=1e-12)
    assert out["latent_charges"].shape == (len(data["positions"]), 2)


def in_fields(frames):
    """The structures in one field each, the last one in none."""
    for frame, field in zip(frames, ([0.1, -0.2, 0.3], [-0.3, 0.1, 0.2]), strict=False):
        frame.info["external_field"] = field
    return frames


def test_forces_and_stress_in_a_field_equal_finite_differences():
    model, frames = make_sogmace(), in_fields(mixed_frames())
    data = make_batch(frames)
    out = model(data, compute_stress=True)
    assert (out["forces"] - model(make_batch(mixed_frames()))["forces"])[:13].abs().min() > 1e-6
    for atom, axis in [(0, 0), (4, 1), (9, 2)]:
        expected = numerical_force(model, data, atom, axis)
        assert abs(out["forces"][atom, axis].item() - expected) < 1e-8
    expected = numerical_stress(model, frames[0], ("Default",), 0, 1)
    assert abs(out["stress"][0, 0, 1].item() - expected) < 1e-9


@pytest.mark.parametrize("cls", [modules.MACE, modules.ScaleShiftMACE])
def test_a_field_adds_minus_dipole_times_field(cls):
    model, data = make_sogmace(cls=cls), make_batch(in_fields(mixed_frames()))
    out, without = model(data), model(make_batch(mixed_frames()))
    expected = -(out["dipole"] * data["external_field"]).sum(-1)
    assert expected[:2].abs().min() > 1e-3
    assert expected[2] == 0.0
    torch.testing.assert_close(out["field_energy"], expected)
    for key in ("energy", "interaction_energy"):
        torch.testing.assert_close(out[key] - without[key], expected, atol=1e-11, rtol=0)
    atoms = torch.zeros(3).index_add(0, data["batch"], out["node_energy"])
    torch.testing.assert_close(atoms, out["energy"], atol=1e-12, rtol=0)


def test_without_a_field_nothing_changes():
    model, data = make_sogmace(), make_batch(mixed_frames())
    assert not data["external_field"].any()  # MACE fills it in.
    found = model(dict(data), compute_stress=True)
    del data["external_field"]
    expected = model(data, compute_stress=True)
    assert found.keys() == expected.keys()
    assert "field_energy" not in found
    for key in ("energy", "forces", "stress", "node_energy"):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0, equal_nan=True)


def test_the_dipole_is_the_derivative_in_a_field_of_zero():
    model, data = make_sogmace(), make_batch([open_molecule()])
    data["external_field"].requires_grad_()
    out = model(data, training=True)
    slope = -torch.autograd.grad(out["energy"].sum(), data["external_field"])[0]
    torch.testing.assert_close(slope, out["dipole"])


def test_malformed_fields_are_refused():
    data = make_batch(mixed_frames())
    with pytest.raises(InputError, match="`external_field` must be of shape"):
        make_sogmace()(dict(data, external_field=torch.ones(2, 3)))
    with pytest.raises(InputError, match="`external_field` must be finite"):
        make_sogmace()(dict(data, external_field=torch.full((3, 3), torch.nan)))


def test_every_parameter_moves_within_three_steps_of_the_start():
    model = make_sogmace(SOGConfig())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.long_range.warm_up(optimizer, steps=10)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        out = model(make_batch(mixed_frames()), training=True, compute_stress=True)
        loss = sum(out[key].square().mean() for key in ("energy", "forces", "virials"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    still = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert still == []


def test_hessian_is_symmetric_and_matches_forces():
    model, data = make_sogmace(), make_batch([open_molecule()])
    hessian = model(data, compute_hessian=True)["hessian"].reshape(12, 12)
    assert torch.allclose(hessian, hessian.T, atol=1e-9)
    moved = dict(data, positions=data["positions"].detach().clone())
    moved["positions"][0, 0] += 1e-5
    slope = (model(moved)["forces"] - model(data)["forces"]).reshape(-1) / 1e-5
    assert torch.allclose(-hessian[0], slope, atol=1e-4)


def test_readout_takes_the_scalars_of_every_layer():
    model = make_sogmace(max_l=1, layers=2)
    assert model.long_range.readout.layer_sizes == (8, 8)
    assert model.invariants == [[slice(0, 8)], [slice(32, 40)]]


def test_model_survives_pickle_and_copy():
    model, data = make_sogmace(), make_batch([water_box()])
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (loaded, copy.deepcopy(model)):
        assert torch.equal(other(data)["forces"], model(data)["forces"])


def test_attributes_are_those_of_the_inner_model():
    model = make_sogmace()
    assert float(model.r_max) == 4.0
    assert model.heads == ["Default"]
    with pytest.raises(AttributeError, match="no_such_attribute"):
        _ = model.no_such_attribute


def test_float32_follows_float64():
    model, frames = make_sogmace(SOGConfig()), mixed_frames()
    exact = model(make_batch(frames))["forces"]
    data = {k: v.float() if v.dtype == torch.float64 else v for k, v in make_batch(frames).items()}
    rough = model.float()(data)["forces"]
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 1e-4


def test_what_a_long_range_model_cannot_give_is_refused():
    model, data = make_sogmace(), make_batch([water_box()])
    with pytest.raises(HostError, match="does not split over edges"):
        model(data, compute_atomic_stresses=True)
    with pytest.raises(HostError, match="ML-IAP"):
        model(data, lammps_mliap=True)


def test_torchscript_export_is_refused(tmp_path):
    compiled = jit.compile(make_sogmace())
    for target in (str(tmp_path / "compiled.model"), io.BytesIO()):
        with pytest.raises(HostError, match="cannot be saved as TorchScript"):
            torch.jit.save(compiled, target)


def test_slab_does_not_see_its_vacuum():
    energies = []
    for height in (12.0, 40.0):
        slab = water_box()
        slab.pbc = (True, True, False)
        slab.cell[2] = (0.0, 0.0, height)
        energies.append(make_sogmace()(make_batch([slab]))["energy"])
    torch.testing.assert_close(energies[0], energies[1], rtol=1e-9, atol=1e-9)


def test_slab_is_refused_by_the_ewald_kernel():
    slab = water_box()
    slab.pbc = (True, True, False)
    with pytest.raises(BoundaryError, match="`pbc` must be all true or all false"):
        make_sogmace(SOGConfig(kernel="ewald"))(make_batch([slab]))


def test_batch_without_pbc_is_refused():
    data = make_batch([water_box()])
    del data["pbc"]
    with pytest.raises(InputError, match="'pbc'"):
        make_sogmace()(data)


def test_second_long_range_part_and_foreign_models_are_refused():
    with pytest.raises(HostError, match="MACE or ScaleShiftMACE"):
        SOGMACE(torch.nn.Linear(2, 2))
    with pytest.raises(HostError, match="got SOGMACE"):
        SOGMACE(make_sogmace())


def charged_model(**options):
    """A model with charge states and random weights throughout, as after training."""
    model = make_sogmace(SOGConfig(charge_embedding=4, tolerance=1e-8, **options))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.long_range.states.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def charged_frames(charge):
    """The mixed structures with total charges of either sign, the first with this one."""
    frames = mixed_frames()
    for frame, value in zip(frames, (charge, -charge, 0.0), strict=True):
        frame.info["charge"] = value
    return frames


@pytest.mark.parametrize("charge", [-1.0, 1.0])
def test_forces_and_stress_hold_the_charge_states(charge):
    model, frames = charged_model(), charged_frames(charge)
    data = make_batch(frames)
    out = model(data, compute_stress=True)
    for atom, axis in [(0, 0), (4, 1), (9, 0), (11, 2), (20, 0)]:
        expected = numerical_force(model, data, atom, axis)
        assert abs(out["forces"][atom, axis].item() - expected) < 1e-8
    expected = numerical_stress(model, frames[0], ("Default",), 0, 1)
    assert abs(out["stress"][0, 0, 1].item() - expected) < 1e-9
    parts = [out[f"{name}_energy"] for name in ("short_range", "long_range", "charge_state")]
    torch.testing.assert_close(out["energy"], sum(parts))
    summed = torch.zeros(3).index_add(0, data["batch"], out["node_energy"])
    torch.testing.assert_close(summed, out["energy"])
    assert bool((parts[2][:2].abs() > 1e-3).all())
    assert parts[2][2].item() == 0.0


def test_a_new_model_with_charge_states_is_the_bare_model():
    model, frames = make_sogmace(SOGConfig(charge_embedding=4)), charged_frames(1.0)
    model.long_range.gate.zero_()
    data = make_batch(frames)
    expected, found = model.mace(data), model(data)
    assert torch.equal(found["energy"], expected["energy"])
    torch.testing.assert_close(found["forces"], expected["forces"], atol=1e-14, rtol=0)


def test_a_few_steps_tell_charge_states_of_one_molecule_apart():
    model = make_sogmace(SOGConfig(charge_embedding=4, charge_constraint="total"))
    frames = [open_molecule() for _ in range(3)]
    for frame, charge in zip(frames, (-1.0, 0.0, 1.0), strict=True):
        frame.info["charge"] = charge
    data = make_batch(frames)
    start = model(data)["energy"].detach()
    wanted = start[1] + torch.tensor([-1.0, 0.0, 9.0])
    optimizer = torch.optim.Adam(model.long_range.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        energy = model(data, training=True, compute_force=False)["energy"]
        (energy - wanted).square().sum().backward()
        optimizer.step()
    assert (energy - wanted).abs().max() < 0.1


@pytest.mark.parametrize("training", [False, True])
def test_the_long_range_part_makes_python_wait_once(training):
    data = make_batch(mixed_frames())
    model = make_sogmace(SOGConfig(backend="mesh"))
    reads = []
    for own in (model.mace, model):
        # The first evaluations of MACE are those of its compiler.
        for _ in range(4):
            with Operations() as counted:
                own(dict(data), training=training, compute_stress=True)
        reads.append(counted.host_reads)
    assert reads == [0, 1]


def test_dispersion_begins_at_free_atoms():
    model = make_sogmace(SOGConfig(kernel="coulomb+dispersion", num_channels=2))
    box = water_box()
    values = model(make_batch([box, box[2:5]]))["latent_charges"][:, 1]
    numbers = [*box.numbers, *box.numbers[2:5]]
    expected = [free_atom_c6(int(number)) for number in numbers]
    assert values.square().tolist() == pytest.approx(expected, rel=0.1)
