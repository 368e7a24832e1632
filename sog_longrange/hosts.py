"""Versions of a host framework that its adapter works with."""

from __future__ import annotations

import importlib
import re
from types import ModuleType
from typing import NamedTuple

from .errors import HostError, MissingLibraryError, explain


class SupportedVersions(NamedTuple):
    """Range of versions of a package.

    Attributes
    ----------
    package : str
        Name by which pip knows it.
    oldest : str
        First version that is supported, of numbers and dots.
    limit : str
        First version that is not supported any more.
    """

    package: str
    oldest: str
    limit: str

    def __str__(self) -> str:
        return f"{self.package}>={self.oldest},<{self.limit}"

    @property
    def remedy(self) -> str:
        """What to do about a version outside the range."""
        return f'Install a supported one: pip install "{self}".'

    def check(self, version: str) -> None:
        """Raise `HostError` unless a version is in the range.

        Parameters
        ----------
        version : str
            Pre-releases and builds count as the release that they are named after.
        """
        depth = max(self.oldest.count("."), self.limit.count(".")) + 1
        oldest, given, limit = (
            [int(part) for part in re.findall(r"\d+", text)[:depth]]
            for text in (self.oldest, version, self.limit)
        )
        if not oldest <= given < limit:
            raise HostError(explain(self.package, f"in the range {self}", version, self.remedy))


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
