"""Ions with their total charges stream from files, to the same training as from extxyz."""

import copy
import json
import logging
from contextlib import nullcontext
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from mace import data
from mace.tools import AtomicNumberTable

from sog_longrange import InputError, SOGConfig
from sog_mace.cli import eval_configs, prepare_data
from sog_mace.cli.frames import resolve_constraint
from sog_mace.cli.run_train import main
from sog_mace.cli.sources import Listing
from sog_mace.cli.streams import StreamedCharges, _stream, checked_frames

NUMBERS = [1, 7, 8, 17]
NEEDS = SOGConfig(charge_constraint="total")
TRAINING = {
    "name": "ions",
    "E0s": "{1: -10.7, 7: -71.0, 8: -102.6, 17: -122.0}",
    "atomic_numbers": str(NUMBERS),
    "model": "ScaleShiftMACE",
    "hidden_irreps": "4x0e",
    "MLP_irreps": "4x0e",
    "radial_MLP": "[4]",
    "num_radial_basis": 4,
    "max_ell": 1,
    "correlation": 1,
    "num_interactions": 1,
    "r_max": 3.0,
    "batch_size": 10,
    "valid_batch_size": 5,
    "max_num_epochs": 2,
    "default_dtype": "float64",
    "device": "cpu",
    "seed": 3,
    "plot": "False",
    "sog_charge_constraint": "total",
    "sog_warmup": 1,
}


def ions():
    """Distorted molecules and ions with their total charges."""
    ammonium = Atoms("NH4", [[0, 0, 0], *(0.6 * np.array(TETRAHEDRON))])
    hydronium = Atoms("OH3", [[0, 0, 0.2], [0.9, 0, 0], [-0.45, 0.8, 0], [-0.45, -0.8, 0]])
    kinds = [(ammonium, 1), (hydronium, 1), (Atoms("Cl"), -1), (molecule("OH"), -1)]
    kinds += [(molecule("H2O"), 0)]
    rng, frames = np.random.default_rng(0), []
    for atoms, charge in 3 * kinds:
        frame = atoms.copy()
        frame.positions += 0.05 * rng.normal(size=frame.positions.shape)
        frame.set_initial_magnetic_moments()
        frame.info["total_charge"] = charge
        frames.append(frame)
    return frames


