"""NequIP with and without the plugin: same network, seed, data and budget.

Both models are trained at the same time, on one core each, from the configs in
examples/nequip, and tested on structures that a cutoff model cannot get right. Writes a
table, and the figures as JSON.

    python benchmarks/nequip_accuracy.py --data path/to/data              # all, 20 minutes
    python benchmarks/nequip_accuracy.py dimers_cc --data path/to/data
"""

from __future__ import annotations

from pathlib import Path

import accuracy  # first: it makes the modules of the examples importable
import numpy as np
from ase import Atoms
from ase.io import read
from workbench import nequip_runs, training

from sog_longrange import SOGLongRange
from sog_nequip.calculator import SOGNequIPCalculator
from sog_nequip.parts import long_range_parts

MODEL = "training_module.model"
SYSTEMS = {
    "coulomb_gas": accuracy.System(
        "syn_coulomb_gas",
        "val",
        ("test", "test_triclinic", "test_large"),
        25,
        ("cutoff_radius=5.0", "batch_size=4", "energy_weight=1.0"),
    ),
    "dimers_cc": accuracy.System(
        "dimers_bfdb/CC",
        "train",
        ("train", "test"),
        400,
        ("batch_size=2", "energy_weight=100.0", f"{MODEL}.num_features=32"),
        (f"{MODEL}.sog.num_channels=4",),
    ),
}


def make_job(label: str, system: accuracy.System, data: Path, folder: Path) -> training.Job:
    """The training command of one model."""
    frames = read(data / "train.xyz", ":")
    options = [f"validation={system.valid}", *system.told(label)]
    return nequip_runs.make_job(label, frames, data, folder, system.epochs, options)


def charges(model: Path, frames: list[Atoms]) -> list[np.ndarray]:
    """Latent charges of the first channel."""
    calculator = SOGNequIPCalculator.from_saved_model(model, chemical_species_to_atom_type_map=True)
    return [calculator.get_property("charges", frame) for frame in frames]


def long_range(model: Path) -> SOGLongRange:
    """Long-range part of a checkpoint."""
    calculator = SOGNequIPCalculator.from_saved_model(model, chemical_species_to_atom_type_map=True)
    (part,) = long_range_parts(calculator.model)
    return part.long_range


if __name__ == "__main__":
    accuracy.main(
        accuracy.Comparison(
            __doc__,
            nequip_runs,
            SYSTEMS,
            make_job,
            charges,
            long_range,
            "nequip_accuracy",
            "seed={}",
        )
    )
