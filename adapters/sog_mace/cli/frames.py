"""Checks of the training data, before MACE builds graphs of them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

import ase.io
import numpy as np

from sog_longrange import BoundaryError, InputError, SOGConfig
from sog_longrange.errors import explain
from sog_longrange.frames import check_cell, check_label, check_positions
from sog_longrange.options import as_number
from sog_longrange.validation import WHOLE
from sog_mace.cells import check_stress_label, stress_label

from .sources import Listing, Source, all_frames, frames_of, sets_of, sources_of

IN_DATA: Final = "Add it to the data, or name its key by --total_charge_key."

TENSOR = ((3, 3), (9,), (6,))
TENSORS = ("stress", "virials")
_SPAN = 1e-3


class StreamedLike(Protocol):
    """What is known of the frames of data that stream from files."""

    known: int
    charged: int
    missing: Listing
    odd: Listing


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
        If the frame is periodic along one or two axes and the kernel is no sum of Gaussians.
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
    key = keys.get("stress", "stress")
    check_stress_label(where, frame.pbc, frame.cell, stress_label(frame), key)
    if labels.get("total_charge") is not None:
        key = keys.get("total_charge", "total_charge")
        check_total_charge(where, labels["total_charge"], key, config)


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
    given = inspect.signature(read).bind(*args, **kwargs).arguments
    sources = sources_of(given)
    try:
        result = read(*args, **kwargs)
        for name, frames in sets_of(result[0]):
            for index, frame in enumerate(frames):
                check_frame(f"frame {index} of the set {name!r}", frame, {}, config)
                _settle_charge(frame)
    except Exception:
        # The frame as it is in its file; MACE has dropped and shuffled some by now.
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
    config: SOGConfig, heads: list[Any], sources: list[Source], streams: StreamedLike
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
    streams : StreamedCharges
        Data that stream from files.

    Returns
    -------
    SOGConfig
        Whose `charge_constraint` is not "auto".

    Raises
    ------
    InputError
        If a frame has no total charge where others have, or where the options need one.
    """
    known = [has_charge(frame) for frame in _all_frames(heads)]
    some = any(known) or streams.known > 0
    everywhere = some and all(known) and not streams.missing
    wanted = config.needs_total_charge or (config.may_need_total_charge and some)
    if wanted and not everywhere:
        raise _missing_charges(config, sources, streams.missing)
    resolved = config.resolve(everywhere)
    if resolved != config:
        logging.info("Charge constraint of the long-range part: %s", resolved.charge_constraint)
    if resolved != config and resolved.charge_constraint == "neutral":
        _warn_of_odd_electrons(heads, sources, streams.odd)
        _warn_of_another_key(sources)
    return resolved


def warn_of_ignored_charges(config: SOGConfig, heads: list[Any], streams: StreamedLike) -> None:
    """Warn of charged frames whose latent charges will sum to zero all the same.

    Parameters
    ----------
    config : SOGConfig
        Options of the long-range part.
    heads : list of mace.tools.multihead_tools.HeadConfig
    streams : StreamedCharges
    """
    if config.takes_total_charge or not config.constrained_channels:
        return
    charges = (frame.properties.get("total_charge") or 0.0 for frame in _all_frames(heads))
    count = sum(abs(charge) > WHOLE for charge in charges) + streams.charged
    if count:
        logging.warning(
            "The total charges of %d frames are ignored: the latent charges of the foundation "
            "model sum to zero. Start from one trained with --sog_charge_constraint=total.",
            count,
        )


def check_total_charge(where: str, charge: Any, key: str, config: SOGConfig) -> None:
    """Refuse a total charge that is no number, or no whole number where it must be one.

    Parameters
    ----------
    where : str
        Names the frame, for the message.
    charge : object
    key : str
        Name of the total charge in the data.
    config : SOGConfig
        Options of the long-range part.

    Raises
    ------
    InputError
        If it does not mean one finite number, or should be a whole one and is not.
    """
    number = as_number(charge)
    if number is None:
        got = f"{charge!r} in {where}"
        raise InputError(explain(key, "one finite number in e", got, "Correct the frame."))
    if (
        config.may_need_total_charge
        and not config.fractional_charge
        and abs(number - round(number)) > WHOLE
    ):
        remedy = "Correct it, or pass --sog_fractional_charge=True if that is meant."
        raise InputError(explain(key, "a whole number of e", f"{number:g} in {where}", remedy))


