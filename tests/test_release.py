"""What a release needs says the same in all files, and the script for reports runs."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WORKFLOWS = sorted((ROOT / ".github").rglob("*.yml"))
UNPINNED = {
    *("sog-longrange", "triton"),
    *("cufinufft", "nvalchemi-toolkit-ops", "pytorch-finufft"),  # for GPUs, and peers
    "torch-sim-atomistic",  # needs Python 3.12
}


def read(name):
    return (ROOT / name).read_text("utf-8")


def table(text, name):
    """Text of a table of pyproject.toml; Python 3.10 has no parser of TOML."""
    (found,) = re.findall(
        rf"^\[{re.escape(name)}\]\n(.*?)(?=^\[|\Z)", text, re.DOTALL | re.MULTILINE
    )
    return found


PROJECT = read("pyproject.toml")
EXTRAS = set(
    re.findall(r"^(\w+) = \[", table(PROJECT, "project.optional-dependencies"), re.MULTILINE)
)
NEWEST, STATE = re.search(r"^## \[([\d.]+)\] - (\S+)$", read("CHANGELOG.md"), re.MULTILINE).groups()


def test_the_newest_section_of_the_changelog_is_open_or_dated():
    assert STATE == "Unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", STATE)


def test_versions_agree():
    fallback = re.search(r'fallback-version = "(.*)"', table(PROJECT, "tool.hatch.version"))[1]
    assert fallback == f"{NEWEST}.dev0"
    assert yaml.safe_load(read("CITATION.cff"))["version"] == NEWEST
    assert yaml.safe_load(read("conda/recipe.yaml"))["context"]["version"] == NEWEST


def test_references_have_what_a_citation_needs():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()
    for paper in citation["references"]:
        assert {"type", "title", "authors", "year", "identifiers"} <= paper.keys()
        for author in paper["authors"]:
            assert author.keys() == {"family-names", "given-names"}
        assert all(re.fullmatch(r"10\.\d{4,5}/\S+", x["value"]) for x in paper["identifiers"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_files_of_github_are_yaml(path):
    assert isinstance(yaml.safe_load(path.read_text("utf-8")), dict)


def test_constraints_pin_what_extras_name():
    pins = "\n".join(path.read_text("utf-8") for path in (ROOT / "constraints").glob("*.txt"))
    pinned = set(re.findall(r"^([\w.-]+)==", pins, re.MULTILINE))
    named = set(re.findall(r'"([\w-]+)', table(PROJECT, "project.optional-dependencies")))
    assert named - pinned <= UNPINNED


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_extras_that_pages_name_exist(path):
    named = re.findall(r"(?:\.|sog-longrange)\[([\w,]+)\]", path.read_text("utf-8"))
    assert {extra for group in named for extra in group.split(",")} <= EXTRAS


def test_tasks_of_nox_that_files_name_exist():
    sessions = set(re.findall(r"^def (\w+)\(session", read("noxfile.py"), re.MULTILINE))
    texts = [path.read_text("utf-8") for path in [*PAGES, *WORKFLOWS]]
    named = set(re.findall(r"nox -s \"?(\w+)", "\n".join(texts)))
    assert named <= sessions


def test_the_recipe_has_the_commands_and_dependencies_of_the_project():
    recipe = yaml.safe_load(read("conda/recipe.yaml"))
    scripts = re.findall(r'^(\w+) = "(.*)"$', table(PROJECT, "project.scripts"), re.MULTILINE)
    assert recipe["build"]["python"]["entry_points"] == [f"{a} = {b}" for a, b in scripts]
    needed = re.search(r"^dependencies = \[(.*)\]$", PROJECT, re.MULTILINE)[1]
    names = {"pytorch": "torch"}
    found = [text.split() for text in recipe["requirements"]["run"][1:]]
    assert [f'"{names.get(name, name)}{version}"' for name, version in found] == needed.split(", ")


def test_the_script_for_reports_agrees_with_the_direct_sum(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", read("CONTRIBUTING.md"), re.DOTALL)
    exec(compile(code, "CONTRIBUTING.md", "exec"), {})  # noqa: S102
    found, direct = map(float, capsys.readouterr().out.split("\n")[0].split())
    assert found == pytest.approx(direct, rel=1e-5)
