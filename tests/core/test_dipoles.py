"""Energy of charges and dipoles: against plain sums, limits, invariances and derivatives."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import (
    DOUBLE,
    OPEN,
    SUMS,
    all_kernels,
    atoms_in,
    dipoles_of,
    random_structure,
    relative_error,
)

from sog_longrange import (
    BoundaryError,
    CoupledGaussians,
    Ewald,
    InputError,
    InputTypeError,
    LongRangeEnergy,
    LongRangeOutput,
    coulomb,
    potential_and_field,
)
from sog_longrange.testing import join, make_supercell
from sog_longrange.units import COULOMB_CONSTANT

BOUNDARIES = {
    "periodic": [True, True, True],
    "slab": [True, False, True],
    "one direction": [False, True, False],
    "non-periodic": [False, False, False],
}
few = settings(max_examples=10, deadline=None, derandomize=True)


def model_of(kernel, **options):
    """In pure torch, which takes no time to compile."""
    return LongRangeEnergy(kernel, **({"engine": "none"} | options))


def random_dipoles(structure, seed=0):
    return dipoles_of(structure.charges, seed)


def evaluate(energy, structure, dipoles):
    return energy(*join([structure]), dipoles=dipoles)


def value(energy, structure, dipoles):
    return float(evaluate(energy, structure, dipoles).energy.detach())


def structure_with(boundary, seed=3, n_atoms=4, n_channels=2, edge=5.0):
    structure = random_structure(seed, n_atoms, n_channels, edge=edge)
    return structure._replace(pbc=torch.tensor(BOUNDARIES[boundary]))


def radial_derivatives(kernel, channel, r):
    """K, dK/dr / r and (d2K/dr2 - dK/dr / r) / r^2 in closed form, by numpy."""
    if isinstance(kernel, Ewald):
        s, root = kernel.smearing, math.sqrt(2.0 / math.pi)
        gauss = root * math.exp(-(r**2) / (2 * s**2)) / s
        error = math.erf(r / (math.sqrt(2.0) * s))
        first = gauss / r - error / r**2
        second = -gauss / s**2 - 2 * gauss / r**2 + 2 * error / r**3
        terms = error / r, first / r, (second - first / r) / r**2
        return [COULOMB_CONSTANT * x for x in terms]
    kernel = kernel.snapshot()
    channel = min(channel, kernel.num_channels - 1)
    a, s = (x[channel].detach().numpy() for x in (kernel.amplitudes, kernel.widths))
    own = a * np.exp(-(r**2) / (2 * s**2))
    return own.sum(), -(own / s**2).sum(), (own / s**4).sum()


def loop_over_pairs(kernel, structure, dipoles):
    """Interaction of charges and dipoles of an open structure, pair after pair."""
    total = 0.0
    positions = structure.positions.numpy()
    for channel in range(structure.charges.shape[1]):
        q, mu = structure.charges[:, channel].numpy(), dipoles[:, :, channel].numpy()
        for i, j in itertools.combinations(range(len(q)), 2):
            v = positions[i] - positions[j]
            k, slope, curve = radial_derivatives(kernel, channel, np.linalg.norm(v))
            total += q[i] * q[j] * k
            total += slope * (q[j] * mu[i] @ v - q[i] * mu[j] @ v)
            total -= mu[i] @ (slope * np.eye(3) + curve * np.outer(v, v)) @ mu[j]
    return total


def loop_over_modes(kernel, structure, dipoles, cutoff):
    """1/(2V) sum over k of Khat(k) |S(k)|^2, mode after mode."""
    cell, positions = structure.cell.numpy(), structure.positions.numpy()
    q, mu = structure.charges.numpy(), dipoles.numpy()
    reciprocal = 2.0 * math.pi * np.linalg.inv(cell).T
    counts = [int(np.linalg.norm(a) * cutoff / (2.0 * math.pi)) + 1 for a in cell]
    total = 0.0
    for mode in itertools.product(*(range(-n, n + 1) for n in counts)):
        k = np.array(mode) @ reciprocal
        if k @ k > cutoff**2 or (not any(mode) and not kernel.zero_mode[0]):
            continue
        waves = np.exp(-1j * positions @ k)[:, None]
        factor = ((q - 1j * np.einsum("c,ncp->np", k, mu)) * waves).sum(0)
        law = kernel.fourier(torch.tensor(k @ k, dtype=DOUBLE)).detach().numpy()
        total += float((law * np.abs(factor) ** 2).sum())
    return total / (2.0 * abs(np.linalg.det(cell)))


def self_energy(kernel, structure, dipoles):
    """1/2 K(0) q^2 - 1/2 mu.(grad grad K(0)) mu of all atoms, by finite differences."""
    step = 1e-3
    origin, near = (kernel.radial(torch.tensor([r**2], dtype=DOUBLE)) for r in (0.0, step))
    curve = 2.0 * (near - origin) / step**2  # d2K/dr2 at 0, the same along each axis
    of_charges = (origin.T * structure.charges.square()).sum()
    return float(0.5 * (of_charges - (curve.T * dipoles.square().sum(1)).sum()).detach())


@pytest.mark.parametrize("name", all_kernels())
@pytest.mark.parametrize("remove_self", [True, False])
def test_non_periodic_structures_are_sums_over_pairs(name, remove_self):
    kernel = all_kernels()[name]
    structure = structure_with("non-periodic", n_atoms=5)
    dipoles = random_dipoles(structure)
    energy = model_of(kernel, remove_self=remove_self)
    expected = loop_over_pairs(kernel, structure, dipoles)
    tolerance = 1e-11
    if not remove_self:
        expected, tolerance = expected + self_energy(kernel, structure, dipoles), 1e-5
    assert value(energy, structure, dipoles) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("name", all_kernels())
@pytest.mark.parametrize("seed", [2, 3], ids=["triclinic", "left-handed"])
@pytest.mark.parametrize("remove_self", [True, False])
def test_periodic_structures_are_sums_over_modes(name, seed, remove_self):
    kernel = all_kernels()[name]
    structure = structure_with("periodic", seed, n_atoms=3)
    dipoles = random_dipoles(structure)
    energy = model_of(kernel, tolerance=1e-9, remove_self=remove_self)
    expected = loop_over_modes(kernel, structure, dipoles, cutoff=7.5)
    scale, tolerance = abs(expected), 1e-8
    if remove_self:
        expected, tolerance = expected - self_energy(kernel, structure, dipoles), 1e-5
    found = value(energy, structure, dipoles)
    assert found == pytest.approx(expected, abs=tolerance * scale)


def pairs_of_charges(structure, dipoles, distance):
    """The atoms, and beside each a pair of charges that tends to its dipole."""
    q, r = structure.charges, structure.positions
    n_atoms, n_channels = q.shape
    charges, positions = [q], [r]
    for atom, channel in itertools.product(range(n_atoms), range(n_channels)):
        mu = dipoles[atom, :, channel]
        large = float(mu.norm()) / distance
        own = torch.zeros(2, n_channels, dtype=DOUBLE)
        own[:, channel] = large * torch.tensor([1.0, -1.0], dtype=DOUBLE)
        half = mu / (2.0 * large)
        charges.append(own)
        positions.append(torch.stack([r[atom] + half, r[atom] - half]))
    return structure._replace(charges=torch.cat(charges), positions=torch.cat(positions))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("name", ["coulomb", "dispersion", "coupled"])
def test_a_dipole_is_the_limit_of_two_charges(boundary, name):
    structure = structure_with(boundary, n_atoms=3, n_channels=2)
    coupled = CoupledGaussians(coulomb(), num_channels=2, coupling=0.4).double()
    kernel = coupled if name == "coupled" else all_kernels()[name]
    dipoles = random_dipoles(structure)
    how = {"tolerance": 1e-11, "remove_self": False}
    split = model_of(kernel, **how, backend="dense")
    near, far = (
        float(split(*join([pairs_of_charges(structure, dipoles, d)])).energy.detach())
        for d in (0.02, 0.04)
    )
    expected = (4.0 * near - far) / 3.0  # without the term of second order in the distance
    energy = model_of(kernel, **how)
    assert value(energy, structure, dipoles) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_probes_are_in_the_limit_of_two_charges(boundary):
    structure = structure_with(boundary, n_atoms=3, n_channels=1)
    dipoles = random_dipoles(structure)
    structure.charges[0], dipoles[0] = 0.0, 0.0
    energy = model_of(all_kernels()["coulomb"], tolerance=1e-9)
    out = potential_and_field(energy, *join([structure]), dipoles=dipoles)
    others = structure._replace(charges=structure.charges[1:], positions=structure.positions[1:])
    split = pairs_of_charges(others, dipoles[1:], 1e-3)
    split = split._replace(
        charges=torch.cat([structure.charges[:1], split.charges]),
        positions=torch.cat([structure.positions[:1], split.positions]),
    )
    expected = potential_and_field(energy, *join([split]))
    assert relative_error(out.potential[0].detach(), expected.potential[0].detach()) < 1e-5
    assert relative_error(out.field[0].detach(), expected.field[0].detach()) < 1e-5


def test_large_non_periodic_structures_are_sums_over_pairs_too(monkeypatch):
    monkeypatch.setattr("sog_longrange.summation.dispatch.MOST_PAIRED", 19)
    monkeypatch.setattr("sog_longrange.summation.dispatch.pairs_are_faster", lambda size: False)
    structure = random_structure(6, 20, 1, edge=6.0, periodic=False)
    dipoles = random_dipoles(structure)
    kernel = all_kernels()["coulomb"]
    padded = evaluate(model_of(kernel, tolerance=1e-7), structure, dipoles)
    expected = loop_over_pairs(kernel, structure, dipoles)
    assert float(padded.energy.detach()) == pytest.approx(expected, rel=1e-5)


def sum_over_modes(kernel, structure, dipoles, cutoff):
    """Sum over modes by autograd, far beyond what the backends take."""
    charges, positions, cell, _ = structure
    reciprocal = 2.0 * math.pi * torch.linalg.inv(cell).T
    counts = [int(float(a.norm()) * cutoff / (2.0 * math.pi)) + 1 for a in cell]
    axes = [torch.arange(-n, n + 1, dtype=DOUBLE) for n in counts]
    k = torch.cartesian_prod(*axes) @ reciprocal
    k = k[(k.norm(dim=-1) < cutoff) & (k.norm(dim=-1) > 1e-9)]
    waves = torch.exp(-1j * (k @ positions.T))
    factor = waves @ charges.to(waves) - 1j * torch.einsum(
        "kn,kc,ncp->kp", waves, k.to(waves), dipoles.to(waves)
    )
    law = kernel.fourier(k.square().sum(-1)).T
    return (law * factor.abs().square()).sum() / (2.0 * cell.det().abs())


ACCURACY = [
    *(("mesh", "coulomb", tolerance, True) for tolerance in (1e-3, 1e-4, 1e-5, 1e-6)),
    *(("mesh", name, 1e-5, False) for name in ("coulomb", "dispersion", "yukawa", "ewald")),
    *((sums, "dispersion", 1e-4, True) for sums in ("dense", "numba", "finufft")),
]


@pytest.mark.parametrize(("sums", "name", "tolerance", "with_charges"), ACCURACY)
def test_every_backend_is_as_accurate_as_asked(sums, name, tolerance, with_charges):
    for library in {"numba", "finufft"} & {sums}:
        pytest.importorskip(library, reason=f"{library} is not installed.")
    kernel = all_kernels()[name]
    kernel.zero_mode = (False,)
    cell = torch.tensor([[6.0, 0.0, 0.0], [1.5, 6.5, 0.0], [-1.0, 0.5, 5.5]], dtype=DOUBLE)
    structure = atoms_in(cell, n_atoms=16, n_channels=1)
    structure = structure._replace(charges=structure.charges * with_charges)
    positions = structure.positions.requires_grad_()
    dipoles = random_dipoles(structure).requires_grad_()
    leaves = (positions, dipoles)
    exact = torch.autograd.grad(sum_over_modes(kernel, structure, dipoles, 9.0), leaves)
    energy = model_of(kernel, tolerance=tolerance, remove_self=False, **SUMS[sums])
    out = evaluate(energy, structure, dipoles)
    found = torch.autograd.grad(out.energy.sum(), leaves)
    for own, expected in zip(found, exact, strict=True):
        assert relative_error(own, expected) < 5.0 * tolerance
    assert relative_error(-out.field.detach(), exact[1]) < 5.0 * tolerance


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_energies_of_atoms_sum_and_derivatives_are_potential_and_field(boundary):
    structure = structure_with(boundary)
    charges, dipoles = structure.charges.requires_grad_(), random_dipoles(structure)
    dipoles.requires_grad_()
    energy = model_of(all_kernels()["coulomb"], tolerance=1e-6)
    out = evaluate(energy, structure, dipoles)
    torch.testing.assert_close(out.atomic_energies.sum(), out.energy[0], rtol=1e-10, atol=1e-10)
    by_charges, by_dipoles = torch.autograd.grad(out.energy.sum(), (charges, dipoles))
    torch.testing.assert_close(by_charges, out.potential, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(by_dipoles, -out.field, rtol=1e-9, atol=1e-9)
    assert out.dipoles is dipoles


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_dipoles_of_zero_change_nothing(boundary):
    structure = structure_with(boundary)
    energy = model_of(all_kernels()["coulomb"], tolerance=1e-7)
    without = energy(*join([structure]))
    out = evaluate(energy, structure, 0.0 * random_dipoles(structure))
    assert type(without) is LongRangeOutput
    torch.testing.assert_close(out.energy, without.energy, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.potential, without.potential, rtol=1e-6, atol=1e-6)


def test_batch_equals_single():
    structures = [structure_with(b, seed, 3 + seed) for seed, b in enumerate(BOUNDARIES)]
    structures.insert(2, random_structure(9, 0, 2))
    dipoles = [random_dipoles(s, seed) for seed, s in enumerate(structures)]
    energy = model_of(all_kernels()["coulomb"])
    together = energy(*join(structures), dipoles=torch.cat(dipoles))
    alone = [evaluate(energy, s, d) for s, d in zip(structures, dipoles, strict=True)]
    for found, expected in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-11, atol=1e-11)
    assert float(together.energy[2].detach()) == 0.0


@few
@given(
    seed=st.integers(0, 2**20),
    boundary=st.sampled_from(list(BOUNDARIES)),
    name=st.sampled_from(["coulomb", "dispersion", "yukawa"]),
)
def test_rotations_translations_and_images_change_nothing(seed, boundary, name):
    energy = model_of(all_kernels()[name], tolerance=1e-8)
    structure = structure_with(boundary, seed)
    dipoles = random_dipoles(structure, seed)
    here = value(energy, structure, dipoles)
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=DOUBLE))
    shift = torch.randn(3, generator=generator, dtype=DOUBLE)
    steps = torch.randint(-3, 4, (4, 3), generator=generator) * structure.pbc
    moved = structure.positions + shift + steps.to(DOUBLE) @ structure.cell
    there = structure._replace(positions=moved @ turn.T, cell=structure.cell @ turn.T)
    turned = torch.einsum("ab,nbp->nap", turn, dipoles)
    scale = max(1.0, abs(here), float(dipoles.square().sum()))
    assert abs(value(energy, there, turned) - here) < 1e-6 * scale
    # Dipoles that stay where they are while the atoms turn must be noticed.
    assert abs(value(energy, there, dipoles) - here) > 1e-6


def test_supercells_have_as_many_times_the_energy():
    energy = model_of(all_kernels()["yukawa"], tolerance=1e-9)
    structure = structure_with("periodic")
    dipoles = random_dipoles(structure)
    repeated = make_supercell(structure, (2, 1, 3))
    found = value(energy, repeated, dipoles.repeat(6, 1, 1))
    assert found == pytest.approx(6.0 * value(energy, structure, dipoles), rel=1e-8)


@pytest.mark.parametrize("name", ["coulomb", "dispersion", "yukawa"])
def test_a_large_box_gives_the_non_periodic_value(name):
    kernel = all_kernels(max_width=4.0)[name]
    structure = random_structure(4, 4, 2, edge=3.0, neutral=True)
    dipoles = random_dipoles(structure)
    energy = model_of(kernel, tolerance=1e-8)
    cell = 45.0 * torch.eye(3, dtype=DOUBLE)
    boxed = value(energy, structure._replace(cell=cell), dipoles)
    assert boxed == pytest.approx(value(energy, structure._replace(pbc=OPEN), dipoles), rel=1e-6)


def test_two_dipoles_in_a_row_attract():
    energy = model_of(Ewald(0.2))
    positions = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]], dtype=DOUBLE)
    dipoles = torch.zeros(2, 3, 1, dtype=DOUBLE)
    dipoles[:, 0] = 0.5
    found = energy(torch.zeros(2, 1, dtype=DOUBLE), positions, dipoles=dipoles).energy
    expected = -2.0 * COULOMB_CONSTANT * 0.25 / 64.0
    torch.testing.assert_close(float(found), expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_float32_follows_float64(boundary):
    structure = structure_with(boundary)
    dipoles = random_dipoles(structure)
    kernel = all_kernels()["coulomb"]
    exact = evaluate(model_of(kernel), structure, dipoles)
    rough = model_of(kernel.float())(
        *(
            x.float() if torch.is_tensor(x) and x.is_floating_point() else x
            for x in join([structure])
        ),
        dipoles=dipoles.float(),
    )
    assert rough.energy.dtype == torch.float32
    scale = float(exact.atomic_energies.detach().abs().sum())
    assert abs(float((rough.energy - exact.energy).detach())) < 1e-4 * scale
    assert relative_error(rough.field.detach().double(), exact.field.detach()) < 1e-4


def test_what_cannot_be_evaluated_is_refused():
    structure = structure_with("periodic")
    dipoles = random_dipoles(structure)
    kernel = all_kernels()["coulomb"]
    energy = model_of(kernel)
    with pytest.raises(InputError, match=r"`dipoles` must be .*n_atoms=4, 3, n_channels=2"):
        evaluate(energy, structure, dipoles[:, :2])
    with pytest.raises(InputTypeError, match="`dipoles`"):
        evaluate(energy, structure, dipoles.float())
    dipoles[0, 0, 0] = math.nan
    with pytest.raises(InputError, match="`dipoles` must be finite"):
        evaluate(energy, structure, dipoles)
    slab = structure_with("slab")
    with pytest.raises(BoundaryError, match="sum of Gaussians"):
        evaluate(model_of(Ewald()), slab, random_dipoles(slab))


@pytest.mark.parametrize("periodic", [True, False])
def test_evaluations_in_several_threads_do_not_disturb_each_other(periodic):
    energy = LongRangeEnergy(Ewald(1.0), tolerance=1e-3, engine="none")
    generator = torch.Generator().manual_seed(0)
    positions, charges, dipoles = (
        torch.randn(30, *shape, generator=generator, dtype=DOUBLE) for shape in ((3,), (1,), (3, 1))
    )
    cell, pbc = 9.0 * torch.eye(3, dtype=DOUBLE)[None], torch.full((1, 3), periodic)

    def evaluate(_):
        with torch.no_grad():
            return energy(charges, 2.0 * positions, cell, pbc, dipoles=dipoles).energy.item()

    expected = evaluate(0)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(evaluate, range(40)))
    assert found == pytest.approx([expected] * 40, rel=1e-12)


def test_a_potential_that_is_changed_afterwards_changes_no_gradient():
    energy = LongRangeEnergy(Ewald(1.0), tolerance=1e-3, backend="dense", remove_self=False)
    charges = torch.randn(5, 1, dtype=DOUBLE).requires_grad_()
    positions, cell = 3.0 * torch.randn(5, 3, dtype=DOUBLE), 9.0 * torch.eye(3, dtype=DOUBLE)[None]
    gradients = []
    for factor in (1.0, 3.0):
        out = energy(charges, positions, cell, torch.ones(1, 3, dtype=torch.bool))
        out.potential.detach().mul_(factor)
        gradients.append(torch.autograd.grad(out.energy.sum(), charges)[0])
    assert torch.equal(*gradients)
