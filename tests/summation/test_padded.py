"""Padded grids against sums in real space: non-periodic along one, two or three directions."""

import itertools
import math

import pytest
import torch
from references import (
    DOUBLE,
    OPEN,
    PERIODIC,
    dipoles_of,
    interaction_of,
    random_cell,
    random_structure,
    relative_error,
    sum_of_gaussians,
    tensor,
)
from torch.autograd import grad

from sog_longrange import Ewald, LongRangeEnergy, power_law, yukawa
from sog_longrange.errors import BoundaryError, InputTypeError, SizeError
from sog_longrange.summation import padded
from sog_longrange.summation.multipoles import Multipoles
from sog_longrange.summation.padded import padded_sum
from sog_longrange.summation.pairs import pairs_sum
from sog_longrange.summation.resolution import Resolution
from sog_longrange.testing import (
    Structure,
    assert_batch_consistent,
    assert_cell_basis_invariant,
    assert_extensive,
    assert_forces_match_finite_differences,
    assert_permutation_invariant,
    assert_rotation_invariant,
    assert_translation_invariant,
    join,
)
from sog_longrange.validation import Structures

SLACK = 5.0
"""Relative l2 error of forces over tolerance that is accepted."""

FLOAT32_FLOOR = 2e-5

SLAB = torch.tensor([True, True, False])
ALONG = torch.tensor([False, True, False])
PARTLY = [pbc for pbc in itertools.product([True, False], repeat=3) if not all(pbc)]
BOUNDARIES = {"slab": SLAB, "one direction": ALONG, "non-periodic": OPEN}

KERNELS = {
    "coulomb": {},
    "narrow": {"min_width": 0.6, "max_width": 50.0},
    "dispersion": {"start": power_law(6.0, -20.0)},
    "yukawa": {"start": yukawa(0.3)},
    "per_channel": {"num_channels": 2, "num_gaussians": 6},
}
SHAPES = {
    "compact": (9.0, 9.0, 9.0),
    "elongated": (50.0, 3.0, 2.0),
    "flat": (15.0, 15.0, 0.0),
    "tiny": (1.0, 1.0, 1.0),
}
SWEPT = [
    *((1e-6, "coulomb", shape) for shape in SHAPES),
    *((1e-3, name, "compact") for name in KERNELS),
    *((1e-5, name, "elongated") for name in ("narrow", "per_channel")),
    (1e-2, "dispersion", "flat"),
    (1e-8, "dispersion", "compact"),
]


def make_kernel(name="coulomb", **options):
    options = KERNELS[name] | options
    kernel = sum_of_gaussians(**options)
    with torch.no_grad():
        # Channels whose kernels differ.
        kernel.log_amplitudes += 0.3 * torch.arange(kernel.num_channels)[:, None]
        kernel.raw_widths += 0.2 * torch.arange(kernel.num_channels)[:, None]
    return kernel


def short_kernel(**options):
    """Kernel whose sums over images converge within 60 Å."""
    return make_kernel(max_width=6.0, num_gaussians=5, **options)


def energy_of(kernel, tolerance, engine="none"):
    """Energy as the function that `sog_longrange.testing` asks for."""
    return lambda *inputs: evaluate(kernel, tolerance, *inputs, engine=engine).energy


def evaluate(kernel, tolerance, charges, *geometry, dipoles=None, engine="none"):
    how = interaction_of(kernel, tolerance, engine)
    return padded_sum(how, Multipoles(charges, dipoles), Structures(*geometry))


def solve(kernel, structure, tolerance, **options):
    """Energy, forces and potential without self-interaction, in float64."""
    charges, positions, *rest = join([structure])
    positions = positions.clone().requires_grad_()
    energy, potential, _ = evaluate(kernel, tolerance, charges, positions, *rest, **options)
    own = kernel.radial(charges.new_zeros(1)).T * charges
    forces = -grad(energy.sum(), positions)[0]
    energy = energy.sum() - 0.5 * (charges * own).sum()
    return energy.detach().double(), forces.double(), (potential - own).detach().double()


def lattice_sum(kernel, structure, count=11):
    """Half the sum over all pairs of atoms and images along the periodic axes."""
    rows = structure.cell[structure.pbc]
    numbers = [torch.arange(-count, count + 1, dtype=DOUBLE)] * len(rows)
    grid = torch.cartesian_prod(*numbers).view(-1, len(rows)) if numbers else tensor([[]])
    delta = structure.positions[:, None, None] - structure.positions[:, None] - grid @ rows
    law = kernel.radial(delta.square().sum(-1)).sum(-1).expand(structure.charges.shape[1], -1, -1)
    return 0.5 * torch.einsum("ip,jp,pij->", structure.charges, structure.charges, law)


