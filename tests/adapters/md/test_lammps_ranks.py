"""LAMMPS on several ranks, against the ASE calculator and one rank."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write
from lammps_cases import QUIET, cases, evaluate
from mace_builders import water_box
from md_builders import save_model

from sog_longrange import InputError, NotFiniteError, SOGConfig
from sog_longrange.ase_support import open_calculator
from sog_md.lammps import run_input

HERE = Path(__file__).parent
MODELS = {
    "plain": {},
    "neutral": {"charge_constraint": "neutral"},
    "total": {"charge_constraint": "total"},
    "states": {"charge_constraint": "total", "charge_embedding": 4},
}


def mpiexec(ranks, *command, timeout=300):
    """Run a program on several ranks; nothing may hang."""
    launcher = Path(sys.executable).with_name("mpiexec")
    words = [launcher, "-n", str(ranks), sys.executable, "-W", "ignore", *command]
    where = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        words, capture_output=True, text=True, timeout=timeout, check=False, env=os.environ | where
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for name, options in MODELS.items():
        save_model(folder / f"{name}.model", SOGConfig(tolerance=1e-8, **options))
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """What one rank finds."""
    found = {}
    for name, atoms, model, options in cases():
        if "gathered" in name:
            calculator = open_calculator(folder / f"{model}.model")
            found[name.split()[0]] = evaluate(atoms, calculator, **options)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_find_what_one_finds(folder, alone, ranks):
    process = mpiexec(ranks, HERE / "lammps_cases.py", folder)
    assert process.returncode == 0, process.stderr
    found = json.loads((folder / f"ranks{ranks}.json").read_text())
    assert len(found) == 2 * len(alone)
    for name, ours in found.items():
        theirs = alone[name.split()[0]]
        for key in ("energy", "forces", "positions", "charges", "energies", "parts"):
            assert np.abs(np.subtract(ours[key], theirs[key])).max() < 1e-9, (name, key)
        scale = np.abs(theirs["stress"]).max()
        assert np.abs(np.subtract(ours["stress"], theirs["stress"])).max() < 1e-9 * scale, name
    assert [] in found["empty domains"]["tags_on_ranks"]
    before, after = (found[f"{name} domains"]["tags_on_ranks"] for name in ("cubic", "moving"))
    assert before != after


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("one", "ERROR at step 3 on rank 1: The springs are broken."),
        ("killed", "Killed (signal 9)"),
    ],
)
def test_a_rank_that_fails_alone_ends_all(folder, fault, said):
    process = mpiexec(2, HERE / "lammps_faults.py", fault, folder / "plain.model", timeout=90)
    assert process.returncode not in (0, 3)
    assert said in process.stdout + process.stderr


@pytest.mark.slow
def test_an_error_of_the_first_rank_reaches_all(folder):
    process = mpiexec(2, HERE / "lammps_faults.py", "gathered", folder / "plain.model", timeout=90)
    assert process.returncode == 3, process.stderr
    for rank in range(2):
        assert f"rank {rank} at 3: 'NoneType' object has no attribute" in process.stdout


INPUT = """
units metal
variable model string {model}
read_data water.data
include style.lmp
variable part equal f_sog[1]
compute atomic all pe/atom
compute sum all reduce sum c_atomic
thermo_style custom step temp pe etotal press vol v_part c_sum
thermo 5
velocity all create 300 1 loop geom
fix move all nve
timestep 0.00025
variable round loop 2
label again
run 5
next round
jump in.water again
unfix move
fix move all npt temp 300 300 0.1 tri 0 0 1
dump charges all custom 5 charges.dump id type x y z d_sog_charge
run 5
undump charges
minimize 0 1e-3 3 20
"""
STYLE = """
pair_style sog &
   decompose {decompose}
