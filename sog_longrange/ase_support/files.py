"""Files of models of any host, opened as ASE calculators."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final

from sog_longrange.errors import InputError, explain
from sog_longrange.hosts import load_library

GROUP: Final = "sog_longrange.calculators"
"""Entry points by which adapters name the endings of their files, and what opens them."""


def open_calculator(paths: str | Path | Sequence[str | Path], device: str = "cpu") -> Any:  # noqa: ANN401
    """Open a file of a trained model, or those of a committee, as an ASE calculator.

    Parameters
    ----------
    paths : str or Path, or sequence of them
        Of one host: the ending of the file names tells which. Several are a committee.
    device : str
        Where the model is evaluated.

    Returns
    -------
    ase.calculators.calculator.Calculator
        With the results of :class:`~sog_longrange.ase_support.ChargesInASE`.

    Raises
    ------
    InputError
        If a file is missing, or its ending is no adapter's, or files are of several.
    MissingLibraryError
        If the host of the model is not installed.
    HostError
        If the host cannot open the file, or has no committees.
    """
    given = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not given:
        raise InputError(explain("paths", "at least one file of a model", "none"))
    for path in given:
        if not path.exists():
            raise InputError(explain("paths", "a file of a trained model", f"{path}: no such file"))
    found = {entry.value: entry for entry in map(_find_entry, given)}
    if len(found) > 1:
        got = ", ".join(str(path) for path in given)
        raise InputError(explain("paths", "files of one host", got))
    (entry,) = found.values()
    module = load_library(entry.module, *entry.extras)
    return getattr(module, entry.attr)(given, device)


def _find_entry(path: Path) -> EntryPoint:
    """Entry point of the longest ending that a file name has."""
    entries = entry_points(group=GROUP)
    fitting = [entry for entry in entries if path.name.endswith(f".{entry.name}")]
    if not fitting:
        endings = ", ".join(sorted(f".{entry.name}" for entry in entries))
        raise InputError(explain("paths", f"files whose names end in one of {endings}", str(path)))
    return max(fitting, key=lambda entry: len(entry.name))
