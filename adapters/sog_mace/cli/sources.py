"""Files of frames, what MACE reads of them, and how messages name their frames."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import ase.io
from mace.data import config_from_atoms

SHOWN = 5
"""Frames that a message names before it says how many more there are."""


class Listing:
    """Names of frames, of which a message shows the first few.

    Parameters
    ----------
    names : iterable of str
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.first: list[str] = []
        self.count = 0
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        """Add a name."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(name)

    def extend(self, other: Listing) -> None:
        """Add the names of another listing, of which only the first are known."""
        self.first = [*self.first, *other.first][:SHOWN]
        self.count += other.count

    def __len__(self) -> int:
        return self.count

    def __str__(self) -> str:
        more = self.count - len(self.first)
        return ", ".join(self.first) + (f" and {more} more" if more > 0 else "")


class Source(NamedTuple):
    """A file of frames, what it is for, and where labels are in it.

    Attributes
    ----------
    path : str
    name : str
        Set and head that its frames belong to.
    keys : mace.data.KeySpecification
    drops_isolated : bool
        Whether MACE takes the energies of isolated atoms from it and trains on the others.
    """

    path: str
    name: str
    keys: Any
    drops_isolated: bool = False

    def frames(self) -> Iterator[tuple[str, Any]]:
        """Read the file again; yields a name and the configuration of each frame."""
        for index, atoms in enumerate(ase.io.iread(self.path, ":")):
            _take_results(atoms, self.keys)
            frame = config_from_atoms(atoms, key_specification=self.keys)
            yield f"frame {index} of {self.path} ({self.name})", frame


def frames_of(sources: list[Source]) -> Iterator[tuple[str, Any]]:
    """Read all frames again that MACE trains on or tests.

    Parameters
    ----------
    sources : list of Source

    Yields
    ------
    str, mace.data.Configuration
        Name of a frame, and what MACE makes of it.
    """
    for source in sources:
        for where, frame in source.frames():
            if not (source.drops_isolated and _is_isolated(frame)):
                yield where, frame


def sources_of(given: Mapping[str, Any]) -> list[Source]:
    """List the files that MACE reads for a head.

    Parameters
    ----------
    given : mapping
        Arguments of MACE's `get_dataset_from_xyz`.

    Returns
    -------
    list of Source
    """
    head, found = given.get("head_name"), []
    keys = copy.deepcopy(given["key_specification"])  # MACE changes its own while it reads.
    of_head = f" of head {head!r}" if head else ""
    for name in ("train", "valid", "test"):
        paths = given.get(f"{name}_path") or []
        paths = [paths] if isinstance(paths, str) else paths
        drops = name == "train" and not given.get("keep_isolated_atoms")
        found += [Source(path, f"set {name!r}{of_head}", keys, drops) for path in paths]
    return found


def sets_of(collections: Any) -> list[tuple[str, list[Any]]]:
    """List the sets of frames that MACE read, with their names.

    Parameters
    ----------
    collections : mace.tools.scripts_utils.SubsetCollection

    Returns
    -------
    list of (str, list of mace.data.Configuration)
    """
    named = [("train", collections.train), ("valid", collections.valid)]
    return [(name, frames or []) for name, frames in [*named, *(collections.tests or [])]]


def all_frames(collections: Any) -> Iterator[Any]:
    """Iterate over the frames of all sets that MACE read.

    Parameters
    ----------
    collections : mace.tools.scripts_utils.SubsetCollection

    Yields
    ------
    mace.data.Configuration
    """
    for _, frames in sets_of(collections):
        yield from frames


def _is_isolated(frame: Any) -> bool:
    return len(frame.positions) == 1 and frame.config_type == "IsolatedAtom"


def _take_results(atoms: Any, keys: Any) -> None:
    """Put what ASE moved into a calculator back where its key says that it is."""
    results = getattr(atoms.calc, "results", {})
    for names, store in ((keys.info_keys, atoms.info), (keys.arrays_keys, atoms.arrays)):
        for name in ("energy", "forces", "stress"):
            if names.get(name) == name and name in results:
                store[name] = results[name]
