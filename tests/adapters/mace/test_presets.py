"""Presets in the training command, from the command line to the options of a saved model."""

from contextlib import contextmanager

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from mace_builders import make_sogmace, open_molecule, water_box
from test_run_train import SETTINGS, arguments, load, training_folder

from sog_longrange import SOGConfig
from sog_longrange.presets import PRESETS, Preset
from sog_mace.cli import prepare_data, run_train
from sog_mace.cli.patches import Schedule, patched_run_train
from sog_mace.cli.run_train import main, parse_args

__all__ = ["training_folder"]

WATER = Preset("", {"hidden_size": 8}, {"latent_dipoles": True}, {"warmup": 7})


@pytest.fixture(autouse=True)
def presets(monkeypatch):
    """Presets of options that tell them apart."""
    monkeypatch.setitem(PRESETS, "molecular", WATER)
    monkeypatch.setitem(PRESETS, "interface", Preset("", {"min_width": 2.0}))


@pytest.fixture(autouse=True)
def runs(monkeypatch):
    """What the training command hands over to MACE."""
    kept = []

    @contextmanager
    def kept_run(*args):
        with patched_run_train(*args) as patches:
            kept.append(patches)
            yield patches

    monkeypatch.setattr(run_train, "patched_run_train", kept_run)
    return kept


@pytest.fixture
def configured(runs):
    """Options of the model that the command would train."""

    def run(**options):
        main([*arguments(**options), "--dry_run"])
        return runs[-1].model.long_range.config

    return run


def salt(count):
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(count):
        frame = Atoms("NaCl", [[0, 0, 0], [2.5 + 0.1 * rng.normal(), 0, 0]])
        frame.info |= {"REF_energy": -2.0 + rng.normal(), "total_charge": 0}
        frame.arrays["REF_forces"] = rng.normal(size=(2, 3))
        frames.append(frame)
    return frames


def test_auto_finds_molecules_and_options_that_were_given_win(caplog, runs):
    main(arguments(max_num_epochs=1, sog_preset="auto", sog_min_width=0.8, sog_engine="none"))
    first = load().long_range.config
    assert runs[-1].schedule == Schedule(warmup=7)
    expected = {"hidden_size": 8, "latent_dipoles": True, "min_width": 0.8, "engine": "none"}
    assert first == SOGConfig(**expected, charge_constraint="neutral")
    found = "(no fragment has a charge of its own), by 9 frames (bulk and molecules"
    assert f"Preset molecular {found}" in caplog.text
    assert "H2O 0, H2O2 0" in caplog.text
    text = "latent_dipoles=True, min_width=0.8 (given), engine=none (given), warmup=7"
    assert text in caplog.text


def test_options_of_a_config_file_win_over_the_preset(training_folder, runs):
    given = {"sog_preset": "molecular", "sog_hidden_size": 32, "sog_warmup": 3}
    (training_folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS | given))
    main(["--config=config.yaml", "--sog_latent_dipoles=False", "--dry_run"])
    config = runs[-1].model.long_range.config
    assert (config.hidden_size, config.latent_dipoles) == (32, False)
    assert runs[-1].schedule.warmup == 3


def test_models_without_vectors_get_no_dipoles_and_auto_is_the_default(configured):
    config = configured(sog_preset="molecular", hidden_irreps="4x0e", num_interactions=1)
    assert (config.hidden_size, config.latent_dipoles) == (8, False)
    assert configured(name="plain") == SOGConfig(charge_constraint="neutral")
    assert parse_args(["--name=x"]).sog_preset == "auto"


@pytest.mark.parametrize("form", ["xyz", "hdf5"])
def test_auto_chooses_by_what_streams_as_by_what_was_read(form, caplog, monkeypatch, configured):
    # The name alone tells: readouts of ions are an option of their own.
    monkeypatch.setitem(PRESETS, "ionic", Preset("", {"hidden_size": 16}))
    ase.io.write("train.xyz", salt(6))
    ase.io.write("valid.xyz", salt(2))
    sources = {"train_file": "train.xyz", "valid_file": "valid.xyz"}
    if form == "hdf5":
        files = [f"--{key}={value}" for key, value in sources.items()]
        keys = ["--energy_key=REF_energy", "--forces_key=REF_forces"]
        prepare_data.main([*files, *keys, "--h5_prefix=out/", "--num_process=1"])
        sources = {"train_file": "out/train", "valid_file": "out/val"}
        sources["atomic_numbers"] = "[11, 17]"
    config = configured(sog_preset="auto", E0s="{11: -1.0, 17: -1.0}", **sources)
    assert (config.hidden_size, config.charge_constraint) == (16, "total")
    assert "by 6 frames (molecules or clusters) with Na +1, Cl -1: hidden_size=16" in caplog.text