def partly_periodic(pbc, seed=0, n_atoms=6, n_channels=1, **options):
    structure = random_structure(seed, n_atoms, n_channels, edge=6.0, **options)
    return structure._replace(pbc=torch.as_tensor(pbc))


def open_structure(shape, seed=0, n_atoms=40, n_channels=2, neutral=True):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(n_atoms, 3, generator=generator, dtype=DOUBLE) * tensor(SHAPES[shape])
    charges = torch.randn(n_atoms, n_channels, generator=generator, dtype=DOUBLE)
    charges = charges - charges.mean(0) if neutral else charges.abs()
    nowhere = torch.full((3, 3), math.nan, dtype=DOUBLE)
    return Structure(charges, positions, nowhere, OPEN)


def exact(kernel, structure):
    """Energy, forces and potential of an open structure by the pair sum."""
    positions = structure.positions.clone().requires_grad_()
    charges, _, *rest = join([structure])
    how = interaction_of(kernel, 1e-5)
    energy, potential, _ = pairs_sum(how, Multipoles(charges), Structures(positions, *rest))
    return energy.sum().detach(), -grad(energy.sum(), positions)[0], potential.detach()


def converted(structure, dtype):
    charges, positions, cell, pbc = structure
    return Structure(charges.to(dtype), positions.to(dtype), cell.to(dtype), pbc)


@pytest.mark.parametrize(("tolerance", "name", "shape"), SWEPT)
def test_non_periodic_structures_agree_with_the_pair_sum(tolerance, name, shape):
    kernel = make_kernel(name)
    # Coherent errors of charges in one plane, all at one place between nodes.
    slack = 2.0 * SLACK if shape == "flat" else SLACK
    for neutral in (True, False):
        structure = open_structure(shape, neutral=neutral)
        energy, forces, potential = exact(kernel, structure)
        found = solve(kernel, structure, tolerance)
        assert relative_error(found[1], forces) < slack * tolerance
        assert relative_error(found[2], potential) < SLACK * tolerance
        scale = 0.5 * float((structure.charges * potential).norm()) * len(potential) ** 0.5
        assert abs(float(found[0] - energy)) < SLACK * tolerance * scale


@pytest.mark.parametrize(
    ("name", "shape", "tolerance"),
    [("coulomb", "compact", 1e-5), ("narrow", "elongated", 1e-3), ("dispersion", "flat", 1e-5)],
)
def test_non_periodic_structures_in_float32(name, shape, tolerance):
    structure = open_structure(shape)
    _, forces, potential = exact(make_kernel(name), structure)
    # Far from the origin, as far as the rounding of the coordinates themselves allows.
    shifted = structure._replace(positions=structure.positions + tensor([64.0, -32.0, 128.0]))
    found = solve(make_kernel(name).float(), converted(shifted, torch.float32), tolerance)
    assert relative_error(found[1], forces) < SLACK * tolerance + FLOAT32_FLOOR
    assert relative_error(found[2], potential) < SLACK * tolerance + FLOAT32_FLOOR


@pytest.mark.parametrize(("tolerance", "shape"), [(1e-3, "compact"), (1e-6, "elongated")])
def test_forces_turn_with_non_periodic_structures(tolerance, shape):
    kernel, structure = make_kernel(), open_structure(shape)
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=DOUBLE))
    turned = structure._replace(positions=structure.positions @ turn.T)
    first, second = (solve(kernel, s, tolerance) for s in (structure, turned))
    assert relative_error(second[1] @ turn, first[1]) < SLACK * tolerance
    assert relative_error(second[2], first[2]) < SLACK * tolerance


def test_boxes_lie_along_tilted_structures(monkeypatch):
    tolerance = 1e-6
    kernel, structure = make_kernel(), open_structure("elongated")
    turn, _ = torch.linalg.qr(tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, -1.0, -1.0]]))
    tilted = structure._replace(positions=structure.positions @ turn.T)
    sizes = []
    choose = padded.choose_grids
    monkeypatch.setattr(
        padded, "choose_grids", lambda *a: sizes.append(choose(*a).starts[-1]) or choose(*a)
    )
    _, forces, potential = exact(kernel, tilted)
    for one in (structure, tilted):
        found = solve(kernel, one, tolerance)
    assert relative_error(found[1], forces) < SLACK * tolerance
    assert relative_error(found[2], potential) < SLACK * tolerance
    assert sizes[1] < 2.5 * sizes[0]
    assert_forces_match_finite_differences(energy_of(kernel, 1e-7), tilted)


