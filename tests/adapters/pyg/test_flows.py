"""Charges that flow along the edges of PyG's graphs."""

import pytest
import torch
from pyg_builders import (
    CUTOFF,
    PRECISE,
    call,
    make_data,
    make_schnet,
    make_visnet,
    mixed_batch,
    molecule,
)
from torch_geometric.data import Batch
from torch_geometric.nn.models import schnet

from sog_longrange import ConfigError, HostError, InputError, InputTypeError
from sog_pyg import (
    LongRangeLayer,
    WithLongRange,
    energy_forces_stress,
    make_periodic,
    periodic_edges,
)

HOW = PRECISE | {"engine": "none", "charge_constraint": "none", "cutoff": CUTOFF}
FLOWS = HOW | {"readout": "flows"}
IONS = HOW | {"readout": "ions", "elements": [8, 1, 11], "element_charges": "H=0.5,O=-1"}
GIVEN = {1: 0.5, 8: -1.0, 11: 0.0}


def edges_of(data):
    index, vectors = periodic_edges(
        data.pos, CUTOFF, data.cell, data.pbc, data.get("batch"), data.cell.shape[0]
    )
    return {"edge_index": index, "edge_weight": vectors.norm(dim=1)}


def two_molecules(distance):
    """Both in one structure, and the number of atoms of the first, in which there is a metal."""
    first, second = molecule(), molecule(6, 4)
    first.z[::2] = 11
    gap = first.pos[:, 0].max() - second.pos[:, 0].min() + distance
    moved = second.pos + gap * torch.tensor([1.0, 0.0, 0.0])
    first.pos, n_first = torch.cat([first.pos, moved]), first.pos.shape[0]
    first.z = torch.cat([first.z, second.z])
    return first, n_first


@pytest.mark.parametrize("make", [make_schnet, make_visnet])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fragments_keep_their_charge_at_any_distance(make, dtype, radius_graphs):
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    model = WithLongRange(make(), LongRangeLayer(**IONS))
    for distance in (CUTOFF + 0.01, 30.0, 1.5):
        data, n_first = two_molecules(distance)
        data.pos, data.cell = data.pos.to(dtype), data.cell.to(dtype)
        charges = model.charges(data.z, data.pos)[:, 0].detach()
        given = torch.tensor([GIVEN[z] for z in data.z.tolist()], dtype=dtype)
        changes = [part.sum() for part in (charges - given).split([n_first, 4])]
        if distance > CUTOFF:
            assert max(map(abs, changes)) < tolerance
            assert float((charges - given).abs().max()) > 1e-4
        else:
            assert abs(changes[0]) > 1e-6
            assert float(sum(changes)) == pytest.approx(0.0, abs=tolerance)


def test_own_graphs_and_periodic_ones_have_the_same_edges(radius_graphs):
    for make in (make_schnet, make_visnet):
        torch.manual_seed(0)
        model = WithLongRange(make(), LongRangeLayer(**FLOWS))
        expected = energy_forces_stress(model, molecule())
        make_periodic(model.model)
        found = energy_forces_stress(model, molecule())
        torch.testing.assert_close(found.forces, expected.forces, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("output", ["energy", "features"])
def test_the_layer_alone(output):
    torch.manual_seed(0)
    batch = mixed_batch()
    x = torch.randn(batch.pos.shape[0], 8)
    layer = LongRangeLayer(8, output=output, **IONS)
    arguments = batch.batch, batch.cell, batch.pbc, batch.num_graphs
    charges = layer.charges(x, batch.pos, *arguments, z=batch.z, **edges_of(batch))
    sums = torch.zeros(5).index_add(0, batch.batch, charges[:, 0])
    given = torch.tensor([GIVEN[z] for z in batch.z.tolist()])
    expected = torch.zeros(5).index_add(0, batch.batch, given)
    torch.testing.assert_close(sums, expected, atol=1e-13, rtol=0.0)
    own = layer(x, batch.pos, *arguments, z=batch.z, **edges_of(batch))
    together = own if output == "energy" else own[1]
    start, alone = 0, []
    for frame in batch.to_data_list():
        rows = slice(start, start + frame.pos.shape[0])
        out = layer(x[rows], frame.pos, None, frame.cell, frame.pbc, z=frame.z, **edges_of(frame))
        alone.append(out if output == "energy" else out[1])
        start = rows.stop
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("weighted", [True, False])
def test_a_node_is_no_neighbour_of_itself(weighted):
    """ViSNet's graphs have loops, which a hydrogen must not take for its bond."""
    torch.manual_seed(0)
    data, layer = molecule(), LongRangeLayer(8, **FLOWS, elements=[1, 8])
    data.z = torch.tensor([8, 1, 1, 8, 1])
    data.pos[1:3] = data.pos[0] + torch.tensor([[1.0, 0.0, 0.0], [-0.2, 0.95, 0.0]])
    x, edges = torch.randn(5, 8), edges_of(data)
    expected = layer.charges(x, data.pos, z=data.z, **edges)
    loops = torch.arange(5).expand(2, -1)
    looped = {"edge_index": torch.cat([edges["edge_index"], loops], 1)}
    if weighted:
        looped["edge_weight"] = torch.cat([edges["edge_weight"], torch.zeros(5)])
    found = layer.charges(x, data.pos, z=data.z, **looped)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-14)
    assert float(expected.detach().abs().max()) > 0.1


