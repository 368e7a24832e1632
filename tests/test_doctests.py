"""The examples in the docstrings run and give what they say."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import sog_longrange

MODULES = [
    "sog_longrange",
    *(m.name for m in pkgutil.walk_packages(sog_longrange.__path__, "sog_longrange.")),
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    if ".triton_" in name:
        pytest.importorskip("triton", reason="triton is not installed")
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


@pytest.mark.parametrize("name", ["sog_longrange.energy", "sog_longrange.testing"])
def test_examples_are_found(name):
    assert doctest.testmod(importlib.import_module(name)).attempted > 0


def test_the_block_of_the_page_on_hosts_runs():
    page = Path(__file__).parents[1] / "docs" / "extend" / "add_a_host.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    names = {}
    exec(compile(code, str(page), "exec"), names)  # noqa: S102
    assert names["energy"].shape == (1,)
