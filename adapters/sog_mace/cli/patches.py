"""Every place where the adapter reaches into `mace.cli.run_train`, and nothing else.

MACE has no plugin hook, so its training program is run with a few of its names
replaced for the duration of the run.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import math
from argparse import Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mace import tools
from mace.cli import run_train
from torch import nn

from sog_longrange import ConfigError, HostError, SOGConfig
from sog_longrange.ase_support import FragmentCharges
from sog_longrange.errors import NotFiniteError, explain
from sog_longrange.options import option
from sog_longrange.presets import NONE
from sog_longrange.training import (
    KERNEL_START,
    check_start,
    delay_kernel,
    late_parameters,
    parameter_groups,
)
from sog_mace.backbone import convert, restored
from sog_mace.cells import keep_input_cells
from sog_mace.charges import total_charges_checked
from sog_mace.cli.checkpoints import check_checkpoints
from sog_mace.cli.divergence import DivergenceError, Training, explain_no_errors
from sog_mace.cli.fragments import FragmentLoss
from sog_mace.cli.frames import (
    check_frame,
    read_checked,
    resolve_constraint,
    warn_of_ignored_charges,
)
from sog_mace.cli.presets import PresetOptions
from sog_mace.cli.sources import Source
from sog_mace.cli.streams import StreamedCharges, checked_frames
from sog_mace.heads import select_head
from sog_mace.host import check_names
from sog_mace.model import SOGMACE

PATCHED = [
    "get_dataset_from_xyz",
    "load_dataset_for_path",
    "configure_model",
    "get_params_options",
    "get_optimizer",
    "remove_pt_head",
    "inject_LoRAs",
    "get_swa",
    "create_error_table",
    "run_cueq_to_e3nn",
    "run_oeq_to_e3nn",
]
PATCHED_ELSEWHERE: list[tuple[Any, str]] = [
    (tools, "train"),
    # Where `mace.tools` has the function of this name.
    (importlib.import_module("mace.tools.train"), "train_one_epoch"),
]


@dataclass(frozen=True)
class Schedule:
    """How the long-range part is trained.

    Attributes
    ----------
    lr_factor, element_lr_factor, kernel_lr_factor : float
        Learning rates of the charges, with their states and dipoles, of the charges that elements
        bring with them, and of the kernel, relative to MACE's.
    kernel_start : float
        Share of all optimizer steps before which the kernel stays as it is: it holds the physics
        that charges which are still wrong should not bend.
    warmup : int
        Optimizer steps over which the long-range energy comes in; 0 for none.
    fragment_charge_weight : float, in 1/e²
        Of the mean square error of charges of fragments in the loss, where a preset has found
        whole charges that the readout does not give by itself; 0 for none.
    """

    lr_factor: float = option(
        1.0,
        "learning rate of charges and charge states relative to --lr (stage two has one rate)",
    )
    element_lr_factor: float = option(
        1.0,
        "learning rate of the charges of elements (readout=ions) relative to --lr; a tenth holds "
        "those of molecular ions, which are whole far apart",
    )
    kernel_lr_factor: float = option(
        1.0, "learning rate of the kernel relative to --lr (stage two has one rate)"
    )
    kernel_start: float = option(
        KERNEL_START,
        "share of all optimizer steps before which the kernel stays as it is, so that charges "
        "are right when it begins to learn; 0 to learn from the start, 1 to never learn",
    )
    warmup: int = option(
        100,
        "optimizer steps over which the long-range energy is scaled up from zero, so that "
        "training starts at the model without it; 0 for none",
    )
    fragment_charge_weight: float = option(
        100.0,
        "weight in the loss of charges of fragments, in 1/e^2, where a preset finds whole ones "
        "that the readout does not give by itself; 0 for none",
    )

    def __post_init__(self) -> None:
        names = ("lr_factor", "element_lr_factor", "kernel_lr_factor", "fragment_charge_weight")
        for name in (*names, "warmup"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(explain(name, "finite and not negative", str(value)))
        check_start(self.kernel_start)


@contextmanager
def patched_run_train(
    config: SOGConfig,
    schedule: Schedule,
    backend: str | None = None,
    preset: PresetOptions | None = None,
) -> Iterator[Patches]:
    """Let `mace.cli.run_train.run` build and train SOGMACE models.

    Parameters
    ----------
    config : SOGConfig
        Options of the long-range part.
    schedule : Schedule
        How the long-range part is trained.
    backend : str, optional
        What the inner model is converted to; a key of :data:`sog_mace.backbone.BACK`.
    preset : PresetOptions, optional
        What data and model add to the options; nothing by default.

    Yields
    ------
    Patches
        Its `model` is the model of the run, once MACE has built it.

    Raises
    ------
    HostError
        If the installed MACE lacks a name that has to be replaced.
    """
    patches = Patches(config, schedule, backend, preset)
    try:
        for name in PATCHED:
            setattr(run_train, name, getattr(patches, name))
        for module, name in PATCHED_ELSEWHERE:
            setattr(module, name, getattr(patches, name))
        with (
            keep_input_cells(training=True),
            checked_frames(patches.check_frame),
            total_charges_checked(),
        ):
            yield patches
    finally:
        for name in PATCHED:
            setattr(run_train, name, patches.originals[name])
        for module, name in PATCHED_ELSEWHERE:
            setattr(module, name, patches.originals[name])


class Patches:
    """Replacements of the names in `PATCHED`, each calling the original.

    Parameters
    ----------
    config : SOGConfig
    schedule : Schedule
    backend, preset
        As for :func:`patched_run_train`.
    """

    model: SOGMACE
    dataset: Any
    training: Training

    def __init__(
        self,
        config: SOGConfig,
        schedule: Schedule,
        backend: str | None = None,
        preset: PresetOptions | None = None,
    ) -> None:
        check_names(run_train, PATCHED)
        self.originals = {name: getattr(run_train, name) for name in PATCHED}
        for module, name in PATCHED_ELSEWHERE:
            check_names(module, [name])
            self.originals[name] = getattr(module, name)
        self.config, self.schedule, self.backend = config, schedule, backend
        self.preset = preset or PresetOptions(NONE)
        self.fragments: FragmentCharges | None = None
        self.sources: list[Source] = []
        self.streams = StreamedCharges()
        self.starts_fresh = True
        self.restarted = False
        self.stages: list[bool] = []

    def get_dataset_from_xyz(self, *args: Any, **kwargs: Any) -> Any:
        """Read the data of a head and check each frame."""
        read = self.originals["get_dataset_from_xyz"]
        result, sources = read_checked(read, self.config, *args, **kwargs)
        self.sources += sources
        return result

    def check_frame(self, where: str, frame: Any) -> None:
        """Check a frame that streams from a file, as it is read."""
        check_frame(where, frame, {}, self.config)

    def load_dataset_for_path(self, *args: Any, **kwargs: Any) -> Any:
        """Check what streams from a file, of training and validation, when it is opened."""
        dataset = self.originals["load_dataset_for_path"](*args, **kwargs)
        self.streams.add(dataset, self.config)
        return dataset

    def configure_model(
        self,
        args: Namespace,
        loader: Any,
        energies: Any,
        foundation: Any,
        heads: Any,
        z_table: Any,
        head_configs: Any,
    ) -> Any:
        """Wrap the model that MACE configures, after a look at the data."""
        self.dataset, self.steps_per_epoch = loader.dataset, len(loader)
        if isinstance(foundation, SOGMACE) and self.config.charge_constraint == "auto":
            theirs = foundation.long_range.config
            self.config = self.config.with_constraint(
                theirs.charge_constraint, theirs.fractional_charge
            )
        self.streams.add_tests(head_configs, self.config)
        self.config = resolve_constraint(self.config, head_configs, self.sources, self.streams)
        if isinstance(foundation, SOGMACE):
            warn_of_ignored_charges(self.config, head_configs, self.streams)
        inner = foundation.mace if isinstance(foundation, SOGMACE) else foundation
        mace, outputs = self.originals["configure_model"](
            args, loader, energies, inner, heads, z_table, head_configs
        )
        found = self.preset.complete(self.config, mace, foundation, loader.dataset, z_table.zs)
        self.config, self.fragments = found.config, found.fragments
        self.schedule = dataclasses.replace(self.schedule, **found.schedule)
        if self.backend is not None:
            logging.info("The inner model is converted to %s for the training", self.backend)
            mace = convert(mace, self.backend)
        self.model = SOGMACE(mace, self.config)
        if isinstance(foundation, SOGMACE):
            _copy_long_range(foundation, self.model)
            self.starts_fresh = False
        count = sum(p.numel() for p in self.model.long_range.parameters())
        logging.info("Long-range part: %d parameters, %s", count, self.config)
        return self.model, outputs

    def get_params_options(self, args: Namespace, model: SOGMACE) -> dict[str, Any]:
        """Give the long-range part its parameter group and leave no parameter out."""
        self.model = model  # MACE may have copied it on the way here.
        options: dict[str, Any] = self.originals["get_params_options"](args, model)
        schedule = self.schedule
        rates = {
            "charges": schedule.lr_factor * args.lr,
            "elements": schedule.element_lr_factor * args.lr,
            "kernel": schedule.kernel_lr_factor * args.lr,
        }
        groups = parameter_groups([model.long_range], **rates)
        for name, group in zip(rates, groups, strict=True):
            options["params"].append({"name": f"long_range_{name}"} | group)
        for group in options["params"]:
            # MACE hands over generators: looking into them would empty them.
            group["params"] = list(group["params"])
        check_all_trained(model, options["params"])
        if self.backend is not None:
            # Only now: MACE, which would refuse to convert our class, is to convert back.
            setattr(args, f"enable_{self.backend}", True)
        return options

    def run_cueq_to_e3nn(self, model: SOGMACE, device: torch.device) -> SOGMACE:
        """Make the inner model plain, to be saved."""
        return restored(model, "cueq", device)

    def run_oeq_to_e3nn(self, model: SOGMACE, device: torch.device) -> SOGMACE:
        """Make the inner model plain, to be saved."""
        return restored(model, "oeq", device)

    def get_optimizer(self, args: Namespace, options: dict[str, Any]) -> torch.optim.Optimizer:
        """Let the steps of the optimizer open the gate of the long-range energy."""
        check_checkpoints(self.model, Path(args.checkpoints_dir), args.name, args.seed)
        self.restarted = bool(args.restart_latest)
        optimizer: torch.optim.Optimizer = self.originals["get_optimizer"](args, options)
        long_range, warmup = self.model.long_range, self.schedule.warmup
        # MACE replaces this optimizer by L-BFGS if that is asked for.
        if self.starts_fresh and warmup > 0 and not args.lbfgs:
            long_range.warm_up(optimizer, warmup)
        else:
            # A foundation model or a checkpoint may come with a gate that is not yet open.
            long_range.fade_in(optimizer, max(warmup, 1))
        self.delay_kernel(args, optimizer)
        return optimizer

    def delay_kernel(self, args: Namespace, optimizer: torch.optim.Optimizer) -> None:
        """Let the kernel learn from where it is told to."""
        start, part = self.schedule.kernel_start, self.model.long_range
        if args.lbfgs and start > 0.0:
            logging.warning("--sog_kernel_start has no effect: L-BFGS moves all parameters at once")
            return
        steps = max(args.max_num_epochs * self.steps_per_epoch, 1)
        delay_kernel([part], optimizer, steps, start)
        late = [own for own in late_parameters(part) if own.requires_grad]
        if late:
            kernel = any(own.requires_grad for own in part.energy.parameters())
            what = "The kernel learns" if kernel else "Coefficients of dispersion learn"
            logging.info("%s from step %d of %d on", what, math.ceil(start * steps), steps)

    def get_swa(self, *args: Any, **kwargs: Any) -> Any:
        """Remember the stages that MACE loads models of in the end."""
        swa, stages = self.originals["get_swa"](*args, **kwargs)
        self.stages = stages
        return swa, stages

    def train(self, **options: Any) -> None:
        """Stop at the first number that is not finite, and go on with the best model before."""
        self.training = Training(options)
        try:
            with self.fragments_held(options):
                self.training.run(self.originals["train"])
        except DivergenceError as error:
            logging.error("Training stopped. %s", error)
            kept = self.training.stages(self.restarted)
            if not kept:
                raise SystemExit(
                    f"sog_mace_run_train: training stopped before a model was kept. {error}"
                ) from error
            # MACE loads no model of a stage that was not reached.
            self.stages[:] = [stage for stage in self.stages if stage in kept]
            logging.warning("The best model of the epochs before is kept, saved and evaluated.")

    def fragments_held(self, options: dict[str, Any]) -> AbstractContextManager[None]:
        """Hold charges of fragments to those that the data tell, where the readout does not."""
        weight, channels = self.schedule.fragment_charge_weight, self.config.conserved_channels
        is_free = self.config.readout == "atoms" and len(channels) == 1
        if weight == 0.0:
            return nullcontext()
        if self.fragments is None or not is_free:
            if "fragment_charge_weight" in self.preset.given_schedule:
                why = "the readout gives them, or the training data do not tell them"
                logging.warning("--sog_fragment_charge_weight has no effect: %s", why)
            return nullcontext()
        swa, numbers = options.get("swa"), [int(z) for z in self.model.atomic_numbers]
        added = FragmentLoss(
            self.fragments, weight, numbers, channels[0], lambda: self.training.epoch is not None
        )
        return added.added([options["loss_fn"], *([] if swa is None else [swa.loss_fn])])

    def train_one_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train one epoch, whose number the training keeps."""
        with self.training.train_epoch(kwargs["epoch"]):
            self.originals["train_one_epoch"](*args, **kwargs)

    def create_error_table(self, *args: Any, **kwargs: Any) -> Any:
        """Go on where errors cannot be evaluated: the model is saved by then."""
        try:
            return self.originals["create_error_table"](*args, **kwargs)
        except NotFiniteError as error:
            if kwargs.get("distributed"):
                raise  # The other ranks would wait for ever.
            reason = explain_no_errors(error, kwargs["all_data_loaders"])
            logging.error("No errors of these sets: %s", reason)
            return "none, see the error above"

    def remove_pt_head(self, model: nn.Module, head_to_keep: str | None = None) -> nn.Module:
        """Remove heads of the inner model."""
        original = self.originals["remove_pt_head"]
        if not isinstance(model, SOGMACE):
            return original(model, head_to_keep)
        return select_head(model, head_to_keep, original)

    def inject_LoRAs(self, model: SOGMACE, *args: Any, **kwargs: Any) -> SOGMACE:  # noqa: N802
        """Freeze and adapt the inner model only."""
        model.mace = self.originals["inject_LoRAs"](model.mace, *args, **kwargs)
        return model


def _copy_long_range(foundation: SOGMACE, model: SOGMACE) -> None:
    theirs = foundation.long_range
    differences = model.long_range.config.differences(theirs.config)
    if differences:
        raise HostError(
            "The long-range part of the foundation model was trained with other options: "
            f"{differences}. Pass the same --sog_* options."
        )
    model.long_range.load_state_dict(theirs.state_dict())
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
