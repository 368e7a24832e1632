"""MACE keeps the contract for hosts."""

import functools
from typing import ClassVar

import torch
from ase import Atoms
from mace_builders import make_batch, make_sogmace

from sog_longrange import SOGConfig
from sog_longrange.errors import SOGError
from sog_longrange.testing import Evaluation, LongRangeContract

HOW = {"charge_constraint": "total", "tolerance": 1e-9, "engine": "none"}


@functools.cache
def make_model(**options):
    return make_sogmace(SOGConfig(**options, **HOW))


class TestMACE(LongRangeContract):
    options: ClassVar[dict] = {"num_channels": 2}
    errors = (SOGError, RuntimeError)  # A singular cell has no neighbours in MACE.

    def _batch(self, structures, total_charge):
        # The list of neighbours takes long for a position of NaN.
        frames = [
            Atoms(*(x.nan_to_num().numpy() for x in structure[:2]), cell=structure.cell.numpy())
            for structure in structures
        ]
        for frame, structure in zip(frames, structures, strict=True):
            frame.pbc = structure.pbc
        for frame, charge in zip(frames, total_charge or (), strict=False):
            frame.info["charge"] = charge
        return make_batch(frames) | {"positions": torch.cat([s.positions for s in structures])}

    def evaluate(self, structures, total_charge=None):
        out = make_model(**self.options)(self._batch(structures, total_charge), compute_stress=True)
        return Evaluation(out["energy"], out["forces"], out["stress"], out["latent_charges"])

    def force_loss(self, structures, total_charge=None):
        out = make_model(**self.options)(self._batch(structures, total_charge), training=True)
        return out["forces"].square().sum()

    def parameters(self):
        return list(make_model(**self.options).parameters())


class TestMACEWithFlows(TestMACE):
    options: ClassVar[dict] = {"readout": "ions", "element_charges": "H=0.4,O=-0.8"}
