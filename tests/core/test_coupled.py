"""Kernels between channels, against sums over pairs and modes without code of the package."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from references import (
    CELLS,
    DOUBLE,
    SUMS,
    atoms_in,
    energy_of,
    energy_value,
    evaluate,
    forces_of,
    perturbed,
    random_structure,
    relative_error,
    tensor,
)

from sog_longrange import (
    ConfigError,
    CoupledGaussians,
    FixedMeshEnergy,
    InputError,
    InputTypeError,
    LatentCharges,
    LongRangeEnergy,
    SOGConfig,
    SOGLongRange,
    SumOfGaussians,
    coulomb,
    kernel_matrix,
    potential_and_field,
    power_law,
    yukawa,
)
from sog_longrange.kernels.channels import channel_pairs
from sog_longrange.testing import assert_invariant, assert_twice_differentiable, join

PAIR = (coulomb(), power_law(6.0, -20.0))
OPTIONS = {"num_gaussians": 6, "max_width": 8.0}


def gaussians(n_channels, n_gaussians=3, seed=0):
    """Symmetric amplitudes of both signs and widths from 1 to 3 Å, nothing else in common."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n_channels, n_channels, n_gaussians)
    amplitudes = torch.randn(shape, generator=generator, dtype=DOUBLE)
    widths = 1.0 + 2.0 * torch.rand(shape, generator=generator, dtype=DOUBLE)
    symmetric = amplitudes + amplitudes.transpose(0, 1)
    return symmetric, torch.maximum(widths, widths.transpose(0, 1))


def kernels_at(r2, amplitudes, widths):
    """K_pq at squared distances of any shape; (n_channels, n_channels, *shape)."""
    shape = amplitudes.shape + (1,) * r2.ndim
    return (amplitudes.view(shape) * torch.exp(-0.5 * r2 / widths.view(shape) ** 2)).sum(2)


def pair_sum(charges, positions, amplitudes, widths):
    """Energy of an open structure, pair after pair of atoms."""
    energy = 0.0
    for i, j in itertools.combinations(range(len(charges)), 2):
        matrix = kernels_at((positions[i] - positions[j]).square().sum(), amplitudes, widths)
        energy = energy + charges[i] @ matrix @ charges[j]
    return energy


def mode_sum(charges, positions, cell, amplitudes, widths, keeps, cutoff=6.0):
    """Energy of a periodic structure: all modes of a large box, without the self-interaction."""
    n = max(math.ceil(cutoff * float(a.norm()) / (2.0 * math.pi)) for a in cell.detach())
    modes = torch.cartesian_prod(*[torch.arange(-n, n + 1, dtype=DOUBLE)] * 3)
    k = modes @ (2.0 * math.pi * torch.linalg.inv(cell).T)
    k = k[k.detach().norm(dim=1) < cutoff]
    angles = k @ positions.T
    real, imaginary = torch.cos(angles) @ charges, torch.sin(angles) @ charges
    weights = amplitudes * (2.0 * math.pi) ** 1.5 * widths**3
    table = kernels_at(k.square().sum(1), weights, 1.0 / widths)
    both = keeps[:, None] & keeps
    table = table * torch.where(k.detach().norm(dim=1) > 0.0, 1.0, both[..., None].double())
    pairs = torch.einsum("kp,kq->pqk", real, real) + torch.einsum(
        "kp,kq->pqk", imaginary, imaginary
    )
    own = torch.einsum("ip,iq,pq->", charges, charges, amplitudes.sum(2))
    return 0.5 * (table * pairs).sum() / cell.det().abs() - 0.5 * own


def needs(name):
    if name in ("finufft", "numba"):
        pytest.importorskip(name, reason=f"{name} is not installed.")


