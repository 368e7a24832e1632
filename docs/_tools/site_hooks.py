"""What the documentation needs of Sphinx beyond its settings."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
from pygments import token
from pygments.lexer import RegexLexer, bygroups
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


class LammpsLexer(RegexLexer):
    """Colours of input files of LAMMPS."""

    name = "LAMMPS"
    aliases: ClassVar = ["lammps"]
    tokens: ClassVar = {
        "root": [
            (r"#.*$", token.Comment),
            (r"^(\s*)([a-z_]+)\b", bygroups(token.Text, token.Keyword)),
            (r"\$\{\w+\}|\$\w|\b[vcf]_\w+", token.Name.Variable),
            (r"\"[^\"\n]*\"|'[^'\n]*'", token.String),
            (r"(?<![\w.])[-+]?\d+\.?\d*(e[-+]?\d+)?(?![\w.])", token.Number),
            (r"\s+", token.Text),
            (r"[^\s#$\"']+|.", token.Text),
        ],
    }


def skip_member(app: Sphinx, what: str, name: str, member: Any, *_: Any) -> bool | None:  # noqa: ANN401
    """Leave out fields of tuples, which are among the attributes, and what a stand-in has."""
    is_field = type(member).__name__ == "_tuplegetter"
    return True if is_field or getattr(member, "__sphinx_mock__", False) else None


def accept_stand_ins(app: Sphinx) -> None:
    """Let adapters import beside stand-ins of their hosts, which have no version."""
    of_versions = SupportedVersions.contains

    def contains(self: SupportedVersions, version: object) -> bool:
        # Without NequIP, its adapter need not register anything.
        is_real = isinstance(version, str)
        return of_versions(self, version) if is_real else self.package != "nequip"

    SupportedVersions.contains = contains  # type: ignore[method-assign]
    warnings.filterwarnings("ignore", message="sog-longrange adds a long range to nequip")


def reset_tutorial(gallery_conf: dict[str, Any], name: str) -> None:
    """Begin every tutorial alike, whatever ran before it."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx when to call what."""
    app.add_lexer("lammps", LammpsLexer)
    app.connect("builder-inited", accept_stand_ins)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
