"""The page on LAMMPS works as written."""

import re
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write
from lammps_cases import QUIET
from mace_builders import water_box
from md_builders import save_model

from sog_md.lammps.cli import main

PAGE = (Path(__file__).parents[3] / "docs/engines/lammps.md").read_text("utf-8")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model("my_model.model")
    write("water.data", water_box(), format="lammps-data", specorder=["H", "O"], masses=True)


def test_the_input_runs():
    (text,) = re.findall(r"```lammps\n(.*?)```", PAGE, re.DOTALL)
    Path("in.water").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["-in", "in.water", *QUIET])
    assert ended.value.code == 0
    charges = read("charges.dump", format="lammps-dump-text", index=-1).arrays["d_sog_charge"]
    assert np.abs(charges).max() > 1e-3
    assert Path("water.restart").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-help"], 0, "pair_style sog [device cuda]"),
        ([], 2, "usage:"),
        (["-in", "no.lmp"], 1, "no.lmp: no such file"),
        (["-in", "in.wrong"], 1, "Unknown command: nonsense"),
        (["-in", "in.wrong", "-foo"], 1, "must be options of LAMMPS's command line, got -foo"),
    ],
)
def test_the_command_says_what_is_wrong(capsys, arguments, code, said):
    Path("in.wrong").write_text("nonsense\n")
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *(QUIET if arguments else [])])
    assert ended.value.code == code
    assert said in "".join(capsys.readouterr())


def test_the_program_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code.replace("start_lammps()", f"start_lammps({QUIET})"), "lammps.md", "exec"), {})  # noqa: S102
    assert float(capsys.readouterr().out.split()[-1]) == pytest.approx(-17.1, abs=0.5)