def test_pairs_of_species_have_kernels_of_their_own():
    # K_AA, K_AB and K_BB are quite different functions; charges have one channel each.
    functions = {
        (0, 0): lambda r: 2.0 * math.exp(-0.5 * r**2 / 1.5**2),
        (0, 1): lambda r: -3.0 * math.exp(-0.5 * r**2 / 2.2**2) + math.exp(-0.5 * r**2),
        (1, 1): lambda r: 0.7 * math.exp(-0.5 * r**2 / 4.0**2),
    }
    rows = {(0, 0): [[2.0, 1.5], [0.0, 1.0]], (0, 1): [[-3.0, 2.2], [1.0, 1.0]]}
    rows[1, 1] = [[0.7, 4.0], [0.0, 1.0]]
    values = tensor([[rows[min(p, q), max(p, q)] for q in (0, 1)] for p in (0, 1)])
    kernel = kernel_matrix(values[..., 0], values[..., 1], zero_mode=True)
    structure = random_structure(5, 7, periodic=False)
    species = [0, 1, 1, 0, 1, 0, 0]
    one_hot = torch.nn.functional.one_hot(torch.tensor(species), 2)
    own, positions = structure.charges[:, 0].tolist(), structure.positions
    expected = sum(
        own[i] * own[j] * functions[tuple(sorted((species[i], species[j])))](math.dist(a, b))
        for (i, a), (j, b) in itertools.combinations(enumerate(positions.tolist()), 2)
    )
    structure = structure._replace(charges=structure.charges * one_hot)
    assert energy_value(LongRangeEnergy(kernel), structure) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n_channels", [1, 2, 3, 4])
def test_open_structures_have_the_pair_sum_and_its_derivatives(n_channels):
    matrix = gaussians(n_channels)
    charges, positions, _, _ = random_structure(1, 6, n_channels, periodic=False)
    inputs = [x.clone().requires_grad_() for x in (charges, positions, *matrix)]
    found = LongRangeEnergy(kernel_matrix(*inputs[2:], zero_mode=True))(*inputs[:2])
    expected = pair_sum(*inputs)
    assert float(found.energy.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    gradients = torch.autograd.grad(found.energy.sum(), inputs)
    references = torch.autograd.grad(expected, inputs)
    torch.testing.assert_close(found.potential.detach(), references[0])
    for a, b in zip(gradients, references, strict=True):
        # Gradients of a matrix go to its upper triangle, of the sum to both.
        if a.ndim == 3:
            a, b = (x + x.transpose(0, 1) for x in (a, b))
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(found.atomic_energies.sum(), found.energy[0])


KEEPS = [(True, True), (False, False), (False, True)]


@pytest.mark.parametrize("keeps", KEEPS)
@pytest.mark.parametrize("cell", ["triclinic", "left-handed"])
@pytest.mark.parametrize("name", SUMS)
def test_periodic_structures_have_the_sum_over_modes(name, cell, keeps):
    needs(name)
    matrix, structure = gaussians(2), atoms_in(CELLS[cell], n_channels=2)
    model = LongRangeEnergy(kernel_matrix(*matrix, zero_mode=keeps), tolerance=1e-7, **SUMS[name])
    positions = structure.positions.clone().requires_grad_()
    charges = structure.charges.clone().requires_grad_()
    expected = mode_sum(charges, positions, structure.cell, *matrix, torch.tensor(keeps))
    potential, slope = torch.autograd.grad(expected, (charges, positions))
    assert energy_value(model, structure) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert relative_error(evaluate(model, structure).potential, potential) < 1e-6
    assert relative_error(forces_of(model, structure), -slope) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", SUMS)
def test_gradients_of_a_force_loss_are_those_of_the_sum_over_modes(name):
    needs(name)
    structure, keeps = atoms_in(CELLS["triclinic"], n_channels=3), torch.tensor([True, False, True])
    shape = structure.charges, structure.positions, structure.cell

    def gradients(energy):
        inputs = [x.clone().requires_grad_() for x in (*shape, *gaussians(3))]
        first = torch.autograd.grad(energy(*inputs), inputs[:3], create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in first), inputs)
        return [x if x.shape[:2] != (3, 3) or x.ndim < 3 else x + x.transpose(0, 1) for x in second]

    def model(charges, positions, cell, *matrix):
        kernel = kernel_matrix(*matrix, zero_mode=keeps.tolist())
        energy = LongRangeEnergy(kernel, tolerance=1e-8, **SUMS[name])
        return energy(charges, positions, cell[None], structure.pbc[None]).energy.sum()

    expected = gradients(lambda *inputs: mode_sum(*inputs, keeps, cutoff=7.0))
    for a, b in zip(gradients(model), expected, strict=True):
        assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize(
    "boundary", ["open", "periodic", pytest.param("slab", marks=pytest.mark.slow)]
)
def test_energy_is_twice_differentiable_in_everything(boundary):
    charges, positions, cell, pbc = random_structure(2, 3, 2, edge=5.0)
    pbc = pbc & torch.tensor({"open": [0], "periodic": [1], "slab": [1, 1, 0]}[boundary]).bool()
    upper = tuple(zip(*channel_pairs(2), strict=True))
    rows = [x[upper] for x in gaussians(2, 2)]

    def energy(charges, positions, cell, amplitudes, widths):
        place = torch.tensor([[0, 1], [1, 2]])
        kernel = kernel_matrix(
            amplitudes[place], widths[place], zero_mode=(False, True), min_width=0.9
        )
        return LongRangeEnergy(kernel, tolerance=1e-2)(
            charges, positions, cell[None], pbc[None]
        ).energy

    assert_twice_differentiable(energy, (charges, positions, cell, *rows))


