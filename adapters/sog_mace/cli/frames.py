"""Checks of the training data, before MACE builds graphs of them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import ase.io
import numpy as np
from mace.data import config_from_atoms
from mace.data.hdf5_dataset import HDF5Dataset, unpack_value
from mace.data.lmdb_dataset import LMDBDataset

from sog_longrange import BoundaryError, HostError, InputError, SOGConfig
from sog_longrange.errors import explain
from sog_longrange.frames import check_cell, check_label, check_positions
from sog_longrange.validation import WHOLE
from sog_mace.cells import check_stress_label, stress_label

SHOWN = 5
"""Frames that a message names before it says how many more there are."""

TENSOR = ((3, 3), (9,), (6,))
TENSORS = ("stress", "virials")
_SPAN = 1e-3


class Source(NamedTuple):
    """A file of frames, what it is for, and where labels are in it.

    Attributes
    ----------
    path : str
    name : str
        Set and head that its frames belong to.
    keys : mace.data.KeySpecification
    """

    path: str
    name: str
    keys: Any

    def frames(self) -> Iterator[tuple[str, Any]]:
        """Read the file again; yields a name and the configuration of each frame."""
        for index, atoms in enumerate(ase.io.iread(self.path, ":")):
            _take_results(atoms)
            frame = config_from_atoms(atoms, key_specification=self.keys)
            yield f"frame {index} of {self.path} ({self.name})", frame


def check_frame(where: str, frame: Any, keys: Mapping[str, str], config: SOGConfig) -> None:
    """Refuse a frame that would end the training later, or spoil it in silence.

    Parameters
    ----------
    where : str
        Names the frame, for the message.
    frame : mace.data.Configuration
    keys : mapping
        Name of each label in the data.
    config : SOGConfig
        Options of the long-range part.

    Raises
    ------
    InputError
        If positions, cell or a label are malformed or not finite, or a total charge is no number,
        or no whole number where it must be, or there is the stress of a frame without a volume.
    BoundaryError
        If the frame is periodic along one or two axes and the kernel is "ewald".
    """
    check_positions(frame.positions, where)
    check_cell(frame.cell, frame.pbc, where)
    _check_boundary(where, frame, config)
    labels = frame.properties
    n_atoms = len(frame.positions)
    shapes: dict[str, Sequence[tuple[int, ...]]] = {"energy": [()], "forces": [(n_atoms, 3)]}
    for name, allowed in (shapes | dict.fromkeys(TENSORS, TENSOR)).items():
        if labels.get(name) is not None:
            check_label(keys.get(name, name), labels[name], allowed, where)
    check_stress_label(where, frame.pbc, frame.cell, stress_label(frame))
    if labels.get("total_charge") is not None:
        _check_total_charge(where, labels["total_charge"], keys, config)


def read_checked(
    read: Callable[..., Any], config: SOGConfig, *args: Any, **kwargs: Any
) -> tuple[Any, list[Source]]:
    """Read the data of a head by MACE and check each frame, naming it as it is in its file.

    Parameters
    ----------
    read : callable
        MACE's `get_dataset_from_xyz`.
    config : SOGConfig
        Options of the long-range part.
    *args, **kwargs
        Of `read`.

    Returns
    -------
    result
        What `read` returns.
    list of Source
        The files that were read.

    Raises
    ------
    InputError, BoundaryError
        As :func:`check_frame`.
    """
    told = inspect.signature(read).bind(*args, **kwargs).arguments
    sources, keys = _sources(told), told["key_specification"]
    try:
        result = read(*args, **kwargs)
        for name, frames in _sets(result[0]):
            for index, frame in enumerate(frames):
                check_frame(f"frame {index} of the set {name!r}", frame, _names(keys), config)
    except Exception:
        # The frame as the user knows it; MACE has dropped and shuffled some by now.
        _check_sources(sources, config)
        raise
    return result, sources


def _check_sources(sources: list[Source], config: SOGConfig) -> None:
    """Check all frames of files, whatever else may be wrong with these."""
    with suppress(OSError, KeyError, TypeError):
        for source in sources:
            for where, frame in source.frames():
                check_frame(where, frame, _names(source.keys), config)


def resolve_constraint(
    config: SOGConfig, heads: list[Any], sources: list[Source], streamed: bool | None = None
) -> SOGConfig:
    """Decide on the charge constraint by the total charges of the data.

    Parameters
    ----------
    config : SOGConfig
        Options of the long-range part.
    heads : list of mace.tools.multihead_tools.HeadConfig
        Data that MACE has read; sets that stream from files hold no frames here.
    sources : list of Source
        The files that they were read from.
    streamed : bool, optional
        Whether all frames that are streamed have a total charge; None without any.

    Returns
    -------
    SOGConfig
        Whose `charge_constraint` is not "auto".

    Raises
    ------
    InputError
        If a frame has no total charge where others have, or where the options need one.
    """
    known = [_has_charge(frame) for frame in _all_frames(heads)]
    known += [] if streamed is None else [streamed]
    everywhere = bool(known) and all(known)
    wanted = config.needs_total_charge or (config.charge_constraint == "auto" and any(known))
    if wanted and not everywhere:
        raise _missing_charges(config, sources)
    resolved = config.resolve(everywhere)
    if resolved != config:
        logging.info("Charge constraint of the long-range part: %s", resolved.charge_constraint)
        if resolved.charge_constraint == "neutral":
            _warn_of_odd_electrons(heads, sources)
    return resolved


def check_streams(dataset: Any, config: SOGConfig) -> None:
    """Refuse files without total charges where they matter: MACE would take them as zero.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        What MACE trains on; datasets inside of it are looked at, too. Validation and test sets
        that stream from files are not, and must have total charges as the training set has.
    config : SOGConfig
        Options of the long-range part.

    Raises
    ------
    InputError
        If a total charge is missing where the options need one.
    HostError
        If the data stream from LMDB files, which do not tell.
    """
    if not config.needs_total_charge:
        return
    for part in getattr(dataset, "datasets", []):
        check_streams(part, config)
    if isinstance(dataset, LMDBDataset):
        raise HostError(
            "Total charges of LMDB files cannot be checked, and MACE takes missing ones as zero. "
            "Convert the data to extxyz or, with mace_prepare_data, to HDF5."
        )
    if isinstance(dataset, HDF5Dataset):
        for batch in dataset.file.values():
            for frame in batch.values():
                stored = frame["properties"].get("total_charge")
                if stored is None or unpack_value(stored[()]) is None:
                    raise _no_total_charge(f"{frame.name} of {dataset.file_path}")


def _check_boundary(where: str, frame: Any, config: SOGConfig) -> None:
    periodic = np.asarray(frame.pbc, dtype=bool)
    if periodic.all() or not periodic.any():
        return
    if config.kernel == "ewald":
        expected = "all true or all false in each frame with the Ewald kernel"
        remedy = "Slabs and wires need a sum of Gaussians: choose another kernel."
        raise BoundaryError(explain("pbc", expected, f"{frame.pbc} in {where}", remedy))
    rows = np.where(periodic[:, None], frame.cell, np.eye(3))
    if abs(np.linalg.det(rows)) < _SPAN * np.linalg.norm(rows, axis=1).prod():
        expected = "with its non-periodic directions along x, y or z"
        remedy = "MACE puts Cartesian axes in the place of non-periodic lattice vectors: turn it."
        raise InputError(explain("cell", expected, f"{rows.tolist()} in {where}", remedy))


def _check_total_charge(
    where: str, charge: Any, keys: Mapping[str, str], config: SOGConfig
) -> None:
    key = keys.get("total_charge", "total_charge")
    check_label(key, charge, [(), (1,)], where)
    value = float(np.asarray(charge, dtype=float).reshape(()))
    may_matter = config.needs_total_charge or config.charge_constraint == "auto"
    if may_matter and not config.fractional_charge and abs(value - round(value)) > WHOLE:
        remedy = "Correct it, or pass --sog_fractional_charge=True if that is meant."
        raise InputError(explain(key, "a whole number of e", f"{value:g} in {where}", remedy))


def _missing_charges(config: SOGConfig, sources: list[Source]) -> InputError:
    lost = [where for where, frame in _frames(sources) if not _has_charge(frame)]
    lost = lost or ["data that are streamed or replayed"]
    if config.needs_total_charge:
        return _no_total_charge(_listed(lost))
    expected = "in every frame or in none with charge_constraint='auto'"
    remedy = "Add it to these frames, or choose --sog_charge_constraint=neutral, or none."
    return InputError(explain("total_charge", expected, f"none in {_listed(lost)}", remedy))


def _no_total_charge(where: str) -> InputError:
    expected = "in every frame with charge_embedding or charge_constraint='total'"
    remedy = "Add it to the data, or name its key by --total_charge_key."
    return InputError(explain("total_charge", expected, f"none in {where}", remedy))


def _warn_of_odd_electrons(heads: list[Any], sources: list[Source]) -> None:
    if not any(_is_odd(frame) for frame in _all_frames(heads)):
        return
    odd = [where for where, frame in _frames(sources) if _is_odd(frame)]
    logging.warning(
        "These frames have an odd number of electrons when neutral, and the data hold no total "
        "charges, so that their latent charges sum to zero: %s. If they are ions, add "
        "total_charge=... to every frame; if they are radicals or metals all is well.",
        _listed(odd),
    )


def _listed(names: list[str]) -> str:
    """Name the first of a list, and say how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _has_charge(frame: Any) -> bool:
    return frame.properties.get("total_charge") is not None


