"""Networks of PyG, by `WithLongRange` and by a layer inside, keep the contract for hosts."""

import functools

import torch
from pyg_builders import CUTOFF, PRECISE, HandWritten, make_schnet
from torch_geometric.data import Batch, Data

from sog_longrange.testing import Evaluation, LongRangeContract
from sog_pyg import (
    LongRangeLayer,
    StoreBoundary,
    WithLongRange,
    energy_forces_stress,
    make_periodic,
)

OPTIONS = PRECISE | {"tolerance": 1e-9, "engine": "none"}


def to_batch(structures, total_charge):
    frames = []
    for index, s in enumerate(structures):
        frame = StoreBoundary(s.cell, s.pbc)(Data(z=s.numbers, pos=s.positions))
        if total_charge is not None:
            frame.total_charge = torch.tensor([total_charge[index]])
        frames.append(frame)
    return Batch.from_data_list(frames)


@functools.cache
def make_with_long_range(**flows):
    torch.manual_seed(0)
    layer = LongRangeLayer(16, **OPTIONS, charge_constraint="total", **flows)
    return WithLongRange(make_periodic(make_schnet()), layer)


@functools.cache
def make_hand_written():
    torch.manual_seed(0)
    model = HandWritten(**OPTIONS)
    model(torch.tensor([1]), torch.zeros(1, 3))  # Its layer learns its width.
    return model


class PyGContract(LongRangeContract):
    def evaluate(self, structures, total_charge=None):
        batch = to_batch(structures, total_charge)
        out = energy_forces_stress(self.model, batch)
        return Evaluation(*out, self.charges(batch))

    def charges(self, batch):
        return None

    def force_loss(self, structures, total_charge=None):
        batch = to_batch(structures, total_charge)
        return energy_forces_stress(self.model, batch, create_graph=True).forces.square().sum()

    def parameters(self):
        return list(self.model.parameters())


class TestWithLongRange(PyGContract):
    @property
    def model(self):
        return make_with_long_range()

    def charges(self, batch):
        arguments = batch.z, batch.pos, batch.batch, batch.cell, batch.pbc, batch.num_graphs
        return self.model.charges(*arguments, batch.get("total_charge"))


class TestWithFlows(TestWithLongRange):
    @property
    def model(self):
        charges = {"readout": "ions", "element_charges": "H=0.4,O=-0.8"}
        return make_with_long_range(**charges, cutoff=CUTOFF, elements=(1, 8))


class TestLayer(PyGContract):
    charge_constraint = "neutral"

    @property
    def model(self):
        return make_hand_written()
