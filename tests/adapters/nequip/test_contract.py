"""NequIP and Allegro keep the contract for hosts."""

import functools
from typing import ClassVar

import torch
from ase import Atoms
from nequip.data import AtomicDataDict
from nequip_builders import build, to_data

from sog_longrange.errors import SOGError
from sog_longrange.testing import Evaluation, LongRangeContract

SOG = {
    "tolerance": 1e-9,
    "charge_constraint": "total",
    "engine": "none",
}


@functools.cache
def make_model(base, **options):
    return build(base, sog=SOG | options).train()


class NequIPContract(LongRangeContract):
    options: ClassVar[dict] = {"num_channels": 2}
    errors = (SOGError, RuntimeError)  # A singular cell has no neighbours in NequIP.

    def _model(self):
        return make_model(self.base, **self.options)

    def _outputs(self, structures, total_charge):
        # NequIP's list of neighbours takes half a minute for a position of NaN.
        frames = [
            Atoms(s.numbers, s.positions.nan_to_num(), cell=s.cell, pbc=s.pbc) for s in structures
        ]
        data = AtomicDataDict.batched_from_list([to_data(frame) for frame in frames])
        data["pos"] = torch.cat([s.positions for s in structures])
        if total_charge is not None:
            data["charge"] = torch.tensor(total_charge)[:, None]
        return self._model()(data)

    def evaluate(self, structures, total_charge=None):
        out = self._outputs(structures, total_charge)
        names = ("forces", "stress", "latent_charges")
        return Evaluation(out["total_energy"][:, 0], *(out[name] for name in names))

    def force_loss(self, structures, total_charge=None):
        return self._outputs(structures, total_charge)["forces"].square().sum()

    def parameters(self):
        return list(self._model().parameters())


class TestNequIP(NequIPContract):
    base = "nequip"


class TestAllegro(NequIPContract):
    base = "allegro"


IONS = {"readout": "ions", "element_charges": "H=0.4,O=-0.8"}


class TestNequIPWithFlows(NequIPContract):
    base, options = "nequip", IONS


class TestAllegroWithFlows(NequIPContract):
    base, options = "allegro", IONS
