"""The notebook of the first hour runs from top to bottom; tutorials name options that there are."""

import json
import os
import re
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest

from sog_mace.cli.run_train import build_parser

EXAMPLES = Path(__file__).parents[3] / "examples"
SHORT = {"chloride(160": "chloride(35", "epochs=30": "epochs=2", "run(400)": "run(40)"}


def code_cells():
    cells = json.loads((EXAMPLES / "first_hour.ipynb").read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    pytest.importorskip("tblite", reason="tblite is not installed in this environment")
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="needs matplotlib")
    pyplot.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cells, names = code_cells(), {}
    for written, shorter in SHORT.items():
        assert sum(cell.count(written) for cell in cells) == 1
        cells = [cell.replace(written, shorter) for cell in cells]
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)  # noqa: S102
    pyplot.close("all")
    assert len(ase.io.read("first_hour/evaluated.xyz", ":")) == 5
    # Far shorter than a useful training: energy is conserved by whatever was learned.
    assert names["total"].std() < 0.05 * names["potential"].std()
    assert np.isfinite(names["energies"]).all()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("tutorials/plot_*.py")), ids=lambda p: p.stem)
def test_options_in_tutorials_exist(path):
    known = {name for action in build_parser()._actions for name in action.option_strings}
    text = path.read_text("utf-8")
    commands = [text] if "run_train" in text else []
    named = {name for part in commands for name in re.findall(r"(--\w+)=", part)}
    assert named - known - {"--output"} == set()
