"""Padded meshes against sums in real space: open structures, wires and slabs."""

import itertools
import math

import pytest
import torch
from references import (
    DOUBLE,
    OPEN,
    PERIODIC,
    random_cell,
    random_structure,
    relative_error,
    sum_of_gaussians,
    tensor,
)
from torch.autograd import grad

from sog_longrange import Ewald, LongRangeEnergy, power_law, yukawa
from sog_longrange.errors import BoundaryError, InputTypeError, SizeError
from sog_longrange.kernels.gaussians import gaussian_radial
from sog_longrange.summation import padded
from sog_longrange.summation.engines.select import find_engine
from sog_longrange.summation.padded import Resolution, padded_energy
from sog_longrange.summation.pairs import pairs_energy
from sog_longrange.testing import (
    Structure,
    assert_batch_consistent,
    assert_cell_basis_invariant,
    assert_extensive,
    assert_forces_match_finite_differences,
    assert_permutation_invariant,
    assert_rotation_invariant,
    assert_translation_invariant,
    assert_twice_differentiable,
    join,
)

SLACK = 5.0
"""Relative l2 error of forces over tolerance that is accepted."""

FLOAT32_FLOOR = 2e-5
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8)

SLAB = torch.tensor([True, True, False])
WIRE = torch.tensor([False, True, False])
PARTLY = [pbc for pbc in itertools.product([True, False], repeat=3) if not all(pbc)]
BOUNDARIES = {"slab": SLAB, "wire": WIRE, "open": OPEN}

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
    *itertools.product(TOLERANCES, ["coulomb", "dispersion"], SHAPES),
    *itertools.product([1e-3, 1e-6], ["narrow", "yukawa", "per_channel"], SHAPES),
]


class GivenKernel:
    """Sum of Gaussians whose amplitudes and widths are inputs."""

    min_width = 1.0
    zero_mode = False

    def __init__(self, amplitudes, widths):
        self.amplitudes, self.widths = amplitudes, widths
        self.num_channels = len(amplitudes)

    def radial(self, r2):
        return gaussian_radial(r2, self.amplitudes, self.widths)


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
    return lambda *inputs: evaluate(kernel, tolerance, *inputs, engine=engine)[0]


def evaluate(kernel, tolerance, charges, positions, cell, pbc, batch, *_, engine="none"):
    code = find_engine(engine, positions.device)
    return padded_energy(kernel, charges, positions, cell, pbc, batch, tolerance, code)


def solve(kernel, structure, tolerance, **options):
    """Energy, forces and potential without self-interaction, in float64."""
    charges, positions, *rest = join([structure])
    positions = positions.clone().requires_grad_()
    energy, potential = evaluate(kernel, tolerance, charges, positions, *rest, **options)
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
    batch = torch.zeros(len(positions), dtype=torch.int64)
    energy, potential = pairs_energy(kernel, structure.charges, positions, batch, 1)
    return energy.sum().detach(), -grad(energy.sum(), positions)[0], potential.detach()


def converted(structure, dtype):
    charges, positions, cell, pbc = structure
    return Structure(charges.to(dtype), positions.to(dtype), cell.to(dtype), pbc)


