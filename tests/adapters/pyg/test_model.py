"""WithLongRange around models that nobody edited."""

import copy
import io

import numpy as np
import pytest
import torch
from pyg_builders import (
    CUTOFF,
    PRECISE,
    HandWritten,
    call,
    left_handed,
    make_data,
    make_dimenet,
    make_model,
    make_schnet,
    make_visnet,
    mixed_batch,
    molecule,
    slab,
)
from torch import nn
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

from sog_longrange import HostError, InputError, InputTypeError, SOGConfig
from sog_longrange.testing import (
    Structure,
    assert_batch_consistent,
    assert_forces_match_finite_differences,
    assert_invariant,
)
from sog_pyg import (
    LongRangeLayer,
    PeriodicGraph,
    WithLongRange,
    energy_forces_stress,
    make_periodic,
)


def energy_function(model):
    """`model` as the function that `sog_longrange.testing` asks for; charges are numbers."""
    return lambda q, r, cell, pbc, batch, n: model(q[:, 0].long(), r, batch, cell, pbc, n)[:, 0]


def structure_of(data):
    return Structure(data.z[:, None].double(), data.pos, data.cell[0], data.pbc[0])


# SchNet and a network with a layer inside keep the contract for hosts, see test_contract.py.
@pytest.mark.parametrize("data", [make_data(1), left_handed(), molecule(), slab()])
def test_energies_of_visnet_have_every_invariance(data):
    model = energy_function(make_model("ViSNet"))
    if bool(data.pbc.all()):
        # Nothing but lattice vectors that keep the cell wider than the cutoff.
        data = make_data(1, cell=1.6 * data.cell[0])
    assert_invariant(model, structure_of(data), tolerance=1e-8, rotation_tolerance=1e-7)


@pytest.mark.parametrize("make", [make_schnet, make_visnet, make_dimenet])
def test_the_sum_is_that_of_its_parts(make, radius_graphs):
    torch.manual_seed(0)
    host = make()
    model = WithLongRange(host, LongRangeLayer(-1, **PRECISE))
    data = Batch.from_data_list([molecule(), molecule(6, 4)])
    total = call(model, data)
    bare = host(data.z, data.pos, data.batch)
    bare = bare[0] if isinstance(bare, tuple) else bare
    features, layer = [], model.long_range
    handle = layer.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    call(model, data)
    handle.remove()
    long_range = layer(features[0], data.pos, data.batch, batch_size=2)
    torch.testing.assert_close(total, bare.reshape(2, 1) + long_range, rtol=1e-12, atol=1e-12)
    assert long_range.abs().min() > 1e-6
    assert features[0].shape == (9, 16 if make is not make_dimenet else 3 * 8)


def test_dimenet_has_right_forces_in_open_structures_also_with_flows(radius_graphs):
    layer = LongRangeLayer(-1, readout="flows", cutoff=CUTOFF, **PRECISE)
    model, one = WithLongRange(make_dimenet(), layer), molecule()
    charges = model.charges(one.z, one.pos).detach()
    assert float(charges.sum(0).abs().max()) < 1e-14
    assert float(charges.abs().max()) > 1e-9
    energy = energy_function(model)
    assert_forces_match_finite_differences(energy, structure_of(molecule()), tolerance=1e-8)
    assert_batch_consistent(energy, [structure_of(molecule()), structure_of(molecule(6, 4))])
    loss = energy_forces_stress(model, molecule(), create_graph=True).forces.square().sum()
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.long_range.parameters())


def test_an_open_structure_has_the_same_edges_by_either_graph(radius_graphs):
    torch.manual_seed(0)
    model = WithLongRange(make_schnet(), LongRangeLayer(-1, **PRECISE))
    expected = call(model, molecule())
    make_periodic(model.model)
    torch.testing.assert_close(call(model, molecule()), expected, rtol=1e-12, atol=1e-12)


def test_the_inner_model_is_left_as_it_was():
    model, data = make_model("SchNet"), mixed_batch()
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    call(model, data)
    with pytest.raises(InputError):
        model(data.z, data.pos * torch.nan, data.batch, data.cell, data.pbc, 5)
    after = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    assert after == hooks
    assert model.model.interaction_graph.boundary is None


def test_loaders_shuffle_and_come_back(radius_graphs):
    model, frames = make_model("SchNet"), mixed_batch().to_data_list()
    alone = torch.cat([call(model, frame) for frame in frames])
    batches = torch.cat([call(model, batch) for batch in DataLoader(frames, batch_size=2)])
    torch.testing.assert_close(batches, alone, rtol=1e-12, atol=1e-12)


