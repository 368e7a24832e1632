"""Every place where the adapter reaches into `mace.cli.run_train`, and nothing else.

MACE has no plugin hook, so its training program is run with a few of its names
replaced for the duration of the run.
"""

from __future__ import annotations

import copy
import logging
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mace import tools
from mace.cli import run_train
from torch import nn

from sog_longrange import HostError, SOGConfig
from sog_mace.host import check_names, check_version
from sog_mace.model import SOGMACE

PATCHED = [
    "configure_model",
    "get_params_options",
    "get_optimizer",
    "remove_pt_head",
    "inject_LoRAs",
]


@dataclass(frozen=True)
class Schedule:
    """How the long-range part is trained.

    Attributes
    ----------
    lr_factor, kernel_lr_factor : float
        Learning rates of the charge readout and of the kernel, relative to MACE's. The
        kernel's is small by default: it holds the physics that a few short separations
        should not bend.
    warmup : int
        Optimizer steps over which the long-range energy is faded in; 0 for none.
    """

    lr_factor: float = 1.0
    kernel_lr_factor: float = 0.1
    warmup: int = 100


@contextmanager
def patched_run_train(config: SOGConfig, schedule: Schedule) -> Iterator[None]:
    """Let `mace.cli.run_train.run` build and train SOGMACE models.

    Parameters
    ----------
    config : SOGConfig
        Options of the long-range part.
    schedule : Schedule
        How the long-range part is trained.

    Raises
    ------
    HostError
        If the installed MACE lacks a name that has to be replaced.
    """
    check_version()
    patches = _Patches(config, schedule)
    try:
        for name in PATCHED:
            setattr(run_train, name, getattr(patches, name))
        yield
    finally:
        for name, original in patches.originals.items():
            setattr(run_train, name, original)


class _Patches:
    """Replacements of the names in `PATCHED`, each calling the original."""

    def __init__(self, config: SOGConfig, schedule: Schedule) -> None:
        check_names(run_train, PATCHED)
        self.originals = {name: getattr(run_train, name) for name in PATCHED}
        self.config, self.schedule = config, schedule
        self.warmup = schedule.warmup

    def configure_model(
        self, args: Namespace, loader: Any, energies: Any, foundation: Any = None, *rest: Any
    ) -> Any:
        """Wrap the model that MACE configures."""
        inner = foundation.mace if isinstance(foundation, SOGMACE) else foundation
        mace, outputs = self.originals["configure_model"](args, loader, energies, inner, *rest)
        self.model = SOGMACE(mace, self.config)
        if isinstance(foundation, SOGMACE):
            _copy_long_range(foundation, self.model)
            self.warmup = 0  # It is trained already.
        count = sum(p.numel() for p in self.model.long_range.parameters())
        logging.info("Long-range part: %d parameters, %s", count, self.config)
        if args.restart_latest:
            check_checkpoint(self.model, Path(args.checkpoints_dir), args.name, args.seed)
        return self.model, outputs

    def get_params_options(self, args: Namespace, model: SOGMACE) -> dict[str, Any]:
        """Give the long-range part its parameter group and leave no parameter out."""
        self.model = model  # MACE may have copied it on the way here.
        options: dict[str, Any] = self.originals["get_params_options"](args, model)
        parts = (
            ("long_range_charges", model.long_range.readout, self.schedule.lr_factor),
            ("long_range_kernel", model.long_range.energy, self.schedule.kernel_lr_factor),
        )
        for name, part, factor in parts:
            group = {"name": name, "params": part.parameters(), "lr": factor * args.lr}
            options["params"].append(group | {"weight_decay": 0.0})
        for group in options["params"]:
            # MACE hands over generators: looking into them would empty them.
            group["params"] = list(group["params"])
        check_all_trained(model, options["params"])
        return options

    def get_optimizer(self, args: Namespace, options: dict[str, Any]) -> torch.optim.Optimizer:
        """Fade the long-range energy in with the steps of the optimizer."""
        optimizer: torch.optim.Optimizer = self.originals["get_optimizer"](args, options)
        # MACE replaces this optimizer by L-BFGS if that is asked for.
        if self.warmup > 0 and not args.lbfgs:
            self.model.long_range.warm_up(optimizer, self.warmup)
        return optimizer

    def remove_pt_head(self, model: nn.Module, head_to_keep: str | None = None) -> nn.Module:
        """Remove heads of the inner model."""
        original = self.originals["remove_pt_head"]
        if not isinstance(model, SOGMACE):
            return original(model, head_to_keep)
        single = SOGMACE(original(model.mace, head_to_keep), model.long_range.config)
        single.long_range = copy.deepcopy(model.long_range)
        return single

    def inject_LoRAs(self, model: SOGMACE, *args: Any, **kwargs: Any) -> SOGMACE:  # noqa: N802
        """Freeze and adapt the inner model only."""
        model.mace = self.originals["inject_LoRAs"](model.mace, *args, **kwargs)
        return model


