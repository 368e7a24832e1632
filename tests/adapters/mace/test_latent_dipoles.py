"""MACE with latent dipoles: symmetry, derivatives, training, files and ASE."""

import copy
import io
import logging

import ase.io
import numpy as np
import pytest
import torch
from mace_builders import (
    PRECISE,
    left_handed_box,
    make_batch,
    make_mace,
    make_sogmace,
    mixed_frames,
    open_molecule,
    water_box,
)

from sog_longrange import HostError, SOGConfig
from sog_mace import SOGMACE, SOGMACECalculator
from sog_mace.cli.run_train import main, parse_args

CONFIG = SOGConfig(num_channels=2, tolerance=1e-8, latent_dipoles=True)
MODELS = {
    "vectors": {"max_l": 1},
    "tensors": {"max_l": 2, "layers": 3},
    "two heads": {"heads": ("first", "second")},
    "vectors in the last layer": {"keep_last_layer_irreps": True},
}
every_model = pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
STEP = 1e-4


def slab():
    box = water_box()
    box.pbc = [True, True, False]
    return box


def evaluate(model, frames, **options):
    heads = tuple(model.heads)
    return model(make_batch(frames, heads), **options)


def total_energy(model, frames):
    return float(evaluate(model, frames, compute_force=False)["energy"].detach().sum())


def rotated(frame, rotation):
    turned = frame.copy()
    turned.positions = frame.positions @ rotation.T
    turned.set_cell(frame.cell.array @ rotation.T)
    return turned


def random_rotation(seed=0):
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return rotation * np.sign(np.linalg.det(rotation))


