"""Commands for evaluation and heads, and what MACE's own say of a model with a long-range part."""

import functools
import io
import runpy
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from mace.calculators import LAMMPS_MACE, MACECalculator
from mace.cli import convert_e3nn_cueq, create_lammps_model, eval_configs, run_train, select_head
from mace_builders import ELEMENTS, make_batch, make_sogmace, open_molecule, water_box
from old_models import write_old_model
from torch._utils import ExceptionWrapper

from sog_longrange import HostError, InputError, SOGConfig
from sog_mace import SOGMACE, SOGMACECalculator
from sog_mace.charges import GIVEN
from sog_mace.cli import eval_configs as our_eval
from sog_mace.cli import select_head as our_select
from sog_mace.cli.arguments import end_in_one_line
from sog_mace.cli.run_train import build_parser
from sog_mace.cli.run_train import main as train_ours

CHARGED = SOGConfig(
    num_channels=2,
    charge_constraint="total",
    charge_embedding=3,
    latent_dipoles=True,
    tolerance=1e-8,
)
ARRAYS = ("forces", "charges", "latent_charges")
ENERGIES = ("energy", "long_range_energy", "short_range_energy")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@functools.cache
def model_of(config, heads):
    """A random model, with charge states as after training, and the bytes of its file."""
    model = make_sogmace(config, heads=heads)
    if model.long_range.states is not None:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.long_range.states.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    file = io.BytesIO()
    torch.save(model, file)
    return model, file.getvalue()


def save(name="a.model", config=CHARGED, heads=("Default",)):
    """Write a model to a file."""
    model, file = model_of(config, heads)
    Path(name).write_bytes(file)
    return model


def structures():
    """A box, an ion in a field, a slab, a box in a field along periodic axes, in one file."""
    frames = [open_molecule(seed) for seed in range(4)]
    for frame in (frames[0], *frames[2:]):
        frame.pbc, frame.cell = True, water_box().cell
    frames[2].pbc = (True, True, False)
    frames[1].info["external_field"] = np.array([0.1, -0.2, 0.3])
    frames[3].info["external_field"] = np.array([0.05, 0.02, -0.04])
    for frame, (key, charge) in zip(
        frames, [("charge", 0), ("total_charge", 1), ("charge", -1.0), ("charge", 0)], strict=True
    ):
        frame.info[key] = charge
    ase.io.write("in.xyz", frames)
    return frames


def evaluate(*options, model="a.model"):
    our_eval.main(["--configs=in.xyz", f"--model={model}", "--output=out.xyz", *options])
    return ase.io.read("out.xyz", ":")


def test_evaluation_is_that_of_the_calculator(capsys):
    model, frames = save(), structures()
    found = evaluate("--compute_stress", "--compute_born", "--info_prefix=LR_", "--batch_size=3")
    calculator = SOGMACECalculator(models=model, device="cpu", default_dtype="float64")
    for index, (frame, atoms) in enumerate(zip(frames, found, strict=True)):
        calculator.calculate(frame)
        results = calculator.results
        for key in ("energy", "long_range_energy", "short_range_energy", "charge_state_energy"):
            assert atoms.info[f"LR_{key}"] == pytest.approx(results[key], abs=1e-7)
        assert np.allclose(atoms.info["LR_dipole"], results["dipole"], atol=1e-7)
        for key in ARRAYS:
            assert np.allclose(atoms.arrays[f"LR_{key}"], results[key], atol=1e-7)
        dipoles = atoms.arrays["LR_latent_dipoles"].reshape(len(atoms), 3, 2)
        assert np.allclose(dipoles, results["latent_dipoles"], atol=1e-7)
        born = calculator.get_born_charges(frame).values
        assert np.allclose(atoms.arrays["LR_born_charges"].reshape(born.shape), born, atol=1e-7)
        if "external_field" in frame.info:
            energy = atoms.info["LR_field_energy"]
            assert energy == pytest.approx(results["field_energy"], abs=1e-7)
            assert abs(energy) > 1e-4
        assert ("LR_stress" in atoms.info) == (index in (0, 2))
    calculator.calculate(frames[0])
    expected = calculator.results["stress"]
    assert np.allclose(found[0].info["LR_stress"].flat[[0, 4, 8, 5, 2, 1]], expected, atol=1e-8)
    said = capsys.readouterr().out
    assert "No stress was written for 2 frames, which have no volume, or are in a field" in said
    assert "4 frames of in.xyz evaluated, written to out.xyz" in said


