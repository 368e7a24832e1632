"""Potential and field as parts of a model: values, invariances and two derivatives."""

import pytest
import torch
from references import DOUBLE, all_kernels, random_structure, relative_error, sum_of_gaussians
from torch.func import functional_call

from sog_longrange import (
    BoundaryError,
    ConfigError,
    Ewald,
    InputError,
    LongRangeEnergy,
    coulomb,
    potential_and_field,
)
from sog_longrange.testing import assert_twice_differentiable, join

TOLERANCE = 1e-7
BOUNDARIES = ("periodic", "left_handed", "open", "slab", "wire", "mixed", "large_open")


def structures_of(boundary, n_atoms=4, n_channels=2):
    """Structures with atoms in any image; the last of a mixed batch has none."""
    right = random_structure(2, n_atoms, n_channels, edge=5.0)
    left = random_structure(3, n_atoms - 1, n_channels, edge=5.0)
    free = random_structure(4, n_atoms, n_channels, edge=5.0, periodic=False)
    slab = right._replace(pbc=torch.tensor([True, False, True]))
    wire = left._replace(pbc=torch.tensor([False, True, False]))
    empty = random_structure(5, 0, n_channels)
    return {
        "periodic": [right],
        "left_handed": [left],
        "open": [free],
        "slab": [slab],
        "wire": [wire],
        "mixed": [right, free, left, slab, free, wire, empty],
        "large_open": [random_structure(6, 700, n_channels, edge=10.0, periodic=False)],
    }[boundary]


def reference(energy, charges, positions, *geometry):
    """Potential of the energy; field from the change of the energy as each atom moves alone."""
    positions = positions.clone().requires_grad_()
    potential = energy(charges, positions, *geometry).potential
    fields = []
    for channel in range(charges.shape[1]):
        moving = energy(charges[:, channel : channel + 1], positions, *geometry).energy.sum()
        force = -torch.autograd.grad(moving, positions)[0]
        fields.append(force / charges[:, channel : channel + 1])
    return potential.detach(), torch.stack(fields, -1)


# The Ewald kernel has no free axes.
CASES = [
    (boundary, name)
    for boundary in BOUNDARIES
    for name in all_kernels()
    if name != "ewald" or boundary in ("periodic", "left_handed", "open")
]


@pytest.mark.parametrize(("boundary", "name"), CASES)
@pytest.mark.parametrize("remove_self", [True, False])
def test_values_are_those_of_the_direct_sums(boundary, name, remove_self):
    energy = LongRangeEnergy(
        all_kernels()[name], tolerance=TOLERANCE, backend="dense", remove_self=remove_self
    )
    inputs = join(structures_of(boundary))
    potential, field = reference(energy, *inputs)
    energy.backend = "auto"
    found = potential_and_field(energy, *inputs)
    assert relative_error(found.potential.detach(), potential) < 10 * TOLERANCE
    assert relative_error(found.field.detach(), field) < 10 * TOLERANCE


def small_kernel(name, n_channels=2):
    if name == "ewald":
        return Ewald(1.0)
    own = n_channels if name == "per_channel" else 1
    return sum_of_gaussians(coulomb(), num_channels=own, num_gaussians=2, max_width=2.5)


@pytest.mark.parametrize(
    ("boundary", "name"),
    [
        *(("left_handed", name) for name in ("shared", "per_channel", "ewald")),
        *(("open", name) for name in ("shared", "per_channel", "ewald")),
        pytest.param("mixed", "per_channel", marks=pytest.mark.slow),
    ],
)
def test_potential_and_field_are_twice_differentiable_in_every_input(boundary, name):
    energy = LongRangeEnergy(small_kernel(name), tolerance=0.05)
    structures = [s._replace(positions=0.4 * s.positions) for s in structures_of(boundary, 3)]
    if boundary == "mixed":
        structures = [structures[0], structures[1], structures[3]]
    charges, positions, cell, pbc, *index = join(structures)
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(shape, generator=generator, dtype=DOUBLE)
        for shape in (charges.shape, (len(charges), 3, charges.shape[1]))
    ]

    def contraction(q, r, c):
        out = potential_and_field(energy, q, r, c, pbc, *index)
        return sum((w * own).sum() for w, own in zip(weights, out, strict=True))

    if boundary == "open":
        inputs = (charges, positions)
        assert_twice_differentiable(lambda q, r: contraction(q, r, cell), inputs)
    else:
        assert_twice_differentiable(contraction, (charges, positions, cell))