def _copy_long_range(foundation: SOGMACE, model: SOGMACE) -> None:
    ours, theirs = model.long_range.state_dict(), foundation.long_range.state_dict()
    different = _mismatches(ours, theirs)
    if different:
        raise HostError(
            f"The long-range part of the foundation model has other options than this run "
            f"({different[0]}). It was trained with {foundation.long_range.config}: "
            "pass the same --sog_* options."
        )
    model.long_range.load_state_dict(theirs)
    logging.info("Long-range part taken from the foundation model")


def check_all_trained(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Make sure that the optimizer trains the long-range part as a whole.

    Parameters
    ----------
    model : Module
    groups : list of dict
        Parameter groups, each with a list under "params".

    Raises
    ------
    HostError
        If a trainable parameter of the long-range part is in no group. Parameters that
        MACE leaves out of its own model are only reported.
    """
    known = {id(parameter) for group in groups for parameter in group["params"]}
    lost = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in known]
    ours = [name for name in lost if name.startswith("long_range.")]
    if ours:
        raise HostError(
            f"Parameters {ours} are trainable but in no group of MACE's optimizer, so they would "
            "silently stay as they are. Freeze them or use another version of mace-torch."
        )
    if lost:
        logging.warning("MACE does not train these of its own parameters: %s", lost)


def check_checkpoint(model: SOGMACE, directory: Path, name: str, seed: int) -> None:
    """Refuse to restart from checkpoints that do not fit the model.

    MACE itself would swallow the mismatch and start again at epoch 0.

    Parameters
    ----------
    model : SOGMACE
        The model to be restarted.
    directory : Path
        MACE's `checkpoints_dir`.
    name, seed : str, int
        MACE's `name` and `seed`, which make the tag of the checkpoint files.

    Raises
    ------
    HostError
        If the latest checkpoint lacks the long-range part or has other shapes.
    """
    tag = tools.get_tag(name=name, seed=seed)
    paths = sorted(directory.glob(f"{tag}_epoch-*.pt"), key=lambda path: path.stat().st_mtime)
    if not paths:
        return
    state = torch.load(paths[-1], map_location="cpu", weights_only=False)["model"]
    different = _mismatches(model.state_dict(), state)
    if not any(key.startswith("long_range.") for key in state):
        raise HostError(
            f"`{paths[-1]}` is the checkpoint of a MACE model without a long-range part and cannot "
            "be restarted here. To extend that model pass its .model file as --foundation_model, "
            "or choose another --name."
        )
    if different:
        raise HostError(
            f"`{paths[-1]}` does not fit the model of this run ({different[0]}). "
            "Restart with the same options, or choose another --name."
        )


def _mismatches(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    """Describe the entries of two state dicts that are missing or of another shape."""
    rows = []
    for key in sorted(ours.keys() | theirs.keys()):
        shapes = [tuple(s[key].shape) if key in s else "missing" for s in (ours, theirs)]
        if shapes[0] != shapes[1]:
            rows.append(f"{key}: {shapes[0]} here, {shapes[1]} there")
    return rows