def no_total_charge(where: str, remedy: str = IN_DATA) -> InputError:
    """Return the error of a frame without the total charge that is needed.

    Parameters
    ----------
    where : str
        Names the frame.
    remedy : str

    Returns
    -------
    InputError
    """
    expected = "in every frame with charge_embedding or charge_constraint='total'"
    return InputError(explain("total_charge", expected, f"none in {where}", remedy))


def _check_boundary(where: str, frame: Any, config: SOGConfig) -> None:
    periodic = np.asarray(frame.pbc, dtype=bool)
    if periodic.all() or not periodic.any():
        return
    if not config.is_sum_of_gaussians:
        expected = f"all true or all false in each frame with the kernel {config.kernel}"
        remedy = "Along one or two directions sums of Gaussians are periodic: choose such a kernel."
        raise BoundaryError(explain("pbc", expected, f"{frame.pbc} in {where}", remedy))
    rows = np.where(periodic[:, None], frame.cell, np.eye(3))
    if abs(np.linalg.det(rows)) < _SPAN * np.linalg.norm(rows, axis=1).prod():
        expected = "with its non-periodic directions along x, y or z"
        remedy = "MACE puts Cartesian axes in the place of non-periodic lattice vectors: turn it."
        raise InputError(explain("cell", expected, f"{rows.tolist()} in {where}", remedy))


def _missing_charges(config: SOGConfig, sources: list[Source], streamed: Listing) -> InputError:
    lost = Listing(where for where, frame in frames_of(sources) if not has_charge(frame))
    lost.extend(streamed)
    where = str(lost) or "data that MACE adds for replay"
    if config.needs_total_charge:
        return no_total_charge(where)
    expected = "in every frame or in none with charge_constraint='auto'"
    remedy = "Add it to these frames, or choose --sog_charge_constraint=neutral, or none."
    return InputError(explain("total_charge", expected, f"none in {where}", remedy))


def _warn_of_odd_electrons(heads: list[Any], sources: list[Source], streamed: Listing) -> None:
    odd = Listing()
    if any(_is_odd(frame) for frame in _all_frames(heads)):
        odd = Listing(where for where, frame in frames_of(sources) if _is_odd(frame))
    odd.extend(streamed)
    if odd:
        logging.warning(
            "These frames have an odd number of electrons when neutral, and the data hold no total "
            "charges, so that their latent charges sum to zero: %s. If they are ions, add "
            "total_charge=... to every frame; if they are radicals or metals all is well.",
            odd,
        )


def _warn_of_another_key(sources: list[Source]) -> None:
    """Warn of total charges under the key that calculators read first; of each file one frame."""
    for source in sources:
        info = next(ase.io.iread(source.path, ":1")).info
        if source.keys.info_keys.get("total_charge") not in info and as_number(info.get("charge")):
            logging.warning(
                "%s has frames with `charge`, which are taken as neutral: pass "
                "--total_charge_key=charge if it is the total charge in e.",
                source.path,
            )


def has_charge(frame: Any) -> bool:
    """Tell whether a frame has a total charge.

    Parameters
    ----------
    frame : mace.data.Configuration

    Returns
    -------
    bool
    """
    return frame.properties.get("total_charge") is not None


def _is_odd(frame: Any) -> bool:
    return bool(np.sum(frame.atomic_numbers) % 2)


def _settle_charge(frame: Any) -> None:
    """Let the total charge be the number that it means."""
    if has_charge(frame):
        frame.properties["total_charge"] = as_number(frame.properties["total_charge"])


def _names(keys: Any) -> dict[str, str]:
    return {**keys.info_keys, **keys.arrays_keys}


def _all_frames(heads: list[Any]) -> Iterator[Any]:
    for head in heads:
        if head.collections is not None:
            yield from all_frames(head.collections)
