"""What the documentation needs of Sphinx beyond its settings."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import torch
from sphinx.application import Sphinx

from sog_longrange.hosts import SupportedVersions

MATHJAX = ("tex-chtml.js", "output/chtml/fonts/woff-v2")
"""What pages load of MathJax: TeX as input, and its fonts."""


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Put MathJax beside the pages, once these are written."""
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    if error is not None or app.builder.format != "html":
        return
    if package is None or package.origin is None:
        raise ModuleNotFoundError("sphinx-mathjax-offline: install the extra [docs]")
    source = Path(package.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for name in MATHJAX:
        goal = target / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, goal, dirs_exist_ok=True)
        else:
            shutil.copyfile(source / name, goal)


def skip_member(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool:  # noqa: ANN401
    """Leave out what Python writes itself: the fields of tuples are among the attributes."""
    return skip or type(member).__name__ == "_tuplegetter"


def accept_stand_ins(app: Sphinx) -> None:
    """Let adapters import beside stand-ins of their hosts, which have no version."""
    if app.config.autodoc_mock_imports:
        SupportedVersions.contains = lambda self, version: True  # type: ignore[method-assign]


def reset_tutorial(gallery_conf: dict[str, Any], name: str) -> None:
    """Begin every tutorial alike, whatever ran before it."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx when to call what."""
    app.connect("builder-inited", accept_stand_ins)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
