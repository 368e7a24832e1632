import pytest
import torch
from references import DOUBLE, dipoles_of, random_structure

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
    potential_and_field,
    power_law,
)
from sog_longrange.summation.operators import FIELD
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


def structures():
    """Two periodic structures and a non-periodic one, in one batch."""
    parts = [random_structure(seed, 6, n_channels=2, edge=5.0) for seed in (0, 1)]
    parts.append(random_structure(2, 4, n_channels=2, periodic=False))
    return join(parts)


def model(kernel, **options):
    return LongRangeEnergy(KERNELS[kernel], tolerance=1e-4, **options)


def everything(energy, order=0):
    """Outputs, first derivatives, and gradients of a loss of all of them."""
    q, r, cell, pbc, batch, n = structures()
    inputs = [x.clone().requires_grad_() for x in (q, r, cell, dipoles_of(q))[: 3 + order]]
    q, r, cell, *dipoles = inputs
    out = energy(q, r, cell, pbc, batch, n, dipoles=dipoles[0] if order else None)
    results = [x for x in out if x is not None]
    first = torch.autograd.grad(out.energy.sum(), inputs, create_graph=True)
    loss = sum(x.square().sum() for x in (*results, *first))
    second = torch.autograd.grad(loss, (*inputs, *energy.parameters()))
    return [x.detach() for x in (*results, *first, *second)]


CASES = [
    *((kernel, "mesh", 0) for kernel in KERNELS),
    *(("coupled", backend, 1) for backend in ("mesh", "dense")),
    *(("per_channel", "dense", order) for order in (0, 1)),
]


@pytest.mark.parametrize(("kernel", "backend", "order"), CASES)
def test_operators_equal_the_eager_code_to_second_derivatives(kernel, backend, order):
    found = everything(model(kernel, backend=backend, opaque=True), order)
    expected = everything(model(kernel, backend=backend), order)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [0, 1])
def test_potential_and_field_go_through_operators(order):
    q, r, cell, *rest = structures()
    dipoles = dipoles_of(q) if order else None

    def derivatives(energy):
        leaves = [x.clone().requires_grad_() for x in (q, r, cell)]
        out = potential_and_field(energy, *leaves, *rest, dipoles=dipoles)
        total = out.potential.sin().sum() + out.field.cos().sum()
        first = torch.autograd.grad(total, leaves, create_graph=True)
        loss = sum(x.square().sum() for x in first)
        return [*out, *first, *torch.autograd.grad(loss, (*leaves, *energy.parameters()))]

    found, expected = (
        derivatives(model("per_channel", engine="none", opaque=own)) for own in (True, False)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def third_derivatives(energy):
    """Gradient, in positions, of the squared gradient of the squared forces."""
    q, r, cell, pbc, batch, n = structures()
    r.requires_grad_()
    value = energy(q, r, cell, pbc, batch, n).energy.sum()
    for _ in range(3):
        (gradient,) = torch.autograd.grad(value, r, create_graph=True)
        value = gradient.square().sum()
    return value, gradient, r


def test_third_derivatives_in_positions_are_right_and_fourth_ones_refused():
    _, expected, _ = third_derivatives(model("ewald"))
    value, found, positions = third_derivatives(model("ewald", opaque=True))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    with pytest.raises((DerivativeError, RuntimeError), match="double_backward|not available"):
        torch.autograd.grad(value, positions)


def test_third_derivatives_with_a_trainable_kernel_are_refused():
    with pytest.raises((DerivativeError, RuntimeError), match="double_backward|not available"):
        third_derivatives(model("per_channel", opaque=True))


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
@pytest.mark.parametrize(("order", "suffix"), [(0, ""), (1, ""), (0, FIELD)])
def test_operators_pass_the_checks_of_pytorch(order, suffix):
    q, r, cell, pbc, batch, _ = structures()
    dipoles = dipoles_of(q)[:, : 3 * order]
    # In any memory order, too.
    turned = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in (q, dipoles, r)]
    assert not turned[2].is_contiguous()
    tensors = [x.requires_grad_() for x in (*turned, cell)]
    kernel = KERNELS["per_channel"]
    parameters = [x.detach().clone().requires_grad_() for x in (kernel.amplitudes, kernel.widths)]
    options = model("per_channel", backend="mesh")._options + suffix
    operator = torch.ops.sog_longrange.evaluate.default
    torch.library.opcheck(operator, (*tensors, *parameters, pbc, batch, options))


@pytest.mark.parametrize("path", ["dipoles", "potential"])
def test_compiled_dipoles_and_potentials_have_one_graph_and_equal_eager(path):
    q, r, cell, pbc, batch, n = structures()
    energy = model("per_channel", backend="mesh").requires_grad_(False)

    def evaluate(q, r, dipoles):
        if path == "dipoles":
            return energy(q, r, cell, pbc, batch, n, dipoles=dipoles).energy
        return potential_and_field(energy, q, r, cell, pbc, batch, n, dipoles=dipoles).field

    compiled = torch.compile(evaluate, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, evaluate):
        leaves = [x.clone().requires_grad_() for x in (q, r, dipoles_of(q))]
        out = function(*leaves)
        results.append((out, *torch.autograd.grad(out.sum(), leaves)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", ["per_channel", "ewald"])
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
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_compiled_inference_of_a_single_non_periodic_structure_needs_no_more_than_positions():
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


def test_the_whole_module_compiles():
    q, r, cell, pbc, batch, n = structures()
    module = SOGLongRange([2], SOGConfig(num_channels=2, tolerance=1e-3)).double()
    module.requires_grad_(False)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected = module(q, r, cell, pbc, batch, n).energy
    torch.testing.assert_close(compiled(q, r, cell, pbc, batch, n).energy, expected)
