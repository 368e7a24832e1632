"""Libraries that only some users need, loaded where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import MissingLibraryError, explain


def load_library(name: str, extra: str) -> ModuleType:
    """Import a module of an optional library.

    Parameters
    ----------
    name : str
        Dotted name of the module.
    extra : str
        Extra of this package that installs the library.

    Returns
    -------
    module

    Raises
    ------
    MissingLibraryError
        If it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        remedy = f'Install it: pip install "sog-longrange[{extra}]"'
        raise MissingLibraryError(explain(name, "importable", str(error), remedy)) from error
