import pytest
import torch
from references import DOUBLE, random_structure

from sog_longrange import (
    ConfigError,
    CoupledGaussians,
    DerivativeError,
    Ewald,
    InputError,
    LongRangeEnergy,
    SOGConfig,
    SOGLongRange,
    SumOfGaussians,
    coulomb,
    power_law,
)
from sog_longrange.testing import join

KERNELS = {
    "per_channel": SumOfGaussians(coulomb(), num_channels=2, num_gaussians=4).double(),
    "joined": SumOfGaussians(
        (coulomb(), power_law(6.0, -20.0)), num_channels=2, num_gaussians=4
    ).double(),
    "coupled": CoupledGaussians(
        (coulomb(), power_law(6.0, -20.0)), num_gaussians=4, coupling=0.3
    ).double(),
    "ewald": Ewald(1.2),
}
BACKENDS = ("dense", "mesh")


def structures():
    """Two periodic structures and an open one, in one batch."""
    parts = [random_structure(seed, 6, n_channels=2, edge=5.0) for seed in (0, 1)]
    parts.append(random_structure(2, 4, n_channels=2, periodic=False))
    return join(parts)


def model(kernel, **options):
    return LongRangeEnergy(KERNELS[kernel], tolerance=1e-4, **options)


def everything(energy):
    """Outputs, first derivatives, and gradients of a loss of all of them."""
    q, r, cell, pbc, batch, n = structures()
    q, r, cell = (x.clone().requires_grad_() for x in (q, r, cell))
    out = energy(q, r, cell, pbc, batch, n)
    first = torch.autograd.grad(out.energy.sum(), (q, r, cell), create_graph=True)
    loss = out.energy.square().sum() + out.potential.square().sum()
    loss = loss + sum(x.square().sum() for x in first)
    second = torch.autograd.grad(loss, (q, r, cell, *energy.parameters()))
    return [x.detach() for x in (*out[:4], *first, *second)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_operators_equal_the_eager_code_to_second_derivatives(kernel, backend):
    found = everything(model(kernel, backend=backend, opaque=True))
    expected = everything(model(kernel, backend=backend))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_third_derivatives_are_refused():
    q, r, cell, pbc, batch, n = structures()
    r.requires_grad_()
    energy = model("ewald", opaque=True)(q, r, cell, pbc, batch, n).energy.sum()
    (force,) = torch.autograd.grad(energy, r, create_graph=True)
    (second,) = torch.autograd.grad(force.square().sum(), r, create_graph=True)
    with pytest.raises(DerivativeError):
        torch.autograd.grad(second.sum(), r)


def test_operators_work_in_inference_mode():
    inputs = structures()
    expected = model("per_channel")(*inputs).energy
    with torch.inference_mode():
        found = model("per_channel", opaque=True)(*inputs)
    assert torch.equal(found.energy, expected)


def test_training_works_after_a_first_evaluation_in_inference_mode():
    kernel = SumOfGaussians(coulomb(), min_width=1.37, num_gaussians=3).double()
    energy = LongRangeEnergy(kernel, backend="mesh", tolerance=3e-3)
    q, r, cell, pbc, *_ = random_structure(0, 5, edge=5.0)
    with torch.inference_mode():
        energy(q, r, cell, pbc)
    energy(q, r, cell, pbc).energy.sum().backward()
    assert kernel.raw_widths.grad is not None


@pytest.mark.slow
def test_operators_pass_the_checks_of_pytorch():
    q, r, cell, pbc, batch, _ = structures()
    tensors = [x.clone().requires_grad_() for x in (q, r, cell)]
    kernel = KERNELS["per_channel"]
    parameters = [x.detach().clone().requires_grad_() for x in (kernel.amplitudes, kernel.widths)]
    options = model("per_channel", backend="mesh")._options
    operator = torch.ops.sog_longrange.evaluate.default
    torch.library.opcheck(operator, (*tensors, *parameters, pbc, batch, options))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_compiled_inference_has_one_graph_and_equals_eager(kernel):
    q, r, cell, pbc, batch, n = structures()
    energy = model(kernel, backend="mesh").requires_grad_(False)
    compiled = torch.compile(energy, fullgraph=True, backend="aot_eager")
    found, expected = [], []
    for target, function in ((found, compiled), (expected, energy)):
        moved = r.clone().requires_grad_()
        out = function(q, moved, cell, pbc, batch, n)
        target += [out.energy, *torch.autograd.grad(out.energy.sum(), moved)]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_compiled_inference_of_a_single_open_structure_needs_no_more_than_positions():
    q, r, *_ = random_structure(0, 5, periodic=False)
    energy = model("ewald")
    compiled = torch.compile(energy, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, r).energy, energy(q, r).energy)


