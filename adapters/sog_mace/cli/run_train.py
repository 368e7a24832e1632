"""``sog_mace_run_train``: ``mace_run_train`` with a long-range part.

Takes every option and YAML file of ``mace_run_train``, and ``--sog_*`` options.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import TypeVar, get_type_hints

from mace import tools
from mace.cli import run_train

import sog_mace  # noqa: F401  (imports mace before e3nn and checks its version)
from sog_longrange import SOGConfig
from sog_longrange.hosts import explain_old_models

from .arguments import end_in_one_line, parse
from .patches import Schedule, patched_run_train
from .report import report_charges

PROGRAM = "sog_mace_run_train"

Options = TypeVar("Options", SOGConfig, Schedule)

HELP = {
    "kernel": "law that the sum of Gaussians starts as: coulomb, power_law, yukawa, or laws joined "
    "as in coulomb+power_law for equal blocks of channels; or the fixed ewald kernel",
    "exponent": "exponent of the power_law start, which has no default",
    "kappa": "inverse screening length of the yukawa start, 1/Å",
    "strength": "strength of the power_law or yukawa start (of power_law where both are joined), "
    "eV Å^exponent/e^2; negative for dispersion, where like attracts like",
    "smearing": "width of the Gaussian charges of the ewald kernel, Å",
    "num_channels": "latent charges of each atom; a multiple of the number of joined laws",
    "share_kernel": "one sum of Gaussians for all channels; False for joined laws",
    "couple_channels": "a learned law of each pair of channels, which begins as zero; with two "
    "channels or more and --sog_share_kernel=False",
    "num_gaussians": "number of Gaussians",
    "min_width": "lower bound of every width, Å",
    "max_width": "widest Gaussian of the start, Å",
    "learn_amplitudes": "train the amplitudes of the Gaussians",
    "learn_widths": "train the widths of the Gaussians",
    "hidden_size": "width of the perceptron of the charge readout; 0 for none",
    "charge_constraint": "auto, none, neutral, or total: latent charges are free, sum to zero, or "
    "to the total_charge of the data; auto is total where every frame has one, else neutral; those "
    "of power laws with exponents above 3, as of dispersion, stay free",
    "charge_embedding": "functions of the total_charge of the data that the model knows, with an "
    "energy of the charge state; 0 for none",
    "fractional_charge": "let total charges be other than whole numbers",
    "latent_dipoles": "give atoms latent dipoles too, from the vectors (1o) of hidden_irreps",
    "tolerance": "relative accuracy of the reciprocal sum",
    "backend": "what does the reciprocal sum: auto, direct, mesh or finufft",
    "engine": "compiled code for the mesh: auto, none, numba or triton",
    "zero_mode": "keep k = 0 in all channels (default: each law decides for its own)",
    "remove_self": "remove the interaction of each charge with itself",
    "lr_factor": "learning rate of charges and charge states relative to --lr (stage two has one "
    "rate)",
    "kernel_lr_factor": "learning rate of the kernel relative to --lr (stage two has one rate)",
    "warmup": "optimizer steps over which the long-range energy is faded in, so that training "
    "starts at the model without it; 0 for none",
}


def build_parser() -> argparse.ArgumentParser:
    """Return MACE's own argument parser with the ``--sog_*`` options added."""
    parser: argparse.ArgumentParser = tools.build_default_arg_parser()
    group = parser.add_argument_group("long range (sog-longrange)")
    defaults, hints = SOGConfig().to_dict(), get_type_hints(SOGConfig)
    for name, default in defaults.items():
        kind = getattr(hints[name], "__args__", (hints[name],))[0]
        convert = tools.arg_parser.str2bool if kind is bool else kind
        group.add_argument(f"--sog_{name}", type=convert, default=default, help=HELP[name])
    for field in dataclasses.fields(Schedule):
        text = HELP[field.name]
        kind = type(field.default)
        group.add_argument(f"--sog_{field.name}", type=kind, default=field.default, help=text)
    return parser


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
    _refuse_accelerators(args)
    end_in_one_line(PROGRAM, lambda: _train(args))


def _train(args: argparse.Namespace) -> None:
    config, schedule = _collect(SOGConfig, args), _collect(Schedule, args)
    with patched_run_train(config, schedule) as patches:
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
    logging.info("TorchScript export is not available for models with a long-range part.")


def _collect(options: type[Options], args: argparse.Namespace) -> Options:
    names = [field.name for field in dataclasses.fields(options)]
    return options(**{name: getattr(args, f"sog_{name}") for name in names})


def _refuse_accelerators(args: argparse.Namespace) -> None:
    wanted = [name for name in ("enable_cueq", "only_cueq", "enable_oeq") if getattr(args, name)]
    if wanted:
        raise SystemExit(
            f"sog_mace_run_train: --{wanted[0]} is not supported yet with a long-range part, "
            "since the conversion rebuilds models by class. Leave it out."
        )


if __name__ == "__main__":
    main()