@every_model
@pytest.mark.parametrize("inverted", [False, True])
def test_dipoles_and_forces_turn_with_the_atoms(options, inverted):
    model = make_sogmace(CONFIG, **options)
    rotation = random_rotation() * (-1.0 if inverted else 1.0)
    frames = [*mixed_frames(), slab()]
    here = evaluate(model, frames)
    there = evaluate(model, [rotated(frame, rotation) for frame in frames])
    turn = torch.tensor(rotation)
    dipoles = here["latent_dipoles"].detach()
    assert dipoles.abs().max() > 0.01
    expected = torch.einsum("ab,nbp->nap", turn, dipoles)
    torch.testing.assert_close(there["latent_dipoles"].detach(), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(there["energy"], here["energy"], rtol=0, atol=1e-6)
    torch.testing.assert_close(there["forces"], here["forces"] @ turn.T, rtol=0, atol=1e-6)


@every_model
def test_forces_and_stress_equal_finite_differences(options):
    model = make_sogmace(CONFIG, **options)
    frames = [water_box(), open_molecule(), left_handed_box(), slab()]
    out = evaluate(model, frames, compute_stress=True)
    sizes = np.cumsum([0, *map(len, frames)])
    for graph, atom, axis in [(0, 0, 0), (0, 4, 2), (1, 1, 1), (2, 3, 0), (3, 5, 2)]:
        energies = []
        for step in (STEP, -STEP):
            moved = frames[graph].copy()
            moved.positions[atom, axis] += step
            energies.append(total_energy(model, [moved]))
        expected = -(energies[0] - energies[1]) / (2 * STEP)
        found = out["forces"][sizes[graph] + atom, axis].item()
        assert found == pytest.approx(expected, abs=2e-6)
    for graph, row, column in [(0, 0, 0), (0, 0, 1), (2, 1, 2), (3, 0, 0)]:
        frame = frames[graph]
        energies = []
        for step in (STEP, -STEP):
            strain = np.eye(3)
            strain[row, column] += 0.5 * step
            strain[column, row] += 0.5 * step
            strained = frame.copy()
            strained.set_cell(frame.cell.array @ strain, scale_atoms=True)
            energies.append(total_energy(model, [strained]))
        expected = (energies[0] - energies[1]) / (2 * STEP * frame.get_volume())
        assert out["stress"][graph, row, column].item() == pytest.approx(expected, abs=1e-7)


def test_energies_of_atoms_sum_and_batch_equals_single():
    model = make_sogmace(CONFIG)
    frames = [*mixed_frames(), slab()]
    together = evaluate(model, frames)
    alone = [evaluate(model, [frame]) for frame in frames]
    for key in ("energy", "node_energy", "forces", "latent_charges", "latent_dipoles"):
        expected = torch.cat([out[key] for out in alone])
        torch.testing.assert_close(together[key], expected, rtol=0, atol=1e-9)
    for out in alone:
        torch.testing.assert_close(out["node_energy"].sum(), out["energy"][0], rtol=0, atol=1e-10)


def test_dipoles_have_a_part_in_the_energy_that_the_gate_scales():
    model, frames = make_sogmace(CONFIG), mixed_frames()
    full = evaluate(model, frames)
    model.long_range.gate.fill_(0.25)
    quarter = evaluate(model, frames)
    for key, factor in [
        ("long_range_energy", 0.25),
        ("latent_dipoles", 0.5),
        ("latent_field", 0.5),
    ]:
        torch.testing.assert_close(quarter[key], factor * full[key], rtol=1e-10, atol=1e-12)
    model.long_range.gate.fill_(1.0)
    for parameter in model.long_range.dipole_readout.parameters():
        torch.nn.init.zeros_(parameter)
    without = evaluate(model, frames)
    assert (without["long_range_energy"] - full["long_range_energy"]).abs().max() > 1e-3
    assert not without["latent_dipoles"].any()


def test_a_model_without_the_option_is_what_it_was():
    model = make_sogmace(PRECISE)
    assert "latent_dipoles" not in evaluate(model, mixed_frames())
    assert not any("dipole" in name for name in model.state_dict())


def test_a_force_loss_reaches_the_readout_of_dipoles():
    model = make_sogmace(CONFIG)
    out = evaluate(model, mixed_frames(), training=True)
    (out["forces"] - 0.1).square().sum().backward()
    readout = model.long_range.dipole_readout
    gradients = {name: float(p.grad.abs().max()) for name, p in readout.named_parameters()}
    assert min(gradients.values()) > 0.0, gradients


@pytest.mark.parametrize("options", [{"max_l": 0}, {"layers": 1}], ids=["scalars", "one layer"])
def test_models_without_vectors_are_refused(options):
    with pytest.raises(HostError, match="no layer of this MACE model has any"):
        SOGMACE(make_mace(**options), CONFIG)


def test_models_can_be_saved_and_copied():
    model = make_sogmace(CONFIG)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    energy = total_energy(model, mixed_frames())
    for other in (torch.load(file, weights_only=False), copy.deepcopy(model)):
        assert total_energy(other, mixed_frames()) == energy


@pytest.mark.parametrize("frame", [open_molecule(), slab()], ids=["open", "slab"])
def test_ase_reports_dipoles_and_their_energy_in_a_field(frame):
    model, frame = make_sogmace(CONFIG), frame.copy()
    frame.calc = SOGMACECalculator(models=model, device="cpu", default_dtype="float64")
    energy, dipole = frame.get_potential_energy(), frame.get_dipole_moment()
    results = frame.calc.results
    own = results["latent_dipoles"]
    assert own.shape == (len(frame), 3, 2)
    if not frame.pbc.any():
        expected = results["charges"] @ frame.positions + own[:, :, 0].sum(0)
        assert dipole == pytest.approx(expected, abs=1e-12)
    field = frame.info["external_field"] = np.array([0.0, 0.0, 0.2])
    assert frame.get_potential_energy() - energy == pytest.approx(-dipole @ field, abs=1e-9)
    assert frame.get_dipole_moment() == pytest.approx(dipole, abs=1e-12)
    forces, moved = frame.get_forces(), frame.copy()
    moved.calc = frame.calc
    energies = []
    for step in (STEP, -2 * STEP):
        moved.positions[1, 0] += step
        energies.append(moved.get_potential_energy())
    assert forces[1, 0] == pytest.approx((energies[1] - energies[0]) / (2 * STEP), abs=2e-6)


def test_born_charges_and_fields_along_periodic_axes_know_the_dipoles():
    frame = open_molecule()
    frame.calc = SOGMACECalculator(models=make_sogmace(CONFIG), device="cpu")
    born, moments = frame.calc.get_born_charges(frame).values, []
    for step in (STEP, -STEP):
        moved = frame.copy()
        moved.positions[1, 0] += step
        moved.calc = frame.calc
        moments.append(moved.get_dipole_moment())
    expected = (moments[0] - moments[1]) / (2 * STEP)
    # The total charge is not zero: each atom is its own origin.
    arm = frame.positions[1]
    total = []
    for step in (STEP, -STEP):
        moved = frame.copy()
        moved.positions[1, 0] += step
        moved.calc = frame.calc
        total.append(moved.get_charges().sum())
    expected = expected - arm * (total[0] - total[1]) / (2 * STEP)
    assert born[1, :, 0] == pytest.approx(expected, abs=1e-6)
    box = water_box()
    box.calc = SOGMACECalculator(models=make_sogmace(CONFIG), device="cpu")
    energy, field = box.get_potential_energy(), np.array([0.1, 0.0, 0.0])
    own = box.calc.results["latent_dipoles"][:, :, 0].sum(0) + box.get_charges() @ box.positions
    box.info["external_field"] = field
    assert box.get_potential_energy() - energy == pytest.approx(-own @ field, abs=1e-9)


def test_committee_reports_the_dipoles_of_each_model():
    models = [make_sogmace(CONFIG), make_sogmace(CONFIG)]
    atoms = open_molecule()
    atoms.calc = SOGMACECalculator(models=models, device="cpu", default_dtype="float64")
    atoms.get_potential_energy()
    assert atoms.calc.results["latent_dipoles_comm"].shape == (2, len(atoms), 3, 2)


def test_training_learns_dipoles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handlers = logging.getLogger().handlers[:]
    rng = np.random.default_rng(0)
    frames = [open_molecule(seed) for seed in range(6)]
    for frame in frames:
        frame.info["REF_energy"] = -3.0 * len(frame) + rng.normal()
        frame.arrays["REF_forces"] = rng.normal(size=(len(frame), 3))
    ase.io.write("train.xyz", frames)
    settings = {
        "name": "tiny",
        "train_file": "train.xyz",
        "valid_fraction": 0.34,
        "E0s": "{1: -1.0, 8: -2.0}",
        "hidden_irreps": "4x0e + 4x1o",
        "MLP_irreps": "4x0e",
        "radial_MLP": "[4]",
        "max_ell": 1,
        "correlation": 1,
        "r_max": 3.0,
        "batch_size": 2,
        "max_num_epochs": 2,
        "eval_interval": 1,
        "energy_key": "REF_energy",
        "forces_key": "REF_forces",
        "default_dtype": "float64",
        "device": "cpu",
        "seed": 3,
        "plot": "False",
        "sog_preset": "none",
        "sog_latent_dipoles": "True",
        "sog_warmup": 2,
    }
    main([f"--{key}={value}" for key, value in settings.items()] + ["--ema"])
    for handler in set(logging.getLogger().handlers) - set(handlers):
        handler.close()
        logging.getLogger().removeHandler(handler)
    model = torch.load("tiny.model", map_location="cpu", weights_only=False)
    assert model.long_range.config.latent_dipoles
    torch.manual_seed(3)
    out = evaluate(model, [open_molecule()])
    assert out["latent_dipoles"].abs().max() > 0.0
    state = torch.load(sorted(tmp_path.glob("checkpoints/*.pt"))[-1], weights_only=False)
    groups = {g["name"]: len(g["params"]) for g in state["optimizer"]["param_groups"]}
    part = model.long_range
    readouts = [*part.readout.parameters(), *part.dipole_readout.parameters()]
    assert groups["long_range_charges"] == len(readouts)


def test_the_option_is_off_unless_asked_for():
    assert parse_args([f"--name={1}"]).sog_latent_dipoles is False
