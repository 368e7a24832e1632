import pytest
import torch
from references import DOUBLE, all_kernels, dipoles_of, random_structure
from torch.fx.experimental.proxy_tensor import make_fx

from sog_longrange import (
    ConfigError,
    CoupledGaussians,
    FixedMeshEnergy,
    InputError,
    LongRangeEnergy,
    SizeError,
    SumOfGaussians,
    coulomb,
    power_law,
)

EDGE = 6.0


def kernels():
    options = {"num_channels": 2, "num_gaussians": 6, "max_width": 8.0}
    starts = (coulomb(), power_law(6.0, -20.0))
    return all_kernels() | {
        "joined": SumOfGaussians(starts, **options).double(),
        "coupled": CoupledGaussians(starts, coupling=0.3, **options).double(),
    }


def models(name, scale=1.3, order=0, **options):
    """A mesh energy and its fixed form for cells up to `scale` times the structure's."""
    q, r, cell, pbc = random_structure(0, 8, n_channels=2, edge=EDGE)
    energy = LongRangeEnergy(
        kernels()[name], backend="mesh", engine="none", tolerance=1e-6, **options
    )
    return energy, FixedMeshEnergy(energy, scale * cell, order), (q, r, cell, pbc)


def derivatives(energy, kernel, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    value = energy(*inputs)
    first = torch.autograd.grad(value, inputs, create_graph=True)
    loss = sum(x.square().sum() for x in first)
    second = torch.autograd.grad(loss, (*inputs, *kernel.parameters()))
    return [value.detach()[None], *(x.detach() for x in (*first, *second))]


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(
    ("name", "scale"), [*((name, 1.3) for name in kernels()), ("coulomb", 1.0), ("joined", 3.0)]
)
def test_the_fixed_mesh_equals_the_mesh_to_tolerance(name, scale, order):
    energy, fixed, (q, r, cell, pbc) = models(name, scale, order)
    inputs = (q, r, cell, dipoles_of(q))[: 3 + order]

    def reference(q, r, cell, dipoles=None):
        return energy(q, r, cell[None], pbc[None], dipoles=dipoles).energy.sum()

    expected = derivatives(reference, energy.kernel, *inputs)
    found = derivatives(lambda *x: fixed(*x).energy.sum(), energy.kernel, *inputs)
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).norm()) <= 1e-4 * float(b.norm()) + 1e-9


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("remove_self", [True, False])
def test_all_that_it_returns_is_what_the_mesh_returns(order, remove_self):
    energy, fixed, (q, r, cell, pbc) = models("joined", order=order, remove_self=remove_self)
    dipoles = dipoles_of(q) if order else None
    out = energy(q, r, cell[None], pbc[None], dipoles=dipoles)
    for found, expected in zip(fixed(q, r, cell, dipoles), out, strict=True):
        if expected is None:
            assert found is None
        else:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_charges_on_the_grid_of_dipoles_are_those_of_the_mesh():
    energy, fixed, (q, r, cell, pbc) = models("joined", order=1)
    expected = energy(q, r, cell[None], pbc[None]).energy
    torch.testing.assert_close(fixed(q, r, cell).energy, expected, rtol=1e-5, atol=1e-5)


def test_dipoles_on_the_grid_of_charges_are_refused():
    _, fixed, (q, r, cell, _) = models("joined")
    with pytest.raises(ConfigError, match="`dipoles` must be None on a grid of order 0"):
        fixed(q, r, cell, dipoles_of(q))


def test_a_cell_larger_than_recorded_gives_nan():
    _, fixed, (q, r, cell, _) = models("ewald", scale=1.1)
    assert bool(fixed(q, r, 1.05 * cell).energy.isfinite().all())
    r = r.detach().requires_grad_()
    energy = fixed(q, r, 1.2 * cell).energy
    assert bool(energy.isnan().all())
    assert bool(torch.autograd.grad(energy.sum(), r)[0].isnan().all())


exported = pytest.mark.parametrize(("name", "order"), [("ewald", 0), ("joined", 1), ("coupled", 0)])


@pytest.mark.slow
@exported
def test_the_graph_has_only_operations_of_pytorch_and_serves_other_sizes(name, order):
    _, fixed, (q, r, cell, _) = models(name, order=order)

    def energy_and_forces(q, r, cell, *dipoles):
        moved = r.detach().requires_grad_()
        value = fixed(q, moved, cell, *dipoles).energy.sum()
        return value, torch.autograd.grad(value, moved)[0]

    dipoles = (dipoles_of(q),)[:order]
    graph = make_fx(energy_and_forces, tracing_mode="symbolic", _allow_non_fake_inputs=True)
    graph = graph(q, r, cell, *dipoles)
    namespaces = {
        node.target.namespace for node in graph.graph.nodes if hasattr(node.target, "namespace")
    }
    # PyTorch writes forward derivatives, which the self term of dipoles needs, in primitives.
    assert namespaces <= {"aten", "prims"} if order else namespaces == {"aten"}
    smaller = (q[:5], r[:5], 1.1 * cell, *(own[:5] for own in dipoles))
    for a, b in zip(graph(*smaller), energy_and_forces(*smaller), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@exported
def test_it_exports_with_a_dynamic_number_of_atoms(name, order):
    _, fixed, (q, r, cell, _) = models(name, order=order)
    atoms = torch.export.Dim("atoms")
    dipoles = (dipoles_of(q),)[:order]
    shapes = ({0: atoms}, {0: atoms}, None, *[{0: atoms}] * order)
    program = torch.export.export(fixed, (q, r, cell, *dipoles), dynamic_shapes=shapes)
    smaller = (q[:5], r[:5], 1.1 * cell, *(own[:5] for own in dipoles))
    for a, b in zip(program.module()(*smaller), fixed(*smaller), strict=True):
        if b is not None:
            torch.testing.assert_close(a, b)


def test_the_largest_cell_is_checked():
    energy = LongRangeEnergy(all_kernels()["ewald"])
    with pytest.raises(InputError, match="largest_cell"):
        FixedMeshEnergy(energy, torch.eye(2))
    with pytest.raises(InputError, match="largest_cell"):
        FixedMeshEnergy(energy, torch.full((3, 3), torch.nan))
    with pytest.raises(SizeError):
        FixedMeshEnergy(energy, 1e5 * torch.eye(3))


def test_printing_shows_the_grid_and_its_limits():
    _, fixed, _ = models("ewald")
    assert "grid=(" in str(fixed)
    assert "largest_lengths=(" in str(fixed)


def test_float32_agrees_with_float64():
    energy, _, (q, r, cell, _) = models("ewald")
    fixed = FixedMeshEnergy(energy, cell)
    found = fixed(q.float(), r.float(), cell.float()).potential.to(DOUBLE)
    assert float((found - fixed(q, r, cell).potential).norm()) < 1e-4 * float(found.norm())


@pytest.mark.parametrize("name", ["joined", "coupled"])
def test_charges_of_other_channels_than_the_kernels_are_refused(name):
    _, fixed, (q, r, cell, _) = models(name)
    with pytest.raises(InputError, match="`charges` must be of 2 channels.*got 3"):
        fixed(torch.cat([q, q[:, :1]], 1), r, cell)
