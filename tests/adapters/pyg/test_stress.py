"""Stress of slabs, wires and open structures in PyG: that of the cell of the data."""

import pytest
import torch
from pyg_builders import make_model
from stress_cases import (
    CHARGES,
    FLAT,
    NUMBERS,
    OPTIONS,
    STENCIL,
    STRUCTURES,
    committed_stress,
)
from torch_geometric.data import Batch, Data

from sog_pyg import LongRangeLayer, StoreBoundary, energy_forces_stress

ALL = STRUCTURES | FLAT


def to_data(case):
    store = StoreBoundary(torch.tensor(case.cell), case.pbc)
    return store(Data(z=torch.tensor(NUMBERS), pos=torch.tensor(case.positions)))


def batch_of(names):
    return Batch.from_data_list([to_data(ALL[name]) for name in names])


def test_fixed_charges_have_the_committed_stress():
    options = {key: value for key, value in OPTIONS.items() if key != "num_channels"}
    layer = LongRangeLayer(1, num_charges=1, **options)
    charges = torch.tensor(CHARGES * len(STRUCTURES))[:, None]
    layer.part.readout.forward = lambda features, sites: charges

    def model(z, pos, batch, cell, pbc, batch_size):
        return layer(torch.zeros(len(pos), 1), pos, batch, cell, pbc, batch_size)

    found = energy_forces_stress(model, batch_of(STRUCTURES)).stress
    expected = torch.stack([torch.tensor(committed_stress()[name]) for name in STRUCTURES])
    assert (found - expected).abs().max() < 1e-8


def test_gradients_of_a_stress_loss_equal_finite_differences():
    model, data = make_model("SchNet"), batch_of(["slab", "wire", *FLAT])

    def loss():
        stress = energy_forces_stress(model, data, create_graph=True).stress
        return 1e3 * (stress[~stress.isnan()] - 0.01).square().sum()

    parameter = model.model.lin1.weight
    (slope,) = torch.autograd.grad(loss(), parameter)
    direction = torch.randn(slope.shape, generator=torch.Generator().manual_seed(0))
    original, expected = parameter.detach().clone(), 0.0
    for offset, weight in STENCIL:
        parameter.data = original + offset * 1e-4 * direction
        expected += weight * loss().item() / 1e-4
    assert (slope * direction).sum().item() == pytest.approx(expected, rel=1e-6)