def test_lengths_are_found_in_open_structures():
    torch.manual_seed(0)
    data, layer = molecule(), LongRangeLayer(8, **FLOWS)
    x, edges = torch.randn(5, 8), edges_of(data)
    expected = layer(x, data.pos, **edges)
    loops = torch.arange(5).expand(2, -1)
    index = torch.cat([edges["edge_index"], loops], 1)
    pos = data.pos.clone().requires_grad_()
    found = layer(x, pos, edge_index=index)
    torch.testing.assert_close(found, expected)
    (slope,) = torch.autograd.grad(found.sum(), pos, create_graph=True)
    slope.square().sum().backward()
    assert bool(pos.grad.isfinite().all())


def test_widths_are_taken_from_the_first_input_or_loaded():
    torch.manual_seed(0)
    data, x = molecule(), torch.randn(5, 8)
    data.z[0] = 11
    given = {"z": data.z, **edges_of(data)}
    layer, other = LongRangeLayer(**IONS), LongRangeLayer(**IONS)
    assert layer.in_channels == -1
    expected = layer(x, data.pos, **given)
    assert layer.in_channels == 8
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x, data.pos, **given), expected)
    with torch.no_grad():
        layer.readout.element_charges += 1.0
        layer.readout.electronegativities += 1.0
    layer.reset_parameters()
    assert layer.readout.element_charges[:, 0].tolist() == [-1.0, 0.5, 0.0]
    assert layer.readout.electronegativities[:, 0].tolist() == pytest.approx([0.86, 0.55, 0.0])
    assert abs(float((layer(x, data.pos, **given) - expected).detach())) > 1e-9


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda e: {}, InputError, "`edge_index` must be given where charges flow"),
        (lambda e: e | {"z": None}, InputError, "`z` must be given"),
        (lambda e: e | {"z": torch.tensor([1, 8, 6, 1, 1, 1])}, InputError, "got 6"),
        (lambda e: e | {"z": torch.tensor([1, 8, -1, 1, 1, 400])}, InputError, "got -1, 400"),
        (lambda e: e | {"z": torch.ones(6)}, InputTypeError, "`z` must be int64"),
        (lambda e: e | {"edge_weight": None}, InputError, "given with `cell`"),
        (lambda e: e | {"edge_weight": e["edge_weight"][1:]}, InputError, "num_edges"),
        (lambda e: e | {"edge_weight": e["edge_weight"].detach()}, InputError, "made of `pos`"),
        (lambda e: e | {"edge_weight": e["edge_weight"] * torch.nan}, InputError, "finite"),
        (lambda e: e | {"edge_index": e["edge_index"].T}, InputError, "num_edges"),
        (lambda e: e | {"edge_index": e["edge_index"].int()}, InputTypeError, "int64"),
        (lambda e: e | {"edge_index": e["edge_index"] + 1}, InputError, "of 6 nodes, got 1 to 6"),
        (lambda e: {k: v[..., 1:] for k, v in e.items()}, InputError, "both directions"),
        (
            lambda e: {k: v[..., e["edge_index"][0] < e["edge_index"][1]] for k, v in e.items()},
            InputError,
            "PyG's own graphs leave out neighbours",
        ),
    ],
)
def test_edges_and_elements_that_are_refused(change, error, message):
    data = make_data(1)
    data.pos = data.pos.requires_grad_()
    layer, given = LongRangeLayer(8, **IONS), {"z": data.z} | change(edges_of(data))
    with pytest.raises(error, match=message):
        layer(torch.randn(6, 8), data.pos, None, data.cell, data.pbc, **given)


