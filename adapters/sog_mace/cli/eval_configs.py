"""``sog_mace_eval_configs``: ``mace_eval_configs`` for models with a long-range part.

It reads the total charge of each structure and its external field, and also writes what only such
models give: charges, dipole and the parts of the energy.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.io
import torch
from ase import Atoms
from mace.tools.torch_tools import default_dtype

from sog_longrange import InputError
from sog_longrange.ase_support import (
    CHARGES_SUM_TO_ZERO,
    TOTAL_CHARGE,
)
from sog_longrange.errors import explain
from sog_mace.backbone import accelerated
from sog_mace.model import SOGMACE

from .arguments import check_output, load_model, run_command
from .evaluator import Evaluator, evaluate_file

PROGRAM = "sog_mace_eval_configs"


def write_results(atoms: Atoms, results: dict[str, Any], prefix: str) -> None:
    """Put results into a structure, as they are written to a file.

    Parameters
    ----------
    atoms : ase.Atoms
        Changed. Labels that ASE read into a calculator are dropped, as `mace_eval_configs` does.
    results : dict
        Numbers and vectors go to `info`, and what has a row for each atom to `arrays`:
        `latent_dipoles` with 3 n_channels columns, those of the x axis first, and `born_charges`
        with 9, the rows of each matrix one after another.
    prefix : str
        Of all keys.
    """
    atoms.calc = None
    per_atom = ("forces", "node_energy", "charges", "latent_charges", "latent_dipoles")
    for key, value in results.items():
        if key in (*per_atom, "born_charges"):
            flat = value.reshape(len(atoms), -1) if value.ndim > 2 else value
            atoms.arrays[prefix + key] = flat
        else:
            atoms.info[prefix + key] = value


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, whose options are those of ``mace_eval_configs``."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Evaluate structures of a file by a SOGMACE model. Total charges are read from "
        "charge or total_charge of each frame, in e, and uniform external fields from "
        "external_field, of 3 numbers in V/Å. Charges, dipole and the parts of the energy are "
        "written, too.",
    )
    parser.add_argument("--configs", required=True, help="file of the structures")
    parser.add_argument("--model", required=True, help="file of the model")
    parser.add_argument("--output", required=True, help="extxyz file of the results")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    types = ["float32", "float64"]
    text = "precision (default: float64)"
    parser.add_argument("--default_dtype", choices=types, default="float64", help=text)
    text = "frames evaluated together (default: 64)"
    parser.add_argument("--batch_size", type=int, default=64, help=text)
    flags = {
        "compute_stress": "write stress, of frames that have a volume",
        "no_forces": "write no forces, which takes less time",
        "compute_born": "write Born effective charges, 9 numbers for each atom; a backward pass "
        "for each atom",
        "return_node_energies": "write the energy of each atom",
        "enable_cueq": "evaluate the inner model by cuEquivariance",
    }
    for name, text in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    text = "prefix of all keys that are written (default: MACE_)"
    parser.add_argument("--info_prefix", default="MACE_", help=text)
    parser.add_argument("--head", help="head of the model, if it has several")
    parser.add_argument("--total_charge_key", help="key of total charges, instead of the two above")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate a file.

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
    InputError, HostError
        If a file, an option or a structure is at fault.
    """
    if args.batch_size < 1:
        raise InputError(explain("batch_size", "at least 1", str(args.batch_size)))
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError(explain("device", "one that PyTorch finds", repr(args.device)))
    check_output(args.output)
    frames = read_frames(args.configs)
    evaluator = _evaluator(args)
    with default_dtype(args.default_dtype):
        results = evaluate_file(evaluator, frames, args.configs, args.batch_size)
    for atoms, found in zip(frames, results, strict=True):
        write_results(atoms, found, args.info_prefix)
    ase.io.write(args.output, frames, format="extxyz")
    ignored = sum(evaluator.ignores_charge(atoms) for atoms in frames)
    if ignored:
        print(f"The total charges of {ignored} frames are ignored: {CHARGES_SUM_TO_ZERO}")
    without = sum("stress" not in found for found in results) if args.compute_stress else 0
    if without:
        reason = "no volume, or are in a field along periodic axes"
        print(f"No stress was written for {without} frames, which have {reason}.")
    print(f"{len(frames)} frames of {args.configs} evaluated, written to {args.output}")


def _evaluator(args: argparse.Namespace) -> Evaluator:
    model = load_model(args.model, args.device).to(getattr(torch, args.default_dtype))
    if args.enable_cueq:
        model = accelerated(model, "cueq", torch.device(args.device))
    for parameter in model.parameters():
        parameter.requires_grad = False
    keys = TOTAL_CHARGE if args.total_charge_key is None else (args.total_charge_key,)
    return Evaluator(
        model=model,
        head=choose_head(model, args.head),
        charge_keys=keys,
        forces=not args.no_forces,
        stress=args.compute_stress,
        born=args.compute_born,
        node_energies=args.return_node_energies,
    )


def choose_head(model: SOGMACE, head: str | None) -> str:
    """Find the head to evaluate, without guessing among several.

    Parameters
    ----------
    model : SOGMACE
    head : str or None
        What was asked for.

    Returns
    -------
    str

    Raises
    ------
    InputError
        If there is no such head, or none was asked for of several.
    """
    heads = list(model.heads)
    if head is None and len(heads) == 1:
        return str(heads[0])
    if head is None or head not in heads:
        got = "none of them" if head is None else repr(head)
        raise InputError(explain("head", f"one of {', '.join(heads)}", got, "Name it by --head."))
    return head


def read_frames(path: str) -> list[Atoms]:
    """Read all structures of a file.

    Parameters
    ----------
    path : str

    Returns
    -------
    list of ase.Atoms

    Raises
    ------
    InputError
        If there is no such file, or ASE cannot read it, or it is empty.
    """
    if not Path(path).is_file():
        raise InputError(explain("configs", "a file that exists", repr(path)))
    try:
        frames: list[Atoms] = ase.io.read(path, ":")
    except Exception as error:  # The readers of ASE raise errors of any kind.
        raise InputError(explain("configs", "readable by ASE", f"{path!r}: {error!r}")) from error
    if not frames:
        raise InputError(explain("configs", "one frame or more", f"none in {path!r}"))
    return frames


if __name__ == "__main__":
    main()
