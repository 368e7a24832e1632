"""Ordinary input files of LAMMPS with ``pair_style sog``."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from sog_longrange.ase_support import EXTERNAL_FIELD, TOTAL_CHARGE, open_calculator
from sog_longrange.errors import InputError, explain

from .couple import FAILED, Couple, attach
from .library import start_lammps, world_of

_ANSWERS: Final = {"yes": True, "no": False}
_RUNS: Final = ("run", "minimize", "rerun")
_QUOTED_RUN: Final = re.compile(rf"[\"']\s*({'|'.join(_RUNS)})\b")
_OURS: Final = re.compile(rf"^\s*(pair_style|{'|'.join(_RUNS)})\b", re.MULTILINE)
_CHECK: Final = f'if "${{{FAILED}}} > 0.5" then "sog_stops_here"\n'
"""Line behind a run, so that LAMMPS does not go on with the input after an error."""


class Style(NamedTuple):
    """Words of ``pair_style sog``.

    Attributes
    ----------
    device : str
    decompose : bool or None
    info : dict
    virial : bool
    """

    device: str = "cpu"
    decompose: bool | None = None
    info: dict[str, Any] = {}  # noqa: RUF012
    virial: bool = True


class _Line(NamedTuple):
    """A command, with all lines that it goes on in."""

    text: str
    words: list[str]


def run_input(path: str | Path, arguments: Sequence[str] = (), comm: Any = None) -> Any:
    """Run an input file that may have ``pair_style sog`` and ``pair_coeff * * FILE ... H O``.

    Parameters
    ----------
    path : str or Path
    arguments : sequence of str
        Options of the command line of LAMMPS.
    comm : mpi4py.MPI.Comm, optional
        By default all ranks.

    Returns
    -------
    lammps.lammps
        After the last command.

    Raises
    ------
    InputError
        If the file is missing, or words of the style are wrong.
    Exception
        Those of models and of LAMMPS.
    """
    source = Path(path)
    lines = list(_read(source))
    lmp = start_lammps(arguments, comm)
    with tempfile.TemporaryDirectory() as folder:
        _Runner(lmp, source.name, Path(folder)).run(lines)
    return lmp


class _Runner:
    """Runs pieces of an input between the commands that are ours."""

    def __init__(self, lmp: Any, name: str, folder: Path) -> None:
        self.lmp, self.name, self.folder = lmp, name, folder
        self.style: Style | None = None
        self.piece: list[str] = []
        self.couple: Couple | None = None
        self.lacks_style = False

    def run(self, lines: Sequence[_Line]) -> None:
        for line in lines:
            if line.words[:2] == ["pair_style", "sog"]:
                self._forget(unfixes=True)
                self._flush()
                self.style = read_style(self._expand(line.text)[2:])
            elif self.style is not None and line.words[:1] == ["pair_coeff"]:
                self._flush()
                self._attach(self.style, self._expand(line.text)[1:])
            else:
                self._keep(line)
        self._flush()

    def _keep(self, line: _Line) -> None:
        """Leave a command to LAMMPS."""
        first = line.words[0] if line.words else ""
        self.lacks_style |= first == "read_restart"
        if first in ("pair_style", "clear"):
            self._forget(unfixes=first == "pair_style")
        runs = first in _RUNS or (first == "if" and bool(_QUOTED_RUN.search(line.text)))
        if runs and self.lacks_style:
            expected = "with a pair_style between read_restart and the next run"
            remedy = "Write `pair_style sog` and `pair_coeff` again: restart files have no models."
            raise InputError(explain("input", expected, line.text.strip(), remedy))
        self.piece.append(self._rewrite(first, line.text))
        if runs and self.couple is not None:
            self.piece.append(_CHECK)

    def _forget(self, *, unfixes: bool) -> None:
        """Take the model out of what follows."""
        if unfixes and self.couple is not None:
            self.piece.append(f"unfix {self.couple.fix}\nunfix {self.couple.fix}_charge\n")
        self.style, self.couple, self.lacks_style = None, None, False

    def _rewrite(self, first: str, text: str) -> str:
        """Name the file that a command stands in now, and leave pair coefficients out of data."""

        def to_self(match: re.Match[str]) -> str:
            is_own = Path(match[1]).name == self.name
            return "jump SELF" if is_own else match[0]

        if first == "write_data" and self.couple is not None and "nocoeff" not in text:
            return f"{_joined(text).split('#')[0].rstrip()} nocoeff\n"
        return re.sub(r"\bjump\s+([^\s\"']+)", to_self, text)

    def _flush(self) -> None:
        """Run the commands so far, from a file, as jumps need."""
        text, self.piece = "".join(self.piece), []
        if not text.strip():
            return
        comm = world_of(self.lmp)
        path = self.folder / self.name
        if comm.rank == 0:
            path.write_text(text, encoding="utf-8")
        # Only the first rank reads it, but each has a folder of its own.
        self.lmp.file(comm.bcast(str(path)))

    def _expand(self, text: str) -> list[str]:
        """Words of a command, with its variables replaced."""
        expanded = self.lmp.expand(_joined(text)) if "$" in text else _joined(text)
        return shlex.split(expanded or "", comments=True)

    def _attach(self, style: Style, words: list[str]) -> None:
        """Act on the words of ``pair_coeff``."""
        if words[:2] != ["*", "*"]:
            remedy = "The elements of all atom types follow the files of the model."
            raise InputError(explain("pair_coeff", "* * FILE ... H O", " ".join(words), remedy))
        files = [word for word in words[2:] if "." in word]
        elements = [word for word in words[2:] if "." not in word]
        calculator = open_calculator(files, style.device)
        self.couple = attach(
            self.lmp,
            calculator,
            elements,
            decompose=style.decompose,
            info=style.info,
            virial=style.virial,
        )


def read_style(words: Sequence[str]) -> Style:
    """Read the words behind ``pair_style sog``.

    Parameters
    ----------
    words : sequence of str
        ``device cuda``, ``decompose yes|no``, ``virial yes|no``, ``charge Q`` in e and
        ``field X Y Z`` in V/Å, in any order.

    Returns
    -------
    Style

    Raises
    ------
    InputError
        If a word is unknown or lacks its value.
    """
    style, left = Style(info={}), list(words)
    while left:
        word = left.pop(0)
        try:
            if word == "device":
                style = style._replace(device=left.pop(0))
            elif word == "decompose":
                style = style._replace(decompose=_ANSWERS[left.pop(0)])
            elif word == "virial":
                style = style._replace(virial=_ANSWERS[left.pop(0)])
            elif word == "charge":
                style.info[TOTAL_CHARGE[0]] = float(left.pop(0))
            elif word == "field":
                style.info[EXTERNAL_FIELD] = [float(left.pop(0)) for _ in range(3)]
            else:
                raise KeyError(word)
        except (IndexError, KeyError, ValueError) as error:
            expected = "device D, decompose yes|no, virial yes|no, charge Q, field X Y Z"
            raise InputError(explain("pair_style sog", expected, " ".join(words))) from error
    return style


def _read(path: Path) -> Iterator[_Line]:
    """Commands of a file, those of included files that have our style in their place."""
    if not path.is_file():
        raise InputError(explain("input", "a file of LAMMPS commands", f"{path}: no such file"))
    text, quoted = "", False
    for raw in path.read_text(encoding="utf-8").splitlines(keepends=True):
        text += raw
        quoted ^= raw.count('"""') % 2 == 1
        if quoted or raw.rstrip().endswith("&"):
            continue
        yield from _place(_Line(text if text.endswith("\n") else f"{text}\n", _words(text)), path)
        text = ""
    if text:
        yield _Line(f"{text}\n", _words(text))


def _place(line: _Line, path: Path) -> Iterator[_Line]:
    """Yield a command, or those of the file that it includes, if we act on one of them."""
    if line.words[:1] == ["include"] and len(line.words) == 2 and "$" not in line.words[1]:
        named = Path(line.words[1])
        included = named if named.exists() else path.parent / named
        if included.is_file() and _OURS.search(included.read_text(encoding="utf-8")):
            yield from _read(included)
            return
    yield line


def _joined(text: str) -> str:
    return re.sub(r"&\s*\n", " ", text)


def _words(text: str) -> list[str]:
    """Words of a command without its comment, as far as it is ours."""
    return _joined(text).split("#")[0].split()