@pytest.mark.parametrize(("seed", "pbc"), list(enumerate(PARTLY)))
def test_slabs_and_structures_along_one_direction_agree_with_the_sum_over_images(pbc, seed):
    kernel = short_kernel(num_channels=2)
    structure = partly_periodic(pbc, seed, n_channels=2)
    leaves = [x.clone().requires_grad_() for x in structure[:3]]
    expected = lattice_sum(kernel, Structure(*leaves, structure.pbc))
    references = grad(expected, leaves, materialize_grads=True)
    for tolerance in (1e-3, 1e-5, 1e-8):
        inputs = join([Structure(*leaves, structure.pbc)])
        energy, potential, _ = evaluate(kernel, tolerance, *inputs)
        charges, forces, cell = grad(energy.sum(), leaves, materialize_grads=True)
        assert relative_error(energy.detach(), expected.detach()) < SLACK * tolerance
        assert relative_error(forces, references[1]) < SLACK * tolerance
        assert relative_error(charges, references[0]) < SLACK * tolerance
        torch.testing.assert_close(potential, charges, rtol=1e-13, atol=1e-13)
        assert float((cell - references[2]).norm()) <= 10 * tolerance * references[2].norm()
        assert not cell[~structure.pbc].any()


@pytest.mark.parametrize("pbc", [SLAB, ALONG], ids=["slab", "one direction"])
def test_periodic_boxes_with_vacuum_tend_to_those_without_images(pbc):
    tolerance, kernel = 1e-7, make_kernel(max_width=12.0, num_gaussians=8)
    half = partly_periodic(pbc, 2)
    # Mirrored through the origin: neutral, and without a dipole.
    charges = torch.cat([half.charges, half.charges])
    charges = charges - charges.mean()
    structure = Structure(charges, torch.cat([half.positions, -half.positions]), half.cell, pbc)
    forces = solve(kernel, structure, tolerance)[1]
    boxed = LongRangeEnergy(kernel, tolerance=tolerance, backend="dense")
    errors = []
    for edge in (25.0, 50.0, 100.0):
        cell = edge * torch.eye(3, dtype=DOUBLE)
        rows = half.cell[pbc]
        if len(rows) == 1:
            cell[0], cell[2] = (edge * x for x in torch.linalg.svd(rows)[2][1:])
        else:
            cell[2] = edge * torch.linalg.svd(rows)[2][2]
        cell[pbc] = rows
        positions = structure.positions.clone().requires_grad_()
        box = Structure(charges, positions, cell, PERIODIC)
        errors.append(relative_error(-grad(boxed(*join([box])).energy.sum(), positions)[0], forces))
    assert errors[0] > 1e-4
    assert errors[1] < 0.1 * errors[0]
    assert errors[2] < SLACK * tolerance


@pytest.mark.parametrize(
    ("boundary", "engine", "tolerance"),
    [("slab", "none", 1e-8), ("one direction", "numba", 1e-3), ("non-periodic", "none", 1e-6)],
)
def test_forces_and_stress_are_those_of_the_computed_energy(boundary, engine, tolerance):
    structure = partly_periodic(BOUNDARIES[boundary], 3, n_channels=2)
    energy = energy_of(short_kernel(num_channels=2), tolerance, engine)
    assert_forces_match_finite_differences(energy, structure)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_dipoles_are_charges_close_to_each_other(boundary):
    kernel = make_kernel(max_width=6.0, num_gaussians=5)
    structure = partly_periodic(BOUNDARIES[boundary], 3, n_atoms=3)
    charges, positions, *rest = join([structure])
    dipoles = dipoles_of(charges)
    found = evaluate(kernel, 1e-9, charges, positions, *rest, dipoles=dipoles)
    half = 5e-3
    large = dipoles.norm(dim=1) / (2.0 * half)
    step = half * dipoles[..., 0] / dipoles[..., 0].norm(dim=1, keepdim=True)
    split = Structure(
        torch.cat([charges, large, -large]),
        torch.cat([positions, positions + step, positions - step]),
        structure.cell,
        structure.pbc,
    )
    expected = evaluate(kernel, 1e-9, *join([split]))
    assert relative_error(found.energy, expected.energy) < 1e-4
    assert relative_error(found.potential, expected.potential[:3]) < 1e-4
    # The field along a dipole is the difference of the potentials at its two charges.
    along = (expected.potential[6:] - expected.potential[3:6]) / (2.0 * half)
    unit = step / half
    assert relative_error((found.field[..., 0] * unit).sum(1), along[:, 0]) < 1e-3


