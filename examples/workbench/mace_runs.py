"""Train MACE models with the options of the demo, and evaluate them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from . import evaluation, training

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from ase import Atoms

# The two competitors: the command that trains each, and what it is told besides.
COMMANDS = {"MACE": "mace_run_train", "SOG-MACE": "sog_mace_run_train"}
LABELS = tuple(COMMANDS)
EXTRA = {
    "MACE": [],
    "SOG-MACE": ["--sog_preset=auto"],
}

# What both are told.
OPTIONS = [
    "--E0s=average",
    "--num_interactions=2",
    "--max_ell=2",
    "--correlation=2",
    "--default_dtype=float64",
    "--device=cpu",
    "--valid_batch_size=32",
    "--energy_weight=1000",
    "--forces_weight=100",
    "--lr=0.01",
    "--scheduler=ExponentialLR",
    "--ema",
    "--ema_decay=0.99",
    "--error_table=PerAtomRMSE",
    "--plot=False",
]
FINAL_RATE = 0.035  # learning rate of the last epoch relative to the first
BATCH = 32  # frames evaluated at a time


def demo_job(label: str, args: argparse.Namespace, frames: list[Atoms]) -> training.Job:
    """The training command of one model of the demo.

    Parameters
    ----------
    label : one of `LABELS`.
    args : of the demo.
    frames : training frames; MACE reads them from the file.

    Returns
    -------
    Job
    """
    folder, data = args.output / label, args.output / "data"
    command = [
        training.find_command(COMMANDS[label]),
        f"--name={label}",
        f"--work_dir={folder}",
        f"--model_dir={folder}",
        f"--train_file={data / 'train.xyz'}",
        f"--valid_file={data / 'valid.xyz'}",
        f"--seed={args.seed}",
        f"--r_max={args.r_max}",
        f"--hidden_irreps={args.features}x0e + {args.features}x1o",
        f"--batch_size={args.batch_size}",
        f"--max_num_epochs={args.epochs}",
        f"--lr_scheduler_gamma={FINAL_RATE ** (1 / max(args.epochs - 1, 1)):.5f}",
        *OPTIONS,
        *EXTRA[label],
    ]
    return training.Job(label, command, folder, args.epochs)


def model_file(folder: Path) -> Path:
    """Where a training command leaves its model, in the folder of its run."""
    return folder / f"{folder.name}.model"


def predict(model_file: Path, frames: list[Atoms], label: str = "") -> evaluation.Prediction:
    """Energies and forces of frames by a model that a training command saved.

    Parameters
    ----------
    model_file : the saved model; plain and long-range MACE are read alike.
    frames : structures; ``info["total_charge"]`` reaches the model as it does in training.
    label : name on the progress bar.

    Returns
    -------
    Prediction
    """
    energies, forces = [], []
    for out in outputs(load(model_file), frames, label):
        energies.append(out["energy"].detach().numpy())
        forces.append(out["forces"].detach().numpy())
    sizes = np.cumsum([len(frame) for frame in frames])[:-1]
    return evaluation.Prediction(np.concatenate(energies), np.split(np.concatenate(forces), sizes))


def load(model_file: Path) -> Any:  # noqa: ANN401
    """Read a model that a training command saved; its precision becomes torch's default.

    Parameters
    ----------
    model_file : the saved model; plain and long-range MACE are read alike.

    Returns
    -------
    Module, whose parameters need no gradients.
    """
    import mace  # noqa: F401  (before anything that imports e3nn)
    import torch

    # A MACE model file is a pickle: only load what you trained yourself.
    model = torch.load(model_file, map_location="cpu", weights_only=False).eval()
    model.requires_grad_(requires_grad=False)
    torch.set_default_dtype(next(model.parameters()).dtype)
    return model


def outputs(
    model: Any,  # noqa: ANN401
    frames: list[Atoms],
    label: str = "",
    stress: bool = False,
) -> Iterator[dict[str, Any]]:
    """Give what a model says of frames, a batch at a time.

    Parameters
    ----------
    model : from :func:`load`.
    frames : structures; ``info["total_charge"]`` reaches the model as it does in training.
    label : name on the progress bar.
    stress : whether it is computed.

    Yields
    ------
    dict
        Outputs of MACE.
    """
    from sog_mace.charges import mark_given

    charged = all("total_charge" in frame.info for frame in frames)
    for batch in tqdm(_batches(model, frames), desc=f"  {label:9s}", unit="batch", ncols=100):
        if charged:
            mark_given(batch)
        yield model(batch.to_dict(), compute_force=True, compute_stress=stress)


def _batches(model: Any, frames: list[Atoms]) -> Any:  # noqa: ANN401
    """Frames as MACE reads them, a few at a time, in order."""
    from mace import data, tools
    from mace.tools import torch_geometric

    table = tools.AtomicNumberTable([int(z) for z in model.atomic_numbers])
    keys = data.KeySpecification(info_keys={"total_charge": "total_charge"}, arrays_keys={})
    items = [
        data.AtomicData.from_config(
            data.config_from_atoms(frame, key_specification=keys),
            z_table=table,
            cutoff=float(model.r_max),
        )
        for frame in frames
    ]
    return torch_geometric.dataloader.DataLoader(items, batch_size=BATCH, shuffle=False)
