"""The README and the pages in docs/: code runs, commands exist, links lead somewhere.

Code blocks of languages that need a host or an engine run in the tests that `TESTED` names.
"""

import ast
import importlib
import re
from functools import cache
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pytest
import torch
from pages import GENERATED, ROOT, anchors, blocks, commands, languages, links, pages, text_of

from sog_longrange.errors import explain
from sog_longrange.kernels.registry import GROUP
from sog_longrange.summation.resolution import Resolution

PAGES = pages()
TESTED = {
    ("README.md", "python"): "tests/adapters/mace/test_readme.py",
    ("README.md", "py"): "tests/adapters/pyg/test_examples.py",
    ("README.md", "yaml"): "tests/adapters/nequip/test_pages.py",
    ("docs/start/ase.md", "python"): "tests/adapters/mace/test_readme.py",
    ("docs/start/nequip.md", "yaml"): "tests/adapters/nequip/test_pages.py",
    ("docs/start/allegro.md", "yaml"): "tests/adapters/nequip/test_pages.py",
    ("docs/start/pyg.md", "python"): "tests/adapters/pyg/test_examples.py",
    ("docs/start/own_model.md", "python"): "tests/test_pages.py",
    ("docs/guide/charges.md", "python"): "tests/adapters/mace/test_readme.py",
    ("docs/guide/data.md", "text"): "tests/adapters/mace/test_readme.py",
    ("docs/theory/accuracy_of_sums.md", "python"): "tests/test_pages.py",
    ("docs/extend/add_a_host.md", "python"): "tests/test_doctests.py",
    ("docs/extend/add_a_host.md", "py"): "tests/test_pages.py",
    ("docs/extend/add_a_kernel.md", "python"): "tests/core/test_registry.py",
    ("docs/extend/add_a_kernel.md", "toml"): "tests/test_pages.py",
    ("docs/engines/export.md", "python"): "tests/adapters/mace/test_export.py",
    ("docs/engines/export.md", ""): "tests/adapters/md/test_plugin.py",
    ("docs/engines/ipi.md", "json"): "tests/adapters/md/test_ipi.py",
    ("docs/engines/ipi.md", "sh"): "tests/adapters/md/test_ipi.py",
    ("docs/engines/ipi.md", "xml"): "tests/adapters/md/test_ipi.py",
    ("docs/engines/lammps.md", "lammps"): "tests/adapters/md/test_lammps_docs.py",
    ("docs/engines/lammps.md", "python"): "tests/adapters/md/test_lammps_docs.py",
    ("docs/engines/lammps_nequip.md", "lammps"): "tests/adapters/nequip/test_lammps.py",
    ("docs/engines/openmm.md", "python"): "tests/adapters/md/test_openmm.py",
    ("docs/engines/phonons.md", "python"): "tests/adapters/md/test_phonons.py",
    ("docs/engines/phonons.md", "text"): "tests/adapters/md/test_phonons.py",
    ("docs/engines/torchsim.md", "python"): "tests/adapters/mace/test_torchsim.py",
    # Needs a GPU: it is compiled here, and the same calls are counted by tests/core/test_counts.py.
    ("docs/evidence/gpu.md", "python"): "tests/test_pages.py",
}
"""Test that runs the blocks of a page in a language; bash is read by the tests below."""

RUN_HERE = [
    (page, code)
    for (page, language), test in TESTED.items()
    for code in blocks(page, language)
    if test == "tests/test_pages.py" and language == "python" and "gpu" not in page
]


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_code_is_one_that_a_test_reads(page):
    for language in languages(page) - {"bash"}:
        test = TESTED[page, language]
        name = Path(page).name.removesuffix(".md")
        assert name.lower() in text_of(test).lower(), f"{test} does not name {page}"


@pytest.mark.parametrize(("page", "code"), RUN_HERE)
def test_python_blocks_of_the_core_run(page, code):
    torch.manual_seed(1)
    exec(compile(code, page, "exec"), {})  # noqa: S102


@pytest.mark.parametrize(
    ("page", "language"),
    [("docs/extend/add_a_host.md", "py"), ("docs/evidence/gpu.md", "python")],
)
def test_blocks_that_need_a_model_or_a_gpu_are_python(page, language):
    for code in blocks(page, language):
        compile(code, page, "exec")
        if "class " in code:
            names = {}
            exec(code, names)  # noqa: S102
            parents = {name for own in names.values() for name in dir(own)}
            assert {"evaluate", "force_loss", "parameters"} <= parents