def test_slabs_and_wires_have_the_sum_over_images():
    matrix = gaussians(2)
    kernel = kernel_matrix(*matrix, zero_mode=False)
    structure = random_structure(2, 4, 2, edge=6.0)
    for flags in ([True, False, True], [False, True, False]):
        ranges = [torch.arange(-6.0, 7.0, dtype=DOUBLE) if x else torch.zeros(1) for x in flags]
        shifts = torch.cartesian_prod(*(x.double() for x in ranges)) @ structure.cell
        delta = structure.positions[:, None, None] - structure.positions[:, None] - shifts
        values = kernels_at(delta.square().sum(-1), *matrix).sum(-1)
        own = torch.einsum("ip,iq,pq->", *[structure.charges] * 2, matrix[0].sum(2))
        sums = torch.einsum("ip,jq,pqij->", *[structure.charges] * 2, values)
        expected = float(0.5 * (sums - own))
        found = energy_value(
            LongRangeEnergy(kernel, tolerance=1e-8, engine="none"),
            structure._replace(pbc=torch.tensor(flags)),
        )
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("periodic", [True, False])
def test_mixing_charges_and_kernels_by_inverse_matrices_changes_nothing(periodic):
    generator = torch.Generator().manual_seed(3)
    mixing = torch.eye(3, dtype=DOUBLE) + 0.3 * torch.randn(3, 3, generator=generator).double()
    amplitudes, widths = gaussians(3)[0], torch.linspace(1.0, 3.0, 3).double().expand(3, 3, 3)
    structure = random_structure(4, 6, 3, periodic=periodic, edge=6.0)
    inverse = mixing.inverse()
    mixed = torch.einsum("pa,pql,qb->abl", inverse, amplitudes, inverse)
    mixed = 0.5 * (mixed + mixed.transpose(0, 1))
    energies = [
        energy_value(LongRangeEnergy(kernel_matrix(a, widths, zero_mode=True)), x)
        for a, x in (
            (amplitudes, structure),
            (mixed, structure._replace(charges=structure.charges @ mixing.T)),
        )
    ]
    assert energies[0] == pytest.approx(energies[1], rel=1e-9)


@pytest.mark.parametrize("periodic", [True, False])
def test_kernels_that_are_all_the_same_act_on_the_sum_of_the_channels(periodic):
    structure = random_structure(6, 5, 3, periodic=periodic, edge=6.0)
    coupled = CoupledGaussians(yukawa(0.2), num_channels=3, coupling=1.0, **OPTIONS).double()
    single = SumOfGaussians(yukawa(0.2), **OPTIONS).double()
    summed = structure._replace(charges=structure.charges.sum(1, keepdim=True))
    expected = energy_value(LongRangeEnergy(single), summed)
    assert energy_value(LongRangeEnergy(coupled), structure) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("initial", [PAIR, coulomb()])
@pytest.mark.parametrize("name", SUMS)
def test_channels_begin_uncoupled_and_can_be_coupled(name, initial):
    needs(name)
    structure, how = atoms_in(CELLS["triclinic"], n_channels=2), {"tolerance": 1e-6} | SUMS[name]
    coupled = CoupledGaussians(initial, num_channels=2, **OPTIONS).double()
    plain = SumOfGaussians(initial, num_channels=2, **OPTIONS).double()
    model = LongRangeEnergy(coupled, **how)
    expected = evaluate(LongRangeEnergy(plain, **how), structure)
    found = evaluate(model, structure)
    torch.testing.assert_close(found.energy, expected.energy, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.potential, expected.potential, rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(found.energy.sum(), coupled.couplings)
    assert float(gradient.abs().min()) > 0.0


def test_training_leaves_pins_signs_and_bounds_of_widths():
    kernel = CoupledGaussians(PAIR, **OPTIONS).double()
    r2 = tensor([kernel.normalisation_radius**2])
    before = kernel.radial(r2).detach()
    assert float(before[1]) == 0.0
    perturbed(kernel, 3.0)
    after = kernel.radial(r2).detach()
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=1e-6, atol=0.0)
    assert float(after[1]) != 0.0
    signs = kernel.amplitudes.detach().sign()
    assert signs[[0, 2]].unique(dim=1).tolist() == [[1.0], [-1.0]]
    assert set(signs[1].tolist()) == {1.0, -1.0}
    assert float(kernel.widths.detach().min()) >= kernel.min_width
    assert kernel.initial_error(3.0, 5.0, 1) > 0.0
    assert CoupledGaussians(PAIR, **OPTIONS).initial_error(3.0, 5.0) == pytest.approx(
        SumOfGaussians(PAIR, num_channels=2, **OPTIONS).initial_error(3.0, 5.0)
    )