def test_empty_graphs_at_the_end_have_no_energy():
    model, data = make_model("SchNet"), make_data(1)
    cells, flags = data.cell.expand(3, 3, 3), data.pbc.expand(3, 3)
    batch = torch.zeros(6, dtype=torch.long)
    found = model(data.z, data.pos, batch, cells, flags, 3)
    torch.testing.assert_close(found, torch.cat([call(model, data), torch.zeros(2, 1)]))


def own_latent(model, z, pos, batch, cell, pbc):
    x = model(torch.stack([z.double(), z.double() ** 2], -1))
    return x.new_zeros(int(batch.max()) + 1, 1).index_add(0, batch, x.sum(-1, keepdim=True)), x


def test_any_model_comes_with_a_function():
    torch.manual_seed(0)
    model = WithLongRange(nn.Linear(2, 4), LongRangeLayer(-1, **PRECISE), own_latent)
    energies = call(model, mixed_batch())
    assert energies.shape == (5, 1)
    assert model.long_range.in_channels == 4
    assert_forces_match_finite_differences(energy_function(model), structure_of(make_data(1)))
    with pytest.raises(HostError, match="Pass `latent`"):
        WithLongRange(nn.Linear(2, 4), LongRangeLayer())
    with pytest.raises(HostError, match="method reset_parameters"):
        WithLongRange(nn.Identity(), LongRangeLayer(), own_latent).reset_parameters()


def test_outputs_that_are_no_energies_are_refused():
    def per_node(model, z, pos, batch, cell, pbc):
        return torch.zeros(len(z), 1), torch.zeros(len(z), 4)

    def several(model, z, pos, batch, cell, pbc):
        return torch.zeros(1, 3), torch.zeros(len(z), 4)

    for latent in (per_node, several):
        with pytest.raises(HostError, match="one energy for each of 1 graphs"):
            call(WithLongRange(nn.Identity(), LongRangeLayer(), latent), make_data(1))


@pytest.mark.parametrize("make", [make_schnet, make_visnet, make_dimenet])
def test_periodic_structures_need_a_periodic_graph(make, radius_graphs):
    model = WithLongRange(make(), LongRangeLayer(-1, **PRECISE))
    remedy = "Use open structures" if make is make_dimenet else "make_periodic"
    with pytest.raises(HostError, match=f"ends at the cell, got true.*{remedy}"):
        call(model, make_data(1))
    assert call(model, molecule()).shape == (1, 1)