def test_evaluation_takes_other_keys_heads_and_single_precision():
    model, frames = save(heads=("first", "second")), structures()
    for frame, charge in zip(frames, (0, 1, -1, 0), strict=True):
        frame.info["q"] = charge
        frame.info["charge"] = "not a number"
    ase.io.write("in.xyz", frames)
    options = ["--total_charge_key=q", "--head=second", "--no_forces", "--return_node_energies"]
    found = evaluate(*options)
    frames[1].info["charge"] = 1
    calculator = SOGMACECalculator(
        models=model, head="second", device="cpu", default_dtype="float64"
    )
    calculator.calculate(frames[1], ["energy"])
    assert found[1].info["MACE_energy"] == pytest.approx(calculator.results["energy"], abs=1e-7)
    assert found[1].arrays["MACE_node_energy"].sum() == pytest.approx(found[1].info["MACE_energy"])
    assert "MACE_forces" not in found[1].arrays
    single = evaluate("--default_dtype=float32", *options)
    energies = [frame.info["MACE_energy"] for frame in (single[0], found[0])]
    assert energies[0] == pytest.approx(energies[1], rel=1e-4)
    assert energies[0] != energies[1]


def spoil(frames, what):
    if what == "charge":
        del frames[2].info["charge"]
    elif what == "kind of charge":
        frames[2].info["charge"] = "neutral"
    elif what == "fraction":
        frames[2].info["charge"] = 0.5
    elif what == "field":
        frames[2].info["external_field"] = np.array([1.0, 2.0])
    elif what == "cell":
        frames[2].pbc, frames[2].cell = True, np.zeros((3, 3))
    elif what == "element":
        frames[2].symbols[0] = "Xe"
    elif what == "position":
        frames[2].positions[1] = frames[2].positions[0]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("charge", "`total_charge` must be in every frame for this model.*--total_charge_key"),
        ("kind of charge", r"`atoms.info\[\"charge\"\]` must be one finite number in e"),
        ("fraction", "`total_charge` must be a whole number"),
        ("field", "must be 3 finite numbers in V/Å"),
        ("cell", "`cell` must be given along periodic directions, got no cell"),
        ("position", ".*must be finite, got"),
        ("element", "of elements that the model knows, .*got Xe"),
    ],
)
def test_bad_frames_are_named_in_one_line(what, message):
    save()
    frames = structures()
    spoil(frames, what)
    ase.io.write("in.xyz", frames)
    with pytest.raises(SystemExit, match=f"sog_mace_eval_configs: frame 2 of in.xyz: .*{message}"):
        evaluate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model=none.model"], "`model` must be the readable file of a model, got 'none.model'"),
        (["--model=bare.model"], "`model` must be a SOGMACE model, got ScaleShiftMACE.*MACE's own"),
        (["--configs=none.xyz"], "`configs` must be a file that exists, got 'none.xyz'"),
        (["--configs=a.model"], "`configs` must be readable by ASE"),
        (["--head=third"], "`head` must be one of first, second, got 'third'"),
        ([], "`head` must be one of first, second, got none of them"),
        (["--batch_size=0"], "`batch_size` must be at least 1"),
        (["--output=nowhere/out.xyz"], "`output` must be in a folder that exists"),
    ],
)
def test_bad_options_end_in_one_line(options, message):
    torch.save(save(heads=("first", "second")).mace, "bare.model")
    structures()
    with pytest.raises(SystemExit, match=f"sog_mace_eval_configs: {message}") as error:
        evaluate(*options)
    assert "\n" not in str(error.value)