@pytest.mark.slow
def test_inductor_compiles_inference():
    inputs = structures()
    energy = model("per_channel", backend="mesh").requires_grad_(False)
    compiled = torch.compile(energy, fullgraph=True)
    torch.testing.assert_close(compiled(*inputs).energy, energy(*inputs).energy)


def test_make_fx_sees_one_node():
    from torch.fx.experimental.proxy_tensor import make_fx

    q, r, cell, pbc, batch, n = structures()
    energy = model("ewald", opaque=True)

    def forces(r):
        out = energy(q, r, cell, pbc, batch, n)
        return torch.autograd.grad(out.energy.sum(), r)[0]

    graph = make_fx(forces)(r.clone().requires_grad_())
    nodes = [node for node in graph.graph.nodes if "sog_longrange" in str(node.target)]
    assert [str(node.target) for node in nodes] == ["sog_longrange.evaluate.default"]
    moved = (r + 0.1).requires_grad_()
    torch.testing.assert_close(graph(moved), forces(moved))


def test_bad_input_is_named_when_the_operator_runs():
    q, r, cell, pbc, batch, n = structures()
    r[0, 0] = torch.nan
    with pytest.raises(InputError, match="positions"):
        model("ewald", opaque=True)(q, r, cell, pbc, batch, n)


def test_the_number_of_structures_must_be_known_to_a_tracer():
    q, r, *_ = random_structure(0, 3, periodic=False)
    with pytest.raises(InputError, match="num_graphs"):
        model("ewald", opaque=True)(q, r, batch=torch.tensor([0, 0, 1]))


def test_operators_and_process_groups_exclude_each_other():
    with pytest.raises(ConfigError, match="opaque"):
        model("ewald", opaque=True, process_group=object())


def test_float32_goes_through_operators():
    q, r, cell, pbc, batch, n = structures()
    energy = LongRangeEnergy(Ewald(), opaque=True, tolerance=1e-4)
    found = energy(q.float(), r.float(), cell.float(), pbc, batch, n).energy
    expected = LongRangeEnergy(Ewald(), tolerance=1e-4)(q, r, cell, pbc, batch, n).energy
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.to(DOUBLE), expected, rtol=1e-3, atol=1e-4)


def test_operators_follow_options_that_are_changed_later():
    q, r, cell, pbc, batch, n = structures()
    energies = [LongRangeEnergy(Ewald(1.0), tolerance=1e-6, opaque=own) for own in (False, True)]
    for energy in energies:
        energy.tolerance, energy.kernel, energy.remove_self = 0.05, Ewald(2.0), False
    eager, opaque = (energy(q, r, cell, pbc, batch, n).energy for energy in energies)
    assert torch.equal(eager, opaque)


def test_operators_never_guess_the_boundary():
    q, r, cell, _, batch, n = structures()
    with pytest.raises(InputError, match="never guessed"):
        model("ewald", opaque=True)(q, r, cell, None, batch, n)


def test_operators_take_tensors_in_any_memory_order():
    q, r, cell, pbc, batch, n = structures()
    turned = [x.T.contiguous().T.clone(memory_format=torch.preserve_format) for x in (q, r)]
    assert not turned[0].is_contiguous()
    options = model("ewald", backend="mesh")._options
    none = q.new_empty(1, 0)
    operator = torch.ops.sog_longrange.evaluate.default
    torch.library.opcheck(operator, (*turned, cell, none, none, pbc, batch, options))


@pytest.mark.slow
def test_the_whole_module_compiles():
    q, r, cell, pbc, batch, n = structures()
    module = SOGLongRange([2], SOGConfig(num_channels=2, tolerance=1e-3)).double()
    module.requires_grad_(False)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected = module(q, r, cell, pbc, batch, n).energy
    torch.testing.assert_close(compiled(q, r, cell, pbc, batch, n).energy, expected)