pair_coeff * * ${{model}} H O # elements
"""


def thermo(output):
    """Rows of numbers below the headings of a log."""
    rows = re.findall(r"^ *\d+(?: +[-+.\de]+){7} *$", output, flags=re.MULTILINE)
    return np.array([row.split() for row in rows], dtype=float)


@pytest.mark.slow
def test_an_ordinary_input_runs_on_any_number_of_ranks(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write("water.data", water_box(), format="lammps-data", specorder=["H", "O"], masses=True)
    Path("in.water").write_text(INPUT.format(model=folder / "plain.model"))
    found, charges = [], []
    for ranks, decompose in ((1, "no"), (2, "yes")):
        Path("style.lmp").write_text(STYLE.format(decompose=decompose))
        process = mpiexec(ranks, "-m", "sog_md.lammps", "-in", "in.water", "-log", "none")
        assert process.returncode == 0, process.stderr
        found.append(thermo(process.stdout))
        charges.append(read("charges.dump", format="lammps-dump-text", index=-1))
    assert len(found[0]) == 8
    assert np.abs(found[0][:, 1:] / found[1][:, 1:] - 1).max() < 1e-5
    assert np.abs(found[0][:, 2] - found[0][:, 7]).max() < 1e-5
    ours, theirs = (np.sort(frame.arrays["d_sog_charge"].ravel()) for frame in charges)
    assert np.abs(ours - theirs).max() < 1e-5
    assert np.abs(ours).max() > 1e-3


@pytest.mark.parametrize(
    ("style", "coefficients", "message"),
    [
        ("sog", "no.model H O", "no.model: no such file"),
        ("sog", "{model} H", "each of the 2 atom types, got H"),
        ("sog", "{model} H Na", "elements that the model knows.*got Na"),
        ("sog virial maybe", "{model} H O", "got virial maybe"),
        ("sog field 0 0", "{model} H O", "got field 0 0"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(folder, tmp_path, style, coefficients, message):
    write(tmp_path / "data", water_box(), format="lammps-data", specorder=["H", "O"], masses=True)
    coefficients = coefficients.format(model=folder / "plain.model")
    path = tmp_path / "in.bad"
    path.write_text(
        f"units metal\nread_data {tmp_path}/data\npair_style {style}\n"
        f"pair_coeff * * {coefficients}\nrun 0\n"
    )
    with pytest.raises(InputError, match=message):
        run_input(path, QUIET)


def test_an_input_ends_at_an_error_of_the_model(folder, tmp_path, monkeypatch):
    write(tmp_path / "data", water_box(), format="lammps-data", specorder=["H", "O"], masses=True)
    path, done = tmp_path / "in.bad", tmp_path / "done.data"
    (tmp_path / "more").write_text(f"run 0\nwrite_data {done}\n")
    path.write_text(
        f"units metal\nread_data {tmp_path}/data\npair_style sog\n"
        f"pair_coeff * * {folder / 'plain.model'} H O\ninclude {tmp_path}/more\n"
    )

    def fail(*_):
        raise NotFiniteError("The springs are broken.")

    monkeypatch.setattr("sog_mace.SOGMACECalculator.calculate_batch", fail)
    with pytest.raises(NotFiniteError, match="springs are broken"):
        run_input(path, QUIET)
    assert not done.exists()


PREPARED = """
units metal
read_data {folder}/data
pair_style sog
pair_coeff * * {model} H O
run 0
"""


@pytest.mark.parametrize(
    ("more", "energy"),
    [
        # Data that were written can be read again.
        ("write_data again\nclear\nunits metal\nread_data again\n{style}\nrun 0", True),
        # A pair style takes the place of the model.
        ("pair_style zero 2.0 nocoeff\npair_coeff * *\nrun 0", False),
        ("{style}\nrun 0", True),
    ],
    ids=["data", "another style", "again"],
)
def test_an_input_may_change_its_model(folder, tmp_path, monkeypatch, more, energy):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data", water_box(), format="lammps-data", specorder=["H", "O"], masses=True)
    model = folder / "plain.model"
    style = f"pair_style sog\npair_coeff * * {model} H O"
    text = PREPARED.format(folder=tmp_path, model=model) + more.format(style=style) + "\n"
    Path("in.more").write_text(text)
    lmp = run_input("in.more", QUIET)
    calculator = open_calculator(model)
    calculator.calculate(water_box(), ["energy"])
    expected = calculator.results["energy"] if energy else 0.0
    assert lmp.get_thermo("pe") == pytest.approx(expected, abs=1e-6)


def test_a_restart_without_a_model_is_no_run_without_forces(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data", water_box(), format="lammps-data", specorder=["H", "O"], masses=True)
    text = PREPARED.format(folder=tmp_path, model=folder / "plain.model")
    Path("in.restart").write_text(f"{text}write_restart a\nclear\nread_restart a\nrun 0\n")
    with pytest.raises(InputError, match="pair_style between read_restart and the next run"):
        run_input("in.restart", QUIET)