def test_ions_of_a_neutral_model_are_counted(capsys):
    save(config=SOGConfig())
    frames = structures()
    for frame in frames:
        frame.info.pop("external_field", None)
    ase.io.write("in.xyz", frames)
    evaluate()
    text = "The total charges of 2 frames are ignored: the latent charges of this model sum to zero"
    assert text in capsys.readouterr().out


def test_errors_of_workers_end_in_one_line():
    def fail():
        try:
            raise InputError("`cell` must be finite.")
        except InputError:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()

    with pytest.raises(SystemExit, match="^a_command: `cell` must be finite.$"):
        end_in_one_line("a_command", fail)


@pytest.mark.parametrize("cell", [np.zeros((3, 3)), np.eye(3)])
def test_a_missing_cell_is_refused_in_maces_own_programs(cell):
    atoms = open_molecule(0)
    atoms.calc = MACECalculator(models=save(config=SOGConfig()), device="cpu")
    assert np.isfinite(atoms.get_potential_energy())
    atoms.set_cell(cell)
    atoms.pbc = True
    with pytest.raises(InputError, match="`cell` must be given .* the box of 1 Å that MACE makes"):
        atoms.get_potential_energy()


def test_models_that_read_no_total_charge_mind_none():
    model, frames = save(config=SOGConfig()), structures()
    for frame, charge in zip(frames, (None, "0", [1, 2], np.nan), strict=True):
        frame.info["charge"] = charge
        frame.info.pop("external_field", None)
    ase.io.write("in.xyz", frames)
    found = evaluate("--batch_size=3")
    energies = [frame.info["MACE_energy"] for frame in found]
    for frame in frames:
        del frame.info["charge"]
    assert np.allclose(energies, model(make_batch(frames))["energy"].detach(), atol=1e-7)


def test_unknown_options_suggest_the_nearest(capsys):
    with pytest.raises(SystemExit) as error:
        evaluate("--compute_sress")
    assert error.value.code == 2
    assert "did you mean --compute_stress?" in capsys.readouterr().err


def bare(model="a.model", **options):
    return MACECalculator(model, device="cpu", default_dtype="float64", **options)


def test_maces_commands_do_not_evaluate_models_that_need_a_charge(monkeypatch):
    save()
    structures()
    command = ["mace_eval_configs", "--configs=in.xyz", "--model=a.model", "--output=out.xyz"]
    monkeypatch.setattr(sys, "argv", command)
    message = "`total_charge` must be given .*sog_mace_eval_configs .*sog_mace.SOGMACECalculator"
    with pytest.raises(HostError, match=message):
        eval_configs.main()
    with pytest.raises(HostError, match=message):
        bare().get_potential_energy(structures()[0])


def test_total_charges_count_as_given_in_marked_batches_and_in_those_made_by_hand():
    model, frame = save(), structures()[0]
    data = make_batch([frame])
    assert GIVEN in data
    energy = model(data)["energy"]
    del data[GIVEN]
    with pytest.raises(HostError, match="a batch of MACE's own, which has zero where none"):
        model(data)
    del data["energy_weight"]
    assert torch.equal(model(data)["energy"], energy)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # MACE's own
