"""The training command, from the command line to a model in ASE."""

import argparse
import dataclasses
import logging
import re
import sys

import ase.io
import numpy as np
import pytest
import torch
import yaml
from damped_dispersion import DampedDispersion
from mace.calculators import MACECalculator
from mace.cli import eval_configs, run_train
from mace_builders import make_sogmace, open_molecule, water_box

from sog_longrange import HostError, SOGConfig, list_kernels
from sog_longrange.kernels.coulomb import Coulomb
from sog_mace import SOGMACE
from sog_mace.cli import patches
from sog_mace.cli.run_train import build_parser, main, parse_args

SETTINGS = {
    "name": "tiny",
    "train_file": "train.xyz",
    "valid_fraction": 0.25,
    "E0s": "{1: -1.0, 8: -2.0}",
    "model": "ScaleShiftMACE",
    "hidden_irreps": "4x0e + 4x1o",
    "MLP_irreps": "4x0e",
    "radial_MLP": "[4]",
    "num_radial_basis": 4,
    "max_ell": 1,
    "correlation": 1,
    "num_interactions": 2,
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
}


def arguments(**options):
    return [f"--{key}={value}" for key, value in (SETTINGS | options).items()]


@pytest.fixture(autouse=True)
def training_folder(tmp_path, monkeypatch):
    """A folder with data; MACE writes beside it and adds handlers to the root logger."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    frames = [water_box(seed) for seed in range(6)] + [open_molecule(seed) for seed in range(6)]
    for frame in frames:
        frame.info["REF_energy"] = -3.0 * len(frame) + rng.normal()
        frame.arrays["REF_forces"] = rng.normal(size=(len(frame), 3))
    ase.io.write("train.xyz", frames)
    handlers = logging.getLogger().handlers[:]
    yield tmp_path
    for handler in set(logging.getLogger().handlers) - set(handlers):
        handler.close()
        logging.getLogger().removeHandler(handler)


def load(path="tiny.model"):
    return torch.load(path, map_location="cpu", weights_only=False)


def checkpoint(folder):
    return load(sorted(folder.glob("checkpoints/*.pt"))[-1])


def test_training_with_ema_and_stage_two_ends_in_a_model_for_ase(training_folder, caplog):
    main(arguments(max_num_epochs=4, start_swa=2, sog_num_channels=2) + ["--ema", "--swa"])
    assert re.search(r"Latent charges of 9 structures.*\n.*element", caplog.text)
    assert re.search(r"INFO .* H +-?\d\.\d{3} .*\n.* O +-?\d", caplog.text)
    assert "energy beyond that of isolated atoms" in caplog.text
    assert "The kernel learns from step 5 of 16 on" in caplog.text
    assert "Learned law: not told, no structure reaches further than" in caplog.text
    for name in ("tiny.model", "tiny_stagetwo.model"):
        model = load(name)
        assert isinstance(model, SOGMACE)
        atoms = water_box()
        atoms.calc = MACECalculator(models=model, device="cpu", default_dtype="float64")
        assert np.isfinite(atoms.get_stress()).all()
    assert 0.0 < model.long_range.gate < 1.0
    # MACE's TorchScript export must not leave a file without the long-range energy.
    assert not list(training_folder.glob("*_compiled.model"))


def test_maces_evaluation_command_reads_the_model(training_folder, monkeypatch):
    main(arguments())
    out = {"--configs": "train.xyz", "--model": "tiny.model", "--output": "out.xyz"}
    command = ["mace_eval_configs", *(f"{k}={v}" for k, v in out.items())]
    monkeypatch.setattr(sys, "argv", [*command, "--default_dtype=float64"])
    eval_configs.main()
    evaluated = ase.io.read("out.xyz", ":")
    model = MACECalculator(models=load(), device="cpu", default_dtype="float64")
    for frame in evaluated[::5]:
        atoms = frame.copy()
        atoms.calc = model
        assert frame.info["MACE_energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-6)


def test_restart_continues_where_it_stopped(training_folder, caplog):
    main(arguments(max_num_epochs=2, sog_kernel_start=1))
    first = checkpoint(training_folder)
    assert not first["model"]["long_range.energy.kernel.log_amplitudes"].any()
    main([*arguments(max_num_epochs=4, sog_kernel_start=0.3), "--restart_latest"])
    assert "Loading checkpoint" in caplog.text
    second = checkpoint(training_folder)
    assert second["model"]["long_range.gate"] > first["model"]["long_range.gate"] > 0.0
    groups, moments = second["optimizer"]["param_groups"], second["optimizer"]["state"]
    (kernel,) = (g["params"] for g in groups if g["name"] == "long_range_kernel")
    steps = groups[0]["sog_kernel_steps"]
    assert steps == moments[groups[0]["params"][0]]["step"]
    # Of 16 steps; the first of a new count would all come before.
    assert moments[kernel[0]]["step"] == steps - 5
    assert second["model"]["long_range.energy.kernel.log_amplitudes"].any()


def test_delay_of_the_kernel_is_ignored_with_a_reason_for_lbfgs(caplog):
    made = patches.Patches(SOGConfig(), patches.Schedule())
    made.model, made.steps_per_epoch = make_sogmace(), 5
    optimizer = torch.optim.Adam(made.model.parameters())
    made.delay_kernel(argparse.Namespace(lbfgs=True, max_num_epochs=2), optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    assert "--sog_kernel_start has no effect: L-BFGS" in caplog.text


def test_yaml_config_takes_our_options(training_folder):
    config = SETTINGS | {"sog_kernel": "ewald(smearing=1.5)", "max_num_epochs": 1}
    (training_folder / "config.yaml").write_text(yaml.safe_dump(config))
    main(["--config=config.yaml"])
    assert load().long_range.energy.kernel.smearing == 1.5


@pytest.mark.parametrize("coupled", [False, True])
def test_yaml_config_trains_charge_and_dispersion(training_folder, coupled):
    options = {"kernel": "coulomb+power_law(exponent=6, strength=-20)", "num_channels": 2}
    options |= {"couple_channels": coupled, "charge_constraint": "neutral"}
    config = SETTINGS | {f"sog_{k}": v for k, v in options.items()} | {"max_num_epochs": 1}
    (training_folder / "config.yaml").write_text(yaml.safe_dump(config))
    main(["--config=config.yaml"])
    part = load().long_range
    assert part.config == SOGConfig(**options)
    kernel = part.energy.kernel
    assert kernel.zero_mode == ((False, False, True) if coupled else (False, True))
    assert kernel.log_amplitudes.detach().abs().amax(1).min() > 0.0
    signs = kernel.amplitudes.detach()[:, 0].sign().tolist()
    assert (signs[0], signs[-1]) == (1.0, -1.0)
    assert not coupled or kernel.couplings.detach().abs().min() > 0.0


def test_a_kernel_of_a_users_own_is_trained(training_folder, monkeypatch):
    # By module and class in one run, by an entry point in the next.
    own = {"sog_num_channels": 2, "sog_charge_constraint": "neutral", "max_num_epochs": 1}
    kernel = "coulomb+damped_dispersion:DampedDispersion(radius=4)"
    main(arguments(sog_kernel=kernel, **own))
    part = load().long_range
    assert part.config.kernel == kernel.replace("4", "4.0")
    assert part.energy.kernel.potentials == (Coulomb(), DampedDispersion(radius=4.0))
    assert part.energy.kernel.log_amplitudes.detach().abs().amax(1).min() > 0.0
    info = training_folder / "own-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    entry = "damped = damped_dispersion:DampedDispersion"
    (info / "entry_points.txt").write_text(f"[sog_longrange.kernels]\n{entry}\n")
    monkeypatch.syspath_prepend(training_folder)
    main(arguments(name="short", sog_kernel="damped", sog_max_width=20, max_num_epochs=1))
    assert load("short.model").long_range.energy.kernel.initial == DampedDispersion()


def test_help_lists_every_kernel_and_option():
    text = " ".join(build_parser().format_help().split())
    assert all(call in text for call in list_kernels())
    assert all(f"--sog_{field.name}" in text for field in dataclasses.fields(SOGConfig))


def test_bare_foundation_model_is_extended_and_the_start_equals_it(training_folder):
    run_train.run(build_parser().parse_args(arguments(name="bare")))
    main(arguments(name="tuned", foundation_model="bare.model", sog_warmup=5, lr=0.0))
    bare, tuned = load("bare.model"), load("tuned.model")
    tuned.long_range.gate.zero_()
    atoms, energies = water_box(), []
    for model in (bare, tuned):
        atoms.calc = MACECalculator(models=model, device="cpu", default_dtype="float64")
        energies.append(atoms.get_potential_energy())
    shifts = [float(m.scale_shift.shift) * len(atoms) for m in (bare, tuned)]
    assert energies[1] - shifts[1] == pytest.approx(energies[0] - shifts[0], abs=1e-9)


def test_long_range_foundation_model_keeps_its_long_range_part(training_folder):
    main(arguments(name="first"))
    main(arguments(name="second", foundation_model="first.model", lr=0.0))
    first, second = load("first.model").long_range, load("second.model").long_range
    assert torch.equal(first.readout.linear.weight, second.readout.linear.weight)
    assert 0.0 < first.gate < second.gate, "an unfinished fade-in goes on"
    with pytest.raises(SystemExit, match="min_width 0.7 here, 1.0 there.*same --sog_"):
        main(arguments(name="x", foundation_model="first.model", sog_min_width=0.7))


def test_lora_adapts_the_inner_model_and_trains_the_long_range_part(training_folder):
    run_train.run(build_parser().parse_args(arguments(name="bare")))
    main(arguments(name="tuned", foundation_model="bare.model", lora=True, lora_rank=1))
    model = load("tuned.model")
    assert not any("lora" in name for name, _ in model.named_parameters())
    atoms = water_box()
    atoms.calc = MACECalculator(models=model, device="cpu", default_dtype="float64")
    assert np.isfinite(atoms.get_forces()).all()
    assert model.long_range.gate > 0.0
    again = arguments(name="tuned", foundation_model="bare.model", lora=True, lora_rank=1)
    main([*again, "--restart_latest", "--max_num_epochs=3"])
    assert load("tuned.model").long_range.gate > model.long_range.gate


def test_several_heads_are_trained_together(training_folder):
    head = {"train_file": "train.xyz", "E0s": SETTINGS["E0s"], "valid_fraction": 0.25}
    main(arguments(heads={"first": head, "second": head}))
    model = load()
    assert model.heads == ["first", "second"]
    atoms, energies = water_box(), []
    for name in model.heads:
        atoms.calc = MACECalculator(models=model, head=name, device="cpu", default_dtype="float64")
        energies.append(atoms.get_potential_energy())
    assert energies[0] != energies[1]


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # MACE's own
def test_foundation_model_keeps_its_long_range_part_when_a_head_is_removed():
    model = make_sogmace(SOGConfig(), heads=("pt_head", "Default"))
    single = patches.Patches(SOGConfig(), patches.Schedule()).remove_pt_head(model, "Default")
    assert single.heads == ["Default"]
    ours, theirs = (m.long_range.readout.linear.weight for m in (single, model))
    assert torch.equal(ours, theirs)
    assert ours is not theirs


def test_unknown_key_of_a_yaml_file_suggests_the_nearest(training_folder, capsys):
    (training_folder / "config.yaml").write_text(yaml.safe_dump({"name": "x", "sog_kernal": "x"}))
    with pytest.raises(SystemExit):
        parse_args(["--config=config.yaml"])
    assert "did you mean --sog_kernel?" in capsys.readouterr().err


def test_bare_checkpoint_is_refused_for_restart(training_folder):
    run_train.run(build_parser().parse_args(arguments()))
    for restart in ([], ["--restart_latest"]):
        with pytest.raises(SystemExit, match="without a long-range part.*--foundation_model"):
            main([*arguments(), *restart])


def test_bare_checkpoint_is_found_under_any_name(training_folder):
    run_train.run(build_parser().parse_args(arguments(name="run[1]")))
    with pytest.raises(SystemExit, match="without a long-range part"):
        main([*arguments(name="run[1]"), "--restart_latest"])


def test_checkpoint_of_other_options_is_refused_for_restart(training_folder):
    main(arguments())
    for options in ({"sog_num_channels": 3}, {"sog_kernel": "yukawa"}, {"hidden_irreps": "4x0e"}):
        with pytest.raises(SystemExit, match="does not fit the model of this run: "):
            main([*arguments(**options), "--restart_latest"])


def test_unknown_option_suggests_the_nearest(capsys):
    with pytest.raises(SystemExit):
        parse_args([*arguments(), "--sog_kernal=ewald"])
    assert "--sog_kernal (did you mean --sog_kernel?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sog_kernel": "coulom"}, "Did you mean 'coulomb'"),
        ({"sog_min_width": -1.0}, "`min_width` must be positive"),
        ({"sog_kernel": "power_law"}, "`exponent` must be given"),
        ({"sog_kernel": "coulomb+yukawa"}, "`num_channels` must be a multiple of 2"),
        ({"sog_num_channels": 0}, "`num_channels` must be at least 1"),
        ({"sog_tolerance": 7.0}, "`tolerance` must be between"),
        ({"sog_lr_factor": -1.0}, "`lr_factor` must be finite and not negative, got -1.0"),
        ({"sog_warmup": -5}, "`warmup` must be finite and not negative"),
        ({"sog_kernel_start": 1.5}, "`kernel_start` must be from 0 to 1"),
    ],
)
def test_bad_option_ends_before_any_training(options, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments(**options))


def test_long_range_parameter_outside_the_optimizer_is_refused(caplog):
    model = torch.nn.ModuleDict(
        {"mace": torch.nn.Linear(2, 2), "long_range": torch.nn.Linear(2, 2)}
    )
    with pytest.raises(HostError, match=r"\['long_range.bias'\] are trainable but in no group"):
        patches.check_all_trained(model, [{"params": [model["long_range"].weight]}])
    patches.check_all_trained(model, [{"params": model["long_range"].parameters()}])
    assert "mace.weight" in caplog.text


def test_patches_are_undone_even_after_a_failure():
    before = {name: getattr(run_train, name) for name in patches.PATCHED}
    patched = patches.patched_run_train(SOGConfig(), patches.Schedule())

    def fail():
        with patched:
            assert run_train.configure_model is not before["configure_model"]
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert {name: getattr(run_train, name) for name in patches.PATCHED} == before


def test_charge_states_are_read_from_the_data_and_trained(training_folder):
    frames = ase.io.read("train.xyz", ":")
    for index, frame in enumerate(frames):
        frame.info["q"] = index % 3 - 1
    ase.io.write("charged.xyz", frames)
    options = {"train_file": "charged.xyz", "total_charge_key": "q", "lr": 0.1}
    options |= {"sog_charge_embedding": 3}
    main(arguments(**options))
    states = load().long_range.states
    assert bool(states.perceptron[2].bias[1:].abs().min() > 0.0)
    assert bool(states.embedding.output.weight.any())
    main([*arguments(**options, max_num_epochs=3), "--restart_latest"])
    assert not torch.equal(load().long_range.states.perceptron[2].bias, states.perceptron[2].bias)


def test_unfinished_warm_up_is_reported(training_folder, caplog):
    main(arguments(max_num_epochs=1))
    assert "scaled by" in caplog.text
