"""NequIP's commands on long-range models: train, restart, extend, package, compile, open."""

import os
import re
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
import torch
from nequip.data import AtomicDataDict
from nequip.model import ModelFromCheckpoint, ModelFromPackage
from nequip_builders import acetaldehyde, build, crystal, evaluate, to_data

from sog_longrange import ConfigError, HostError, InputError, SOGLongRange
from sog_nequip.calculator import SOGNequIPCalculator
from sog_nequip.labels import check_neutral, warn_of_odd_electrons
from sog_nequip.parts import long_range_parts
from sog_nequip.train import WarmUp, long_range_groups

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).resolve().parents[3] / "examples" / "nequip"
MODEL = "training_module.model"
SMALL = [
    "types=[C,O,H]",
    "cutoff_radius=3.5",
    "batch_size=4",
    "max_epochs=1",
    "+trainer.enable_progress_bar=false",
    f"{MODEL}.num_layers=1",
    f"{MODEL}.num_features=4",
    f"{MODEL}.radial_mlp_width=4",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data and runs; models and results do not depend on the order of the tests."""
    folder = tmp_path_factory.mktemp("training")
    rng = np.random.default_rng(0)
    frames = []
    for make in (crystal, acetaldehyde) * 6:
        atoms = make()
        atoms.rattle(0.05, rng=rng)
        atoms.info["REF_energy"] = -3.0 * len(atoms) + rng.normal()
        atoms.arrays["REF_forces"] = rng.normal(size=(len(atoms), 3))
        frames.append(atoms)
    (folder / "data").mkdir()
    ase.io.write(folder / "data" / "train.xyz", frames[:8])
    ase.io.write(folder / "data" / "valid.xyz", frames[8:])
    return folder


def run(command, folder, *arguments):
    """Run one of NequIP's commands; its output is part of the error if it fails."""
    program = Path(sys.executable).with_name(command)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [program, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-6000:])
    return done.stdout + done.stderr


def start(folder, name, config, *overrides):
    run("nequip-train", folder, "-cp", CONFIGS, "-cn", config, "data_folder=data",
        f"hydra.run.dir={folder / name}", *overrides)  # fmt: skip
    return folder / name / "last.ckpt"


def train(folder, name, config, *overrides):
    return start(folder, name, config, *SMALL, *overrides)


@pytest.fixture(scope="module")
def short_range(folder):
    return train(folder, "short_range", "short_range")


@pytest.fixture(scope="module")
def long_range(folder):
    late = "+trainer.callbacks.1.kernel_start=0.4"
    return train(folder, "long_range", "long_range", "warm_up_steps=4", late)


def load(path):
    return ModelFromCheckpoint(str(path))["sole_model"].eval()


def test_training_opens_the_gate_and_moves_every_parameter_of_the_long_range_part(long_range):
    part = long_range_parts(load(long_range))[0]
    assert float(part.long_range.gate) == pytest.approx(0.5)
    state = torch.load(long_range, weights_only=False)
    *_, group = state["optimizer_states"][0]["param_groups"]
    kernel = list(part.long_range.energy.parameters())
    assert len(group["params"]) == len(kernel)
    moved = state["optimizer_states"][0]["state"]
    assert all(float(moved[i]["exp_avg_sq"].sum()) > 0 for i in group["params"])
    assert [int(moved[i]["step"]) for i in (0, group["params"][0])] == [2, 1]


def test_charges_are_reported_after_training(long_range):
    (log,) = long_range.parent.glob("*.log")
    text = log.read_text()
    assert "Latent charges of 4 structures" in text
    for symbol in "COH":
        assert re.search(rf"  {symbol} +-?\d\.\d{{3}} +-?\d\.\d{{3}} +-?\d\.\d{{3}}", text)
    assert re.search(r"Learned law(: not told, no structure|, force between)", text)
    assert "net charge of a structure: mean -0.000" in text.replace("mean 0.000", "mean -0.000")


def test_charges_that_nothing_was_chosen_for_are_refused():
    batch = to_data(acetaldehyde())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_neutral(batch, "training batch 2")
        assert not warn_of_odd_electrons(batch, "training batch 2")
    charged = batch | {AtomicDataDict.TOTAL_CHARGE_KEY: torch.ones(1, 1)}
    with pytest.raises(InputError, match="`charge` must be zero .* got 1 of structure 0 of"):
        check_neutral(charged, "training batch 2")
    radical = acetaldehyde()
    del radical[-1]
    with pytest.warns(UserWarning, match="odd number of electrons .* `charge_constraint: total`"):
        assert warn_of_odd_electrons(to_data(radical), "training batch 2")


def test_a_restart_goes_on_where_training_stopped(folder, long_range):
    again = train(
        folder, "restarted", "long_range", "warm_up_steps=4", "max_epochs=2",
        f"+ckpt_path='{long_range}'",
    )  # fmt: skip
    assert torch.load(again, weights_only=False)["global_step"] == 4
    assert float(long_range_parts(load(again))[0].long_range.gate) == 1.0


def extend(folder, name, *overrides):
    small = [option for option in SMALL if MODEL not in option]
    return start(folder, name, "fine_tune", *small, *overrides)


def test_a_trained_model_is_extended_starting_exactly_at_it(folder, short_range):
    trained, still = f"trained='{short_range}'", ("learning_rate=0.0", "kernel_learning_rate=0.0")
    begun, bare = load(extend(folder, "begun", trained, *still)), load(short_range)
    long_range_parts(begun)[0].long_range.gate.zero_()
    for atoms in (crystal(), acetaldehyde()):
        expected, found = evaluate(bare, atoms), evaluate(begun, atoms)
        assert torch.equal(found["total_energy"], expected["total_energy"])
        assert torch.equal(found["forces"], expected["forces"])
    tuned = load(extend(folder, "tuned", trained, "warm_up_steps=2"))
    assert float(long_range_parts(tuned)[0].long_range.gate) == 1.0
    difference = evaluate(tuned, crystal())["forces"] - evaluate(bare, crystal())["forces"]
    assert difference.abs().max() > 1e-4