def test_one_of_two_heads_is_selected_with_the_long_range_part(capsys):
    save(config=SOGConfig(), heads=("pt_head", "second"))
    model = torch.load("a.model", weights_only=False)
    model.long_range.gate.fill_(0.25)
    torch.save(model, "a.model")
    our_select.main(["--list_heads", "a.model"])
    assert capsys.readouterr().out.split() == ["Heads:", "pt_head", "second"]
    our_select.main(["a.model"])
    our_select.main(
        ["--head_name=pt_head", "--output_file=b.model", "--target_device=cpu", "a.model"]
    )
    said = capsys.readouterr().out
    assert "Head second of a.model written to a.model.second" in said
    atoms = water_box()
    for name, head in (("a.model.second", "second"), ("b.model", "pt_head")):
        single = torch.load(name, weights_only=False)
        assert isinstance(single, SOGMACE)
        assert single.heads == [head]
        assert single.long_range.gate == 0.25
        results = []
        for options in ({"models": single}, {"models": model, "head": head}):
            atoms.calc = SOGMACECalculator(**options, device="cpu", default_dtype="float64")
            forces, energy = atoms.get_forces(), atoms.get_potential_energy()
            results.append((energy, atoms.calc.results["long_range_energy"], forces))
        for one, other in zip(*results, strict=True):
            assert np.allclose(one, other, atol=1e-10)
        assert results[0][1] != 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-n", "third"], "`head_name` must be one of pt_head, second, got 'third'"),
        (["one.model"], r"`model` must be one with several heads, got the head \['Default'\]"),
        (["bare.model"], "`model` must be a SOGMACE model, got ScaleShiftMACE"),
    ],
)
def test_heads_that_cannot_be_selected_are_refused(options, message):
    model = save("two.model", SOGConfig(), heads=("pt_head", "second"))
    save("one.model", SOGConfig())
    torch.save(model.mace, "bare.model")
    arguments = options if len(options) == 1 else [*options, "two.model"]
    with pytest.raises(SystemExit, match=f"sog_mace_select_head: {message}"):
        our_select.main(arguments)


PROGRAMS = {
    "select_head": (select_head, ["-n", "Default", "a.model"], "sog_mace_select_head"),
    "create_lammps_model": (create_lammps_model, ["a.model"], "sog_lammps -in FILE"),
    "mliap": (create_lammps_model, ["--format=mliap", "a.model"], "sog_lammps -in FILE"),
    "convert_e3nn_cueq": (
        convert_e3nn_cueq,
        ["a.model"],
        "Have the model inside converted, by sog_mace",
    ),
}


@pytest.mark.parametrize("started_by", ["script", "python -m"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_maces_converters_say_what_to_do_instead(program, started_by, monkeypatch):
    save(config=SOGConfig())
    module, arguments, instead = PROGRAMS[program]
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    message = f"`model` must be without a long-range part in {module.__name__}, got .*{instead}"
    start = module.main
    if started_by == "python -m":
        monkeypatch.delitem(sys.modules, module.__name__)
        start = functools.partial(runpy.run_module, module.__name__, run_name="__main__")
    with pytest.raises(HostError, match=message):
        start()


def test_converters_of_a_loaded_model_say_what_to_do_instead(monkeypatch):
    model = save(config=SOGConfig())
    structures()
    for convert in (convert_e3nn_cueq.run, LAMMPS_MACE):
        with pytest.raises(HostError, match="without a long-range part in mace"):
            convert(model)
    command = ["x", "--configs=in.xyz", "--model=a.model", "--output=out.xyz", "--enable_cueq"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(
        HostError, match="or --enable_cueq of sog_mace_run_train and sog_mace_eval_configs"
    ):
        eval_configs.main()
    assert np.isfinite(bare().get_potential_energy(water_box()))


def test_maces_training_names_ours():
    save(config=SOGConfig())
    ase.io.write("train.xyz", [water_box()])
    energies = {z: 0.0 for z in ELEMENTS}
    options = ["--name=x", "--train_file=train.xyz", f"--E0s={energies}", "--device=cpu"]
    args = build_parser().parse_args([*options, "--foundation_model=a.model"])
    with pytest.raises(HostError, match="Use sog_mace_run_train instead"):
        run_train.run(args)


def test_models_of_older_versions_are_explained():
    write_old_model("old.model")
    structures()
    message = "older version, with `sog_longrange.module`. Train the model again, or export it"
    with pytest.raises(InputError, match=message):
        SOGMACECalculator(model_paths="old.model", device="cpu", default_dtype="float64")
    with pytest.raises(SystemExit, match=f"sog_mace_eval_configs: .*{message}"):
        evaluate(model="old.model")
    with pytest.raises(SystemExit, match=f"sog_mace_select_head: .*{message}"):
        our_select.main(["old.model"])
    with pytest.raises(SystemExit, match=f"sog_mace_run_train: .*{message}"):
        train_ours(["--name=a", "--train_file=in.xyz", "--foundation_model=old.model"])