def test_batches_hold_any_boundaries_and_empty_structures():
    structures = [
        partly_periodic(pbc, seed, n_atoms, 2)
        for seed, (pbc, n_atoms) in enumerate(zip(PARTLY, (5, 1, 7, 0, 4, 3, 0), strict=True))
    ]
    energy = energy_of(make_kernel("per_channel"), 1e-5)
    assert_batch_consistent(energy, structures)
    assert_batch_consistent(energy, [s for s in structures if len(s.positions) == 0])


def test_empty_structures_have_no_energy():
    inputs = join([partly_periodic(SLAB, n_atoms=0)])
    out = evaluate(make_kernel(), 1e-5, *inputs)
    assert out.energy.tolist() == [0.0]
    assert out.potential.shape == (0, 1)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_invariances(boundary):
    tolerance, kernel = 1e-8, make_kernel()
    structure = partly_periodic(BOUNDARIES[boundary], 5)
    energy = energy_of(kernel, tolerance)
    assert_permutation_invariant(energy, structure)
    assert_rotation_invariant(energy, structure, tolerance=100 * tolerance)
    assert_translation_invariant(energy, structure, tolerance=100 * tolerance)
    images = tensor([[1, -2, 3], [0, 1, 0], [5, 0, -1], [0, 0, 0], [1, 1, 1], [0, -1, 2]])
    shift = (images * structure.pbc) @ structure.cell
    moved = structure._replace(positions=structure.positions + shift)
    first, second = (energy(*join([s])) for s in (structure, moved))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_slabs_do_not_depend_on_the_choice_of_cell():
    tolerance, structure = 1e-8, partly_periodic(SLAB, 6)
    energy = energy_of(make_kernel(), tolerance)
    swapped, sheared = [[0, 1, 0], [1, 0, 0], [0, 0, 1]], [[1, 0, 0], [-9, 1, 0], [0, 0, 1]]
    bases = [swapped, [[1, 1, 0], [0, 1, 0], [0, 0, 1]], sheared]
    assert_cell_basis_invariant(energy, structure, bases=bases, tolerance=100 * tolerance)
    assert_extensive(energy, structure, repeats=(2, 3, 1), tolerance=100 * tolerance)
    with torch.no_grad():
        expected = energy(*join([structure]))
        structure.cell[2] = math.nan
        assert float(energy(*join([structure])) - expected) == 0.0


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_longer_box_changes_nothing_beyond_the_tolerance(boundary, monkeypatch):
    tolerance = 1e-6
    structure = partly_periodic(BOUNDARIES[boundary], 7, n_atoms=20)
    expected = solve(make_kernel(), structure, tolerance)
    padding = Resolution.padding.fget
    monkeypatch.setattr(Resolution, "padding", property(lambda self: padding(self) + 4.3))
    found = solve(make_kernel(), structure, tolerance)
    assert 0.0 < relative_error(found[1], expected[1]) < SLACK * tolerance
    assert relative_error(found[2], expected[2]) < SLACK * tolerance


@pytest.mark.parametrize("missing", ["padding", "edge"])
def test_without_padding_these_tests_would_fail(missing, monkeypatch):
    kernel, structure = make_kernel(), open_structure("compact")
    _, forces, _ = exact(kernel, structure)
    if missing == "padding":
        monkeypatch.setattr(Resolution, "padding", 0.0)
    else:
        monkeypatch.setattr(Resolution, "padding", property(lambda s: 0.5 * s.taper_start))
    assert relative_error(solve(kernel, structure, 1e-6)[1], forces) > SLACK * 1e-6


