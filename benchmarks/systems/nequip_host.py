"""Models of NequIP of the benchmark: how they are trained, and what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read
from jobs import ROOT  # first: it makes the modules of the examples importable
from measures import Found
from workbench import nequip_runs

from sog_longrange import SOGLongRange

from .system import System

NAME = "nequip"
CODE = (ROOT / "sog_longrange", ROOT / "adapters" / "sog_nequip")
LIBRARIES = ("nequip", "torch")
PATTERN = nequip_runs.EPOCH
BARE = "sr"
OPTIONS = "training_module.model.sog"

PRESETS = ("ionic", "molecular", "dispersive", "interface")
AUTO = "auto"  # what is recommended: by the data, see `nequip_runs.recommended`
COLUMNS = {
    BARE: (),
    "les": (f"+{OPTIONS}.kernel='ewald(smearing=1.0)'", f"+{OPTIONS}.charge_constraint=none"),
    "sog": (AUTO,),
    "default": (),
    **{name: (f"+{OPTIONS}.preset={name}",) for name in PRESETS},
}


def train(system: System, head: tuple[str, ...] | None, epochs: int, seed: int):
    """Return the training command, given data and folder; `head` is None for the bare model."""
    label = "NequIP" if head is None else "SOG-NequIP"
    options = system.nequip or ()
    told = [f"validation={system.valid}", f"seed={seed}", *options]

    def command(data: Path, folder: Path) -> list[str]:
        frames = read(data / "train.xyz", ":")
        is_auto = head == (AUTO,)
        own = nequip_runs.recommended(frames, cutoff_of(options)) if is_auto else head or ()
        return nequip_runs.make_job(label, frames, data, folder, epochs, [*told, *own]).command

    return command


def cutoff_of(options: tuple[str, ...], name: str = "cutoff_radius=") -> float:
    """Cutoff in Å that options ask for, or the one of the config."""
    return next((float(own.removeprefix(name)) for own in options if own.startswith(name)), 4.5)


def finish(command: list[str], folder: Path) -> None:
    """Nothing: each epoch leaves its model."""


model_file = nequip_runs.model_file


class Model:
    """A trained model."""

    def __init__(self, path: Path) -> None:
        from nequip.integrations.ase import NequIPCalculator

        from sog_nequip.calculator import SOGNequIPCalculator
        from sog_nequip.parts import long_range_parts

        self.path = path
        load = {"chemical_species_to_atom_type_map": True}
        self._calculator = NequIPCalculator._from_saved_model(path, **load)
        parts = long_range_parts(self._calculator.model)
        if parts:
            self._calculator = SOGNequIPCalculator.from_saved_model(path, **load)
        self._parts = parts
        weights = self._calculator.model.parameters()
        self.parameters = sum(own.numel() for own in weights)

    @property
    def long_range(self) -> SOGLongRange | None:
        """The head, if there is one."""
        return self._parts[0].long_range if self._parts else None

    def find(self, frames: list[Atoms], stress: bool, label: str = "") -> Found:
        """Energies, forces and charges of frames, and stress where asked for."""
        energies, forces, stresses, charges = [], [], [], []
        for frame in frames:
            atoms = frame.copy()
            atoms.calc = self._calculator
            energies.append(float(np.squeeze(atoms.get_potential_energy())))
            forces.append(atoms.get_forces())
            if stress:
                stresses.append(atoms.get_stress(voigt=False))
            if self._parts:
                charges.append(self._calculator.results["latent_charges"])
        return Found(
            np.array(energies), forces, np.array(stresses) if stress else None, charges or None
        )

    def calculator(self):
        """An ASE calculator."""
        return self._calculator