TETRAHEDRON = [[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]


def label(frame):
    """Energy and forces of GFN2-xTB."""
    tblite = pytest.importorskip("tblite.ase", reason="tblite, which labels the data, is missing")
    charge = frame.info["total_charge"]
    frame.calc = tblite.TBLite(method="GFN2-xTB", charge=charge, verbosity=0)
    frame.info["REF_energy"] = frame.get_potential_energy()
    frame.arrays["REF_forces"] = frame.get_forces()
    frame.calc = None
    return frame


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """MACE writes to the current folder, and adds handlers to the root logger."""
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield tmp_path
    logger.setLevel(level)
    for handler in set(logger.handlers) - set(handlers):
        handler.close()
        logger.removeHandler(handler)


def write(frames):
    ase.io.write("train.xyz", frames[:10])
    ase.io.write("valid.xyz", frames[10:])


def prepare(form, *options):
    files = ["--train_file=train.xyz", "--valid_file=valid.xyz", f"--h5_prefix={form}/"]
    prepare_data.main([*files, f"--format={form}", "--shuffle=False", "--num_process=1", *options])


def train(**options):
    """Train, and return all losses that were logged."""
    main([f"--{key}={value}" for key, value in (TRAINING | options).items()])
    path = Path(options["results_dir"]) / "ions_run-3_train.txt"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_ions_stream_to_the_same_training_as_from_extxyz(caplog):
    frames = [label(frame) for frame in ions()]
    write(frames)
    losses, tested = {}, {}
    for form in ("xyz", "hdf5", "lmdb"):
        sources = {"train_file": "train.xyz", "valid_file": "valid.xyz"}
        if form != "xyz":
            prepare(form, "--total_charge_key=total_charge", "--test_file=valid.xyz")
            sources = {"train_file": f"{form}/train", "valid_file": f"{form}/val"}
            tested = {"test_dir": f"{form}/test"}
        folders = {f"{name}_dir": f"out_{form}" for name in ("results", "model", "checkpoints")}
        losses[form] = train(**sources, **folders, **tested)
    assert caplog.text.count("Error-table on TEST") == 2
    assert len(losses["xyz"]) == 5
    assert len(set(losses["xyz"])) == 5
    for form in ("hdf5", "lmdb"):
        assert losses[form] == pytest.approx(losses["xyz"], rel=1e-12)
    ase.io.write("all.xyz", frames)
    model = ["--model=out_lmdb/ions.model", "--output=out.xyz"]
    eval_configs.main(["--configs=all.xyz", *model])
    for frame in ase.io.read("out.xyz", ":"):
        total = frame.arrays["MACE_charges"].sum()
        assert total == pytest.approx(frame.info["total_charge"], abs=1e-6)


def unlabelled():
    """Frames with labels that mean nothing, two periodic with stress and with weights."""
    frames = ions()
    for index, frame in enumerate(frames):
        frame.info["REF_energy"] = -float(index)
        frame.arrays["REF_forces"] = np.full((len(frame), 3), 0.1 * index)
        frame.info["config_weight"] = 1.0 + index
        frame.info["config_energy_weight"] = 0.5
        frame.info["config_type"] = f"kind{index % 2}"
        if index in (1, 4):
            frame.cell, frame.pbc = np.diag([5.0, 6.0, 7.0]), (True, True, index == 1)
            frame.info["REF_stress"] = np.arange(6.0)
    return frames


def test_prepared_files_are_read_to_the_same_data():
    write(unlabelled())
    frames = ase.io.read("train.xyz", ":")
    for form in ("hdf5", "lmdb"):
        prepare(form, "--test_file=valid.xyz")
    assert sorted(path.name for path in Path("lmdb").rglob("*.*")) == [
        "kind0__0_test.h5",
        "kind1__0_test.h5",
        "train_0.aselmdb",
        "val_0.aselmdb",
    ]
    options = {"r_max": 3.0, "z_table": AtomicNumberTable(NUMBERS)}
    streams = [
        data.HDF5Dataset("hdf5/train/train_0.h5", **options),
        data.LMDBDataset("lmdb/train", **options),
    ]
    keys = data.KeySpecification.from_defaults()
    for index in range(10):
        config = data.config_from_atoms(frames[index], key_specification=keys)
        expected = data.AtomicData.from_config(config, options["z_table"], 3.0)
        for stream in streams:
            found = stream[index]
            assert set(found.keys) == set(expected.keys)
            for key in expected.keys:
                one, other = (torch.as_tensor(item[key]) for item in (found, expected))
                assert torch.equal(one, other), key


@pytest.mark.parametrize(
    ("charge", "options", "message"),
    [
        (None, ["--total_charge_key=total_charge"], "none in frame 3 of train.xyz"),
        ("neutral", [], "'neutral' in frame 3 of train.xyz"),
        (np.nan, [], "nan.* in frame 3 of train.xyz"),
    ],
)
def test_total_charges_are_checked_before_files_are_written(charge, options, message):
    frames = unlabelled()
    frames[3].info["total_charge"] = charge
    if charge is None:
        del frames[3].info["total_charge"]
    write(frames)
    with pytest.raises(SystemExit, match=f"sog_mace_prepare_data: `total_charge` must .*{message}"):
        prepare("hdf5", *options)
    assert not list(Path("hdf5").rglob("*.h5"))


def test_frames_without_a_total_charge_are_counted_where_none_is_required(caplog):
    frames = unlabelled()
    del frames[3].info["total_charge"]
    write(frames)
    prepare("hdf5")
    assert "without the total charge that others have: frame 3 of train.xyz" in caplog.text
    with pytest.raises(SystemExit, match="`file` must be one that exists, got 'none.xyz'"):
        prepare("hdf5", "--test_file=none.xyz")


@pytest.mark.parametrize("form", ["hdf5", "lmdb"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_total_charges_missing_in_a_stream_are_refused_before_training(form, split):
    frames = unlabelled()
    del frames[3 if split == "train" else 12].info["total_charge"]
    write(frames)
    prepare(form)
    row = {
        "train": {"hdf5": "config_3", "lmdb": "row 4"},
        "val": {"hdf5": "config_2", "lmdb": "row 3"},
    }
    message = (
        f"`total_charge` must be in every frame .*none in .*{row[split][form]} of {form}/{split}"
    )
    with pytest.raises(SystemExit, match=f"{message}.*Prepare .* sog_mace_prepare_data"):
        train(train_file=f"{form}/train", valid_file=f"{form}/val", results_dir="out")
    assert not Path("out").exists()


def test_test_sets_that_stream_are_checked_before_training():
    frames = unlabelled()
    write(frames)
    del frames[0].info["total_charge"]
    ase.io.write("test.xyz", frames[:2])
    prepare("hdf5", "--test_file=test.xyz")
    options = {"train_file": "train.xyz", "valid_file": "valid.xyz", "test_dir": "hdf5/test"}
    with pytest.raises(SystemExit, match="none in .*config_0 of hdf5/test/kind0__0_test.h5"):
        train(**options, results_dir="out")


@pytest.mark.parametrize("form", ["hdf5", "lmdb"])
def test_frames_are_checked_and_named_as_they_are_read(form):
    write(unlabelled())
    prepare(form)
    kind = data.HDF5Dataset if form == "hdf5" else data.LMDBDataset
    path = "hdf5/train/train_0.h5" if form == "hdf5" else "lmdb/train"
    dataset = kind(path, r_max=3.0, z_table=AtomicNumberTable(NUMBERS))
    streams, seen = StreamedCharges(), []
    streams.add(dataset, SOGConfig())
    assert (streams.known, streams.charged) == (10, 8)

    def check(where, frame):
        seen.append(where)
        if len(seen) == 3:
            raise InputError(f"{len(frame.positions)} atoms in {where}")

    before = dataset[2]
    with checked_frames(check):
        dataset[0], dataset[1]
        with pytest.raises(InputError, match="atoms in .*[23] of .*train_0"):
            dataset[2]
    assert torch.equal(dataset[2].positions, before.positions)
    assert len(seen) == 3
    names = Listing(where for where, *_ in _stream(dataset))
    assert names.first[:3] == seen


def test_a_constraint_that_is_left_open_asks_streams_for_charges():
    frames = unlabelled()
    write(frames)
    prepare("hdf5")
    dataset = data.HDF5Dataset(
        "hdf5/train/train_0.h5", r_max=3.0, z_table=AtomicNumberTable(NUMBERS)
    )
    streams = StreamedCharges()
    streams.add(dataset, SOGConfig())
    config = resolve_constraint(SOGConfig(), [], [], streams)
    assert config.charge_constraint == "total"
    streams.missing.add("config_3 of a.h5")
    with pytest.raises(InputError, match="in every frame or in none .* none in config_3 of a.h5"):
        resolve_constraint(SOGConfig(), [], [], streams)


def test_rows_that_cannot_be_read_are_named():
    write(unlabelled())
    prepare("lmdb")
    dataset = data.LMDBDataset("lmdb/train", r_max=3.0, z_table=AtomicNumberTable(NUMBERS))
    StreamedCharges().add(dataset, NEEDS)
    database = dataset.AseDB.dbs[0]
    get = database._get_row
    database._get_row = lambda row, *args: get(99 if row == 5 else row, *args)
    message = "`frame` must be readable, got KeyError.* in row 5 of lmdb/train/train_0.aselmdb"
    with pytest.raises(InputError, match=message):
        StreamedCharges().add(dataset, NEEDS)


@pytest.mark.parametrize("charge", [None, 0.5, 1.0])
def test_total_charges_of_hdf5_files_by_maces_own_command_are_checked(charge):
    frame = ions()[0]
    keys = data.KeySpecification(info_keys={"total_charge": "total_charge"}, arrays_keys={})
    first = data.config_from_atoms(frame, key_specification=keys)
    second = copy.deepcopy(first)
    second.properties["total_charge"] = charge
    with h5py.File("set.h5", "w") as file:
        data.save_configurations_as_HDF5([first, second], 0, file)
    dataset = data.HDF5Dataset("set.h5", r_max=3.0, z_table=AtomicNumberTable(NUMBERS))
    joined = torch.utils.data.ConcatDataset([dataset])
    StreamedCharges().add(joined, SOGConfig(charge_constraint="none"))
    expected = pytest.raises(InputError, match="`total_charge` must be .* in .*config_1 of set.h5")
    with nullcontext() if charge == 1.0 else expected:
        StreamedCharges().add(joined, NEEDS)
    StreamedCharges().add_tests([], NEEDS)
