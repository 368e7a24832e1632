"""MACE with and without the long-range head: same backbone, seed, data and budget.

For each system both models are trained at the same time, on one core each, and tested on
structures that a cutoff model cannot get right. Writes a table, and the figures as JSON.

    python benchmarks/mace_accuracy.py --data path/to/data              # all, two hours
    python benchmarks/mace_accuracy.py dimers_cc --data path/to/data
"""

from __future__ import annotations

from pathlib import Path

import accuracy  # first: it makes the modules of the examples importable
import learned
import numpy as np
import torch
from ase import Atoms
from mace_options import COMMON, DIMERS, GAS, PEPTIDES
from workbench import mace_runs, training

from sog_longrange import SOGLongRange
from sog_mace import SOGMACECalculator

FINAL_RATE = 0.02  # learning rate of the last epoch relative to the first
SYSTEMS = {
    "coulomb_gas": accuracy.System(
        "syn_coulomb_gas", "val", ("test", "test_triclinic", "test_large"), 30, GAS
    ),
    "dimers_cc": accuracy.System(
        "dimers_bfdb/CC", "train", ("train", "test"), 400, DIMERS, ("--sog_num_channels=4",)
    ),
    # The ion polarises its partner well beyond 4.5 Å, and the charges must see that.
    "dimers_cp": accuracy.System(
        "dimers_bfdb/CP", "train", ("train", "test"), 300, (*DIMERS, "--r_max=6.0")
    ),
    "wca_control": accuracy.System("syn_wca_control", "val", ("test",), 40, GAS),
    # Forces hold the response of the charges to the geometry.
    "envq": accuracy.System("syn_envq", "val", ("test", "test_triclinic"), 40, GAS),
    "decay_p1": accuracy.System(
        "syn_decay_p1",
        "val",
        ("test_interp", "test_extrap"),
        120,
        (*DIMERS, "--batch_size=4"),
        law=learned.coulomb,
    ),
    "decay_yuk": accuracy.System(
        "syn_decay_yuk",
        "val",
        ("test_interp", "test_extrap"),
        200,
        (*DIMERS, "--batch_size=4"),
        # Half of the screening that is to be learned, and nothing as wide as the box.
        (
            "--sog_kernel=yukawa(kappa=0.1)",
            "--sog_max_width=10",
            "--sog_kernel_lr_factor=1",
            "--sog_charge_constraint=neutral",
        ),
        law=learned.yukawa,
    ),
    "dipeptides": accuracy.System(
        "dipeptides_spice", "val", ("test",), 120, PEPTIDES, ("--sog_charge_constraint=neutral",)
    ),
}


def make_job(label: str, system: accuracy.System, data: Path, folder: Path) -> training.Job:
    """The training command of one model."""
    command = [
        training.find_command(mace_runs.COMMANDS[label]),
        f"--name={label}",
        f"--work_dir={folder}",
        f"--model_dir={folder}",
        f"--train_file={data / 'train.xyz'}",
        f"--valid_file={data / f'{system.valid}.xyz'}",
        f"--max_num_epochs={system.epochs}",
        f"--lr_scheduler_gamma={FINAL_RATE ** (1 / system.epochs):.6f}",
        *COMMON,
        *system.told(label),
    ]
    return training.Job(label, command, folder, system.epochs)


def charges(model: Path, frames: list[Atoms]) -> list[np.ndarray]:
    """Latent charges of the first channel."""
    calculator = SOGMACECalculator(str(model), device="cpu", default_dtype="float64")
    return [calculator.get_property("charges", frame) for frame in frames]


def long_range(model: Path) -> SOGLongRange:
    """Long-range part of a model file, a pickle: load only what you trained yourself."""
    return torch.load(model, map_location="cpu", weights_only=False).long_range


if __name__ == "__main__":
    accuracy.main(
        accuracy.Comparison(
            __doc__, mace_runs, SYSTEMS, make_job, charges, long_range, "mace_accuracy", "--seed={}"
        )
    )