@pytest.mark.parametrize(("tolerance", "name", "shape"), SWEPT)
def test_open_structures_agree_with_the_pair_sum(tolerance, name, shape):
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


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("shape", ["compact", "elongated"])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_open_structures_in_float32(name, shape, tolerance):
    structure = open_structure(shape)
    _, forces, potential = exact(make_kernel(name), structure)
    # Far from the origin, as far as the rounding of the coordinates themselves allows.
    shifted = structure._replace(positions=structure.positions + tensor([64.0, -32.0, 128.0]))
    found = solve(make_kernel(name).float(), converted(shifted, torch.float32), tolerance)
    assert relative_error(found[1], forces) < SLACK * tolerance + FLOAT32_FLOOR
    assert relative_error(found[2], potential) < SLACK * tolerance + FLOAT32_FLOOR


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
@pytest.mark.parametrize("shape", ["compact", "elongated"])
def test_forces_turn_with_open_structures(tolerance, shape):
    kernel, structure = make_kernel(), open_structure(shape)
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=DOUBLE))
    turned = structure._replace(positions=structure.positions @ turn.T)
    first, second = (solve(kernel, s, tolerance) for s in (structure, turned))
    assert relative_error(second[1] @ turn, first[1]) < SLACK * tolerance
    assert relative_error(second[2], first[2]) < SLACK * tolerance


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_boxes_lie_along_tilted_structures(tolerance, monkeypatch):
    kernel, structure = make_kernel(), open_structure("elongated")
    turn, _ = torch.linalg.qr(tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, -1.0, -1.0]]))
    tilted = structure._replace(positions=structure.positions @ turn.T)
    nodes = []
    choose = padded.choose_meshes
    monkeypatch.setattr(
        padded, "choose_meshes", lambda *a: nodes.append(choose(*a).starts[-1]) or choose(*a)
    )
    _, forces, potential = exact(kernel, tilted)
    for one in (structure, tilted):
        found = solve(kernel, one, tolerance)
    assert relative_error(found[1], forces) < SLACK * tolerance
    assert relative_error(found[2], potential) < SLACK * tolerance
    assert nodes[1] < 2.5 * nodes[0]
    assert_forces_match_finite_differences(energy_of(kernel, 1e-7), tilted)


@pytest.mark.parametrize("pbc", PARTLY)
@pytest.mark.parametrize("seed", [0, 1], ids=["right_handed", "left_handed"])
def test_slabs_and_wires_agree_with_the_sum_over_images(pbc, seed):
    kernel = short_kernel(num_channels=2)
    structure = partly_periodic(pbc, seed, n_channels=2)
    leaves = [x.clone().requires_grad_() for x in structure[:3]]
    expected = lattice_sum(kernel, Structure(*leaves, structure.pbc))
    references = grad(expected, leaves, materialize_grads=True)
    for tolerance in (1e-3, 1e-5, 1e-8):
        energy, potential = evaluate(kernel, tolerance, *join([Structure(*leaves, structure.pbc)]))
        charges, forces, cell = grad(energy.sum(), leaves, materialize_grads=True)
        assert relative_error(energy.detach(), expected.detach()) < SLACK * tolerance
        assert relative_error(forces, references[1]) < SLACK * tolerance
        assert relative_error(charges, references[0]) < SLACK * tolerance
        torch.testing.assert_close(potential, charges, rtol=1e-13, atol=1e-13)
        assert float((cell - references[2]).norm()) <= 10 * tolerance * references[2].norm()
        assert not cell[~structure.pbc].any()


