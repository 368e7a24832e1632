"""Models of MACE of the benchmark: how they are trained, and what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from jobs import ROOT  # first: it makes the modules of the examples importable
from mace_options import COMMON
from measures import Found
from workbench import mace_runs, training

from sog_longrange import SOGLongRange

from .system import System

NAME = "mace"
CODE = (ROOT / "sog_longrange", ROOT / "adapters" / "sog_mace")
LIBRARIES = ("mace-torch", "torch")
PATTERN = training.EPOCH
BARE = "sr"  # the column without a head, which our code does not touch

PRESETS = ("ionic", "molecular", "dispersive", "interface")
SOG_OPTIONS = ("--sog_preset=auto",)  # what is recommended
COLUMNS = {
    BARE: (),
    # As published (arXiv:2408.15165, 2412.15455): Gaussians of 1 Å, free charges.
    "les": (
        "--sog_preset=none",
        "--sog_kernel=ewald(smearing=1.0)",
        "--sog_charge_constraint=none",
    ),
    "sog": SOG_OPTIONS,
    "none": ("--sog_preset=none",),
    **{name: (f"--sog_preset={name}",) for name in PRESETS},
}


def train(system: System, head: tuple[str, ...] | None, epochs: int, seed: int):
    """Return the training command, given data and folder; `head` is None for the bare model."""
    program = "mace_run_train" if head is None else "sog_mace_run_train"

    def command(data: Path, folder: Path) -> list[str]:
        return [
            training.find_command(program),
            "--name=model",
            f"--work_dir={folder}",
            f"--model_dir={folder}",
            f"--train_file={data / 'train.xyz'}",
            f"--valid_file={data / f'{system.valid}.xyz'}",
            f"--max_num_epochs={epochs}",
            f"--lr_scheduler_gamma={system.final_rate ** (1 / epochs):.6f}",
            f"--seed={seed}",
            *COMMON,
            *(system.mace or ()),
            *(head or ()),
        ]

    return command


def finish(command: list[str], folder: Path) -> list[str] | None:
    """Command that saves the best model of a stopped training: of its last checkpoint."""
    saved = (folder / "checkpoints").glob("*_epoch-*.pt")
    epochs = [int(path.stem.rpartition("-")[2]) for path in saved]
    return [*command, "--restart_latest", f"--max_num_epochs={max(epochs)}"] if epochs else None


def model_file(folder: Path) -> Path:
    """Where a training leaves its model."""
    return folder / "model.model"


class Model:
    """A trained model, from a pickle: load only what you trained yourself."""

    def __init__(self, path: Path) -> None:
        self.path, self.model = path, mace_runs.load(path)
        self.parameters = sum(weights.numel() for weights in self.model.parameters())

    @property
    def long_range(self) -> SOGLongRange | None:
        """The head, if there is one."""
        return getattr(self.model, "long_range", None)

    def find(self, frames: list[Atoms], stress: bool, label: str = "") -> Found:
        """Energies, forces and charges of frames, and stress where asked for."""
        outputs = list(mace_runs.outputs(self.model, frames, label, stress))
        parts = {
            key: np.concatenate([out[key].detach().numpy() for out in outputs])
            for key in ("energy", "forces", "stress", "latent_charges")
            if outputs[0].get(key) is not None
        }
        sizes = np.cumsum([len(frame) for frame in frames])[:-1]
        charges = parts.get("latent_charges")
        return Found(
            parts["energy"],
            np.split(parts["forces"], sizes),
            parts.get("stress"),
            None if charges is None else np.split(charges, sizes),
        )

    def calculator(self):
        """An ASE calculator, in float64 whatever the training: constant energy asks for it."""
        if self.long_range is None:
            from mace.calculators import MACECalculator as Calculator
        else:
            from sog_mace import SOGMACECalculator as Calculator
        return Calculator(str(self.path), device="cpu", default_dtype="float64")