def test_boxes_rarely_change_with_the_extent():
    resolution = Resolution.of(1.0, 1e-5)
    edges = [padded._round_up(40.0 + 0.01 * i, resolution) for i in range(1000)]
    assert all(edge >= 40.0 + 0.01 * i for i, edge in enumerate(edges))
    assert len(set(edges)) < 10


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_k_zero_is_kept_whatever_the_kernel_does_with_it(boundary):
    structure = partly_periodic(BOUNDARIES[boundary], 8)
    with_zero, without = (
        solve(short_kernel(zero_mode=zero_mode), structure, 1e-5) for zero_mode in (True, False)
    )
    for first, second in zip(with_zero, without, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_net_charges_in_float32(boundary):
    kernel, structure = make_kernel(), partly_periodic(BOUNDARIES[boundary], 9, n_atoms=30)
    structure = structure._replace(charges=structure.charges.abs())
    expected = solve(kernel, structure, 1e-8)
    found = solve(kernel.float(), converted(structure, torch.float32), 1e-5)
    assert relative_error(found[1], expected[1]) < 5e-5
    assert relative_error(found[2], expected[2]) < 5e-6


def test_engines_agree():
    structure = partly_periodic(SLAB, 10, n_channels=2)
    first, second = (
        solve(make_kernel(), structure, 1e-5, engine=name) for name in ("none", "numba")
    )
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_training_after_inference():
    charges, positions, *rest = join([partly_periodic(SLAB, 11)])
    kernel = make_kernel()
    with torch.inference_mode():
        expected = evaluate(kernel, 1e-3, charges, positions, *rest).energy.clone()
    energy = evaluate(kernel, 1e-3, charges, positions, *rest).energy
    torch.testing.assert_close(energy.detach(), expected.clone())
    assert all(bool(g.abs().sum() > 0.0) for g in grad(energy.sum(), list(kernel.parameters())))


def test_kernels_without_gaussians_are_refused():
    with pytest.raises(BoundaryError, match="sum of Gaussians"):
        solve(Ewald(1.0), partly_periodic(SLAB), 1e-5)


def test_structures_that_are_periodic_are_refused():
    with pytest.raises(BoundaryError, match="false for at least one axis"):
        solve(make_kernel(), partly_periodic(PERIODIC), 1e-5)


def test_kernels_of_another_dtype_are_refused():
    with pytest.raises(InputTypeError, match="kernel"):
        solve(make_kernel().float(), partly_periodic(SLAB), 1e-5)


@pytest.mark.parametrize("extent", [1e5, 1e30])
def test_grids_that_fit_nowhere_are_refused(extent):
    structure = open_structure("compact", n_atoms=10)
    structure.positions[0] = extent
    with pytest.raises(SizeError, match="modes"):
        solve(make_kernel(), structure, 1e-5)


def test_axes_of_non_periodic_structures_rarely_turn():
    resolution = Resolution.of(1.0, 1e-5)
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, -1.0, -1.0]]))
    positions = open_structure("elongated").positions @ turn.T
    frames = []
    for _ in range(100):
        positions += 0.01 * torch.randn(positions.shape, generator=generator, dtype=DOUBLE)
        frames.append(torch.from_numpy(padded._open_frame(positions.numpy(), resolution)))
    changes = sum(not torch.equal(a, b) for a, b in itertools.pairwise(frames))
    assert changes < 20
    torch.testing.assert_close(frames[-1] @ frames[-1].T, torch.eye(3, dtype=DOUBLE))


@pytest.mark.parametrize("n_atoms", [1, 2, 5])
def test_coincident_atoms_are_a_structure_too(n_atoms):
    structure = open_structure("tiny", n_atoms=n_atoms, neutral=False)
    structure.positions[:] = structure.positions[0]
    kernel = make_kernel()
    energy, forces, potential = exact(kernel, structure)
    found = solve(kernel, structure, 1e-6)
    scale = float(kernel.radial(tensor([0.0])).detach()) * float(structure.charges.square().sum())
    assert abs(float(found[0] - energy)) < 1e-6 * scale
    torch.testing.assert_close(found[1], forces, rtol=0.0, atol=1e-5 * scale)
    torch.testing.assert_close(found[2], potential, rtol=0.0, atol=1e-5 * scale)


@pytest.mark.parametrize("seed", range(4))
def test_structures_periodic_along_any_direction_have_a_frame(seed):
    row = random_cell(seed)[0] if seed else tensor([0.0, 0.0, -3.0])
    frame = torch.from_numpy(padded._partly_periodic_frame(row[None].numpy()))
    assert torch.equal(frame[0], row)
    gram = frame @ frame.T
    expected = torch.eye(3, dtype=DOUBLE)
    expected[0, 0] = row.square().sum()
    torch.testing.assert_close(gram, expected)
