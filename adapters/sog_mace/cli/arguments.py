"""What the command lines of the adapter do alike."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sog_longrange import HostError, InputError, SOGError
from sog_longrange.errors import explain
from sog_longrange.hosts import explain_old_models
from sog_mace.model import SOGMACE


def parse(
    parser: argparse.ArgumentParser, program: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse a command line, suggesting the nearest name for an unknown option.

    Parameters
    ----------
    parser : ArgumentParser
    program : str
        Name of the command.
    argv : sequence of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    Namespace
    """
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        options = [word.split("=")[0] for word in unknown if word.startswith("--")]
        known = [name for action in parser._actions for name in action.option_strings]
        hints = [_suggest(option, known) for option in options] or unknown
        parser.exit(2, f"{program}: unrecognized arguments: {'; '.join(hints)}\n")
    return args


def _suggest(option: str, known: list[str]) -> str:
    near = difflib.get_close_matches(option, known, n=1)
    return f"{option} (did you mean {near[0]}?)" if near else option


def end_in_one_line(program: str, work: Callable[[], None]) -> None:
    """Run what a command does, and end errors that are the user's to mend in one line.

    Parameters
    ----------
    program : str
        Name of the command, which begins the line.
    work : callable

    Raises
    ------
    SystemExit
        With exit status 1 after a `SOGError`.
    """
    try:
        work()
    except SOGError as error:
        # Errors of data that workers read come with a traceback in them.
        text = str(error).rpartition(f"\n{type(error).__module__}.{type(error).__name__}: ")[2]
        message = " ".join(text.split())
        raise SystemExit(f"{program}: {message}") from error


def run_command(
    program: str,
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None,
) -> None:
    """Do what a command line says: all that a command's `main` does.

    Parameters
    ----------
    program : str
        Name of the command.
    parser : ArgumentParser
    run : callable
        Takes the arguments.
    argv : sequence of str, optional
        Arguments; those of the process by default.

    Raises
    ------
    SystemExit
        As :func:`end_in_one_line`, and with exit status 2 for unknown options.
    """
    args = parse(parser, program, argv)
    end_in_one_line(program, lambda: run(args))


def check_output(path: str) -> None:
    """Raise `InputError` unless a file can be written there, before there is any work to lose.

    Parameters
    ----------
    path : str
    """
    if not Path(path).absolute().parent.is_dir():
        raise InputError(explain("output", "in a folder that exists", repr(path)))


def load_model(path: str, device: str | None = None) -> SOGMACE:
    """Load a SOGMACE model from a file.

    Parameters
    ----------
    path : str
    device : str, optional
        By default the one it was saved on.

    Returns
    -------
    SOGMACE

    Raises
    ------
    InputError
        If the file cannot be read, or an older version of this package wrote it.
    HostError
        If it holds something else.
    """
    try:
        with explain_old_models(f"{path!r}"):
            model: Any = torch.load(path, map_location=device, weights_only=False)
    except SOGError:
        raise
    except Exception as error:  # Whatever the file holds decides what is raised.
        expected = "the readable file of a model"
        raise InputError(explain("model", expected, f"{path!r}: {error!r}")) from error
    if not isinstance(model, SOGMACE):
        raise HostError(
            explain(
                "model",
                "a SOGMACE model",
                f"{type(model).__name__} in {path!r}",
                "Models without a long-range part are for MACE's own commands.",
            )
        )
    return model
