"""``sog_mace_select_head``: ``mace_select_head`` for models with a long-range part."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

import sog_mace  # noqa: F401  (imports mace before e3nn and checks its version)
from sog_mace.heads import select_head

from .arguments import check_output, load_model, run_command

PROGRAM = "sog_mace_select_head"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, whose options are those of ``mace_select_head``."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Write a model of one head of a SOGMACE model with several. Its long-range "
        "part, which all heads share, is kept as it is.",
    )
    task = parser.add_mutually_exclusive_group()
    text = "head to select; by default the first that is not pt_head"
    task.add_argument("--head_name", "-n", help=text)
    task.add_argument("--list_heads", "-l", action="store_true", help="list the heads and end")
    text = "device of the result; by default that of the model"
    parser.add_argument("--target_device", "-d", help=text)
    text = "file of the result; by default the model's, followed by .head and the target device"
    parser.add_argument("--output_file", "-o", help=text)
    parser.add_argument("model_file", help="file of the model")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Select a head.

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
        If the model or the head is not there.
    """
    if args.output_file is not None:
        check_output(args.output_file)
    model = load_model(args.model_file, args.target_device)
    if args.list_heads:
        print("Heads:", *model.heads, sep="\n  ")
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(next(model.parameters()).dtype)
    try:
        single = select_head(model, args.head_name).to(next(model.parameters()).device)
    finally:
        torch.set_default_dtype(before)
    suffixes = [args.model_file, *single.heads, args.target_device]
    path = args.output_file or ".".join(part for part in suffixes if part is not None)
    torch.save(single, path)
    print(f"Head {single.heads[0]} of {args.model_file} written to {path}")


if __name__ == "__main__":
    main()
