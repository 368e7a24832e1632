"""The data of the examples are right, and the examples and the docs page run."""

import doctest
import importlib.util
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from pyg_builders import make_data, molecule
from torch_geometric.loader import DataLoader
from torch_geometric.nn import SchNet

from sog_longrange.units import COULOMB_CONSTANT
from sog_pyg import PeriodicGraph

ROOT = Path(__file__).parents[3]
BLOCKS = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs/start/pyg.md").read_text("utf-8"), re.DOTALL
)


def load(monkeypatch, path):
    """Import a script as a module, with the package beside the examples."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def load_workbench(monkeypatch, name):
    """Import a module that the examples share."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module(f"workbench.{name}")


def test_the_ewald_sum_gives_madelungs_constant(monkeypatch):
    gas = load_workbench(monkeypatch, "coulomb_gas")
    edge = 5.64
    corners = torch.tensor([[0.0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) * edge / 2
    pos = torch.cat([corners, corners + torch.tensor([edge / 2, 0.0, 0.0])])
    charges = torch.tensor([1.0] * 4 + [-1.0] * 4)
    cell, pbc = edge * torch.eye(3)[None], torch.ones(1, 3).bool()
    energy = gas.exact_energy(charges, pos, cell, pbc, wca=False)
    madelung = -energy * (edge / 2) / (4 * COULOMB_CONSTANT)
    assert madelung.item() == pytest.approx(1.7475645946331822, rel=1e-12)


def test_boxes_are_what_the_recipe_says(monkeypatch):
    gas = load_workbench(monkeypatch, "coulomb_gas")
    recipe = gas.Recipe(num_ions=16)
    (box,), (again,) = (gas.make_gas(1, 3, recipe) for _ in range(2))
    assert torch.equal(box.pos, again.pos)
    assert box.charge.sum() == 0.0
    assert box.forces.sum(0).abs().max() < 1e-4
    spread = math.exp(3 * recipe.stretch)
    assert 1 / spread < box.cell[0].det() / (16 * recipe.volume) < spread
    charges = box.charge.double()
    pos, cell = box.pos.double(), box.cell.double()
    moved = [pos.clone() for _ in range(2)]
    moved[0][2, 1] -= 1e-4
    moved[1][2, 1] += 1e-4
    down, up = (gas.exact_energy(charges, p, cell, box.pbc) for p in moved)
    assert -(up - down).item() / 2e-4 == pytest.approx(box.forces[2, 1].item(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "files"),
    [
        ("examples/02_pyg_schnet.py", {"errors.png", "results.json"}),
        ("examples/03_pyg_layer.py", {"errors.png", "results.json"}),
        ("benchmarks/pyg_accuracy.py", {"table.md", "results.json"}),
    ],
)
def test_scripts_run_to_their_end(script, files, tmp_path, monkeypatch):
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(sys, "argv", [script, "--boxes=4", "--epochs=1", f"--output={tmp_path}"])
    threads = torch.get_num_threads()
    module = load(monkeypatch, script)
    if hasattr(module, "TESTS"):
        monkeypatch.setattr(module, "TESTS", {"same kind": (1, module.Recipe(num_ions=16))})
    module.main()
    torch.set_num_threads(threads)
    assert {path.name for path in tmp_path.iterdir()} == files
    assert len(json.loads((tmp_path / "results.json").read_text())) >= 2


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_the_blocks_of_the_docs_page_run(code):
    torch.set_default_dtype(torch.float32)
    exec(compile(code, "docs/start/pyg.md", "exec"), {})  # noqa: S102


def test_the_block_of_the_readme_runs():
    torch.set_default_dtype(torch.float32)
    (code,) = re.findall(r"```py\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    batch = next(iter(DataLoader([make_data(1), molecule()], batch_size=2)))
    batch.pos, batch.cell = batch.pos.float(), batch.cell.float()
    schnet = SchNet(hidden_channels=8, cutoff=5.0, interaction_graph=PeriodicGraph(5.0))
    names = {"data": batch, "x": torch.randn(11, 8), "schnet": schnet}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    assert names["field"].shape == (11, 3, 4)


@pytest.mark.parametrize("name", ["layer", "model", "transform"])
def test_the_examples_of_the_docstrings_run(name):
    torch.set_default_dtype(torch.float32)
    result = doctest.testmod(importlib.import_module(f"sog_pyg.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
