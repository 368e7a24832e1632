"""LongRangeLayer in PyG's manner: shapes, lazy channels, both outputs."""

import copy
import io

import pytest
import torch
from pyg_builders import (
    OPEN,
    PERIODIC,
    PRECISE,
    TRICLINIC,
    make_data,
    mixed_batch,
    mixed_frames,
    molecule,
)
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

import sog_longrange
from sog_longrange import BoundaryError, ConfigError, InputError, InputTypeError, SOGConfig
from sog_longrange.presets import PRESETS, Preset
from sog_longrange.testing import assert_twice_differentiable
from sog_longrange.testing.operations import Operations
from sog_pyg import LongRangeLayer

CHANNELS = 5


def features(n_nodes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_nodes, CHANNELS, generator=generator, dtype=torch.float64)


def make_layer(output="energy", in_channels=CHANNELS, **options):
    torch.manual_seed(1)
    return LongRangeLayer(in_channels, output=output, **(PRECISE | options))


def evaluate(layer, data, **changes):
    arguments = {key: data.get(key) for key in ("pos", "batch", "cell", "pbc")}
    arguments |= {"batch_size": data.num_graphs} if data.get("batch") is not None else {}
    return layer(features(len(data.pos)), **(arguments | changes))


def test_the_energy_is_that_of_the_core():
    layer, data = make_layer(), mixed_batch()
    x = features(len(data.pos))
    core = sog_longrange.SOGLongRange((CHANNELS,), SOGConfig(num_channels=2, tolerance=1e-8))
    core.readout.linear.weight.data.copy_(layer.readout.linear.weight)
    for mine, theirs in zip(layer.readout.perceptron, core.readout.perceptron, strict=True):
        theirs.load_state_dict(mine.state_dict())
    expected = core(x, data.pos, data.cell, data.pbc, data.batch, 5).energy[:, None]
    assert torch.equal(evaluate(layer, data), expected)
    assert expected.shape == (5, 1)


COUPLED = {"couple_channels": True}