def test_a_pair_of_channels_keeps_its_zero_mode_where_both_do():
    initials = (coulomb(), power_law(6.0), yukawa(0.1))
    kernel = CoupledGaussians(initials, num_channels=3, **OPTIONS)
    kept = [channel_pairs(3)[i] for i, keep in enumerate(kernel.zero_mode) if keep]
    assert kept == [(1, 1), (1, 2), (2, 2)]
    assert (
        CoupledGaussians(initials, num_channels=3, zero_mode=True, **OPTIONS).zero_mode
        == (True,) * 6
    )


def test_the_field_is_the_slope_of_the_potential_at_a_probe():
    kernel = perturbed(CoupledGaussians(PAIR, coupling=0.4, **OPTIONS).double(), 0.3)
    energy, step = (
        LongRangeEnergy(kernel.requires_grad_(False), tolerance=1e-9, engine="none"),
        1e-4,
    )
    parts = [random_structure(s, 5, 2, edge=6.0, periodic=s != 1) for s in range(3)]
    parts[2] = parts[2]._replace(pbc=torch.tensor([True, True, False]))
    for structure in parts:
        structure.charges[0] = 0.0
        out = potential_and_field(energy, *join([structure]))
        expected = evaluate(energy, structure).potential
        assert relative_error(out.potential, expected) < 1e-7
        for axis in range(3):
            ends = []
            for sign in (1.0, -1.0):
                moved = structure.positions.clone()
                moved[0, axis] += sign * step
                ends.append(evaluate(energy, structure._replace(positions=moved)).potential[0])
            slope = -(ends[0] - ends[1]) / (2.0 * step)
            torch.testing.assert_close(out.field[0, axis], slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("keeps", KEEPS)
def test_the_fixed_mesh_has_the_sum_over_modes(keeps):
    matrix, structure = gaussians(2), atoms_in(CELLS["triclinic"], n_channels=2)
    energy = LongRangeEnergy(kernel_matrix(*matrix, zero_mode=keeps), tolerance=1e-7, engine="none")
    inputs = structure.charges, structure.positions, structure.cell
    expected = mode_sum(*inputs, *matrix, torch.tensor(keeps))
    found = FixedMeshEnergy(energy, structure.cell)(*inputs)[0].sum()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("boundary", ["periodic", "open", "slab"])
def test_every_invariance_holds(boundary):
    structure = random_structure(2, 4, 2, edge=6.0, periodic=boundary != "open")
    if boundary == "slab":
        structure = structure._replace(pbc=torch.tensor([True, True, False]))
    kernel = perturbed(CoupledGaussians(PAIR, coupling=0.5, **OPTIONS).double(), 0.3)
    model = LongRangeEnergy(kernel, tolerance=1e-7, backend="dense")
    assert_invariant(energy_of(model), structure, tolerance=1e-8)


@pytest.mark.slow
def test_float32_follows_float64():
    structure = atoms_in(CELLS["triclinic"], n_channels=2)
    kernel = perturbed(CoupledGaussians(PAIR, coupling=0.5, **OPTIONS).double(), 0.3)
    model = LongRangeEnergy(kernel, backend="mesh")
    exact = forces_of(model, structure)
    single = structure._replace(
        charges=structure.charges.float(),
        positions=structure.positions.float(),
        cell=structure.cell.float(),
    )
    assert relative_error(forces_of(model.float(), single).double(), exact) < 1e-4


def test_learned_couplings_survive_copies_and_state():
    kernel, x = perturbed(CoupledGaussians(PAIR, **OPTIONS), 0.3), torch.tensor([0.3, 4.0])
    other = CoupledGaussians(PAIR, **OPTIONS)
    other.load_state_dict(kernel.state_dict())
    twin = pickle.loads(pickle.dumps(kernel))  # noqa: S301
    assert str(twin) == str(kernel)
    for copied in (twin, other, copy.deepcopy(kernel), kernel.snapshot()):
        assert torch.equal(copied.radial(x), kernel.radial(x))


CONFIG = SOGConfig(
    num_channels=2,
    couple_channels=True,
    tolerance=1e-4,
    charge_constraint="none",
)


@pytest.mark.slow
def test_a_model_learns_kernels_of_pairs_of_species():
    # Fixed charges of one species in each channel: like attract, unlike repel.
    class Species(LatentCharges):
        def forward(self, features, sites=None):
            return features

    true = perturbed(CoupledGaussians(coulomb(), coupling=-1.0, num_gaussians=6).double(), 0.3)
    target = LongRangeEnergy(true)
    model = SOGLongRange([2], CONFIG, Species([2], 2)).double()
    parts = [random_structure(seed, 6, 2, periodic=seed < 4, edge=6.0) for seed in range(8)]
    for part in parts:
        part.charges[:] = torch.eye(2, dtype=DOUBLE)[[0, 1] * 3]
    batch = join(parts)
    expected = target(*batch).energy.detach()
    optimizer = torch.optim.Adam(model.energy.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (model(*batch).energy - expected).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 1e-2 * losses[0]


def test_a_module_saves_its_couplings_and_asks_for_the_same_option():
    module = SOGLongRange([3], CONFIG)
    perturbed(module.energy.kernel, 0.3)
    twin = SOGLongRange([3], CONFIG)
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin.energy.kernel.couplings, module.energy.kernel.couplings)
    plain = SOGLongRange([3], SOGConfig(kernel="coulomb+coulomb", num_channels=2, tolerance=1e-4))
    with pytest.raises((ConfigError, RuntimeError), match="couplings|couple_channels"):
        plain.load_state_dict(module.state_dict())


ONE = torch.ones(2, 2, 1, dtype=DOUBLE)
SKEW = tensor([[1.0, 2.0], [3.0, 1.0]])[:, :, None]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"amplitudes": SKEW}, InputError, "`amplitudes` must be symmetric in the channels"),
        ({"widths": SKEW}, InputError, "`widths` must be symmetric in the channels"),
        ({"amplitudes": ONE[:1]}, InputError, "`amplitudes` must be of shape"),
        ({"amplitudes": ONE[..., 0]}, InputError, "`amplitudes` must be of shape"),
        ({"amplitudes": ONE[..., :0], "widths": ONE[..., :0]}, InputError, "none of them 0"),
        ({"widths": ONE.expand(2, 2, 3)}, InputError, "`widths` must be of shape"),
        ({"widths": ONE.float()}, InputTypeError, "`widths`"),
        ({"amplitudes": ONE.int()}, InputTypeError, "`amplitudes`"),
        ({"widths": 0.0 * ONE}, InputError, "`widths` must be positive, got 0"),
        ({"min_width": 1.5}, InputError, "`widths` must be at least min_width = 1.5, got 1"),
        ({"amplitudes": math.nan * ONE}, InputError, "`amplitudes` must be finite"),
        ({"zero_mode": [True]}, InputError, "`zero_mode` must be a bool or 2 of them"),
    ],
)
def test_matrices_that_are_none_are_refused(options, error, message):
    values = {"amplitudes": ONE, "widths": ONE, "zero_mode": True} | options
    with pytest.raises(error, match=message):
        kernel_matrix(values.pop("amplitudes"), values.pop("widths"), **values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_channels": 1}, "`num_channels` must be at least 2 where channels are coupled"),
        ({"coupling": math.inf}, "`coupling` must be finite, got inf"),
        ({"initial": (coulomb(),) * 3}, "`num_channels` must be 3, one for each initial"),
    ],
)
def test_kernels_that_cannot_couple_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        CoupledGaussians(**options)


def test_charges_of_other_channels_than_the_kernel_has_are_refused():
    kernel = CoupledGaussians(PAIR, **OPTIONS).double()
    structure = random_structure(0, 3, 3, periodic=False)
    with pytest.raises(InputError, match="`charges` must be of 2 channels"):
        energy_value(LongRangeEnergy(kernel), structure)
