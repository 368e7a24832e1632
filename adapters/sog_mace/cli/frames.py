"""Checks of the training data, before any of it is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from mace.data import KeySpecification, config_from_atoms
from mace.data.hdf5_dataset import HDF5Dataset, unpack_value
from mace.data.lmdb_dataset import LMDBDataset

from sog_longrange import BoundaryError, InputError, SOGConfig
from sog_longrange.errors import explain
from sog_longrange.validation import WHOLE

IN_DATA: Final = "Add it to the data, or name its key by --total_charge_key."


def check_frames(head_configs: list[Any], config: SOGConfig) -> None:
    """Refuse frames that would end the training later, or spoil it in silence.

    Parameters
    ----------
    head_configs : list of mace.tools.multihead_tools.HeadConfig
        Data that MACE has read; sets that stream from files hold no frames here.
    config : SOGConfig
        Options of the long-range part.

    Raises
    ------
    InputError
        If positions, cell or a label is not finite, or a total charge is missing where the
        options need one, which MACE would take as zero, or is no whole number where it must be.
    BoundaryError
        If a frame is periodic along one or two axes and the kernel is "ewald".
    """
    for where, frame in _all_frames(head_configs):
        _check_finite(where, frame)
        if config.kernel == "ewald" and any(frame.pbc) and not all(frame.pbc):
            expected = "all true or all false in each frame with the Ewald kernel"
            remedy = "Slabs and wires need a sum of Gaussians: choose another kernel."
            raise BoundaryError(explain("pbc", expected, f"{frame.pbc} in {where}", remedy))
        if config.needs_total_charge:
            _check_total_charge(where, frame.properties.get("total_charge"), config)


def check_streams(dataset: Any, config: SOGConfig) -> None:
    """Refuse files with total charges missing where they matter: MACE would take them as zero.

    Every frame is looked at as MACE reads it, for training and for validation.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset or list
        What MACE made of a file or folder; datasets inside of it are looked at, too. Lists hold
        frames that `check_frames` has seen.
    config : SOGConfig
        Options of the long-range part.

    Raises
    ------
    InputError
        If a total charge is missing where the options need one, or is no whole number where it
        must be, or a frame of an LMDB file cannot be read.
    """
    if not config.needs_total_charge:
        return
    for part in getattr(dataset, "datasets", []):
        check_streams(part, config)
    if isinstance(dataset, HDF5Dataset):
        _check_charges(_hdf5_charges(dataset.file, dataset.file_path), config)
    elif isinstance(dataset, LMDBDataset):
        _check_charges(_lmdb_charges(dataset), config)


def check_test_files(head_configs: list[Any], config: SOGConfig) -> None:
    """Check what MACE streams for tests after the training, as `check_streams` does.

    Parameters
    ----------
    head_configs : list of mace.tools.multihead_tools.HeadConfig
        Whose `test_dir` are looked into.
    config : SOGConfig
        Options of the long-range part.

    Raises
    ------
    InputError
        If a total charge is missing where the options need one.
    """
    if not config.needs_total_charge:
        return
    for folder in {head.test_dir for head in head_configs if head.test_dir is not None}:
        for path in sorted(Path(folder).rglob("*.h5")):
            with h5py.File(path, "r") as file:
                _check_charges(_hdf5_charges(file, str(path)), config)


def _hdf5_charges(file: Any, path: str) -> Iterator[tuple[str, Any]]:
    for batch in file.values():
        for frame in batch.values():
            stored = frame["properties"].get("total_charge")
            charge = None if stored is None else unpack_value(stored[()])
            yield f"{frame.name} of {path}", charge


def _lmdb_charges(dataset: LMDBDataset) -> Iterator[tuple[str, Any]]:
    source, keys = dataset.AseDB, KeySpecification.from_defaults()
    files = [getattr(db, "filename", "?") for db in source.dbs]
    names = [(file, i) for file, ids in zip(files, source.db_ids, strict=True) for i in ids]
    for index, (file, row) in zip(source.ids, names, strict=True):
        where = f"row {row} of {file}"
        try:
            atoms = source.get_atoms(index)
        except Exception as error:  # The databases raise whatever they meet.
            remedy = "MACE would print an error and go on without it. Prepare the file again."
            got = f"{error!r} in {where}"
            raise InputError(explain("frame", "readable", got, remedy)) from error
        yield where, config_from_atoms(atoms, key_specification=keys).properties["total_charge"]


def _check_charges(frames: Iterator[tuple[str, Any]], config: SOGConfig) -> None:
    remedy = (
        "Prepare the files again with sog_mace_prepare_data, which passes total charges on and "
        "takes their key by --total_charge_key."
    )
    for where, charge in frames:
        _check_total_charge(where, charge, config, remedy)


def _check_total_charge(where: str, charge: Any, config: SOGConfig, remedy: str = IN_DATA) -> None:
    if charge is None:
        expected = "in every frame with charge_embedding or charge_constraint='total'"
        raise InputError(explain("total_charge", expected, f"none in {where}", remedy))
    value = np.asarray(charge, dtype=float)
    whole = config.fractional_charge or bool((abs(value - value.round()) <= WHOLE).all())
    if value.size != 1 or not np.isfinite(value).all() or not whole:
        expected = "one finite number" if config.fractional_charge else "a whole number of e"
        raise InputError(explain("total_charge", expected, f"{charge!r} in {where}"))


def _all_frames(head_configs: list[Any]) -> Iterator[tuple[str, Any]]:
    for head in head_configs:
        sets = head.collections
        if sets is None:
            continue
        named = [("train", sets.train), ("valid", sets.valid), *(sets.tests or [])]
        for name, frames in named:
            for index, frame in enumerate(frames or []):
                yield f"frame {index} of the set {name!r} of head {head.head_name!r}", frame


def _check_finite(where: str, frame: Any) -> None:
    values = {"positions": frame.positions, "cell": frame.cell}
    values |= {name: frame.properties.get(name) for name in ("energy", "forces", "stress")}
    for name, value in values.items():
        if value is not None and not np.isfinite(np.asarray(value, dtype=float)).all():
            raise InputError(explain(name, "finite", f"NaN or infinity in {where}"))