@pytest.mark.parametrize("boundary", ["periodic", "open", "slab"])
def test_second_derivatives_reach_the_kernel(boundary):
    kernel = small_kernel("per_channel")
    energy = LongRangeEnergy(kernel, tolerance=0.05)
    charges, positions, *geometry = join(structures_of(boundary, 3))
    names, values = zip(*kernel.named_parameters(), strict=True)

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.energy = energy

        def forward(self, r):
            out = potential_and_field(self.energy, charges, r, *geometry)
            return out.potential.sin().sum() + out.field.sin().sum()

    def contraction(r, *parameters):
        swapped = {f"energy.kernel.{n}": p for n, p in zip(names, parameters, strict=True)}
        return functional_call(Layer(), swapped, (r,))

    assert_twice_differentiable(contraction, (positions, *(v.detach() for v in values)))


@pytest.mark.slow
def test_forces_of_a_model_with_the_potential_inside_have_gradients():
    """What a force loss needs: the second derivative of a nonlinear function of the layer."""
    energy = LongRangeEnergy(small_kernel("shared"), tolerance=0.05)
    charges, positions, cell, pbc, *index = join(structures_of("mixed", 3)[:4])

    def forces(q, r, c):
        r = r if r.requires_grad else r.clone().requires_grad_()
        first = potential_and_field(energy, q, r, c, pbc, *index)
        second = potential_and_field(energy, torch.tanh(first.potential), r, c, pbc, *index)
        total = second.potential.sin().sum() + (second.field * first.field).sum()
        return torch.autograd.grad(total, r, create_graph=True)[0]

    leaves = tuple(x.clone().requires_grad_() for x in (charges, positions, cell))
    assert torch.autograd.gradcheck(forces, leaves, eps=1e-6, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("boundary", ["periodic", "open", "slab"])
def test_rotation_turns_the_field_and_keeps_the_potential(boundary):
    energy = LongRangeEnergy(sum_of_gaussians(), tolerance=TOLERANCE)
    (structure,) = structures_of(boundary)
    generator = torch.Generator().manual_seed(1)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=DOUBLE))
    turned = structure._replace(
        positions=structure.positions @ rotation.T, cell=structure.cell @ rotation.T
    )
    here = potential_and_field(energy, *join([structure]))
    there = potential_and_field(energy, *join([turned]))
    torch.testing.assert_close(there.potential, here.potential, rtol=1e-9, atol=1e-9)
    expected = torch.einsum("ab,nbp->nap", rotation, here.field)
    torch.testing.assert_close(there.field, expected, rtol=1e-9, atol=1e-9)


def test_batch_equals_single():
    energy = LongRangeEnergy(sum_of_gaussians(), tolerance=TOLERANCE)
    structures = structures_of("mixed")
    together = potential_and_field(energy, *join(structures))
    alone = [potential_and_field(energy, *join([s])) for s in structures]
    for found, expected in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_float32_follows_float64(boundary):
    energy = LongRangeEnergy(sum_of_gaussians(), tolerance=1e-5)
    inputs = join(structures_of(boundary))
    exact = potential_and_field(energy, *inputs)
    rough_inputs = [
        x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs
    ]
    rough = potential_and_field(energy.float(), *rough_inputs)
    for found, expected in zip(rough, exact, strict=True):
        assert found.dtype == torch.float32
        assert relative_error(found.detach().double(), expected.detach()) < 1e-4


@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_nothing_is_recorded_where_nothing_is_differentiated(boundary):
    energy = LongRangeEnergy(sum_of_gaussians(), tolerance=TOLERANCE)
    inputs = join(structures_of(boundary))
    expected = potential_and_field(energy, *inputs)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = potential_and_field(energy, *inputs)
        for own, other in zip(found, expected, strict=True):
            assert not own.requires_grad
            torch.testing.assert_close(own, other.detach())


def test_no_atoms_have_no_potential():
    energy = LongRangeEnergy(sum_of_gaussians())
    out = potential_and_field(energy, *join([structures_of("mixed")[-1]]))
    assert out.potential.shape == (0, 2)
    assert out.field.shape == (0, 3, 2)


def test_what_cannot_be_summed_is_refused():
    inputs = join(structures_of("slab"))
    with pytest.raises(BoundaryError, match="sum of Gaussians"):
        potential_and_field(LongRangeEnergy(Ewald()), *inputs)
    with pytest.raises(ConfigError, match="`backend` must be"):
        potential_and_field(LongRangeEnergy(sum_of_gaussians(), backend="dense"), *inputs)
    three = LongRangeEnergy(sum_of_gaussians(num_channels=3))
    with pytest.raises(InputError, match="of 3 channels"):
        potential_and_field(three, *inputs)
    bad = inputs[0].clone()
    bad[0, 0] = torch.nan
    with pytest.raises(InputError, match="`charges` must be finite"):
        potential_and_field(LongRangeEnergy(sum_of_gaussians()), bad, *inputs[1:])
