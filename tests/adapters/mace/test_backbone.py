"""Faster forms of the inner model: converted and compiled, with the same results."""

import json
import sys
import zipfile
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from mace import modules
from mace.cli import convert_e3nn_oeq, convert_oeq_e3nn
from mace_builders import PRECISE, make_sogmace, open_molecule, water_box
from test_run_train import arguments, load, training_folder

from sog_longrange import HostError, MissingLibraryError, SOGConfig
from sog_longrange.hosts import is_installed
from sog_mace import SOGMACECalculator, backbone
from sog_mace.backbone import convert, is_plain
from sog_mace.cli import eval_configs
from sog_mace.cli.run_train import main

__all__ = ["training_folder"]

pytestmark = [
    # MACE's own, where it rebuilds a model.
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),
    # Its kernels are for GPUs; on a CPU it does the same in PyTorch.
    pytest.mark.filterwarnings("ignore:cuequivariance_ops_torch is not available:UserWarning"),
]

DIPOLES = replace(PRECISE, latent_dipoles=True)
BOUNDS = {"float64": 1e-9, "float32": 1e-5}
needs_cueq = pytest.mark.skipif(
    not is_installed("cuequivariance_torch"),
    reason='cuEquivariance is not installed: pip install "sog-longrange[cueq]"',
)


def results_of(model, atoms, dtype="float64", second=True, **options):
    """All that a calculator gives, with derivatives of the second order if asked for."""
    calculator = SOGMACECalculator(models=model, device="cpu", default_dtype=dtype, **options)
    calculator.calculate(atoms)
    names = ("energy", "forces", "stress", "latent_charges", "latent_dipoles")
    results = {name: calculator.results[name] for name in names if name in calculator.results}
    if second:
        results["born"] = calculator.get_born_charges(atoms).values
        results["hessian"] = calculator.get_hessian(atoms)
    return results, calculator


def check_equal(ours, theirs, bound):
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        scale = max(1.0, np.abs(values).max())
        assert np.abs(values - theirs[name]).max() <= bound * scale, name


@needs_cueq
@pytest.mark.parametrize("dtype", BOUNDS)
def test_cuequivariance_changes_no_result(dtype):
    model = make_sogmace(DIPOLES, use_reduced_cg=True, correlation=2)
    model.to(getattr(torch, dtype))
    for atoms in (water_box(), open_molecule()):
        plain, _ = results_of(model, atoms, dtype)
        fast, calculator = results_of(model, atoms, dtype, enable_cueq=True)
        check_equal(plain, fast, BOUNDS[dtype])
        assert np.abs(plain["latent_dipoles"]).max() > 1e-3
    assert is_plain(model.mace)
    assert not is_plain(calculator.models[0].mace)


@needs_cueq
def test_conversion_leaves_random_numbers_and_the_default_precision_as_they_are():
    model = make_sogmace(SOGConfig()).float()
    state = torch.get_rng_state()
    converted = convert(model.mace, "cueq")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float64
    assert {p.dtype for p in converted.parameters()} == {torch.float32}


def losses(name):
    with open(f"results/{name}_run-3_train.txt") as file:
        return [entry["loss"] for entry in map(json.loads, file) if "loss" in entry]


@needs_cueq
def test_training_with_cuequivariance_has_the_same_losses_and_plain_models(training_folder):
    own = {"correlation": 2, "max_num_epochs": 3, "start_swa": 2, "sog_latent_dipoles": True}
    flags = ["--ema", "--swa"]
    for name, extra in (("slow", {}), ("fast", {"enable_cueq": True})):
        main(arguments(**own, name=name, **extra) + flags)
    assert losses("fast") == pytest.approx(losses("slow"), rel=1e-9)
    assert len(losses("slow")) >= 6
    for suffix in (".model", "_stagetwo.model"):
        with zipfile.ZipFile(f"fast{suffix}") as file:
            (pickled,) = (n for n in file.namelist() if n.endswith("data.pkl"))
            assert b"cuequivariance" not in file.read(pickled)
        slow, fast = load(f"slow{suffix}"), load(f"fast{suffix}")
        assert is_plain(fast.mace)
        check_equal(*(results_of(m, water_box(), second=False)[0] for m in (slow, fast)), 1e-9)
    with pytest.raises(SystemExit, match="is of a training with --enable_cueq, the other"):
        main([*arguments(**own, name="fast"), *flags, "--restart_latest"])