@pytest.mark.parametrize("options", [{}, COUPLED], ids=["shared", "coupled"])
def test_potential_and_field_are_those_of_the_charges(options):
    is_coupled, options = bool(options), options | {"charge_constraint": "none"}
    layer, data = make_layer("features", **options), mixed_batch()
    if is_coupled:
        torch.nn.init.normal_(layer.part.energy.kernel.couplings)
    potential, field = evaluate(layer, data)
    charges = layer.readout(features(len(data.pos)))
    expected = sog_longrange.potential_and_field(
        layer.part.energy, charges, data.pos, data.cell, data.pbc, data.batch, 5
    )
    assert torch.equal(potential, expected.potential)
    assert torch.equal(field, expected.field)
    energy = make_layer(**options)
    energy.load_state_dict(layer.state_dict())
    per_node = 0.5 * (charges * potential).sum(-1, keepdim=True)
    summed = torch.zeros(5, 1).index_add(0, data.batch, per_node)
    torch.testing.assert_close(evaluate(energy, data), summed, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("output", ["energy", "features"])
def test_every_way_to_pass_one_cell_is_the_same(output):
    layer, data = make_layer(output), make_data(1)
    expected = evaluate(layer, data)
    ways = [
        {"cell": TRICLINIC, "pbc": torch.tensor(PERIODIC)},
        {"cell": TRICLINIC[None], "pbc": torch.tensor([PERIODIC])},
        {"cell": TRICLINIC, "batch": torch.zeros(6, dtype=torch.long)},
        {"cell": TRICLINIC, "batch": torch.zeros(6, dtype=torch.long), "batch_size": 1},
    ]
    for way in ways:
        torch.testing.assert_close(evaluate(layer, data, **way), expected, rtol=0, atol=0)


@pytest.mark.parametrize("cell", [TRICLINIC, TRICLINIC[None], TRICLINIC.expand(2, 3, 3)])
@pytest.mark.parametrize("pbc", [PERIODIC, [PERIODIC], [PERIODIC, PERIODIC]])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_one_cell_serves_all_graphs(cell, pbc, batch_size):
    layer, frames = make_layer(), [make_data(1), make_data(7)]
    batch = Batch.from_data_list(frames)
    changes = {"cell": cell, "pbc": torch.tensor(pbc), "batch_size": batch_size}
    found = evaluate(layer, batch, **changes)
    torch.testing.assert_close(found, evaluate(layer, batch), rtol=0, atol=0)


def test_without_cells_all_graphs_are_open():
    layer, data = make_layer(), Batch.from_data_list([molecule(), molecule(5)])
    expected = evaluate(layer, data)
    found = evaluate(layer, data, cell=None, pbc=None, batch_size=None)
    assert torch.equal(found, expected)
    closed = evaluate(layer, data, pbc=torch.tensor(OPEN), cell=None)
    assert torch.equal(closed, expected)


def test_empty_graphs_have_no_energy():
    layer, data = make_layer(), make_data(1)
    batch = torch.full((6,), 1)
    found = evaluate(layer, data, batch=batch, batch_size=3)
    assert found[0] == found[2] == 0.0
    assert torch.allclose(found[1], evaluate(layer, data))
    x, pos, none = torch.zeros(0, CHANNELS), torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
    assert layer(x, pos).shape == (1, 1)
    assert layer(x, pos, none).shape == (0, 1)
    assert layer(x, pos, none, batch_size=2).tolist() == [[0.0], [0.0]]
    potential, field = make_layer("features")(x, pos, none, batch_size=2)
    assert (potential.shape, field.shape) == ((0, 2), (0, 3, 2))


@pytest.mark.parametrize("output", ["energy", "features"])
def test_a_loader_gives_what_single_graphs_give(output):
    layer, frames = make_layer(output), mixed_frames()
    alone = [evaluate_own(layer, frame) for frame in frames]
    found = []
    for batch in DataLoader(frames, batch_size=2):
        x = torch.cat([features(len(f.pos)) for f in batch.to_data_list()])
        out = layer(x, batch.pos, batch.batch, batch.cell, batch.pbc, batch.num_graphs)
        found.append(out if isinstance(out, tuple) else (out,))
    for together, single in zip(zip(*found, strict=True), zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(together), torch.cat(single), rtol=1e-12, atol=1e-12)


def evaluate_own(layer, frame):
    out = evaluate(layer, frame)
    return out if isinstance(out, tuple) else (out,)


def test_the_number_of_channels_may_be_left_open():
    layer = make_layer(in_channels=-1)
    assert layer.in_channels == -1
    assert repr(layer) == "LongRangeLayer(-1, 2, kernel='coulomb', output='energy')"
    evaluate(layer, make_data(1))
    assert layer.in_channels == CHANNELS
    assert repr(layer) == "LongRangeLayer(5, 2, kernel='coulomb', output='energy')"
    assert layer.readout.linear.weight.dtype == torch.float64
    with pytest.raises(InputError, match=r"must be of shape \(n_atoms=6, 5\)"):
        layer(torch.randn(6, 4), make_data(1).pos)


def test_an_open_layer_takes_the_width_of_loaded_weights():
    trained, data = make_layer(in_channels=-1), mixed_batch()
    expected = evaluate(trained, data)
    buffer = io.BytesIO()
    torch.save(trained.state_dict(), buffer)
    buffer.seek(0)
    fresh = LongRangeLayer(-1, **PRECISE)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(evaluate(fresh, data), expected)
    for other in (copy.deepcopy(trained), copy.deepcopy(LongRangeLayer(-1, **PRECISE))):
        assert evaluate(other, data).shape == (5, 1)
    with pytest.raises(ConfigError, match="other options"):
        LongRangeLayer(-1, kernel="yukawa", **PRECISE).load_state_dict(trained.state_dict())


def test_reset_parameters_begins_again():
    layer = make_layer()
    before = {key: p.detach().clone() for key, p in layer.named_parameters()}
    with torch.no_grad():
        for p in layer.parameters():
            p += 1.0
    layer.reset_parameters()
    for key, p in layer.named_parameters():
        if "kernel" in key:
            assert torch.equal(p, before[key])
        else:
            assert not torch.equal(p, before[key])
            assert (p - before[key]).abs().max() < 2.0
    opened = make_layer(in_channels=-1)
    opened.reset_parameters()
    assert opened.in_channels == -1


def test_charges_obey_their_constraint():
    layer, data = make_layer("features", charge_constraint="total"), mixed_batch()
    wanted = torch.tensor([1.0, -1.0, 0.0, 2.0, 3.0])
    with pytest.raises(InputError, match="`total_charge` must be given"):
        evaluate(layer, data)
    with pytest.raises(InputError, match="fractional_charge"):
        evaluate(layer, data, total_charge=0.5 * wanted)
    x = features(len(data.pos))
    charges = layer.charges(x, data.pos, data.batch, data.cell, data.pbc, 5, wanted)
    sums = torch.zeros(5, 2).index_add(0, data.batch, charges)
    torch.testing.assert_close(sums, torch.stack([wanted, torch.zeros(5)], 1))
    here = evaluate(layer, data, total_charge=wanted)
    there = evaluate(layer, data, total_charge=2.0 * wanted)
    assert not torch.allclose(here[0], there[0])


@pytest.mark.parametrize(
    "frame", [make_data(1), molecule(), make_data(2, cell=TRICLINIC[[1, 0, 2]])]
)
def test_features_are_equivariant(frame):
    layer = make_layer("features")
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3)))
    for matrix in (rotation, -rotation):
        potential, field = evaluate(layer, frame)
        moved = evaluate(layer, frame, pos=frame.pos @ matrix.T + 1.7, cell=frame.cell @ matrix.T)
        torch.testing.assert_close(moved[0], potential, rtol=1e-7, atol=1e-7)
        turned = torch.einsum("ab,nbc->nac", matrix, field)
        torch.testing.assert_close(moved[1], turned, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("frame", [make_data(1, 3), molecule(4, 3)], ids=["periodic", "open"])
@pytest.mark.parametrize("output", ["energy", "features"])
def test_both_outputs_are_twice_differentiable(output, frame):
    layer = make_layer(output, tolerance=0.05)

    def contraction(x, pos):
        out = layer(x, pos, None, frame.cell, frame.pbc)
        parts = out if output == "features" else (out,)
        return sum(part.sin().sum() for part in parts)

    assert_twice_differentiable(contraction, (features(3), frame.pos))


def test_float32_follows_float64():
    data = mixed_batch()
    for output in ("energy", "features"):
        layer = make_layer(output, tolerance=1e-5)
        exact = evaluate_own(layer, data)
        half = copy.deepcopy(layer).float()
        x, pos, cell = (v.float() for v in (features(len(data.pos)), data.pos, data.cell))
        rough = half(x, pos, data.batch, cell, data.pbc, 5)
        for found, expected in zip(rough if output == "features" else (rough,), exact, strict=True):
            assert found.dtype == torch.float32
            scale = expected.abs().max()
            assert (found - expected).abs().max() < 1e-4 * scale


BAD = {
    "stacked cell": ({"cell": TRICLINIC.repeat(5, 1)}, InputError, "StoreBoundary"),
    "too many cells": ({"cell": TRICLINIC.expand(4, 3, 3)}, InputError, "`cell` must be of shape"),
    "flat cell": ({"cell": torch.ones(3)}, InputError, "`cell` must be of shape"),
    "list cell": ({"cell": TRICLINIC.tolist()}, InputTypeError, "`cell` must be a torch.Tensor"),
    "float32 cell": ({"cell": TRICLINIC.float()}, InputTypeError, "`cell` must be torch.float64"),
    "wrong pbc": ({"pbc": torch.ones(5, 2).bool()}, InputError, "`pbc` must be of shape"),
    "integer pbc": ({"pbc": torch.ones(5, 3)}, InputTypeError, "`pbc` must be of dtype bool"),
    "no pbc": ({"pbc": None}, InputError, "never guessed"),
    "no cell": ({"cell": None}, InputError, "`cell` must be given"),
    "singular": ({"cell": torch.ones(3, 3).double()}, InputError, "non-zero volume"),
    "unsorted": ({"batch": mixed_batch().batch.flip(0)}, InputError, "sorted"),
    "few graphs": ({"batch_size": 4}, InputError, "batch_size=4"),
    "flat pos": ({"pos": torch.zeros(27)}, InputError, r"`pos` must be of shape \[num_nodes, 3\]"),
    "NaN": ({"pos": torch.full((27, 3), torch.nan).double()}, InputError, "must be finite"),
    "few nodes": ({"pos": torch.zeros(7, 3)}, InputError, r"`x` must be .*num_nodes=7"),
}


@pytest.mark.parametrize("output", ["energy", "features"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case, output):
    changes, error, message = BAD[case]
    data = mixed_batch()
    layer = make_layer(output)
    arguments = {key: data[key] for key in ("pos", "batch", "cell", "pbc")} | {"batch_size": 5}
    with pytest.raises(error, match=message):
        layer(features(len(data.pos)), **(arguments | changes))


def test_three_flags_for_three_graphs_are_ambiguous():
    """PyG makes [3] of one flag for each of three graphs, which is not one for each axis."""
    layer, data = make_layer(), Batch.from_data_list([make_data(1), molecule(), make_data(2)])
    with pytest.raises(InputError, match=r"`pbc` must be of shape \[1, 3\] or \[3, 3\] for 3"):
        evaluate(layer, data, pbc=torch.tensor([True, False, True]))
    slabs = evaluate(layer, data, pbc=torch.tensor([[True, False, True]]), cell=TRICLINIC)
    assert slabs.shape == (3, 1)
    closed = evaluate(layer, data, pbc=torch.tensor([False, False, False]))
    assert torch.equal(closed, evaluate(layer, data, pbc=None, cell=None))


def test_features_without_channels_are_named():
    with pytest.raises(InputError, match="`x` must be of at least one channel"):
        LongRangeLayer(-1)(torch.zeros(3, 0), torch.zeros(3, 3))


def test_mixed_precision_is_named():
    data = make_data(1)
    with pytest.raises(InputTypeError, match="`features` must be torch.float64"):
        make_layer()(features(6).float(), data.pos, None, data.cell, data.pbc)


def test_bad_options_are_named():
    with pytest.raises(ConfigError, match="`output` must be one of energy, features"):
        LongRangeLayer(output="forces")
    with pytest.raises(ConfigError, match="Did you mean 'min_width'"):
        LongRangeLayer(min_widht=1.0)
    with pytest.raises(ConfigError, match="`latent_dipoles` must be False for a model without"):
        LongRangeLayer(latent_dipoles=True)
    with pytest.raises(ConfigError, match="`cutoff` must be given with .*dispersion"):
        LongRangeLayer(kernel="dispersion")
    with pytest.raises(ConfigError, match="`in_channels` must be the number of features"):
        LongRangeLayer(kernel="dispersion", cutoff=4.0)
    with pytest.raises(ConfigError, match="`output` must be 'energy' where neighbours are left"):
        LongRangeLayer(8, kernel="dispersion", cutoff=4.0, output="features")
    with pytest.raises(ConfigError, match="given as `num_charges`"):
        LongRangeLayer(num_channels=1)
    with pytest.raises(ConfigError, match="`in_channels` must be positive, or -1"):
        LongRangeLayer(0)
    with pytest.raises(BoundaryError, match="Ewald"):
        evaluate(make_layer(kernel="ewald"), mixed_batch())


def test_charge_states_are_refused_where_their_energy_or_size_is_not_known():
    with pytest.raises(ConfigError, match="`output` must be 'energy' with charge_embedding"):
        make_layer("features", charge_embedding=3)
    with pytest.raises(ConfigError, match="`in_channels` must be the number of features"):
        make_layer(in_channels=-1, charge_embedding=3)


@pytest.mark.parametrize("output", ["energy", "features"])
def test_python_waits_once(output):
    data = Batch.from_data_list([make_data(0), make_data(1)])
    layer = make_layer(output, backend="mesh", tolerance=1e-3)
    with Operations() as counted:
        evaluate(layer, data)
    assert counted.host_reads == 1, counted.reads


def test_a_preset_gives_the_options_that_are_not_given(monkeypatch):
    preset = Preset("", {"min_width": 2.0, "num_channels": 2}, {"latent_dipoles": True})
    monkeypatch.setitem(PRESETS, "molecular", preset)
    config = LongRangeLayer(preset="molecular").part.config
    assert config == SOGConfig(min_width=2.0, num_channels=2)
    layer = LongRangeLayer(num_charges=3, preset="molecular", min_width=0.5)
    assert (layer.num_charges, layer.part.config.min_width) == (3, 0.5)
    assert LongRangeLayer().num_charges == 4
    with pytest.raises(ConfigError, match="Did you mean 'molecular'"):
        LongRangeLayer(preset="moleculer")
    with pytest.raises(ConfigError, match="`sog_preset train.xyz` prints"):
        LongRangeLayer(preset="auto")
