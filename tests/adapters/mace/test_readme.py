"""The code blocks and options of the README and of the page on charges work as written."""

import re
from pathlib import Path

import ase.io
import pytest
import torch
from mace_builders import make_sogmace, water_box

from sog_longrange import SOGConfig
from sog_mace.cli.run_train import build_parser, parse_args

ROOT = Path(__file__).parents[3]
README, CHARGES = ((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/charges.md"))
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README + CHARGES, re.DOTALL)
NAMES = ["ase", "own model", "large", "charges in ase", "spectrum", "charges"]
SHORT = {"20_000": "200", "resolution=10.0": "resolution=400.0"}  # of the trajectory


@pytest.mark.parametrize("code", PYTHON_BLOCKS, ids=NAMES)
def test_python_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for written, shorter in SHORT.items():
        code = code.replace(written, shorter)
    torch.save(make_sogmace(SOGConfig()), "my_model.model")
    ase.io.write("structure.xyz", water_box())
    torch.set_default_dtype(torch.float32)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102


def test_training_command_is_understood():
    (command,) = re.findall(r"^sog_mace_run_train (.*?)\n```", README, re.DOTALL | re.MULTILINE)
    words = re.findall(r"(--\w+(?:=(?:'[^']*'|\S+))?)", command.replace("\\\n", " "))
    args = parse_args([word.replace("'", "") for word in words])
    assert args.hidden_irreps == "64x0e + 64x1o"


def test_option_table_states_the_defaults():
    args = build_parser().parse_args(["--name=x"])
    rows = re.findall(r"^\| (`--sog_[^|]*) \| ([^|]*) \|", README, re.MULTILINE)
    assert len(rows) >= 6
    for names, defaults in rows:
        options = re.findall(r"--(\w+)", names)
        stated = [text.strip("` Å") for text in defaults.split(",")]
        actual = [getattr(args, option) for option in options]
        assert [type(value)(text) for value, text in zip(actual, stated, strict=True)] == actual