@pytest.mark.parametrize("pbc", [SLAB, WIRE], ids=["slab", "wire"])
def test_periodic_boxes_with_vacuum_tend_to_slabs_and_wires(pbc):
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


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("engine", ["none", "numba"])
@pytest.mark.parametrize("tolerance", [1e-6, 1e-8])
def test_forces_and_stress_are_those_of_the_computed_energy(boundary, engine, tolerance):
    structure = partly_periodic(BOUNDARIES[boundary], 3, n_channels=2)
    energy = energy_of(short_kernel(num_channels=2), tolerance, engine)
    assert_forces_match_finite_differences(energy, structure)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("own_channels", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_energy_is_twice_differentiable_in_every_input(boundary, own_channels):
    generator = torch.Generator().manual_seed(own_channels)
    charges = torch.randn(2, 2, generator=generator, dtype=DOUBLE)
    positions = torch.randn(2, 3, generator=generator, dtype=DOUBLE)
    cell = random_cell(own_channels, edge=3.0)[None]
    rest = BOUNDARIES[boundary][None], torch.zeros(2, dtype=torch.int64)
    amplitudes = tensor([[3.0, 1.5], [-2.0, 0.5]])[:own_channels]
    widths = tensor([[1.1, 2.0], [1.3, 1.6]])[:own_channels]

    def energy(q, r, a, s, c=cell):
        return evaluate(GivenKernel(a, s), 0.05, q, r, c, *rest)[0]

    inputs = [charges, positions, amplitudes, widths]
    assert_twice_differentiable(energy, inputs if boundary == "open" else [*inputs, cell])


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_potential_is_differentiable(boundary):
    structure = partly_periodic(BOUNDARIES[boundary], 4, 3, 2)
    leaves = [x.clone().requires_grad_() for x in structure[:3]]
    leaves = leaves[:2] if boundary == "open" else leaves

    def potential(q, r, c=structure.cell):
        inputs = join([Structure(q, r, c, structure.pbc)])
        return evaluate(short_kernel(), 1e-2, *inputs)[1]

    assert torch.autograd.gradcheck(potential, leaves)


def test_batches_hold_any_boundaries_and_empty_structures():
    structures = [
        partly_periodic(pbc, seed, n_atoms, 2)
        for seed, (pbc, n_atoms) in enumerate(zip(PARTLY, (5, 1, 7, 0, 4, 3, 0), strict=True))
    ]
    energy = energy_of(make_kernel("per_channel"), 1e-5)
    assert_batch_consistent(energy, structures)
    assert_batch_consistent(energy, [s for s in structures if len(s.positions) == 0])


def test_empty_structures_have_no_energy():
    charges, positions, cell, pbc, batch, _ = join([partly_periodic(SLAB, n_atoms=0)])
    energy, potential = evaluate(make_kernel(), 1e-5, charges, positions, cell, pbc, batch)
    assert energy.tolist() == [0.0]
    assert potential.shape == (0, 1)


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
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_a_longer_box_changes_nothing_beyond_the_tolerance(boundary, tolerance, monkeypatch):
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
        monkeypatch.setattr(Resolution, "padding", property(lambda s: 0.5 * s.onset))
    assert relative_error(solve(kernel, structure, 1e-6)[1], forces) > SLACK * 1e-6


def test_boxes_rarely_change_with_the_extent():
    resolution = Resolution(1.0, 4.8, 9)
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
        expected = evaluate(kernel, 1e-3, charges, positions, *rest)[0].clone()
    energy = evaluate(kernel, 1e-3, charges, positions, *rest)[0]
    torch.testing.assert_close(energy.detach(), expected.clone())
    assert all(bool(g.abs().sum() > 0.0) for g in grad(energy.sum(), list(kernel.parameters())))


def test_kernels_without_gaussians_are_refused():
    with pytest.raises(BoundaryError, match="sum of Gaussians"):
        solve(Ewald(1.0), partly_periodic(SLAB), 1e-5)


def test_structures_without_free_axes_are_refused():
    with pytest.raises(BoundaryError, match="false for at least one axis"):
        solve(make_kernel(), partly_periodic(PERIODIC), 1e-5)


def test_kernels_of_another_dtype_are_refused():
    with pytest.raises(InputTypeError, match="kernel"):
        solve(make_kernel().float(), partly_periodic(SLAB), 1e-5)


@pytest.mark.parametrize("extent", [1e5, 1e30])
def test_meshes_that_fit_nowhere_are_refused(extent):
    structure = open_structure("compact", n_atoms=10)
    structure.positions[0] = extent
    with pytest.raises(SizeError, match="modes"):
        solve(make_kernel(), structure, 1e-5)


def test_axes_of_open_structures_rarely_turn():
    resolution = Resolution(1.0, 4.8, 9)
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, -1.0, -1.0]]))
    positions = open_structure("elongated").positions @ turn.T
    frames = []
    for _ in range(100):
        positions += 0.01 * torch.randn(positions.shape, generator=generator, dtype=DOUBLE)
        frames.append(padded._open_frame(positions, resolution))
    changes = sum(not torch.equal(a, b) for a, b in itertools.pairwise(frames))
    assert changes < 20
    torch.testing.assert_close(frames[-1] @ frames[-1].T, torch.eye(3, dtype=DOUBLE))


@pytest.mark.parametrize("n_atoms", [1, 2, 5])
def test_coincident_atoms_are_an_open_structure_too(n_atoms):
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
def test_wires_along_any_direction_have_a_frame(seed):
    row = random_cell(seed)[0] if seed else tensor([0.0, 0.0, -3.0])
    frame = padded._partly_periodic_frame(torch.stack([row, row, row]), (False, True, False))
    assert torch.equal(frame[0], row)
    gram = frame @ frame.T
    expected = torch.eye(3, dtype=DOUBLE)
    expected[0, 0] = row.square().sum()
    torch.testing.assert_close(gram, expected)
