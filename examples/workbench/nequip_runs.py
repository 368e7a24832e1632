"""Train NequIP models from the configs in examples/nequip, and compare them with references."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from . import evaluation, training

if TYPE_CHECKING:
    import argparse

    from ase import Atoms

CONFIGS = {"NequIP": "short_range", "SOG-NequIP": "long_range"}
FOLDER = Path(__file__).resolve().parents[1] / "nequip"
LABELS = tuple(CONFIGS)
EPOCH = re.compile(r"Epoch (?P<epoch>\d+): 100%")


def atomic_energies(frames: list[Atoms]) -> dict[str, float]:
    """Energies of atoms by least squares over frames.

    Parameters
    ----------
    frames : with ``info["REF_energy"]`` in eV.

    Returns
    -------
    dict of str to float, in eV.
    """
    symbols = sorted({symbol for frame in frames for symbol in frame.get_chemical_symbols()})
    counts = [[frame.get_chemical_symbols().count(s) for s in symbols] for frame in frames]
    energies = [frame.info[evaluation.ENERGY] for frame in frames]
    found = np.linalg.lstsq(np.array(counts, float), np.array(energies), rcond=None)[0]
    return dict(zip(symbols, found.tolist(), strict=True))


def make_job(
    label: str, frames: list[Atoms], data: Path, folder: Path, epochs: int, options: list[str]
) -> training.Job:
    """The training command of one model.

    Parameters
    ----------
    label : key of `CONFIGS`.
    frames : training frames, which tell the types and the energies of atoms.
    data : folder with train.xyz and a validation file.
    folder : where the run leaves its files.
    epochs : number of epochs.
    options : further overrides of the config, in hydra's words.

    Returns
    -------
    Job
    """
    energies = atomic_energies(frames)
    shifts = ",".join(f"{symbol}:{energy:.6f}" for symbol, energy in energies.items())
    command = [
        training.find_command("nequip-train"),
        *("-cp", str(FOLDER), "-cn", CONFIGS[label]),
        f"hydra.run.dir={folder.resolve()}",
        f"data_folder={data.resolve()}",
        f"types=[{','.join(energies)}]",
        f"atomic_energies={{{shifts}}}",
        f"max_epochs={epochs}",
        *options,
    ]
    return training.Job(label, command, folder, epochs, pattern=EPOCH)


def recommended(frames: list[Atoms], cutoff: float) -> list[str]:
    """Overrides of the config that the command `sog_preset` recommends for frames.

    Parameters
    ----------
    frames : training frames.
    cutoff : of the model, in Å.

    Returns
    -------
    list of str
    """
    from sog_longrange.ase_support import choose_preset, formal_charges, total_charge
    from sog_longrange.presets import apply_preset

    totals = [total_charge(frame) for frame in frames]
    choice = choose_preset(formal_charges(frames, totals))
    options = apply_preset(choice.preset, {}, has_vectors=True, cutoff=cutoff)
    if any(totals):  # which the configs here do not read
        options["charge_constraint"] = "none"
    told = {key: f"'{own}'" if isinstance(own, str) else own for key, own in options.items()}
    return [f"++training_module.model.sog.{key}={own}" for key, own in told.items()]


def demo_job(label: str, args: argparse.Namespace, frames: list[Atoms]) -> training.Job:
    """The training command of one model of the demo.

    Parameters
    ----------
    label : one of `LABELS`.
    args : of the demo.
    frames : training frames.

    Returns
    -------
    Job
    """
    options = [
        f"seed={args.seed}",
        f"cutoff_radius={args.r_max}",
        f"batch_size={args.batch_size}",
        f"training_module.model.num_features={args.features}",
    ]
    if label == "SOG-NequIP":
        options += recommended(frames, args.r_max)
    return make_job(label, frames, args.output / "data", args.output / label, args.epochs, options)


def model_file(folder: Path) -> Path:
    """Where a run leaves its model, in its folder."""
    return folder / "last.ckpt"


def predict(path: Path, frames: list[Atoms], label: str = "") -> evaluation.Prediction:
    """Energies and forces of frames by a model that a run left.

    Parameters
    ----------
    path : of its checkpoint.
    frames : structures.
    label : name on the progress bar.

    Returns
    -------
    Prediction
    """
    from nequip.integrations.ase import NequIPCalculator

    calculator = NequIPCalculator._from_saved_model(path, chemical_species_to_atom_type_map=True)
    energies, forces = [], []
    for frame in tqdm(frames, desc=f"  {label:10s}", unit="frame", ncols=100):
        atoms = frame.copy()
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
    return evaluation.Prediction(np.array(energies, float).ravel(), forces)
