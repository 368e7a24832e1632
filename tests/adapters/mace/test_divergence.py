"""Trainings that come to numbers that are NaN or infinite: why they stop, and what is left."""

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
import torch
from mace.cli import run_train
from mace.tools.checkpoint import CheckpointHandler
from mace_builders import open_molecule, water_box

from sog_mace.cli import patches
from sog_mace.cli.divergence import DivergenceError, Training
from sog_mace.cli.run_train import main

SETTINGS = {
    "name": "tiny",
    "train_file": "train.xyz",
    "valid_file": "valid.xyz",
    "E0s": "{1: -1.0, 8: -2.0}",
    "model": "ScaleShiftMACE",
    "hidden_irreps": "8x0e",
    "MLP_irreps": "4x0e",
    "radial_MLP": "[4]",
    "num_radial_basis": 4,
    "max_ell": 1,
    "correlation": 1,
    "num_interactions": 2,
    "r_max": 3.0,
    "batch_size": 2,
    "max_num_epochs": 3,
    "eval_interval": 1,
    "energy_key": "REF_energy",
    "forces_key": "REF_forces",
    "default_dtype": "float64",
    "device": "cpu",
    "seed": 3,
    "plot": "False",
    "sog_preset": "none",
}


def arguments(*more, **options):
    return [*(f"--{key}={value}" for key, value in (SETTINGS | options).items()), *more]


def frames_with_labels():
    rng = np.random.default_rng(0)
    frames = [make(seed) for seed in range(2) for make in (water_box, open_molecule)]
    for frame in frames:
        frame.info["REF_energy"] = -3.0 * len(frame) + rng.normal()
        frame.arrays["REF_forces"] = rng.normal(size=(len(frame), 3))
    return frames


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with data; MACE writes beside it and adds handlers to the root logger."""
    monkeypatch.chdir(tmp_path)
    for name in ("train.xyz", "valid.xyz"):
        ase.io.write(name, frames_with_labels())
    handlers = logging.getLogger().handlers[:]
    yield tmp_path
    for handler in set(logging.getLogger().handlers) - set(handlers):
        handler.close()
        logging.getLogger().removeHandler(handler)


def write_coinciding(name):
    """Frame 3 has two atoms at one place; files round images of it."""
    frames = frames_with_labels()
    frames[3].positions[2] = frames[3].positions[0]
    ase.io.write(name, frames)


def load(path="tiny.model"):
    return torch.load(path, map_location="cpu", weights_only=False)


def test_a_run_that_diverges_keeps_its_best_model_and_says_when_and_at_which_rate(folder, caplog):
    rates = {"start_swa": 1, "swa_lr": 1e8, "test_file": "coinciding.xyz"}
    write_coinciding("coinciding.xyz")
    main(arguments("--swa", "--ema", **rates))
    (error,) = (r.getMessage() for r in caplog.records if "Training stopped" in r.getMessage())
    assert "The loss is" in error
    assert "at optimizer step 4 in epoch 1, at a learning rate of 1e+08" in error
    assert "take a smaller --swa_lr, a smaller --clip_grad (now 10)" in error
    assert "The best model of the epochs before is kept, saved and evaluated." in caplog.text
    assert "Error-table on TRAIN and VALID:\n+-" in caplog.text
    # Errors of a set that no model can evaluate do not end the run.
    assert "No errors of these sets: `features` must be finite" in caplog.text
    assert "Atoms 0 and 2 of frame 3 of 'Default_Default' are at one place." in caplog.text
    assert "Error-table on TEST:\nnone" in caplog.text
    assert all(torch.isfinite(p).all() for p in load().parameters())
    assert sorted(path.name for path in folder.glob("checkpoints/*.pt")) == [
        "tiny_run-3_epoch-0.pt"
    ]
    assert not list(folder.glob("*stagetwo*"))


@pytest.mark.parametrize("name", ["train", "valid"])
def test_atoms_at_one_place_end_the_run_by_one_line_that_names_the_frame(folder, name, caplog):
    write_coinciding(f"{name}.xyz")
    frame = rf"atoms 0 and 2 of frame 3 of the set '{name}' of head 'Default' are 0 Å apart"
    with pytest.raises(SystemExit, match=f"before a model was kept.*`features`.*{frame}") as caught:
        main(arguments())
    assert "\n" not in caught.value.code
    assert "Training stopped." in caplog.text
    assert not list(folder.glob("*.model"))
    place = "step" if name == "train" else "This was in the validation before training."
    assert place in caught.value.code


def test_what_is_patched_in_other_modules_is_undone():
    before = [getattr(module, name) for module, name in patches.PATCHED_ELSEWHERE]
    with patches.patched_run_train(patches.SOGConfig(), patches.Schedule()):
        assert run_train.tools.train is not before[0]
    assert [getattr(module, name) for module, name in patches.PATCHED_ELSEWHERE] == before


class Toy(torch.nn.Module):
    """Squares of positions times a weight, which MACE's loop would train."""

    heads = ("Default",)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, data):
        return self.weight * data["positions"].square().sum()


class Loss(torch.nn.Module):
    def forward(self, pred, ref):
        return (pred - ref).square()