@needs_cueq
@pytest.mark.full
def test_restart_with_cuequivariance_continues(training_folder, caplog):
    own = {"correlation": 2, "only_cueq": True, "max_num_epochs": 1}
    main(arguments(**own))
    first = load()
    main([*arguments(**own), "--max_num_epochs=2", "--restart_latest"])
    assert "--only_cueq is taken as --enable_cueq" in caplog.text
    assert "Loading checkpoint" in caplog.text
    second = load()
    assert second.long_range.gate > first.long_range.gate
    assert is_plain(first.mace)
    assert is_plain(second.mace)


@needs_cueq
def test_evaluation_command_takes_cuequivariance(training_folder):
    torch.save(make_sogmace(), "a.model")
    frames = []
    for flags in ([], ["--enable_cueq"]):
        options = ["--configs=train.xyz", "--model=a.model", "--output=out.xyz"]
        eval_configs.main([*options, "--compute_stress", *flags])
        frames.append(ase.io.read("out.xyz", ":"))
    for plain, fast in zip(*frames, strict=True):
        assert fast.info["MACE_energy"] == pytest.approx(plain.info["MACE_energy"], abs=1e-7)
        assert np.allclose(fast.arrays["MACE_forces"], plain.arrays["MACE_forces"], atol=1e-7)


@pytest.mark.full
@pytest.mark.filterwarnings("default")  # PyTorch's compilers have many of their own
@pytest.mark.parametrize("cueq", [False, pytest.param(True, marks=needs_cueq)])
def test_compiled_models_give_the_same_results(cueq):
    # One compilation, whose time is that of the test, for structures of any size.
    model = make_sogmace(DIPOLES, max_ell=1, num_bessel=4)
    options = {"compile_mode": "default", "enable_cueq": cueq}
    calculator = SOGMACECalculator(models=model, device="cpu", default_dtype="float64", **options)
    for atoms in (water_box(0), water_box(1), open_molecule()):
        plain, _ = results_of(model, atoms)
        calculator.calculate(atoms)
        fast = {name: calculator.results[name] for name in plain if name in calculator.results}
        fast["born"] = calculator.get_born_charges(atoms).values
        fast["hessian"] = calculator.get_hessian(atoms)
        check_equal(plain, fast, 1e-9)
    assert calculator.models[0].mace._compiled_call_impl is not None
    assert model.mace._compiled_call_impl is None


def test_only_the_inner_model_is_given_to_the_compiler(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *a, **k: compiled.append((a, k)))
    model, atoms = make_sogmace(), water_box()
    fast, _ = results_of(model, atoms, second=False, compile_mode="reduce-overhead")
    (((inner,), options),) = compiled
    assert type(inner) is modules.ScaleShiftMACE
    assert inner is not model.mace
    assert options == {"mode": "reduce-overhead", "fullgraph": True, "dynamic": True}
    check_equal(results_of(model, atoms, second=False)[0], fast, 1e-12)
    padding = {"pad_num_atoms": 10, "pad_num_edges": 2000}
    results_of(model, atoms, second=False, compile_mode="default", **padding)
    assert compiled[1][1]["dynamic"] is None


@needs_cueq
def test_a_converted_model_is_compiled_as_a_copy(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *a, **k: compiled.append((a, k)))
    options = {"enable_cueq": True, "compile_mode": "default"}
    calculator = SOGMACECalculator(models=make_sogmace(), device="cpu", **options)
    (((inner,), settings),) = compiled
    assert calculator.models[0].mace is inner
    assert calculator._eager[0].mace is not inner
    assert not is_plain(inner)
    assert not settings["fullgraph"]


