"""Run training commands as in a shell, and show the lines of their logs that matter."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

from workbench.training import TAIL, TrainingError, find_command

STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ (INFO|WARNING): ?")


def run(folder: Path | str, *commands: str) -> None:
    """Run commands at the same time, on one core each, until all have ended.

    Parameters
    ----------
    folder : where they run; what the n-th prints goes into ``log_n.txt`` there.
    commands : as they are typed in a shell; line breaks do not matter.

    Raises
    ------
    TrainingError
        If one fails, with the end of what it printed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    running = []
    for number, command in enumerate(commands):
        name, *options = shlex.split(command)
        with _log(folder, number).open("wb") as log:
            running.append(
                subprocess.Popen(  # noqa: S603
                    [find_command(name), *options],
                    cwd=folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                )
            )
    for number, process in enumerate(running):
        if process.wait():
            lines = _log(folder, number).read_text("utf-8", "replace").splitlines()[-TAIL:]
            raise TrainingError(f"{commands[number]}\nfailed:\n" + "\n".join(lines))


def _log(folder: Path | str, number: int) -> Path:
    return Path(folder) / f"log_{number}.txt"


def log_lines(folder: Path | str, *patterns: str, number: int = 0, width: int = 110) -> str:
    """Lines of a log that contain one of some patterns, without the time.

    Parameters
    ----------
    folder : where the command ran.
    patterns : regular expressions.
    number : which of the commands of :func:`run`.
    width : longer lines are broken at spaces.

    Returns
    -------
    str
    """
    wanted = re.compile("|".join(patterns))
    text = _log(folder, number).read_text("utf-8", "replace")
    lines = [STAMP.sub("", line) for line in text.splitlines()]
    return "\n".join(_broken(line, width) for line in lines if wanted.search(line))


def summary(folder: Path | str, number: int = 0) -> str:
    """The summary that ``sog_mace_run_train`` prints after a training.

    Parameters
    ----------
    folder : where the command ran.
    number : which of the commands of :func:`run`.

    Returns
    -------
    str
    """
    lines = _log(folder, number).read_text("utf-8", "replace").splitlines()
    lines = [STAMP.sub("", line) for line in lines if STAMP.match(line)]
    start = next(i for i, line in enumerate(lines) if line.startswith("Latent charges of"))
    kept = [line for line in lines[start:] if not line.startswith("TorchScript")]
    return "\n".join(_broken(line, 110) for line in kept)


def _broken(line: str, width: int) -> str:
    """Break a long line at spaces, with the rest indented."""
    parts, rest = [], line
    while len(rest) > width and " " in rest[8:width]:
        at = rest.rindex(" ", 8, width)
        parts.append(rest[:at])
        rest = "      " + rest[at + 1 :]
    return "\n".join([*parts, rest])
