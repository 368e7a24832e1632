"""The code blocks, commands and options of the README and of pages about MACE work as written."""

import re
from io import StringIO

import ase.io
import pytest
import torch
from mace_builders import make_sogmace, water_box
from pages import blocks, commands, pages, text_of

from sog_longrange import SOGConfig
from sog_longrange.frames import check_cell
from sog_mace.cli import eval_configs, export
from sog_mace.cli.run_train import build_parser, parse_args

OPTIONS = text_of("docs/guide/options.md")
PYTHON_BLOCKS = [
    (page, code)
    for page in ("README.md", "docs/start/ase.md", "docs/guide/charges.md")
    for code in blocks(page, "python")
]
NAMES = ["readme", "ase", "charges of ase", "charges in ase", "spectrum", "charges"]
SHORT = {"20_000": "200", "resolution=10.0": "resolution=400.0"}  # of the trajectory
TRAININGS = [
    (page, words[1:])
    for page in pages()
    for words in commands(page)
    if words[0] == "sog_mace_run_train" and "..." not in words
]


@pytest.mark.parametrize(("page", "code"), PYTHON_BLOCKS, ids=NAMES)
def test_python_block_runs(page, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for written, shorter in SHORT.items():
        code = code.replace(written, shorter)
    torch.save(make_sogmace(SOGConfig()), "my_model.model")
    ase.io.write("structure.xyz", water_box())
    torch.set_default_dtype(torch.float32)
    exec(compile(code, page, "exec"), {})  # noqa: S102


@pytest.mark.parametrize(("page", "words"), TRAININGS, ids=[page for page, _ in TRAININGS])
def test_training_command_is_understood(page, words):
    assert parse_args(words).train_file == "train.xyz", page


def test_training_commands_are_found():
    assert {page for page, _ in TRAININGS} >= {
        "README.md",
        "docs/start/mace.md",
        "docs/guide/charge_states.md",
    }


def test_other_commands_are_understood():
    parsers = {
        "sog_mace_eval_configs": eval_configs.build_parser,
        "sog_mace_export": export.build_parser,
    }
    found = [words for page in pages() for words in commands(page) if words[0] in parsers]
    assert {words[0] for words in found} == set(parsers)
    for words in found:
        parsers[words[0]]().parse_args(words[1:])


def test_option_tables_state_the_defaults():
    args = build_parser().parse_args(["--name=x"])
    rows = re.findall(r"^\| (`--sog_[^|]*) \| ([^|]*) \|", OPTIONS, re.MULTILINE)
    listed = []
    for names, defaults in rows:
        options = re.findall(r"--(\w+)", names)
        listed += options
        stated = [text.strip("` Å").replace("empty", "") for text in defaults.split(",")]
        actual = [getattr(args, option) for option in options]
        assert [str(value).removesuffix(".0") for value in actual] == stated
    assert sorted(listed) == sorted(name for name in vars(args) if name.startswith("sog_"))


def test_options_that_pages_name_exist():
    known = set(vars(build_parser().parse_args(["--name=x"])))
    for page in pages():
        named = set(re.findall(r"--(sog_\w+)", text_of(page))) - {"sog_NAME", "sog_"}
        assert named <= known, page


def test_frames_of_the_page_on_data_are_read():
    (text,) = blocks("docs/guide/data.md", "text")
    for line in text.splitlines():
        header = re.split(r"\s{3,}", line)[0]
        frame = ase.io.read(StringIO(f"1\n{header}\nH 0 0 0\n"), format="extxyz")
        check_cell(frame.cell.array, frame.pbc, line)
        flags = re.search(r'pbc="(.) (.) (.)"', line).groups()
        assert [flag == "T" for flag in flags] == frame.pbc.tolist()