@pytest.fixture
def stand_in(monkeypatch):
    """MACE's converter for OpenEquivariance, which is built on GPUs only, put in its place."""
    given = []

    def run(model, device):
        given.append(model)
        return make_sogmace().mace.to(device)

    monkeypatch.setattr(backbone, "is_installed", lambda _: True)
    monkeypatch.setattr(convert_e3nn_oeq, "run", run)
    return given


def test_openequivariance_is_given_the_inner_model(stand_in):
    model, atoms = make_sogmace(), water_box()
    fast, calculator = results_of(model, atoms, second=False, enable_oeq=True)
    assert stand_in == [model.mace]
    assert calculator.models[0].long_range is model.long_range
    check_equal(results_of(model, atoms, second=False)[0], fast, 1e-12)


def test_training_with_openequivariance_converts_there_and_back(
    training_folder, stand_in, monkeypatch
):
    back = []
    for module, models in ((convert_e3nn_oeq, stand_in), (convert_oeq_e3nn, back)):

        def run(model, device, models=models):
            models.append(model)
            return model

        monkeypatch.setattr(module, "run", run)
    main(arguments(max_num_epochs=1, enable_oeq=True))
    assert len(stand_in) == len(back) == 1
    assert type(back[0]) is modules.ScaleShiftMACE
    assert load().long_range.gate > 0.0


@pytest.mark.parametrize(
    ("options", "build", "message"),
    [
        ({"enable_cueq": True}, {"cls": modules.MACE}, "ScaleShiftMACE model, got MACE"),
        ({"compile_mode": "default"}, {"cls": modules.MACE}, "compiled` must be a ScaleShiftMACE"),
        ({"enable_cueq": True}, {"correlation": 1}, "correlation 2 or 3, got correlation 1"),
        ({"enable_oeq": True}, {"layers": 1}, "of two layers or more, got 1"),
    ],
)
def test_models_that_mace_cannot_convert_are_refused(options, build, message, monkeypatch):
    monkeypatch.setattr(backbone, "check_libraries", lambda *_: None)
    with pytest.raises(HostError, match=message):
        SOGMACECalculator(models=make_sogmace(**build), device="cpu", **options)


@needs_cueq
def test_a_converted_model_is_not_converted_again():
    calculator = SOGMACECalculator(models=make_sogmace(), device="cpu", enable_cueq=True)
    with pytest.raises(HostError, match="cueq` must be one that is not yet converted"):
        SOGMACECalculator(models=calculator.models, device="cpu", enable_cueq=True)


@pytest.mark.parametrize(
    ("backend", "device", "there", "message"),
    [
        ("cueq", "cuda", "cuequivariance_torch", "pip install cuequivariance-ops-torch-cu12"),
        ("oeq", "cpu", "", "pip install openequivariance"),
    ],
)
def test_missing_libraries_are_named(backend, device, there, message, monkeypatch):
    monkeypatch.setattr(backbone, "load_library", lambda *_: None)
    monkeypatch.setattr(backbone, "is_installed", lambda name: name == there)
    with pytest.raises(MissingLibraryError, match=message):
        backbone.check_libraries(backend, device)


def test_missing_cuequivariance_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuequivariance_torch", None)
    with pytest.raises(MissingLibraryError, match=r'pip install "sog-longrange\[cueq\]"'):
        SOGMACECalculator(models=make_sogmace(), device="cpu", enable_cueq=True)
    with pytest.raises(SystemExit, match=r"sog_mace_run_train: .*sog-longrange\[cueq\]"):
        main(arguments(enable_cueq=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enable_cueq": True, "enable_oeq": True}, "one only in a training, got both"),
        ({"enable_cueq": True, "lora": True}, "leave them out. Leave out --enable_cueq or --lora"),
    ],
)
def test_trainings_that_mace_cannot_convert_back_are_refused(options, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments(**options))
