"""What happens when the numbers of a training are NaN or infinite: it stops, and says why.

MACE itself goes on, and overwrites its best checkpoint by one of NaN.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from mace.tools.checkpoint import CheckpointHandler
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from sog_longrange import HostError
from sog_longrange.coincidence import Coincidence, coincident_atoms
from sog_longrange.errors import NotFiniteError
from sog_longrange.validation import Structures, check_structures

INPUTS = ("positions", "cell", "energy", "forces", "stress", "virials")
"""What of a batch could bring NaN into a model or its loss."""

Data = dict[str, Tensor]


class DivergenceError(HostError):
    """A training has come to numbers that are NaN or infinite."""


class Training:
    """One training of MACE, watched for numbers that are not finite.

    Parameters
    ----------
    options : dict
        What MACE calls its function `train` with.

    Attributes
    ----------
    kept : set of bool
        Stages that a checkpoint was written of; True stands for stage two.
    epoch : int or None
        Epoch that is being trained, None in validation.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.kept: set[bool] = set()
        self.epoch: int | None = None
        self.last_epoch: int | None = None
        self.steps = 0
        self.data: Data = {}

    def run(self, train: Callable[..., None]) -> None:
        """Train, and stop at the first number that is not finite.

        Parameters
        ----------
        train : callable
            MACE's own function.

        Raises
        ------
        DivergenceError
            If the loss or a number of the model is NaN or infinite, on all ranks together.
        """
        with self._watched():
            try:
                train(**self.options)
            except (DivergenceError, NotFiniteError) as error:
                if self._is_searching and self.options.get("distributed"):
                    raise  # The other ranks wait elsewhere, until the launcher ends them.
                text = str(error)
                if isinstance(error, NotFiniteError):
                    self._agree(False)
                    text = self._explain(_short(error))
                raise DivergenceError(self._shared(text)) from error

    def stages(self, restarted: bool) -> set[bool]:
        """Tell which stages have a model to load; True stands for stage two.

        Parameters
        ----------
        restarted : bool
            Whether checkpoints of an earlier run count.

        Returns
        -------
        set of bool
            The same on all ranks.
        """
        stages, io = set(self.kept), self.options["checkpoint_handler"].io
        if restarted:
            paths = Path(io.directory).glob(f"{glob.escape(io.tag)}_epoch-*.pt")
            stages |= {path.stem.endswith("_swa") for path in paths}
        if self.options.get("distributed"):
            # Only the first rank writes checkpoints.
            shared = [stages]
            torch.distributed.broadcast_object_list(shared, src=0)
            stages = shared[0]
        return stages

    @contextmanager
    def train_epoch(self, epoch: int) -> Iterator[None]:
        """Tell training from validation, and which epoch it is.

        Parameters
        ----------
        epoch : int
        """
        self.epoch = self.last_epoch = epoch
        yield
        self.epoch = None  # Not after an error, which is explained further up.

    @property
    def _is_searching(self) -> bool:
        """Whether the line search of L-BFGS tries wild steps, which it leaves again."""
        return self.epoch is not None and isinstance(self.options["optimizer"], LBFGS)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        options = self.options
        optimizer: Optimizer = options["optimizer"]
        swa = options.get("swa")
        losses = [options["loss_fn"], *([] if swa is None else [swa.loss_fn])]
        handles: list[Any] = [
            options["model"].register_forward_pre_hook(self._remember),
            optimizer.register_step_pre_hook(self._check_gradients),
            optimizer.register_step_post_hook(self._count),
            *(loss.register_forward_hook(self._check_loss) for loss in losses),
        ]
        handler: CheckpointHandler = options["checkpoint_handler"]
        handler.save = self._save
        try:
            yield
        finally:
            del handler.save
            for handle in handles:
                handle.remove()

    def _save(self, state: Any, epochs: int, keep_last: bool = False) -> None:
        handler: CheckpointHandler = self.options["checkpoint_handler"]
        type(handler).save(handler, state, epochs, keep_last)
        start = handler.io.swa_start
        self.kept.add(start is not None and epochs >= start)

    def _remember(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.data = inputs[0]

    def _count(self, *_: object) -> None:
        self.steps += 1

    def _check_loss(self, _: nn.Module, __: object, loss: Tensor) -> None:
        if self._is_searching:
            return
        finite = bool(torch.isfinite(loss.detach()).all())
        if not self._agree(finite):
            # Where it is finite, another rank explains it.
            got = f"The loss is {float(loss.detach().sum())}."
            raise DivergenceError("" if finite else self._explain(got))

    def _check_gradients(self, optimizer: Optimizer, *_: object) -> None:
        """Stop before weights become NaN; gradients are the same on all ranks."""
        if isinstance(optimizer, LBFGS):
            return
        groups = (group["params"] for group in optimizer.param_groups)
        norms = [p.grad.norm() for params in groups for p in params if p.grad is not None]
        if norms and not bool(torch.isfinite(torch.stack(norms)).all()):
            raise DivergenceError(self._explain("The gradient of the loss is not finite."))

    def _agree(self, finite: bool) -> bool:
        """Tell whether all is finite on all ranks, which must stop together or wait for ever."""
        if not self.options.get("distributed"):
            return finite
        flag = torch.tensor(float(finite), device=self.options["device"])
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
        return bool(flag)

    def _shared(self, text: str) -> str:
        """Explanation of the first rank that has one."""
        if not self.options.get("distributed"):
            return text
        texts: list[str] = [""] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(texts, text)
        return next(text for text in texts if text)

    def _explain(self, what: str) -> str:
        """Say where training stopped, why, and what to do about it."""
        return f"{what} {self._place()} {self._cause()}"

    def _place(self) -> str:
        rate = f"at a learning rate of {self.options['optimizer'].param_groups[0]['lr']:g}"
        if self.epoch is not None:
            return f"This was at optimizer step {self.steps + 1} in epoch {self.epoch}, {rate}."
        if self.last_epoch is None:
            return "This was in the validation before training."
        step = f"optimizer step {self.steps}"
        return f"This was in the validation after epoch {self.last_epoch} and {step}, {rate}."

    def _cause(self) -> str:
        for name in INPUTS:
            structure = _spoilt(self.data, name)
            if structure is not None:
                return f"`{name}` of {self._name(structure)} must be finite: mend the data."
        found = _coincidence(self.data)
        if found is not None:
            i, j = found.atoms
            where = f"{i} and {j} of {self._name(found.structure)}"
            distance = f"{round(found.distance, 6):g} Å"
            return (
                f"The cause: atoms {where} are {distance} apart, periodic images included. Move "
                "them apart, or leave the frame out."
            )
        swa, clip = self.options.get("swa"), self.options.get("max_grad_norm")
        in_stage_two = swa is not None and (self.last_epoch or 0) >= swa.start
        rate = "--swa_lr" if in_stage_two else "--lr"
        clipped = "" if clip is None else f" (now {clip:g})"
        return (
            f"Training diverged: take a smaller {rate}, a smaller --clip_grad{clipped} or a longer "
            "--sog_warmup, and look for wrong labels."
        )

    def _name(self, structure: int) -> str:
        """Name a structure of the batch, by its place in the data if they are in memory."""
        own = self.data["batch"] == structure
        positions = self.data["positions"][own].detach()
        for where, index, frame in self._frames():
            theirs = frame.positions
            if theirs.shape == positions.shape and torch.equal(theirs.to(positions), positions):
                return f"frame {index} of the set {where}"
        energy = self.data.get("energy")
        label = "" if energy is None else f" with the energy label {float(energy[structure]):.8g}"
        return f"the frame of {len(positions)} atoms{label}"

    def _frames(self) -> Iterator[tuple[str, int, Any]]:
        # Sets that stream from files are not read again for a name.
        train = self.options["train_loader"].dataset
        heads = getattr(self.options["model"], "heads", ["Default"])
        parts = getattr(train, "datasets", [train])
        sets = [(f"'train' of head {h!r}", part) for h, part in zip(heads, parts, strict=False)]
        for head, loader in self.options["valid_loaders"].items():
            sets.append((f"'valid' of head {head!r}", loader.dataset))
        for where, frames in sets:
            if isinstance(frames, list):
                yield from ((where, index, frame) for index, frame in enumerate(frames))


def explain_no_errors(error: NotFiniteError, loaders: dict[str, Any]) -> str:
    """Say why the errors of some sets cannot be evaluated.

    Parameters
    ----------
    error : NotFiniteError
        Which names a structure of a batch only, and batches are shuffled.
    loaders : dict
        Data loader of each set; those that stream from files are not read again.

    Returns
    -------
    str
    """
    for name, loader in loaders.items():
        for index, frame in enumerate(loader.dataset if isinstance(loader.dataset, list) else []):
            found = coincident_atoms(
                _structures(frame, torch.zeros(len(frame.positions)).long(), 1)
            )
            if found is not None:
                i, j = found.atoms
                where = f"Atoms {i} and {j} of frame {index} of {name!r}"
                return f"{_short(error)} {where} are at one place."
    return str(error)


def _short(error: NotFiniteError) -> str:
    """Say what is not finite, without a structure by its place in a batch."""
    return str(error if error.__cause__ is None else error.__cause__)


def _coincidence(data: Data) -> Coincidence | None:
    structures = _structures(SimpleNamespace(**data), data["batch"], len(data["ptr"]) - 1)
    return coincident_atoms(structures)


def _structures(data: Any, batch: Tensor, count: int) -> Structures:
    cell, pbc = data.cell.view(-1, 3, 3), data.pbc.view(-1, 3)
    return check_structures(data.positions, cell, pbc, batch, count)


def _spoilt(data: Data, name: str) -> int | None:
    """First structure of a batch that has a number that is not finite under a name."""
    value = data.get(name)
    if value is None:
        return None
    of_atoms = name in ("positions", "forces")
    rows = value.detach().reshape(len(data["batch"]) if of_atoms else len(data["ptr"]) - 1, -1)
    wrong = ~torch.isfinite(rows).all(-1)
    if not bool(wrong.any()):
        return None
    index = int(wrong.nonzero()[0])
    return int(data["batch"][index]) if of_atoms else index
