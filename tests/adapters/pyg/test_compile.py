"""Compiled inference, and the error where compiled training is impossible."""

import pytest
import torch
from pyg_builders import CUTOFF, PRECISE, make_model, mixed_batch
from torch import nn

from sog_longrange import DerivativeError
from sog_pyg import LongRangeLayer, energy_forces_stress, periodic_edges


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def first_moment(result):
    """The energy, or a number that all features are part of."""
    return result if isinstance(result, torch.Tensor) else sum(x.tanh().sum() for x in result)


IONS = {"readout": "ions", "cutoff": CUTOFF, "elements": (1, 8)}


# Of PyTorch's tracer, about inputs that are not leaves of the autograd graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(("output", "options"), [("energy", IONS), ("features", {})])
def test_the_layer_compiles_into_one_graph(output, options):
    data = mixed_batch()
    layer, x = LongRangeLayer(8, output=output, **options, **PRECISE), torch.randn(len(data.pos), 8)
    structures = data.batch, data.cell, data.pbc, 5
    compiled = torch.compile(layer, fullgraph=True)
    results = []
    for function in (layer, compiled):
        pos = data.pos.clone().requires_grad_()
        index, vectors = periodic_edges(pos, CUTOFF, *structures[1:3], *structures[::3])
        arguments = *structures, None, index, vectors.norm(dim=1), data.z
        energy = first_moment(function(x, pos, *arguments))
        results.append((energy, torch.autograd.grad(energy.sum(), pos)[0]))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# Of PyTorch's tracer, about inputs that are not leaves of the autograd graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["SchNet", "hand-written"])
def test_compiled_models_have_the_same_energy_forces_and_stress(name):
    model, data = make_model(name), mixed_batch()
    expected = energy_forces_stress(model, data)
    # The graphs are what is tested, and inductor takes minutes for them.
    compiled = torch.compile(model, backend="aot_eager")
    for found, own in zip(energy_forces_stress(compiled, data), expected, strict=True):
        torch.testing.assert_close(found, own, rtol=1e-12, atol=1e-12, equal_nan=True)


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *arguments):
        return self.inner(*arguments)


def compiled_in_place(model):
    model.compile(backend="aot_eager")
    return model


WAYS = {
    "module": lambda model: torch.compile(model, backend="aot_eager"),
    "function": lambda model: torch.compile(lambda *a: model(*a), backend="aot_eager"),
    "in place": compiled_in_place,
    "inside": lambda model: Around(torch.compile(model, backend="aot_eager")),
}


@pytest.mark.parametrize("way", WAYS)
def test_training_a_compiled_model_is_refused_before_it_runs(way):
    model = WAYS[way](make_model("hand-written"))
    with pytest.raises(DerivativeError, match="PyTorch cannot differentiate compiled code twice"):
        energy_forces_stress(model, mixed_batch(), create_graph=True)


def test_pytorch_refuses_it_too_where_the_helper_is_passed_by():
    """If this fails, PyTorch has learned it, and the error of the helper can go."""
    data = mixed_batch()
    layer, x = LongRangeLayer(8, **PRECISE), torch.randn(len(data.pos), 8)
    pos = data.pos.clone().requires_grad_()
    compiled = torch.compile(layer, backend="aot_eager")
    energy = compiled(x, pos, data.batch, data.cell, data.pbc, 5)
    with pytest.raises(RuntimeError, match="double backward|create_graph"):
        torch.autograd.grad(energy.sum(), pos, create_graph=True)[0].sum().backward()