def attracted(count, exponent):
    """Two atoms of elements whose charges nothing tells, far apart, and their attraction."""
    frames = []
    for distance in np.linspace(4.0, 9.0, count):
        frame = Atoms("SO", [[0, 0, 0], [distance, 0, 0]])
        pull = exponent / distance ** (exponent + 1.0)
        frame.arrays["REF_forces"] = pull * np.array([[1.0, 0, 0], [-1.0, 0, 0]])
        frame.info["REF_energy"] = -1.0 / distance**exponent
        frames.append(frame)
    lone = [Atoms(own, info={"config_type": "IsolatedAtom", "REF_energy": 0.0}) for own in "SO"]
    frames.append(Atoms("SO", [[0, 0, 0], [6.0, 0, 0]], info={"REF_energy": 0.0}))  # no forces
    return [*lone, *frames]


@pytest.mark.parametrize("exponent", [1.0, 4.0])
def test_forces_beyond_the_cutoff_tell_the_kernel_where_charges_are_not_known(
    exponent, caplog, configured
):
    ase.io.write("train.xyz", attracted(16, exponent))
    ase.io.write("valid.xyz", attracted(4, exponent)[2:])
    sources = {"train_file": "train.xyz", "valid_file": "valid.xyz", "sog_preset": "auto"}
    config = configured(**sources)
    wanted = ("dispersion(exponent=4.0)", "none") if exponent == 4.0 else ("coulomb", "neutral")
    assert (config.kernel, config.charge_constraint) == wanted
    assert ("attract by a potential r^-(4.00 ± 0.00)" in caplog.text) == (exponent == 4.0)
    for given in ({"sog_readout": "atoms"}, {"sog_kernel": "coulomb"}):
        careful = configured(**sources, **given, name="given")
        assert (careful.kernel, careful.charge_constraint) == ("coulomb", "neutral")
        assert careful.min_width == 1.0, "a third of the cutoff"


def test_auto_takes_the_options_of_a_foundation_model(configured):
    theirs = SOGConfig(min_width=0.7, charge_constraint="neutral")
    torch.save(make_sogmace(theirs), "first.model")
    assert configured(sog_preset="auto", foundation_model="first.model") == theirs


def test_auto_makes_total_charges_an_input_where_molecules_have_several(caplog):
    def states(count):
        frames = [open_molecule(seed) for seed in range(count)]
        for charge, frame in enumerate(frames):
            frame.info |= {"REF_energy": -9.0 + charge % 2, "total_charge": charge % 2}
            frame.arrays["REF_forces"] = np.zeros((len(frame), 3))
        return frames

    ase.io.write("train.xyz", states(6))
    ase.io.write("valid.xyz", states(2))
    sources = {"valid_file": "valid.xyz", "max_num_epochs": 1, "sog_preset": "auto"}
    main(arguments(**sources))
    config = load().long_range.config
    assert (config.charge_embedding, config.charge_constraint) == (32, "total")
    assert "there are several total charges" in caplog.text
    assert "lr_factor=3.0" in caplog.text
    main(arguments(**sources, sog_charge_embedding=4, name="given"))
    assert load("given.model").long_range.config.charge_embedding == 4


def test_an_unknown_preset_ends_before_any_training():
    with pytest.raises(SystemExit, match="`preset` must be one of none, .*Did you mean 'ionic'"):
        main(arguments(sog_preset="ionc"))
    with pytest.raises(SystemExit, match="`min_width` must be positive"):
        main(arguments(sog_preset="interface", sog_min_width=-1.0))


def test_frames_of_the_sample_keep_their_boundaries(caplog, configured):
    frames = [water_box(seed) for seed in range(8)]
    for frame in frames:
        frame.pbc = [True, True, False]
        frame.info["REF_energy"], frame.arrays["REF_forces"] = -9.0, np.zeros((9, 3))
    ase.io.write("train.xyz", frames)
    configured(sog_preset="auto")
    assert "by 6 frames (slabs) with H2O 0" in caplog.text