REFUSED = {
    "own forces": (lambda: make_visnet(derivative=True), "derivative=False"),
    "mean of ViSNet": (lambda: make_visnet(reduce_op="mean"), 'reduce_op="sum"'),
    "mean of SchNet": (lambda: make_schnet(readout="mean"), 'readout="add"'),
    "dipole": (lambda: make_schnet(dipole=True), "dipole=False"),
    "two outputs": (lambda: make_dimenet(2), "out_channels=1"),
    "other cutoff": (
        lambda: make_schnet(interaction_graph=PeriodicGraph(5.0)),
        "`interaction_graph` must be of the model's cutoff, 4.0",
    ),
    "hand-written": (HandWritten, "Pass `latent`"),
    "wrapped twice": (lambda: make_model("SchNet"), "got WithLongRange"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_give_wrong_forces_is_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(HostError, match=message):
        WithLongRange(make(), LongRangeLayer())


def test_features_cannot_be_added_to_an_energy():
    with pytest.raises(InputError, match='output="energy"'):
        WithLongRange(make_schnet(), LongRangeLayer(output="features"))
    with pytest.raises(InputTypeError, match="a LongRangeLayer with"):
        WithLongRange(make_schnet(), nn.Linear(1, 1))


def test_total_charges_reach_the_long_range():
    torch.manual_seed(0)
    options = PRECISE | {"charge_constraint": "total"}
    model = WithLongRange(make_periodic(make_schnet()), LongRangeLayer(-1, **options))
    data = molecule()
    one, two = (call(model, data, total_charge=torch.tensor([q])) for q in (0.0, 2.0))
    assert abs(one - two) > 1e-3
    arguments = data.z, data.pos, None, data.cell, data.pbc, 1, torch.tensor([2.0])
    assert model.charges(*arguments).sum(0).tolist() == pytest.approx([2.0, 0.0])
    data.total_charge = torch.tensor([2.0])
    torch.testing.assert_close(energy_forces_stress(model, data).energy, two[:, 0].detach())


def test_model_survives_copy_and_pickle():
    model, data = make_model("SchNet"), mixed_batch()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(call(other, data), call(model, data))


def test_reset_parameters_resets_both_parts():
    model, data = make_model("SchNet"), mixed_batch()
    before = call(model, data)
    model.reset_parameters()
    assert not torch.allclose(call(model, data), before)
    assert "SchNet(hidden_channels=16" in repr(model)
    assert "LongRangeLayer(16, 2, kernel='coulomb', output='energy')" in repr(model)
    assert model.long_range.part.config == SOGConfig(num_channels=2, tolerance=1e-8)


def test_float32_follows_float64():
    model, data = make_model("SchNet"), mixed_batch()
    exact = energy_forces_stress(model, data)
    for key in ("pos", "cell"):
        data[key] = data[key].float()
    rough = energy_forces_stress(model.float(), data)
    for found, expected in zip(rough, exact, strict=True):
        assert found.dtype == torch.float32
        limit = 1e-4 * expected[~expected.isnan()].abs().max().clamp(min=1.0).item()
        torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=limit, equal_nan=True)


def test_charge_states_have_energies_and_forces_of_their_own():
    torch.manual_seed(0)
    options = PRECISE | {"charge_embedding": 3}
    model = WithLongRange(make_periodic(make_schnet()), LongRangeLayer(16, **options))
    states, data = model.long_range.part.states, molecule()
    with torch.no_grad():
        for parameter in states.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    found = []
    for charge in (-1.0, 0.0, 1.0):
        data.total_charge = torch.tensor([charge])
        found.append(energy_forces_stress(model, data))
        moved = data.clone()
        moved.pos[2, 1] += 1e-5
        difference = energy_forces_stress(model, moved).energy - found[-1].energy
        assert float(-difference / 1e-5) == pytest.approx(float(found[-1].forces[2, 1]), abs=1e-3)
    assert len({round(float(out.energy), 4) for out in found}) == 3
    del data.total_charge
    with pytest.raises(InputError, match="`total_charge` must be given for charge_embedding"):
        energy_forces_stress(model, data)
    model.reset_parameters()
    assert not states.perceptron[2].weight.any()


def test_two_atoms_at_one_place_are_named():
    model, frames = make_model("ViSNet"), [molecule(), make_data(1), molecule(6)]
    frames[2].pos[3] = frames[2].pos[1]
    data = Batch.from_data_list(frames)
    named = r"`features` .* Atoms 1 and 3 of structure 2 .atoms 12 and 14 of the batch. are 0 Å"
    with pytest.raises(InputError, match=named):
        energy_forces_stress(model, data)
    layer = LongRangeLayer(4, output="features")
    with pytest.raises(InputError, match=named):
        layer(torch.nan * torch.ones(len(data.pos), 4), data.pos, data.batch, data.cell, data.pbc)


def charged_data(*charges):
    frames = [molecule(seed) for seed in range(len(charges))]
    for frame, charge in zip(frames, charges, strict=True):
        frame.total_charge = charge
    return frames[0] if len(frames) == 1 else Batch.from_data_list(frames)


def test_ions_are_refused_until_a_constraint_is_chosen():
    torch.manual_seed(0)
    model = WithLongRange(make_periodic(make_schnet()), LongRangeLayer(-1, **PRECISE))
    assert torch.isfinite(energy_forces_stress(model, charged_data(0)).energy).all()
    with pytest.raises(InputError, match=r"`total_charge` must be zero .*'auto', got \[1.0\]"):
        energy_forces_stress(model, charged_data(1))


def test_what_means_one_number_for_each_graph_is_a_total_charge():
    torch.manual_seed(0)
    options = PRECISE | {"charge_constraint": "total"}
    model = WithLongRange(make_periodic(make_schnet()), LongRangeLayer(-1, **options))
    expected = energy_forces_stress(model, charged_data(torch.tensor([1.0]))).energy
    for charge in (1, 1.0, "1", "+1", [1], torch.tensor(1), np.array([1.0]), np.int64(1)):
        assert torch.equal(energy_forces_stress(model, charged_data(charge)).energy, expected)
    two = energy_forces_stress(model, charged_data("1", "-1")).energy
    assert torch.equal(two, energy_forces_stress(model, charged_data(1, -1)).energy)
    torch.testing.assert_close(two[:1], expected)
    expected = "`data.total_charge` must be one finite number in e for each of 1 graphs, got"
    for charge in ("neutral", [1, 2], float("nan"), torch.tensor([1.0, 2.0]), np.array([[1, 2]])):
        with pytest.raises(InputError, match=f"{expected} .*Give every graph its total_charge"):
            energy_forces_stress(model, charged_data(charge))
    with pytest.raises(InputError, match="for each of 2 graphs"):
        energy_forces_stress(model, charged_data([1, 2], [3, 4]))
    options = PRECISE | {"charge_constraint": "none"}
    free = WithLongRange(make_periodic(make_schnet()), LongRangeLayer(-1, **options))
    assert torch.isfinite(energy_forces_stress(free, charged_data("neutral")).energy).all()