def test_the_entry_point_of_the_page_on_kernels_is_one_that_is_looked_for():
    (text,) = blocks("docs/extend/add_a_kernel.md", "toml")
    group, value = re.search(r'entry-points\."(.*)"\]\n\w+ = "(.*)"', text).groups()
    assert group == GROUP
    assert value in text_of("docs/extend/add_a_kernel.md").replace(text, "")


def test_links_lead_to_pages_and_headings():
    lost = []
    for page in [*PAGES, "CHANGELOG.md"]:
        for path, anchor in links(page):
            target = (ROOT / page).parent / path if path else ROOT / page
            found = target.resolve()
            name = found.relative_to(ROOT).as_posix() if found.is_relative_to(ROOT) else str(found)
            if name.startswith(GENERATED):
                continue
            if not found.exists() or (anchor and anchor not in anchors(name)):
                lost.append(f"{page}: {path}#{anchor}")
    assert not lost


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r"^(?:.* <)?([\w/]+)>?$", text_of("docs/index.md"), re.MULTILINE))
    own = {page.removeprefix("docs/").removesuffix(".md") for page in PAGES}
    assert own - {"README", "index"} <= listed


@cache
def programs():
    """Names of programs that commands may begin with."""
    others = {"git", "i-pi", "lmp", "mpiexec", "nequip-compile", "nequip-package", "nequip-train"}
    own = {script.name for script in entry_points(group="console_scripts")}
    return own | others | {"pip", "python"}


@pytest.mark.parametrize("page", PAGES)
def test_programs_sessions_and_extras_of_commands_exist(page):
    sessions = set(re.findall(r"^def (\w+)\(session", text_of("noxfile.py"), re.MULTILINE))
    extras = set(metadata("sog-longrange").get_all("Provides-Extra"))
    assert {words[0] for words in commands(page)} <= programs()
    text = text_of(page)
    for named in re.findall(r"\"\.\[([\w,]+)\]\"", text):
        assert set(named.split(",")) <= extras
    # The session that builds this site is in the noxfile beside the others.
    assert set(re.findall(r"nox -s (\w+)", text)) <= sessions | {"docs"}
    for path in re.findall(r"\b(?:examples|benchmarks|tests)/[\w/]+\.(?:py|yaml|ipynb)", text):
        assert (ROOT / path).exists(), path


def test_sources_that_pages_name_exist():
    for page in PAGES:
        for path in re.findall(r"`(sog_longrange/[\w/]+(?:\.py)?/?)`", text_of(page)):
            assert (ROOT / path).exists(), f"{page}: {path}"


def test_names_of_the_core_that_pages_use_exist():
    for page in PAGES:
        for dotted in re.findall(r"`(sog_longrange\.[\w.]+)", text_of(page)):
            module, _, name = dotted.rpartition(".")
            try:
                importlib.import_module(dotted)
            except ModuleNotFoundError:
                assert hasattr(importlib.import_module(module), name), f"{page}: {dotted}"


@cache
def printed():
    """Text of the packages' string constants, with names of what is put into them left out."""
    folders = [ROOT / "sog_longrange", ROOT / "adapters"]
    trees = [ast.parse(p.read_text("utf-8")) for own in folders for p in sorted(own.rglob("*.py"))]
    strings = [x.value for tree in trees for x in ast.walk(tree) if isinstance(x, ast.Constant)]
    return "\n".join(" ".join(text.split()) for text in strings if isinstance(text, str))


def test_messages_of_the_page_on_troubles_are_printed_by_the_software():
    entries = re.findall(r"^(`.*)\n: ", text_of("docs/guide/troubleshooting.md"), re.MULTILINE)
    quoted = [part.strip() for entry in entries for part in re.findall(r"`([^`]+)`", entry)]
    assert len(quoted) > 25
    lost = [text for text in quoted if text not in printed() and text != "get_stress"]
    assert not lost
    # The form that the page says all errors have.
    assert explain("x", "y", "z", "Do so.") == "`x` must be y, got z. Do so."


def test_the_table_of_tolerances_is_that_of_the_rule():
    rows = re.findall(r"^\| (1e-\d+) \| (.*) \|$", text_of("docs/theory/accuracy_of_sums.md"), re.M)
    assert len(rows) == 7
    for tolerance, rest in rows:
        said = [float(x) for x in rest.split("|")]
        for order, own in enumerate((said[:3], said[3:])):
            rule = Resolution.of(1.0, float(tolerance), order)
            found = rule.cutoff, rule.window, torch.pi / rule.cutoff
            assert own == pytest.approx(found, abs=0.0051)
