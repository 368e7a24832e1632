"""Other packages: versions of host frameworks, optional libraries, files and features of models."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any, Final, NamedTuple

from torch import Tensor

from ._version import __version__
from .errors import HostError, InputError, MissingLibraryError, explain

_AGAIN: Final = "Train the model again, or export it with the version that wrote it."
_LOST: Final = re.compile(r"Can't get attribute '([\w.]+)' on <module '(sog_[\w.]+)'")

SCALARS: Final = (0, 1)
"""Degree and parity of scalars (0e)."""

VECTORS: Final = (1, -1)
"""Degree and parity of vectors (1o)."""


class SupportedVersions(NamedTuple):
    """Range of versions of a package.

    Attributes
    ----------
    package : str
        Its name for pip.
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

    def contains(self, version: str) -> bool:
        """Tell whether a version is in the range.

        Parameters
        ----------
        version : str
            Pre-releases and builds count as the release that they are named after.

        Returns
        -------
        bool
        """
        depth = max(self.oldest.count("."), self.limit.count(".")) + 1
        oldest, given, limit = (
            [int(part) for part in re.findall(r"\d+", text)[:depth]]
            for text in (self.oldest, version, self.limit)
        )
        return oldest <= given < limit

    def check(self, version: str) -> None:
        """Raise `HostError` unless a version is in the range.

        Parameters
        ----------
        version : str
            As for :meth:`contains`.
        """
        if not self.contains(version):
            raise HostError(explain(self.package, f"in the range {self}", version, self.remedy))


@lru_cache(maxsize=32)
def is_installed(name: str) -> bool:
    """Tell whether an optional library could be imported, without importing it.

    Parameters
    ----------
    name : str
        Name of a top-level module.

    Returns
    -------
    bool
    """
    return importlib.util.find_spec(name) is not None


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


def wrong_format(found: int, readable: int, version: str | None = None) -> InputError:
    """Return the error of a saved model in a format that this version does not read.

    Parameters
    ----------
    found : int
        Format of the model.
    readable : int
        Format that is read.
    version : str, optional
        Version of this package that wrote the model, if it says so.

    Returns
    -------
    InputError
    """
    writer = f"sog-longrange {version}" if version else f"a version before {__version__}"
    remedy = "Update sog-longrange." if found > readable else _AGAIN
    expected = f"of format {readable}, which sog-longrange {__version__} reads"
    return InputError(explain("model", expected, f"format {found} of {writer}", remedy))


@contextmanager
def explain_old_models(what: str = "a file") -> Iterator[None]:
    """Explain why a pickled model cannot be read if an older version of this package wrote it.

    Parameters
    ----------
    what : str
        What is read, for the message.

    Raises
    ------
    InputError
        If a module or class of this package that the file names does not exist.
    """
    try:
        yield
    except (ModuleNotFoundError, AttributeError) as error:
        lost = _lost_name(error)
        if lost is None:
            raise
        expected = f"a model that sog-longrange {__version__} reads"
        got = f"{what} of an older version, with `{lost}`"
        raise InputError(explain("model", expected, got, _AGAIN)) from error


def _lost_name(error: ImportError | AttributeError) -> str | None:
    """Dotted name of what a pickle names and this package lacks, None if it is another's."""
    if isinstance(error, ImportError):
        name = error.name or ""
        return name if name.split(".")[0].startswith("sog_") else None
    found = _LOST.search(str(error))
    return f"{found[2]}.{found[1]}" if found else None


def feature_slices(irreps: Any, degree: int, parity: int) -> list[slice]:  # noqa: ANN401
    """Where the features of one kind lie among those of an equivariant model.

    Parameters
    ----------
    irreps : e3nn.o3.Irreps
        Of all features.
    degree, parity : int
        Those of `SCALARS` or `VECTORS`.

    Returns
    -------
    list of slice
    """
    pairs = zip(irreps.slices(), irreps, strict=True)
    return [part for part, (_, kind) in pairs if (kind.l, kind.p) == (degree, parity)]


def count_columns(slices: list[slice]) -> int:
    """Count the columns of slices.

    Parameters
    ----------
    slices : list of slice
        From :func:`feature_slices`.

    Returns
    -------
    int
    """
    return sum(part.stop - part.start for part in slices)


def unflatten_vectors(columns: Tensor) -> Tensor:
    """Vectors of atoms from features of degree 1, in e3nn's order of the components: x, y, z.

    Parameters
    ----------
    columns : Tensor, shape (n_atoms, 3 n_vectors)
        One vector after another.

    Returns
    -------
    Tensor, shape (n_atoms, 3, n_vectors)
    """
    # Of a tensor in a graph, len() would fix the number of atoms.
    vectors: Tensor = columns.unflatten(1, (-1, 3)).transpose(1, 2)
    return vectors


def flatten_vectors(vectors: Tensor) -> Tensor:
    """Features of degree 1 from vectors: the inverse of :func:`unflatten_vectors`.

    Parameters
    ----------
    vectors : Tensor, shape (n_atoms, 3, n_vectors)

    Returns
    -------
    Tensor, shape (n_atoms, 3 n_vectors)
    """
    return vectors.transpose(1, 2).flatten(1)
