"""How the long-range part is trained: for the `callbacks` and `optimizer` sections of a config."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from sog_longrange import ConfigError, HostError
from sog_longrange.errors import explain
from sog_longrange.training import KERNEL_START, check_start, delay_kernel, parameter_groups

from .labels import check_neutral, check_stress_labels, coincidence, warn_of_odd_electrons
from .parts import long_range_parts
from .report import ChargeReport


class WarmUp(Callback):
    """Bring the long-range energy in over the first optimizer steps, and start the kernel later.

    For models that were built with ``warm_up: true``: training starts at exactly the
    short-range model. A restarted training goes on where it stopped. Stress labels of structures
    without a volume raise an error in the first epoch. After training the charges of the validation
    set and the learned law are reported, with warnings of what looks unphysical.

    Parameters
    ----------
    steps : int
        Number of steps until the long-range energy is there in full, at least 1.
    kernel_start : float
        Share of all optimizer steps before which the kernel stays as it is, from 0 to 1; see
        :func:`sog_longrange.training.delay_kernel`. All steps are those up to the trainer's
        `max_epochs` or `max_steps`, also where it stops earlier.

    Raises
    ------
    ConfigError
        If `steps` is not positive or `kernel_start` out of range.
    """

    def __init__(self, steps: int = 100, kernel_start: float = KERNEL_START) -> None:
        if steps < 1:
            raise ConfigError(explain("steps", "at least 1", str(steps)))
        check_start(kernel_start)
        self.steps, self.kernel_start = steps, kernel_start
        self._has_seen_all = self._has_warned = False
        self._report: ChargeReport | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the steps of the optimizer open the gate, and start the kernel.

        Parameters
        ----------
        trainer : Trainer
        pl_module : LightningModule

        Raises
        ------
        HostError
            If the model has no long-range part, or one that is there in full already.
        ConfigError
            If a share of all steps is asked for and the trainer has neither `max_epochs` nor
            `max_steps`.
        """
        for part in long_range_parts(pl_module.model):
            if trainer.global_step == 0 and float(part.long_range.gate) == 1.0:
                expected = "with `warm_up: true` where WarmUp is a callback"
                remedy = "Add it to the model's config, or leave the callback out."
                raise HostError(explain("model", expected, "one without", remedy))
            part.long_range.fade_in(trainer.optimizers[0], self.steps)
            part.is_opening = True
        parts = [part.long_range for part in long_range_parts(pl_module.model)]
        if self.kernel_start > 0.0:
            total = trainer.estimated_stepping_batches
            delay_kernel(parts, trainer.optimizers[0], total, self.kernel_start)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        """Look at a batch of the first epoch, and keep it for messages.

        Parameters
        ----------
        trainer : Trainer
        pl_module : LightningModule
        batch : dict
        batch_idx : int

        Raises
        ------
        InputError
            If a structure has a stress label and no volume, or a total charge where
            ``charge_constraint: auto`` stands for neutral structures.
        """
        self._batch = batch
        if self._has_seen_all:
            return
        where = f"training batch {batch_idx}"
        check_stress_labels(batch, where)
        for part in long_range_parts(pl_module.model):
            config = part.long_range.config
            neutral = config.constrained_channels and not config.needs_total_charge
            if config.charge_constraint == "auto" and neutral:
                check_neutral(batch, where)
                self._has_warned = self._has_warned or warn_of_odd_electrons(batch, where)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Stop before a loss that is not finite spoils the weights.

        Parameters
        ----------
        trainer : Trainer
        pl_module : LightningModule
        loss : Tensor, scalar

        Raises
        ------
        HostError
            If it is NaN or infinite on any rank. Checkpoints are kept.
        """
        finite = bool(torch.isfinite(loss.detach()).all())
        if trainer.strategy.reduce_boolean_decision(finite, all=True):
            return
        found = None if finite else coincidence(self._batch)
        remedy = (
            "Training diverged: take a smaller learning rate, clip gradients by the trainer's "
            "`gradient_clip_val`, or look for wrong labels."
        )
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        where = f"at optimizer step {trainer.global_step + 1} in epoch {trainer.current_epoch}"
        got = f"{loss.item()}" if not finite else "one that is not finite on another rank"
        raise HostError(
            f"The loss must be finite, got {got} {where}, at a learning rate of {rate:g}. "
            f"{remedy if found is None else found} Checkpoints of steps before are kept."
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at no labels twice.

        Parameters
        ----------
        trainer : Trainer
        pl_module : LightningModule
        """
        self._has_seen_all = True

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to look at charges, which are reported after training.

        Parameters
        ----------
        trainer : Trainer
        pl_module : LightningModule
        """
        self._report = ChargeReport(pl_module.model)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at the charges of a batch.

        Parameters
        ----------
        trainer : Trainer
        pl_module : LightningModule
        outputs : dict
            Of NequIP's validation step.
        batch : dict
        batch_idx, dataloader_idx : int
        """
        out = (outputs or {}).get(f"val_{dataloader_idx}_output")
        if self._report is not None and out is not None:
            self._report.add(out, batch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the charges, and say if the long-range energy was not yet there in full.

        Parameters
        ----------
        trainer : Trainer
        pl_module : LightningModule
        """
        if self._report is not None and trainer.is_global_zero:
            data = getattr(trainer.train_dataloader, "dataset", ())
            self._report.log(len(data) if hasattr(data, "__len__") else 0)
        for part in long_range_parts(pl_module.model):
            remedy = f"Train longer, or with fewer than {self.steps} steps of WarmUp."
            message = part.long_range.explain_gate(remedy)
            if message:
                warnings.warn(f"Training ended too early. {message}", stacklevel=2)


def long_range_groups(model: nn.Module, kernel_lr: float) -> list[dict[str, Any]]:
    """Train the long-range part in its own way, as `param_groups` of an optimizer.

    Charges have the optimizer's own learning rate, but neither its AMSGrad, which would keep their
    steps as small as the first gradients made them, nor its weight decay; the kernel has a rate of
    its own besides. That of the model is a good one where :class:`WarmUp` starts the kernel late,
    as it does by default, and a tenth of it where kernels learn from the first step.

    Parameters
    ----------
    model : Module
        Passed by NequIP.
    kernel_lr : float
        Learning rate of the kernel, not negative.

    Returns
    -------
    list of dict
        Parameter groups: the short-range model, charges, and the kernel.

    Raises
    ------
    ConfigError
        If the learning rate is negative or not finite.
    HostError
        If the model has no long-range part.
    """
    parts = [part.long_range for part in long_range_parts(model)]
    groups = parameter_groups(parts, charges=None, kernel=kernel_lr)
    known = {id(p) for group in groups for p in group["params"]}
    others = [p for p in model.parameters() if id(p) not in known]
    return [{"params": others}, *groups]