def batch(**labels):
    positions = torch.arange(12.0).reshape(4, 3)
    data = {"positions": positions, "cell": torch.zeros(6, 3), "pbc": torch.zeros(2, 3).bool()}
    index = {"batch": torch.tensor([0, 0, 1, 1]), "ptr": torch.tensor([0, 2, 4])}
    return data | index | {"energy": torch.zeros(2), "forces": torch.zeros(4, 3)} | labels


def toy(tmp_path, data, **options):
    model, loader = Toy(), SimpleNamespace(dataset=[])
    options = {
        "model": model,
        "loss_fn": Loss(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.5),
        "checkpoint_handler": CheckpointHandler(str(tmp_path), "x", swa_start=2),
        "train_loader": loader,
        "valid_loaders": {},
        "device": "cpu",
        "max_grad_norm": None,
    } | options
    return Training(options), data


def step(training, data, target=0.0):
    o = training.options
    o["optimizer"].zero_grad()
    o["loss_fn"](pred=o["model"](data), ref=target).backward()
    o["optimizer"].step()


def test_each_cause_is_named(tmp_path):
    nan, inf = torch.nan, torch.inf
    at_one_place = torch.zeros(4, 3).index_fill(0, torch.tensor([1, 3]), 2.0)
    at_one_place[3] = 0.0
    causes = {
        "Training diverged: take a smaller --lr, a smaller --clip_grad or": batch(),
        "`energy` of the frame of 2 atoms .* must be finite": batch(energy=torch.tensor([0, nan])),
        "`forces` of the frame .* label 7 must": batch(
            forces=torch.full((4, 3), inf), energy=torch.full((2,), 7.0)
        ),
        "atoms 0 and 1 of the frame .* are 0 Å apart": batch(positions=at_one_place),
    }
    for cause, data in causes.items():
        training, data = toy(tmp_path, data)

        def train(training=training, data=data, **_):
            with training.train_epoch(7):
                step(training, data)
                step(training, data, target=nan)

        before = training.options["model"].weight
        place = (
            "The loss is nan. This was at optimizer step 2 in epoch 7, at a learning rate of 0.5."
        )
        with pytest.raises(DivergenceError, match=f"{place} .*{cause}"):
            training.run(train)
        assert torch.isfinite(before)
        assert not training.options["model"]._forward_pre_hooks
        assert not training.options["loss_fn"]._forward_hooks


def test_a_gradient_that_is_not_finite_stops_before_weights_are(tmp_path):
    training, data = toy(tmp_path, batch())
    model = training.options["model"]
    model.weight.register_hook(lambda grad: grad * torch.nan)
    not_finite = pytest.raises(DivergenceError, match=r"gradient .* is not finite\. .* step 1 ")
    with not_finite, training.train_epoch(0):
        training.run(lambda **_: step(training, data))
    assert model.weight.item() == 1.0


def test_a_validation_of_nan_stops_before_the_checkpoint_is_replaced(tmp_path):
    training, data = toy(tmp_path, batch())

    def train(checkpoint_handler, loss_fn, model, **_):
        for epoch in range(2):
            with training.train_epoch(epoch):
                step(training, data)
            loss_fn(pred=model(data), ref=0.0 if epoch == 0 else torch.inf)
            state = SimpleNamespace(state_dict=dict)
            checkpoint_handler.save(
                state=SimpleNamespace(model=state, optimizer=state, lr_scheduler=state),
                epochs=epoch,
                keep_last=False,
            )

    match = "The loss is inf. This was in the validation after epoch 1 and optimizer step 2, at"
    with pytest.raises(DivergenceError, match=match):
        training.run(train)
    assert [path.name for path in tmp_path.iterdir()] == ["x_epoch-0.pt"]
    assert training.stages(restarted=False) == {False}


def test_checkpoints_of_an_earlier_run_count_only_in_a_restart(tmp_path):
    (tmp_path / "x_epoch-3_swa.pt").touch()
    (tmp_path / "xy_epoch-1.pt").touch()
    training, _ = toy(tmp_path, batch())
    assert training.stages(restarted=False) == set()
    assert training.stages(restarted=True) == {True}
    (tmp_path / "x_epoch-1.pt").touch()
    assert training.stages(restarted=True) == {False, True}


def test_the_line_search_of_lbfgs_may_try_steps_of_infinite_loss(tmp_path):
    training, data = toy(tmp_path, batch())
    model = training.options["model"]
    training.options["optimizer"] = torch.optim.LBFGS(model.parameters())

    def train(loss_fn, **_):
        with training.train_epoch(0):
            loss_fn(pred=model(data), ref=torch.inf)
        loss_fn(pred=model(data), ref=torch.inf)

    with pytest.raises(DivergenceError, match="validation after epoch 0"):
        training.run(train)


@pytest.mark.slow
def test_all_ranks_stop_by_the_word_of_the_one_that_came_to_nan(tmp_path):
    worker = Path(__file__).with_name("divergence_worker.py")
    command = [sys.executable, "-W", "ignore", str(worker), str(tmp_path)]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    first, second = (rank.communicate(timeout=120)[0].splitlines()[-2:] for rank in ranks)
    assert first == second
    for what, told in zip(("The loss is nan.", "`features` must be finite."), first, strict=True):
        assert told.startswith(f"{what} This was at optimizer step 2 in epoch 1")
        assert told.endswith("| {False}")
