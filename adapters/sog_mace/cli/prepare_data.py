"""``sog_mace_prepare_data``: ``mace_prepare_data`` that passes total charges on, to LMDB too."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import h5py
from ase import Atoms
from mace import tools
from mace.cli import preprocess_data
from mace.data.hdf5_dataset import unpack_value
from mace.tools.default_keys import DefaultKeys
from mace.tools.fairchem_dataset.lmdb_dataset_tools import LMDBDatabase
from tqdm import tqdm

import sog_mace  # noqa: F401  (imports mace before e3nn and checks its version)
from sog_longrange import InputError, SOGConfig
from sog_longrange.errors import explain
from sog_mace.host import check_names

from .arguments import run_command
from .frames import has_charge, read_checked
from .sources import Listing, Source, all_frames, frames_of

PROGRAM = "sog_mace_prepare_data"
READER: Final = "get_dataset_from_xyz"
PER_ATOM: Final = ("forces", "charges")
UNCONSTRAINED: Final = SOGConfig(charge_constraint="none")


def build_parser() -> argparse.ArgumentParser:
    """Return MACE's own argument parser with what it lacks for total charges, and the format."""
    parser: argparse.ArgumentParser = tools.build_preprocess_arg_parser()
    parser.prog = PROGRAM
    # MACE's default, a fourth of the processors, is zero on small machines and fails.
    parser.set_defaults(num_process=max(1, (os.cpu_count() or 1) // 4))
    group = parser.add_argument_group("total charges and formats (sog-longrange)")
    group.add_argument(
        "--total_charge_key",
        help="key of total charges in e, which every frame must have then; without this option "
        f"they are taken from {DefaultKeys.TOTAL_CHARGE.value} where there is one",
    )
    text = "files of training and validation: hdf5, or lmdb databases (.aselmdb); test sets, which "
    text += "MACE streams from no other, are always hdf5"
    group.add_argument("--format", choices=["hdf5", "lmdb"], default="hdf5", help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write files that MACE streams its data from.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.
    """
    run_command(PROGRAM, build_parser(), run, argv)


def run(args: argparse.Namespace) -> None:
    """Do what the command line says.

    Parameters
    ----------
    args : Namespace
        Of `build_parser`.

    Raises
    ------
    InputError
        If there is no such file, or a total charge is missing or is no number.
    """
    for path in (args.train_file, args.valid_file, args.test_file):
        if path is not None and not Path(path).exists():
            raise InputError(explain("file", "one that exists", repr(path)))
    required = args.total_charge_key is not None
    args.total_charge_key = args.total_charge_key or DefaultKeys.TOTAL_CHARGE.value
    with _checked_reading(args.total_charge_key, required):
        preprocess_data.run(args)
    for path in Path(f"{args.h5_prefix}test").glob("*.h5"):
        # Only files of this name are found by MACE's --test_dir.
        if not path.stem.endswith("_test"):
            path.replace(path.with_name(f"{path.stem}_test.h5"))
    if args.format == "lmdb":
        # MACE streams tests from HDF5 only.
        folders = [Path(f"{args.h5_prefix}{name}") for name in ("train", "val")]
        for path in tqdm([p for f in folders for p in sorted(f.glob("*.h5"))], disable=None):
            hdf5_to_lmdb(path)


@contextmanager
def _checked_reading(key: str, required: bool) -> Iterator[None]:
    """Look at the frames that MACE reads before it writes any of them."""
    check_names(preprocess_data, [READER])
    original = getattr(preprocess_data, READER)

    def read(*args: Any, **kwargs: Any) -> Any:
        result, sources = read_checked(original, UNCONSTRAINED, *args, **kwargs)
        _check_total_charges(all_frames(result[0]), sources, key, required)
        return result

    setattr(preprocess_data, READER, read)
    try:
        yield
    finally:
        setattr(preprocess_data, READER, original)


def _check_total_charges(
    frames: Iterable[Any], sources: list[Source], key: str, required: bool
) -> None:
    """Refuse missing total charges where they are required, and warn where only some are there."""
    charged = [has_charge(frame) for frame in frames]
    if all(charged) or not (required or any(charged)):
        return
    missing = Listing(where for where, frame in frames_of(sources) if not has_charge(frame))
    if required:
        remedy = "Add it to the data, or name another key by --total_charge_key."
        raise InputError(explain(key, "in every frame", f"none in {missing}", remedy))
    logging.warning("Frames without the total charge that others have: %s", missing)


def hdf5_to_lmdb(path: Path) -> Path:
    """Turn a file of ``mace_prepare_data`` into an LMDB database, which takes its place.

    Parameters
    ----------
    path : Path
        File with the suffix .h5, which is removed.

    Returns
    -------
    Path
        File with the suffix .aselmdb, that MACE reads to the same data.
    """
    target = path.with_suffix(".aselmdb")
    lock = target.with_name(f"{target.name}-lock")
    target.unlink(missing_ok=True)
    with h5py.File(path, "r") as file, LMDBDatabase(target) as database:
        for batch in file.values():
            for index in range(len(batch)):
                atoms, info = _atoms_of(batch[f"config_{index}"])
                # ASE refuses some keys and texts, such as "1", anywhere else.
                database.write(atoms, data={"__info__": info})
    lock.unlink(missing_ok=True)  # MACE would try to read it, too.
    path.unlink()
    return target


def _atoms_of(frame: Any) -> tuple[Atoms, dict[str, Any]]:
    """Structure and what goes to its info, with labels under the keys by which MACE reads LMDB."""
    numbers, positions = frame["atomic_numbers"][()], frame["positions"][()]
    cell, pbc = (unpack_value(frame[name][()]) for name in ("cell", "pbc"))
    atoms = Atoms(numbers, positions, cell=cell, pbc=pbc)
    keys = {name.lower(): key.value for name, key in DefaultKeys.__members__.items()}
    stored_info = {"config_weight": frame["weight"], "config_type": frame["config_type"]}
    info = {name: unpack_value(stored[()]) for name, stored in stored_info.items()}
    for name, stored in frame["properties"].items():
        value = unpack_value(stored[()])
        if value is None or name == "head":
            continue
        if name in PER_ATOM:
            atoms.arrays[keys[name]] = value
        else:
            info[keys.get(name, name)] = value
        info[f"config_{name}_weight"] = unpack_value(frame["property_weights"][name][()])
    return atoms, info


if __name__ == "__main__":
    main()