def test_edges_from_one_graph_to_another_are_refused():
    batch = Batch.from_data_list([molecule(), molecule(6, 4)])
    edges = {"edge_index": torch.tensor([[0, 5], [5, 0]]), "edge_weight": torch.ones(2)}
    with pytest.raises(InputError, match="within graphs"):
        LongRangeLayer(8, **FLOWS)(torch.randn(9, 8), batch.pos, batch.batch, **edges)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readout": "flows"}, "`cutoff` must be given with readout='flows'"),
        ({"readout": "ions", "cutoff": 3.0}, "`elements` must be given with readout='ions'"),
        ({"cutoff": 3.0}, "`cutoff` must be left out with readout='atoms'"),
        ({"elements": [1]}, "`elements` must be left out with readout='atoms'"),
        ({"readout": "ions", "cutoff": 3.0, "elements": [1, 1]}, "each once"),
        ({"readout": "ions", "cutoff": 3.0, "elements": [0]}, "atomic numbers"),
        (IONS | {"element_charges": "C=1"}, "elements of the model, O, H, Na, got C"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ConfigError, match=message):
        LongRangeLayer(8, **options)


def test_flows_end_where_the_graph_does():
    with pytest.raises(HostError, match=r"at most that of the model, 4.0 Å"):
        WithLongRange(make_schnet(), LongRangeLayer(**FLOWS | {"cutoff": 4.1}))
    WithLongRange(make_visnet(), LongRangeLayer(**FLOWS | {"cutoff": 3.9}))


def test_own_graphs_that_leave_out_neighbours_are_refused(monkeypatch):
    def one_neighbour(pos, r, batch=None, **_):
        index, _ = periodic_edges(pos, r, batch=batch)
        return index[:, torch.cat([torch.ones(1), index[1].diff()]) != 0]

    monkeypatch.setattr(schnet, "radius_graph", one_neighbour)
    model = WithLongRange(make_schnet(), LongRangeLayer(**FLOWS))
    with pytest.raises(InputError, match="both directions"):
        call(model, molecule())


def test_functions_of_other_models_return_their_edges():
    def latent(model, z, pos, batch, cell, pbc):
        index, vectors = periodic_edges(pos, CUTOFF, cell, pbc, batch)
        x = model(z)
        return x.new_zeros(int(batch.max()) + 1, 1), x, index, vectors.norm(dim=1)

    model = WithLongRange(torch.nn.Embedding(10, 8), LongRangeLayer(**IONS), latent)
    assert float(energy_forces_stress(model, make_data(1)).forces.abs().max()) > 1e-3
    blind = WithLongRange(
        torch.nn.Embedding(10, 8), LongRangeLayer(**IONS), lambda *a: latent(*a)[:2]
    )
    with pytest.raises(InputError, match="edge_index"):
        call(blind, make_data(1))


@pytest.mark.parametrize("elements", [[8, 1], []])
def test_presets_with_dispersion(elements):
    torch.manual_seed(0)
    schnet = make_periodic(make_schnet())
    options = {"cutoff": CUTOFF, "elements": elements, "preset": "molecular"}
    layer = LongRangeLayer(schnet.lin1.in_features, **options)
    assert layer.part.config.kernel == "coulomb+dispersion"
    assert layer.part.config.min_width == pytest.approx(CUTOFF / 3.0, abs=1e-3)
    model = WithLongRange(schnet, layer)
    data = mixed_batch()
    charges = model.charges(data.z, data.pos, data.batch, data.cell, data.pbc)
    assert float(charges[:, 1].min().detach()) > 0.0
    energy, forces, _ = energy_forces_stress(model, data)
    step = torch.randn_like(data.pos)
    ends = []
    for sign in (1, -1):
        moved = data.clone()
        moved.pos = data.pos + sign * 1e-4 * step
        ends.append(float(energy_forces_stress(model, moved)[0].sum()))
    assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(-float((forces * step).sum()), rel=1e-3)
    layer.reset_parameters()
    assert not torch.equal(energy, energy_forces_stress(model, data)[0])