def test_packages_are_extended_and_packaged_again(folder, short_range):
    run("nequip-package", folder, "build", short_range, "bare.nequip.zip")
    target = (
        "extended.model._target_=nequip.model.ModelFromPackage",
        f"+extended.model.package_path='{folder / 'bare.nequip.zip'}'",
        "~extended.model.checkpoint_path",
        "+extended.sog.readout=ions",
    )
    tuned = extend(folder, "from_package", "warm_up_steps=2", "trained=", *target)
    run("nequip-package", folder, "build", tuned, "tuned.nequip.zip")
    package = ModelFromPackage(str(folder / "tuned.nequip.zip"))["sole_model"].eval()
    expected, found = (evaluate(model, crystal()) for model in (load(tuned), package))
    torch.testing.assert_close(found["forces"], expected["forces"])
    assert float(found["long_range_energy"].abs()) > 1e-6

    options = ("--modifier", "sog_largest_cell", "lengths=[6, 4, 4]")
    run("nequip-package", folder, "modify", "tuned.nequip.zip", "cell.nequip.zip", *options)
    modified = ModelFromPackage(str(folder / "cell.nequip.zip"))["sole_model"]
    assert modified.metadata["sog_largest_cell"].startswith("[[6.0, 0.0")


def test_another_cutoff_or_precision_than_the_trained_models_is_refused(folder, short_range):
    with pytest.raises(RuntimeError, match=r"r_max.*must be 3\.5"):
        extend(folder, "wrong", f"trained='{short_range}'", "extended.r_max=5.0")
    with pytest.raises(RuntimeError, match=r"model_dtype.*must be float64"):
        extend(folder, "wrong", f"trained='{short_range}'", "extended.model_dtype=float32")


def test_the_calculator_opens_a_checkpoint(long_range):
    calculator = SOGNequIPCalculator.from_saved_model(
        long_range, chemical_species_to_atom_type_map=True
    )
    atoms = crystal()
    atoms.calc = calculator
    assert atoms.get_charges().shape == (len(atoms),)
    out = evaluate(load(long_range), crystal())
    # The order of types of this model is not that of the builders.
    assert np.isfinite(out["total_energy"].item())
    assert np.isfinite(calculator.results["long_range_energy"])


def test_two_processes_train_together(folder):
    two = train(
        folder, "two_ranks", "long_range", "warm_up_steps=2", "batch_size=2", "+trainer.devices=2",
        "+trainer.strategy._target_=nequip.train.SimpleDDPStrategy",
    )  # fmt: skip
    assert torch.load(two, weights_only=False)["global_step"] == 2  # 8 frames, 2 on each rank
    model = load(two)
    assert float(long_range_parts(model)[0].long_range.gate) == 1.0
    assert torch.isfinite(evaluate(model, crystal())["forces"]).all()


def test_warm_up_and_long_range_groups_need_a_long_range_part():
    with pytest.raises(ConfigError, match="steps"):
        WarmUp(0)
    with pytest.raises(ConfigError, match="kernel_start"):
        WarmUp(kernel_start=-0.1)
    part = torch.nn.Linear(1, 1)
    part.is_sog_long_range, part.long_range = True, SOGLongRange([1])
    with pytest.raises(ConfigError, match="kernel_lr"):
        long_range_groups(part, -1.0)
    own, charges, kernel = long_range_groups(part, 0.1)
    assert {id(p) for p in kernel["params"]} == {id(p) for p in part.long_range.energy.parameters()}
    head = list(part.long_range.parameters())
    assert len(charges["params"]) + len(kernel["params"]) == len(head)
    assert "lr" not in charges
    assert not charges["amsgrad"]
    assert not kernel["amsgrad"]
    assert [p.shape for p in own["params"]] == [(1, 1), (1,)]
    with pytest.raises(HostError, match="SOGModel"):
        long_range_groups(torch.nn.Linear(1, 1), 0.1)


@pytest.mark.parametrize("apart", [0.0, 0.5])
@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 1.0])
def test_a_loss_that_is_not_finite_stops_the_training_and_says_why(loss, apart):
    atoms = crystal()
    atoms.positions[3] = atoms.positions[1] + atoms.cell.array[2] + apart
    frames = [to_data(acetaldehyde()), to_data(atoms)]
    for frame in frames:
        frame.setdefault("cell", torch.zeros(1, 3, 3))
    batch = AtomicDataDict.batched_from_list(frames)
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.25}])
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)
    trainer = SimpleNamespace(
        optimizers=[optimizer], strategy=strategy, global_step=3, current_epoch=1
    )
    warm_up = WarmUp()
    warm_up.on_train_batch_start(trainer, SimpleNamespace(model=build()), batch, 0)
    where = "at optimizer step 4 in epoch 1, at a learning rate of 0.25."
    cause = "Atoms 1 and 3 of structure 1 .* are 0 Å" if apart == 0.0 else "take a smaller learning"
    stops = pytest.raises(HostError, match=f"loss must be finite, got {loss} {where} .*{cause}")
    with nullcontext() if loss == 1.0 else stops:
        warm_up.on_before_backward(trainer, None, torch.tensor(loss))
    strategy.reduce_boolean_decision = lambda decision, all: False
    other = "one that is not finite on another rank" if loss == 1.0 else str(loss)
    with pytest.raises(HostError, match=f"got {other}"):
        warm_up.on_before_backward(trainer, None, torch.tensor(loss))
