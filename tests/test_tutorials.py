"""Tutorials are well-formed, and import what there is; building the documentation runs them."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
TUTORIALS = sorted((EXAMPLES / "tutorials").glob("plot_*.py"))
NOTEBOOK = EXAMPLES / "first_hour.ipynb"
FOLDERS = (ROOT, ROOT / "adapters", EXAMPLES, EXAMPLES / "tutorials")
OURS = ("sog_", "workbench", "lesson")


def find_module(name):
    for folder in FOLDERS:
        path = folder.joinpath(*name.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                return file
    return None


@cache
def names_in(file):
    """Names that a module defines or imports at its top level."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def missing_imports(tree):
    """What a script imports of this repository that is not there."""
    missing = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.ImportFrom) and node.module.startswith(OURS)):
            continue
        file = find_module(node.module)
        for alias in node.names:
            there = file and alias.name in names_in(file)
            if not there and not find_module(f"{node.module}.{alias.name}"):
                missing.append(f"{node.module}.{alias.name}")
    return missing


def test_there_are_tutorials_in_order():
    assert [int(path.name.split("_")[1]) for path in TUTORIALS] == list(range(1, 9))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_has_a_title_cells_figures_and_imports_what_there_is(path):
    text = path.read_text("utf-8")
    tree = compile(text, path.name, "exec", ast.PyCF_ONLY_AST)
    title, underline = ast.get_docstring(tree).splitlines()[:2]
    assert underline == "=" * len(title)
    cells = text.split("\n# %%\n")
    assert len(cells) > 4
    assert all(re.match(r"# \S", cell) for cell in cells[1:]), "a cell begins with text"
    assert "plt.subplots(" in text
    assert missing_imports(tree) == []
    for page in re.findall(r":doc:`([^`]*)`", text):
        folder = ROOT / "docs" if page.startswith("/") else path.parent
        assert any((folder / (page.lstrip("/") + end)).exists() for end in (".md", ".py")), page


def test_helpers_of_tutorials_import_what_there_is():
    for path in (EXAMPLES / "tutorials" / "lesson").glob("*.py"):
        assert missing_imports(ast.parse(path.read_text("utf-8"))) == [], path.name


def test_the_notebook_is_committed_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        assert cell["cell_type"] == "markdown" or cell["outputs"] == []
        if cell["cell_type"] == "code":
            tree = compile("".join(cell["source"]), cell["id"], "exec", ast.PyCF_ONLY_AST)
            assert missing_imports(tree) == []