def _is_odd(frame: Any) -> bool:
    return bool(np.sum(frame.atomic_numbers) % 2)


def _is_isolated(frame: Any) -> bool:
    return len(frame.positions) == 1 and frame.config_type == "IsolatedAtom"


def _names(keys: Any) -> dict[str, str]:
    return {**keys.info_keys, **keys.arrays_keys}


def _sources(told: Mapping[str, Any]) -> list[Source]:
    head, keys, found = told.get("head_name", "Default"), told["key_specification"], []
    for name in ("train", "valid", "test"):
        paths = told.get(f"{name}_path") or []
        paths = [paths] if isinstance(paths, str) else paths
        found += [Source(path, f"set {name!r} of head {head!r}", keys) for path in paths]
    return found


def _frames(sources: list[Source]) -> Iterator[tuple[str, Any]]:
    """Read all frames again that MACE trains on: not those of isolated atoms."""
    for source in sources:
        yield from (named for named in source.frames() if not _is_isolated(named[1]))


def _sets(collections: Any) -> list[tuple[str, list[Any]]]:
    named = [("train", collections.train), ("valid", collections.valid)]
    return [(name, frames or []) for name, frames in [*named, *(collections.tests or [])]]


def _all_frames(heads: list[Any]) -> Iterator[Any]:
    for head in heads:
        if head.collections is not None:
            for _, frames in _sets(head.collections):
                yield from frames


def _take_results(atoms: Any) -> None:
    """Put what ASE moved into a calculator where MACE would put it."""
    results = getattr(atoms.calc, "results", {})
    for name, store in (("energy", atoms.info), ("forces", atoms.arrays), ("stress", atoms.info)):
        if name in results:
            store.setdefault(f"REF_{name}", results[name])
