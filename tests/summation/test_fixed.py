import pytest
import torch
from references import DOUBLE, all_kernels, random_structure
from torch.fx.experimental.proxy_tensor import make_fx

from sog_longrange import (
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


def models(name, scale=1.3, **options):
    """A mesh energy and its fixed form for cells up to `scale` times the structure's."""
    q, r, cell, pbc = random_structure(0, 8, n_channels=2, edge=EDGE)
    energy = LongRangeEnergy(kernels()[name], backend="mesh", tolerance=1e-6, **options)
    return energy, FixedMeshEnergy(energy, scale * cell), (q, r, cell, pbc)


def derivatives(energy, q, r, cell, kernel):
    q, r, cell = (x.clone().requires_grad_() for x in (q, r, cell))
    value = energy(q, r, cell)
    first = torch.autograd.grad(value, (q, r, cell), create_graph=True)
    loss = sum(x.square().sum() for x in first)
    second = torch.autograd.grad(loss, (q, r, cell, *kernel.parameters()))
    return [value.detach()[None], *(x.detach() for x in (*first, *second))]


@pytest.mark.parametrize("name", kernels())
@pytest.mark.parametrize("scale", [1.0, 1.3, 3.0])
def test_the_fixed_mesh_equals_the_mesh_to_tolerance(name, scale):
    energy, fixed, (q, r, cell, pbc) = models(name, scale)

    def reference(q, r, cell):
        return energy(q, r, cell[None], pbc[None]).energy.sum()

    expected = derivatives(reference, q, r, cell, energy.kernel)
    found = derivatives(lambda *x: fixed(*x)[0].sum(), q, r, cell, energy.kernel)
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).norm()) <= 1e-4 * float(b.norm()) + 1e-9


def test_potential_and_atomic_energies_are_those_of_the_mesh():
    energy, fixed, (q, r, cell, pbc) = models("ewald", remove_self=False)
    out = energy(q, r, cell[None], pbc[None])
    atomic_energies, potential = fixed(q, r, cell)
    torch.testing.assert_close(atomic_energies, out.atomic_energies, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(potential, out.potential, rtol=1e-5, atol=1e-6)


def test_a_cell_larger_than_recorded_gives_nan():
    _, fixed, (q, r, cell, _) = models("ewald", scale=1.1)
    assert bool(fixed(q, r, 1.05 * cell)[0].isfinite().all())
    assert bool(fixed(q, r, 1.2 * cell)[0].isnan().all())


exported = pytest.mark.parametrize("name", ["ewald", "joined", "coupled"])


@pytest.mark.slow
@exported
def test_the_graph_has_nothing_but_aten_and_serves_other_sizes(name):
    _, fixed, (q, r, cell, _) = models(name)

    def energy_and_forces(q, r, cell):
        moved = r.detach().requires_grad_()
        value = fixed(q, moved, cell)[0].sum()
        return value, torch.autograd.grad(value, moved)[0]

    graph = make_fx(energy_and_forces, tracing_mode="symbolic", _allow_non_fake_inputs=True)
    graph = graph(q, r, cell)
    namespaces = {
        node.target.namespace for node in graph.graph.nodes if hasattr(node.target, "namespace")
    }
    assert namespaces == {"aten"}
    smaller = (q[:5], r[:5], 1.1 * cell)
    for a, b in zip(graph(*smaller), energy_and_forces(*smaller), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@exported
def test_it_exports_with_a_dynamic_number_of_atoms(name):
    _, fixed, (q, r, cell, _) = models(name)
    atoms = torch.export.Dim("atoms")
    program = torch.export.export(
        fixed, (q, r, cell), dynamic_shapes=({0: atoms}, {0: atoms}, None)
    )
    found = program.module()(q[:5], r[:5], 1.1 * cell)
    torch.testing.assert_close(found, fixed(q[:5], r[:5], 1.1 * cell))


def test_the_largest_cell_is_checked():
    energy = LongRangeEnergy(all_kernels()["ewald"])
    with pytest.raises(InputError, match="largest_cell"):
        FixedMeshEnergy(energy, torch.eye(2))
    with pytest.raises(InputError, match="largest_cell"):
        FixedMeshEnergy(energy, torch.full((3, 3), torch.nan))
    with pytest.raises(SizeError):
        FixedMeshEnergy(energy, 1e5 * torch.eye(3))


def test_printing_shows_mesh_and_limits():
    _, fixed, _ = models("ewald")
    assert "mesh=(" in str(fixed)
    assert "largest_lengths=(" in str(fixed)


def test_float32_agrees_with_float64():
    energy, _, (q, r, cell, _) = models("ewald")
    fixed = FixedMeshEnergy(energy, cell)
    found = fixed(q.float(), r.float(), cell.float())[1].to(DOUBLE)
    assert float((found - fixed(q, r, cell)[1]).norm()) < 1e-4 * float(found.norm())


@pytest.mark.parametrize("name", ["joined", "coupled"])
def test_charges_of_other_channels_than_the_kernels_are_refused(name):
    _, fixed, (q, r, cell, _) = models(name)
    with pytest.raises(InputError, match="`charges` must be of 2 channels.*got 3"):
        fixed(torch.cat([q, q[:, :1]], 1), r, cell)
