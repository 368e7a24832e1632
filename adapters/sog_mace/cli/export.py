"""``sog_mace_export``: files of SOGMACE models for engines without Python."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

import torch

import sog_mace  # noqa: F401  (imports mace before e3nn and checks its version)
from sog_mace.export import FORMATS, export
from sog_mace.model import SOGMACE

from .arguments import check_output, load_model, run_command

PROGRAM: Final = "sog_mace_export"

_USES: Final = {
    "torchscript": "LAMMPS, with the plugin that `python -m sog_md.build_plugin` makes: "
    "pair_style sog, pair_coeff * * {path} {symbols}. Programs of your own: torch::jit::load and "
    "the methods of docs/engines/export.md.",
    "metatomic": "ASE: metatomic_ase.MetatomicCalculator({path!r}). i-PI: <pes>metatomic</pes> "
    "with model: {path}. LAMMPS, GROMACS, PLUMED and others: builds with metatomic, on one rank.",
    "gromacs": "GROMACS 2025 or later, built with LibTorch: nnpot-active = true, "
    "nnpot-modelfile = {path}, and the inputs 1 to 4 atom-positions, atom-numbers, box, pbc.",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Write a SOGMACE model, its long-range energy included, to a file that engines "
        "run without Python, and compare the file with the model.",
    )
    parser.add_argument("model", help="file of the model")
    parser.add_argument("output", help="file to be written")
    text = "torchscript for pair_style sog and programs of your own, metatomic for its engines, "
    text += "gromacs for its neural network potentials"
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help=text)
    text = "of positions and results; by default that of the model"
    parser.add_argument("--dtype", choices=("float32", "float64"), help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Export a model.

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
    InputError, HostError, MissingLibraryError
        If the model is not there or cannot be exported, or metatomic is not installed.
    """
    check_output(args.output)
    model = load_model(args.model, "cpu")
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    export(model, args.output, args.format, dtype)
    print(describe(model, args.output, args.format))


def describe(model: SOGMACE, path: str, kind: str) -> str:
    """Say what was written, and how it is used.

    Parameters
    ----------
    model : SOGMACE
    path : str
    kind : str
        A member of `FORMATS`.

    Returns
    -------
    str
    """
    symbols = " ".join(element_symbols(model))
    lines = [f"{path}: {kind} file of a model of {symbols}, equal to the model on two structures."]
    lines.append(_USES[kind].format(path=path, symbols=symbols))
    if model.long_range.config.needs_total_charge:
        lines.append("The model takes the total charge of a structure: give it, also a zero.")
    gate = model.long_range.explain_gate("Train the model further if that is not meant.")
    return "\n".join([*lines, gate] if gate else lines)


def element_symbols(model: SOGMACE) -> list[str]:
    """Symbols of the elements that a model knows.

    Parameters
    ----------
    model : SOGMACE

    Returns
    -------
    list of str
    """
    from ase.data import chemical_symbols

    return [chemical_symbols[int(z)] for z in model.atomic_numbers]


if __name__ == "__main__":
    main()
