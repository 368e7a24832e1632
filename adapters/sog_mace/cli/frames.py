"""Checks of the training data, before any of it is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from mace.data.hdf5_dataset import HDF5Dataset, unpack_value
from mace.data.lmdb_dataset import LMDBDataset

from sog_longrange import BoundaryError, HostError, InputError, SOGConfig
from sog_longrange.errors import explain
from sog_longrange.validation import WHOLE
from sog_mace.cells import check_stress_label, stress_label


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
        options need one, which MACE would take as zero, or is no whole number where it must be,
        or there is the stress of a frame without a volume.
    BoundaryError
        If a frame is periodic along one or two axes and the kernel is "ewald".
    """
    for where, frame in _all_frames(head_configs):
        _check_finite(where, frame)
        check_stress_label(where, frame.pbc, frame.cell, stress_label(frame))
        if config.kernel == "ewald" and any(frame.pbc) and not all(frame.pbc):
            expected = "all true or all false in each frame with the Ewald kernel"
            remedy = "Slabs and wires need a sum of Gaussians: choose another kernel."
            raise BoundaryError(explain("pbc", expected, f"{frame.pbc} in {where}", remedy))
        if config.needs_total_charge:
            _check_total_charge(where, frame.properties.get("total_charge"), config)


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


def _check_total_charge(where: str, charge: Any, config: SOGConfig) -> None:
    if charge is None:
        raise _no_total_charge(where)
    value = np.asarray(charge, dtype=float)
    whole = config.fractional_charge or bool((abs(value - value.round()) <= WHOLE).all())
    if value.size != 1 or not np.isfinite(value).all() or not whole:
        expected = "one finite number" if config.fractional_charge else "a whole number of e"
        raise InputError(explain("total_charge", expected, f"{charge!r} in {where}"))


def _no_total_charge(where: str) -> InputError:
    expected = "in every frame with charge_embedding or charge_constraint='total'"
    remedy = "Add it to the data, or name its key by --total_charge_key."
    return InputError(explain("total_charge", expected, f"none in {where}", remedy))


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
