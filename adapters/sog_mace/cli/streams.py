"""Checks of training data that stream from files, when these are opened and as they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import h5py
import numpy as np
from mace.data import AtomicData, KeySpecification, config_from_atoms
from mace.data.hdf5_dataset import HDF5Dataset, unpack_value
from mace.data.lmdb_dataset import LMDBDataset
from tqdm import tqdm

from sog_longrange import InputError, SOGConfig, SOGError
from sog_longrange.errors import explain
from sog_longrange.options import as_number
from sog_longrange.validation import WHOLE
from sog_mace.host import check_names

from .frames import check_total_charge, no_total_charge
from .sources import Listing

REMEDY: Final = (
    "Prepare the files again with sog_mace_prepare_data, which passes total charges on and takes "
    "their key by --total_charge_key."
)

_frame: ContextVar[str] = ContextVar("frame", default="")
_fault: ContextVar[SOGError | None] = ContextVar("fault", default=None)


class StreamedFrame(NamedTuple):
    """What is looked at when a file is opened.

    Attributes
    ----------
    where : str
        Name of the frame.
    total_charge : object
        None if there is none.
    is_odd : bool
        Whether it has an odd number of electrons when neutral.
    """

    where: str
    total_charge: Any
    is_odd: bool


@dataclass
class StreamedCharges:
    """Total charges of all frames that stream from files.

    Attributes
    ----------
    known, charged : int
        Number of frames that have one, and of those with one that is not zero.
    missing, odd : Listing
        Frames that have none, and frames with an odd number of electrons.
    """

    known: int = 0
    charged: int = 0
    missing: Listing = field(default_factory=Listing)
    odd: Listing = field(default_factory=Listing)

    def add(self, dataset: Any, config: SOGConfig) -> None:
        """Look at the frames of a data set, if total charges may matter.

        Parameters
        ----------
        dataset : torch.utils.data.Dataset or list
            What MACE made of a file or folder; datasets inside of it are looked at, too. Lists
            hold frames that were checked when they were read.
        config : SOGConfig
            Options of the long-range part.

        Raises
        ------
        InputError
            If a total charge is missing where the options need one, or is no number, or no whole
            number where it must be, or a frame of an LMDB file cannot be read.
        """
        if config.may_need_total_charge:
            for part in getattr(dataset, "datasets", []):
                self.add(part, config)
            if isinstance(dataset, HDF5Dataset | LMDBDataset):
                self._add_frames(_stream(dataset), config)

    def add_tests(self, heads: list[Any], config: SOGConfig) -> None:
        """Look at what MACE streams for tests after the training.

        Parameters
        ----------
        heads : list of mace.tools.multihead_tools.HeadConfig
            Whose `test_dir` are looked into.
        config : SOGConfig
            Options of the long-range part.

        Raises
        ------
        InputError
            As :meth:`add`.
        """
        if not config.may_need_total_charge:
            return
        for folder in {head.test_dir for head in heads if head.test_dir is not None}:
            for path in sorted(Path(folder).rglob("*.h5")):
                with h5py.File(path, "r") as file:
                    self._add_frames(_hdf5_frames(file, str(path)), config)

    def _add_frames(self, frames: Iterator[StreamedFrame], config: SOGConfig) -> None:
        text = "total charges of streamed frames"
        for where, charge, is_odd in tqdm(frames, text, unit=" frames", disable=None):
            if charge is not None:
                check_total_charge(where, charge, "total_charge", config)
                self.known += 1
                self.charged += abs(as_number(charge) or 0.0) > WHOLE
            elif config.needs_total_charge:
                raise no_total_charge(where, REMEDY)
            else:
                self.missing.add(where)
            if is_odd:
                self.odd.add(where)


@contextmanager
def checked_frames(check: Callable[[str, Any], None]) -> Iterator[None]:
    """Check the frames of HDF5 and LMDB files as they are read, and name them.

    Parameters
    ----------
    check : callable
        Of the name of a frame and its `mace.data.Configuration`; raises what is wrong.

    Raises
    ------
    HostError
        If the installed MACE reads its files otherwise.
    """
    check_names(AtomicData, ["from_config"])
    make = AtomicData.__dict__["from_config"]
    read = {kind: kind.__getitem__ for kind in (HDF5Dataset, LMDBDataset)}

    def from_config(cls: type, config: Any, *args: Any, **kwargs: Any) -> Any:
        if _frame.get():
            try:
                check(_frame.get(), config)
            except SOGError as error:
                _fault.set(error)
                raise
        return make.__get__(None, cls)(config, *args, **kwargs)

    def named(original: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
        def getitem(self: Any, index: int) -> Any:
            tokens = _frame.set(_name(self, index)), _fault.set(None)
            try:
                return original(self, index)
            except Exception:
                # MACE's reader of LMDB files swallows errors, and fails for want of a result.
                fault = _fault.get()
                if fault is not None:
                    raise fault from None
                raise
            finally:
                _frame.reset(tokens[0])
                _fault.reset(tokens[1])

        return getitem

    AtomicData.from_config = classmethod(from_config)
    for kind, original in read.items():
        kind.__getitem__ = named(original)
    try:
        yield
    finally:
        AtomicData.from_config = make
        for kind, original in read.items():
            kind.__getitem__ = original


def _name(dataset: Any, index: int) -> str:
    """Name of a frame, the same as when its file was opened."""
    if isinstance(dataset, HDF5Dataset):
        batch, own = divmod(index, dataset.batch_size)
        return _hdf5_name(f"/config_batch_{batch}/config_{own}", dataset.file_path)
    for database, ids in zip(dataset.AseDB.dbs, dataset.AseDB.db_ids, strict=True):
        if index < len(ids):
            return _lmdb_name(ids[index], database)
        index -= len(ids)
    return f"frame {index} beyond the end of the data"


def _hdf5_name(name: str, path: str) -> str:
    return f"{name} of {path}"


def _lmdb_name(row: object, database: Any) -> str:
    return f"row {row} of {getattr(database, 'filename', 'an LMDB file')}"


def _stream(dataset: HDF5Dataset | LMDBDataset) -> Iterator[StreamedFrame]:
    if isinstance(dataset, HDF5Dataset):
        return _hdf5_frames(dataset.file, dataset.file_path)
    return _lmdb_frames(dataset)


def _hdf5_frames(file: Any, path: str) -> Iterator[StreamedFrame]:
    for batch in file.values():
        for frame in batch.values():
            stored = frame["properties"].get("total_charge")
            charge = None if stored is None else unpack_value(stored[()])
            is_odd = bool(np.sum(frame["atomic_numbers"][()]) % 2)
            yield StreamedFrame(_hdf5_name(frame.name, path), charge, is_odd)


def _lmdb_frames(dataset: LMDBDataset) -> Iterator[StreamedFrame]:
    source, keys = dataset.AseDB, KeySpecification.from_defaults()
    for place, index in enumerate(source.ids):
        where = _name(dataset, place)
        try:
            atoms = source.get_atoms(index)
        except Exception as error:  # The databases raise errors of any kind.
            remedy = "MACE would print an error and go on without it. Prepare the file again."
            got = f"{error!r} in {where}"
            raise InputError(explain("frame", "readable", got, remedy)) from error
        charge = config_from_atoms(atoms, key_specification=keys).properties["total_charge"]
        yield StreamedFrame(where, charge, bool(np.sum(atoms.numbers) % 2))
