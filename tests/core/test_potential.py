"""Potential and field as parts of a model: values and invariances."""

import pytest
import torch
from references import DOUBLE, SUMS, all_kernels, random_structure, relative_error, sum_of_gaussians

from sog_longrange import (
    BoundaryError,
    Ewald,
    InputError,
    LongRangeEnergy,
    potential_and_field,
)
from sog_longrange.testing import join

TOLERANCE = 1e-7
BOUNDARIES = ("periodic", "left_handed", "non_periodic", "slab", "one_direction", "mixed", "large")


def model_of(kernel, **options):
    """In pure torch, which takes no time to compile."""
    return LongRangeEnergy(kernel, **({"engine": "none"} | options))


def structures_of(boundary, n_atoms=4, n_channels=2):
    """Structures with atoms in any image; the last of a mixed batch has none."""
    right = random_structure(2, n_atoms, n_channels, edge=5.0)
    left = random_structure(3, n_atoms - 1, n_channels, edge=5.0)
    free = random_structure(4, n_atoms, n_channels, edge=5.0, periodic=False)
    slab = right._replace(pbc=torch.tensor([True, False, True]))
    along = left._replace(pbc=torch.tensor([False, True, False]))
    empty = random_structure(5, 0, n_channels)
    return {
        "periodic": [right],
        "left_handed": [left],
        "non_periodic": [free],
        "slab": [slab],
        "one_direction": [along],
        "mixed": [right, free, left, slab, free, along, empty],
        "large": [random_structure(6, 700, n_channels, edge=10.0, periodic=False)],
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


# The Ewald kernel is no sum of Gaussians.
CASES = [
    *((boundary, "coulomb") for boundary in BOUNDARIES),
    *(("mixed", name) for name in ("dispersion", "yukawa")),
    *((boundary, "ewald") for boundary in ("periodic", "left_handed", "non_periodic")),
]


@pytest.mark.parametrize(("boundary", "name"), CASES)
@pytest.mark.parametrize("remove_self", [True, False])
def test_values_are_those_of_the_direct_sums(boundary, name, remove_self):
    energy = model_of(
        all_kernels()[name], tolerance=TOLERANCE, backend="dense", remove_self=remove_self
    )
    inputs = join(structures_of(boundary))
    potential, field = reference(energy, *inputs)
    energy.backend = "auto"
    found = potential_and_field(energy, *inputs)
    assert relative_error(found.potential.detach(), potential) < 10 * TOLERANCE
    assert relative_error(found.field.detach(), field) < 10 * TOLERANCE


@pytest.mark.parametrize("sums", SUMS)
def test_every_backend_has_the_potential_and_field_of_charges(sums):
    for library in {"numba", "finufft"} & {sums}:
        pytest.importorskip(library, reason=f"{library} is not installed.")
    inputs = join(structures_of("mixed"))
    expected = reference(
        model_of(all_kernels()["coulomb"], tolerance=TOLERANCE, backend="dense"), *inputs
    )
    tolerance = 1e-4 if sums == "numba" else TOLERANCE
    energy = model_of(all_kernels()["coulomb"], tolerance=tolerance, **SUMS[sums])
    for found, own in zip(potential_and_field(energy, *inputs), expected, strict=True):
        assert relative_error(found, own) < 10 * tolerance


@pytest.mark.parametrize("boundary", ["periodic", "non_periodic", "slab"])
def test_rotation_turns_the_field_and_keeps_the_potential(boundary):
    energy = model_of(sum_of_gaussians(), tolerance=TOLERANCE)
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
    energy = model_of(sum_of_gaussians(), tolerance=TOLERANCE)
    structures = structures_of("mixed")
    together = potential_and_field(energy, *join(structures))
    alone = [potential_and_field(energy, *join([s])) for s in structures]
    for found, expected in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_float32_follows_float64(boundary):
    energy = model_of(sum_of_gaussians(), tolerance=1e-5)
    inputs = join(structures_of(boundary))
    exact = potential_and_field(energy, *inputs)
    rough_inputs = [
        x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs
    ]
    rough = potential_and_field(energy.float(), *rough_inputs)
    for found, expected in zip(rough, exact, strict=True):
        assert found.dtype == torch.float32
        assert relative_error(found.detach().double(), expected.detach()) < 1e-4


@pytest.mark.parametrize("boundary", ["periodic", "non_periodic"])
def test_nothing_is_recorded_where_nothing_is_differentiated(boundary):
    energy = model_of(sum_of_gaussians(), tolerance=TOLERANCE)
    inputs = join(structures_of(boundary))
    expected = potential_and_field(energy, *inputs)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = potential_and_field(energy, *inputs)
        for own, other in zip(found, expected, strict=True):
            assert not own.requires_grad
            torch.testing.assert_close(own, other.detach())


def test_no_atoms_have_no_potential():
    energy = model_of(sum_of_gaussians())
    out = potential_and_field(energy, *join([structures_of("mixed")[-1]]))
    assert out.potential.shape == (0, 2)
    assert out.field.shape == (0, 3, 2)


def test_what_cannot_be_summed_is_refused():
    inputs = join(structures_of("slab"))
    with pytest.raises(BoundaryError, match="sum of Gaussians"):
        potential_and_field(model_of(Ewald()), *inputs)
    three = model_of(sum_of_gaussians(num_channels=3))
    with pytest.raises(InputError, match="of 3 channels"):
        potential_and_field(three, *inputs)
    bad = inputs[0].clone()
    bad[0, 0] = torch.nan
    with pytest.raises(InputError, match="`charges` must be finite"):
        potential_and_field(model_of(sum_of_gaussians()), bad, *inputs[1:])
