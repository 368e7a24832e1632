"""Forces and stress against finite differences, and what training on them needs."""

import pytest
import torch
from pyg_builders import MODELS, make_model, mixed_batch, mixed_frames
from torch_geometric.data import Batch

from sog_pyg import energy_forces_stress

# Fourth-order central difference: offsets in steps and weights.
STENCIL = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
STEP = 1e-3
# Constants of the energy have no part in forces. ViSNet begins with vectors of zero, and does
# not use those that its last block makes.
LAST = "model.output_model.output_network.1"
FIRST = "model.representation_model.vis_mp_layers.0"
WITHOUT_FORCE = {
    "SchNet": {"model.lin2.bias"},
    "hand-written": {"readout.2.bias"},
    "ViSNet": {
        f"{LAST}.update_net.2.bias",
        f"{LAST}.vec2_proj.weight",
        "model.prior_model.atomref.weight",
        *(f"{FIRST}.{name}_proj.weight" for name in ("f", "vec", "w_src", "w_trg")),
        f"{FIRST}.f_proj.bias",
    },
}

# SchNet and a network with a layer inside keep the contract for hosts, see test_contract.py;
# ViSNet does not take the small cells of its structures.
visnet = pytest.mark.parametrize("name", ["ViSNet"])


def total(model, data):
    with torch.no_grad():
        return (
            model(data.z, data.pos, data.batch, data.cell, data.pbc, data.num_graphs).sum().item()
        )


def numerical_force(model, data, atom, axis):
    slope = 0.0
    for offset, weight in STENCIL:
        moved = data.clone()
        moved.pos[atom, axis] += offset * STEP
        slope -= weight * total(model, moved) / STEP
    return slope


def numerical_stress(model, data, graph, row, column):
    slope = 0.0
    for offset, weight in STENCIL:
        strain = torch.zeros(data.num_graphs, 3, 3)
        strain[graph, row, column] += 0.5 * offset * STEP
        strain[graph, column, row] += 0.5 * offset * STEP
        moved = data.clone()
        moved.pos = data.pos + torch.einsum("na,nab->nb", data.pos, strain[data.batch])
        moved.cell = data.cell + data.cell @ strain
        slope += weight * total(model, moved) / STEP
    return slope / data.cell[graph].det().abs().item()


@visnet
def test_forces_equal_finite_differences_on_a_mixed_batch(name):
    model, data = make_model(name), mixed_batch()
    forces = energy_forces_stress(model, data).forces
    for atom in range(0, len(data.pos), 2):
        axis = atom % 3
        expected = numerical_force(model, data, atom, axis)
        assert abs(forces[atom, axis].item() - expected) < 1e-8


@visnet
def test_stress_equals_finite_differences_on_a_mixed_batch(name):
    model, data = make_model(name), mixed_batch()
    stress = energy_forces_stress(model, data).stress
    for graph in (0, 2, 3):
        for row, column in [(0, 0), (0, 1), (1, 2), (2, 2)]:
            expected = numerical_stress(model, data, graph, row, column)
            assert abs(stress[graph, row, column].item() - expected) < 1e-8


@visnet
def test_batch_equals_single(name):
    model, frames = make_model(name), mixed_frames()
    together = energy_forces_stress(model, Batch.from_data_list(frames))
    alone = [energy_forces_stress(model, frame) for frame in frames]
    for found, expected in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(
            found, torch.cat(expected), rtol=1e-12, atol=1e-12, equal_nan=True
        )


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_a_force_loss_reach_every_parameter(name):
    model, data = make_model(name), mixed_batch()
    out = energy_forces_stress(model, data, create_graph=True)
    (out.forces.square().sum() + out.stress[~out.stress.isnan()].square().sum()).backward()
    unreached = {
        key
        for key, parameter in model.named_parameters()
        if parameter.grad is None or not bool(parameter.grad.abs().sum() > 0)
    }
    assert unreached == WITHOUT_FORCE[name]


@visnet
def test_gradients_of_a_force_loss_are_those_of_finite_differences(name):
    model, data = make_model(name), Batch.from_data_list(mixed_frames()[:2])

    def loss():
        out = energy_forces_stress(model, data, create_graph=True)
        return out.forces.square().sum() + out.stress[~out.stress.isnan()].square().sum()

    parameters = [p for p in model.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(loss(), parameters, materialize_grads=True)
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator) for p in parameters]
    expected = 0.0
    for offset, weight in STENCIL:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += offset * 1e-5 * d
        expected += weight * loss().item() / 1e-5
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p -= offset * 1e-5 * d
    found = sum((s * d).sum() for s, d in zip(slopes, direction, strict=True)).item()
    assert found == pytest.approx(expected, rel=1e-5)
