"""Training data are checked before MACE builds graphs of them."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from mace.data import KeySpecification
from mace.tools.scripts_utils import get_dataset_from_xyz
from mace_builders import open_molecule, water_box

from sog_longrange import BoundaryError, InputError, SOGConfig
from sog_mace.cli.frames import read_checked, resolve_constraint, warn_of_ignored_charges
from sog_mace.cli.run_train import main
from sog_mace.cli.streams import StreamedCharges

FRAMES = 6


class Head:
    """What MACE makes of a head, as far as it is looked at."""

    def __init__(self, collections):
        self.collections = collections


def labelled(atoms):
    atoms.info["REF_energy"] = -1.0
    atoms.arrays["REF_forces"] = np.zeros((len(atoms), 3))
    return atoms


def read(frames, tmp_path, told=None, **options):
    path = str(tmp_path / "data.xyz")
    ase.io.write(path, frames, format="extxyz")
    told = {"train_path": [path], "valid_path": None, "valid_fraction": 0.5, "seed": 1} | (
        told or {}
    )
    told |= {"work_dir": str(tmp_path)}
    told.setdefault("key_specification", KeySpecification.from_defaults())
    result, sources = read_checked(get_dataset_from_xyz, SOGConfig(**options), **told)
    return Head(result[0]), sources


def resolve(frames, tmp_path, told=None, **options):
    head, sources = read(frames, tmp_path, told, **options)
    config = resolve_constraint(SOGConfig(**options), [head], sources, StreamedCharges())
    return config.charge_constraint


def molecules(n=FRAMES):
    return [labelled(open_molecule(seed)) for seed in range(n)]


def set_cell(atoms, cell, pbc):
    atoms.set_cell(cell)
    atoms.pbc = pbc


SPOILED = {
    "cell missing": (
        lambda a: set_cell(a, np.zeros((3, 3)), True),
        "`cell` must be given along periodic directions, got no cell with pbc",
    ),
    "cell without a row": (
        lambda a: set_cell(a, np.diag([8.0, 8.0, 0.0]), True),
        "`cell` .* got no third lattice vector",
    ),
    "cell singular": (
        lambda a: set_cell(a, [[8, 0, 0], [0, 8, 0], [8, 8, 0]], True),
        "`cell` must be of non-zero volume",
    ),
    "cell flat": (
        lambda a: set_cell(a, [[8, 0, 0], [0, 8, 0], [8, 8, 1e-4]], True),
        "`cell` must be without periodic images closer",
    ),
    "cell turned": (
        lambda a: set_cell(a, [[0, 8, 0], [0, 0, 8], [20, 0, 0]], (True, True, False)),
        "`cell` must be with its non-periodic directions along x, y or z",
    ),
    "charge in words": (
        lambda a: a.info.update(total_charge="neutral"),
        "`total_charge` must be one finite number in e, got 'neutral'",
    ),
    "charge None": (
        lambda a: a.info.update(total_charge="None"),
        "`total_charge` must be one finite number in e, got 'None'",
    ),
    "three charges": (
        lambda a: a.info.update(total_charge=[1.0, 0.0, 0.0]),
        r"`total_charge` must be one finite number in e, got array",
    ),
    "charge nan": (
        lambda a: a.info.update(total_charge=float("nan")),
        "`total_charge` must be one finite number in e, got",
    ),
    "half a charge": (
        lambda a: a.info.update(total_charge=0.5),
        "`total_charge` must be a whole number of e, got 0.5",
    ),
    "energy nan": (
        lambda a: a.info.update(REF_energy=float("nan")),
        "`REF_energy` must be finite, got nan",
    ),
    "force inf": (
        lambda a: a.arrays["REF_forces"].__setitem__((1, 2), np.inf),
        r"`REF_forces` must be finite, got inf at index \(1, 2\)",
    ),
    "stress nan": (
        lambda a: (set_cell(a, 9.0 * np.eye(3), True), a.info.update(REF_stress=[np.nan] * 6)),
        "`REF_stress` must be finite, got nan at index",
    ),
    "virials of a wrong shape": (
        lambda a: a.info.update(REF_virials=[0.0] * 4),
        "`REF_virials` must be of shape",
    ),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_frame_that_cannot_be_trained_on_is_named(kind, tmp_path):
    spoil, message = SPOILED[kind]
    frames = molecules()
    spoil(frames[4])
    where = r".* in frame 4 of .*data\.xyz \(set 'train'\)\. \w+"
    with pytest.raises(InputError, match=message + where):
        read(frames, tmp_path)


def test_the_command_names_the_frame_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = molecules()
    frames[2].pbc = True
    ase.io.write("data.xyz", frames)
    options = {"name": "m", "train_file": "data.xyz", "E0s": "{1:0,8:0}", "r_max": 3}
    options |= {"energy_key": "REF_energy", "forces_key": "REF_forces", "device": "cpu"}
    with pytest.raises(SystemExit, match="^sog_mace_run_train: `cell` .* frame 2 of data.xyz") as e:
        main([f"--{key}={value}" for key, value in options.items()])
    assert "\n" not in str(e.value)


def test_slabs_are_refused_with_the_ewald_kernel(tmp_path):
    frames = molecules()
    set_cell(frames[1], 9.0 * np.eye(3), (True, True, False))
    read(frames, tmp_path)
    with pytest.raises(BoundaryError, match="`pbc` must be all true or all false .* frame 1 of"):
        read(frames, tmp_path, kernel="ewald")


def test_frames_that_are_right_pass(tmp_path):
    frames = [labelled(water_box(seed)) for seed in range(3)] + molecules(3)
    frames[0].info["REF_stress"] = np.zeros(6)
    frames[1].info["REF_virials"] = np.zeros((3, 3))
    isolated = labelled(Atoms("H", [[0.0, 0.0, 0.0]]))
    isolated.info["config_type"] = "IsolatedAtom"
    head, sources = read([isolated, *frames], tmp_path)
    assert len(head.collections.train) + len(head.collections.valid) == 6
    assert len(list(sources[0].frames())) == 7


@pytest.mark.parametrize(
    ("charges", "options", "constraint"),
    [
        ([None] * 6, {}, "neutral"),
        ([0, 0, 1, -1, 0, 1], {}, "total"),
        ([0] * 6, {}, "total"),
        ([0.5] * 6, {"fractional_charge": True}, "total"),
        ([1] * 6, {"charge_constraint": "neutral"}, "neutral"),
        ([None] * 6, {"charge_constraint": "none"}, "none"),
        ([1] * 6, {"kernel": "power_law(exponent=6)"}, "none"),
    ],
)
def test_total_charges_of_the_data_decide_on_the_constraint(charges, options, constraint, tmp_path):
    frames = molecules()
    for frame, charge in zip(frames, charges, strict=True):
        if charge is not None:
            frame.info["total_charge"] = charge
    assert resolve(frames, tmp_path, **options) == constraint


def test_charges_of_channels_that_are_never_constrained_need_not_be_complete(tmp_path):
    frames = molecules()
    frames[3].info["total_charge"] = 0.5
    assert resolve(frames, tmp_path, kernel="power_law(exponent=6)") == "none"


def test_isolated_atoms_of_training_files_need_no_charge_and_those_of_tests_do(tmp_path):
    atom, frames = labelled(Atoms("H", [[0.0, 0.0, 0.0]])), molecules()
    atom.info["config_type"] = "IsolatedAtom"
    for frame in frames:
        frame.info["total_charge"] = 1
    assert resolve([atom, *frames], tmp_path) == "total"
    ase.io.write(tmp_path / "test.xyz", [frames[0], atom], format="extxyz")
    with pytest.raises(InputError, match="none in frame 1 of .*test.xyz .set 'test'"):
        resolve(frames, tmp_path, {"test_path": [str(tmp_path / "test.xyz")]})


def test_charges_under_the_key_of_calculators_are_asked_for(tmp_path, caplog):
    frames = molecules()
    for frame in frames:
        frame.info["charge"] = -1
    assert resolve(frames, tmp_path) == "neutral"
    assert "data.xyz has frames with `charge`" in caplog.text
    assert "pass --total_charge_key=charge" in caplog.text


def test_labels_under_the_keys_of_ase_are_named_as_they_are_in_the_file(tmp_path):
    frames = molecules()
    for frame in frames:
        energy, forces = frame.info.pop("REF_energy"), frame.arrays.pop("REF_forces")
        frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces)
    frames[4].calc.results["energy"] = np.nan
    keys = KeySpecification.from_defaults()
    keys.info_keys["energy"], keys.arrays_keys["forces"] = "energy", "forces"
    with pytest.raises(InputError, match=r"`energy` must be finite, got nan in frame 4 of .*data"):
        read(frames, tmp_path, {"key_specification": keys})


@pytest.mark.parametrize(
    ("options", "warned"),
    [({"charge_constraint": "neutral"}, True), ({"charge_constraint": "none"}, False)],
)
def test_charges_that_a_foundation_model_does_not_take_are_warned_of(
    options, warned, tmp_path, caplog
):
    frames = molecules()
    frames[1].info["total_charge"] = 1
    head, _ = read(frames, tmp_path, **options)
    streams = StreamedCharges(known=5, charged=2)
    warn_of_ignored_charges(SOGConfig(**options), [head], streams)
    assert ("total charges of 3 frames are ignored" in caplog.text) == warned


@pytest.mark.parametrize("options", [{}, {"charge_constraint": "total"}, {"charge_embedding": 2}])
def test_frames_without_a_total_charge_that_others_have_are_named(options, tmp_path):
    frames = molecules(9)
    frames[3].info["total_charge"] = 1
    message = r"`total_charge` must be in every frame.* got none in frame 0 .* frame 1 .* frame 5 "
    with pytest.raises(InputError, match=message + ".* and 3 more. .*"):
        resolve(frames, tmp_path, **options)


def test_ions_without_total_charges_are_warned_of(tmp_path, caplog):
    frames = [*molecules(), labelled(Atoms("OH", [[0, 0, 0], [0, 0, 1.0]]))]
    resolve(molecules(), tmp_path)
    assert "odd number" not in caplog.text
    assert resolve(frames, tmp_path) == "neutral"
    assert "odd number of electrons" in caplog.text
    assert "frame 6 of" in caplog.text
    assert "add total_charge=" in caplog.text
