"""``sog_mace_run_train``: ``mace_run_train`` with a long-range part.

Takes every option and YAML file of ``mace_run_train``, and ``--sog_*`` options.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

from mace import tools
from mace.cli import run_train

import sog_mace  # noqa: F401  (imports mace before e3nn and checks its version)
from sog_longrange import ConfigError, HostError, SOGConfig, list_kernels
from sog_longrange.errors import explain
from sog_longrange.hosts import explain_old_models
from sog_longrange.options import help_of
from sog_longrange.presets import AUTO, NONE, PRESETS
from sog_mace.backbone import BACK, check_libraries, name_backend

from .arguments import end_in_one_line, parse
from .patches import Schedule, patched_run_train
from .presets import DEFAULT, HELP, PresetOptions
from .report import report_charges

PROGRAM = "sog_mace_run_train"


class Given(argparse.Action):
    """Stores an option, and that it was given: on the command line or in a config file."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store a value."""
        setattr(namespace, self.dest, values)
        namespace.sog_given = [*getattr(namespace, "sog_given", []), self.dest]


def build_parser() -> argparse.ArgumentParser:
    """Return MACE's own argument parser with the ``--sog_*`` options added."""
    parser: argparse.ArgumentParser = tools.build_default_arg_parser()
    group = parser.add_argument_group("long range (sog-longrange)", _describe_kernels())
    for options in (SOGConfig, Schedule):
        hints, texts = get_type_hints(options), help_of(options)
        for field in dataclasses.fields(options):
            kind = (get_args(hints[field.name]) or (hints[field.name],))[0]
            convert = tools.arg_parser.str2bool if kind is bool else kind
            help_text = texts[field.name].replace("%", "%%")
            group.add_argument(
                f"--sog_{field.name}",
                type=convert,
                default=field.default,
                action=Given,
                help=help_text,
            )
    names = [NONE, *PRESETS, AUTO]
    group.add_argument(
        "--sog_preset", type=str, default=DEFAULT, help=HELP, metavar="|".join(names)
    )
    return parser


def _describe_kernels() -> str:
    """Text about all kernels that there are."""
    kernels = "; ".join(f"{call}: {text.rstrip('.')}" for call, text in list_kernels().items())
    return (
        "Kernels for --sog_kernel, one or several joined by +, or package.module:Class of your "
        f"own: {kernels}."
    )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, suggesting the nearest name for an unknown option.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    Namespace
    """
    return parse(build_parser(), PROGRAM, argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train a SOGMACE model.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.
    """
    args = parse_args(argv)
    end_in_one_line(PROGRAM, lambda: _train(args))


def _train(args: argparse.Namespace) -> None:
    preset = PresetOptions(args.sog_preset, _given(SOGConfig, args), _given(Schedule, args))
    config, schedule = preset.before_data(), Schedule(**preset.schedule())
    backend = _take_backend(args)
    with patched_run_train(config, schedule, backend, preset) as patches:
        with explain_old_models("a model or checkpoint file"):
            run_train.run(args)
        if args.dry_run:
            return
        if int(os.environ.get("RANK", 0)) == 0:
            report_charges(patches.model, patches.dataset, args.valid_batch_size)
    remedy = "The saved model is from a step before the end of the warm-up: train longer, or with "
    message = patches.model.long_range.explain_gate(f"{remedy}a smaller --sog_warmup.")
    if message:
        logging.warning(message)
    logging.info("sog_mace_export makes a TorchScript file of the model, which MACE cannot.")


def _given(options: type, args: argparse.Namespace) -> dict[str, Any]:
    """Options of a dataclass that were given explicitly."""
    given = getattr(args, "sog_given", [])
    names = [field.name for field in dataclasses.fields(options)]
    return {name: getattr(args, f"sog_{name}") for name in names if f"sog_{name}" in given}


def _take_backend(args: argparse.Namespace) -> str | None:
    """Name the backend of the inner model, and take the options for it away from MACE."""
    if args.only_cueq:
        # MACE would save models that load only where cuEquivariance is installed.
        logging.warning("--only_cueq is taken as --enable_cueq: saved models are plain.")
    backend = name_backend(args.enable_cueq or args.only_cueq, args.enable_oeq)
    args.enable_cueq = args.only_cueq = args.enable_oeq = False
    if backend is None:
        return None
    if backend not in BACK:
        got = "both --enable_cueq and --enable_oeq"
        raise ConfigError(explain("backend", "one only in a training", got))
    if args.lora:
        remedy = f"MACE's conversion would leave them out. Leave out --enable_{backend} or --lora."
        raise HostError(explain("lora", f"off with {backend}", "adapters", remedy))
    check_libraries(backend, args.device)
    return backend


if __name__ == "__main__":
    main()
