"""The mesh against the direct sum: its energy, its exact gradients, and its inner loops."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import (
    CELLS,
    DOUBLE,
    SUMS,
    as_type,
    atoms_in,
    energy_of,
    energy_value,
    forces_of,
    perturbed,
    random_cell,
    random_structure,
    relative_error,
    sum_of_gaussians,
    tensor,
)
from torch.autograd import grad
from torch.func import functional_call

from sog_longrange import Ewald, LongRangeEnergy, coulomb, power_law
from sog_longrange.geometry import TAPER, reciprocal_cell, wave_number_onset
from sog_longrange.summation import kernel_table as radial
from sog_longrange.summation.dense import dense_energy
from sog_longrange.summation.engines import torch_engine as stencils
from sog_longrange.summation.engines.select import find_engine
from sog_longrange.summation.engines.torch_engine import TorchStencil
from sog_longrange.summation.kernel_table import TorchSampler, choose_intervals
from sog_longrange.summation.mesh import Meshes, choose_meshes, mesh_energy, mode_boxes
from sog_longrange.summation.windows import window_width
from sog_longrange.testing import (
    assert_batch_consistent,
    assert_extensive,
    assert_forces_match_finite_differences,
    assert_image_invariant,
    assert_permutation_invariant,
    assert_rotation_invariant,
    assert_translation_invariant,
    assert_twice_differentiable,
    join,
)

TURN = 2.0 * math.pi
ROUNDING = {torch.float32: 6e-6, torch.float64: 2e-14}
FLOAT32_FLOOR = 2e-5
SLACK = 5.0
"""Relative l2 error of forces over tolerance that is accepted."""

CPU = torch.device("cpu")
ENGINES = ("none", "numba")
every_engine = pytest.mark.parametrize("engine", ENGINES)
every_dtype = pytest.mark.parametrize("dtype", list(ROUNDING), ids=["float32", "float64"])

BOXES = {
    **{name: (cell, 1.0) for name, cell in CELLS.items()},
    "sheared": (tensor([[3.0, 0, 0], [21.0, 4.0, 0], [-12.0, 8.0, 5.0]]), 1.0),
    "flat": (torch.diag(tensor([3.0, 25.0, 4.0])), 1.0),
    "20 Å": (random_cell(4, 20.0), 3.0),
    "60 Å": (random_cell(5, 60.0), 10.0),
}
"""Cell and `min_width` of the kernel in it."""


def make_kernel(name, min_width=1.0):
    options = {"min_width": min_width, "max_width": 20.0 * min_width}
    return {
        "coulomb": lambda: sum_of_gaussians(**options),
        "ewald": lambda: Ewald(min_width),
        "per_channel": lambda: per_channel_kernel(**options),
        "dispersion": lambda: sum_of_gaussians(power_law(6.0, -20.0), zero_mode=True, **options),
    }[name]()


def per_channel_kernel(**options):
    """Three channels, each with a law of its own."""
    kernel = sum_of_gaussians(coulomb(), num_channels=3, **options)
    return perturbed(kernel, 0.3)


def reciprocal_forces(kernel, structure, tolerance, backend, engine="none"):
    """Forces of the reciprocal sum; the self-interaction has none."""
    model = LongRangeEnergy(kernel, tolerance=tolerance, backend=backend, engine=engine)
    return forces_of(model, structure)


# Accuracy against the direct sum.


@every_engine
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("kernel", ["coulomb", "ewald", "per_channel", "dispersion"])
def test_forces_follow_the_direct_sum_at_every_tolerance(kernel, box, engine):
    cell, min_width = BOXES[box]
    structure, law = atoms_in(cell), make_kernel(kernel, min_width)
    exact = reciprocal_forces(law, structure, 1e-13, "dense")
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        truncated = reciprocal_forces(law, structure, tolerance, "dense")
        found = reciprocal_forces(law, structure, tolerance, "mesh", engine)
        assert relative_error(found, exact) <= SLACK * tolerance, tolerance
        assert relative_error(found, truncated) <= SLACK * tolerance, tolerance


@every_engine
@pytest.mark.parametrize("box", ["3 Å", "triclinic", "skewed", "60 Å"])
@pytest.mark.parametrize("kernel", ["coulomb", "per_channel"])
def test_float32_forces_end_at_their_floor(kernel, box, engine):
    cell, min_width = BOXES[box]
    structure, law = atoms_in(cell), make_kernel(kernel, min_width)
    exact = reciprocal_forces(law, structure, 1e-13, "dense")
    single = as_type(structure, torch.float32)
    for tolerance in (1e-2, 1e-4, 1e-6):
        found = reciprocal_forces(law.float(), single, tolerance, "mesh", engine)
        assert found.dtype == torch.float32
        assert relative_error(found.double(), exact) <= SLACK * tolerance + FLOAT32_FLOOR, tolerance


@every_engine
@pytest.mark.parametrize("box", ["left-handed", "skewed", "20 Å"])
@pytest.mark.parametrize("kernel", ["coulomb", "dispersion"])
def test_float32_virials_end_at_their_floor(kernel, box, engine):
    cell, min_width = BOXES[box]
    law = make_kernel(kernel, min_width)

    def virial(structure, tolerance, **options):
        strain = torch.zeros_like(structure.cell).requires_grad_()
        charges, positions, cell, pbc = structure
        model = LongRangeEnergy(law, tolerance=tolerance, **options)
        strained = (positions + positions @ strain, cell + cell @ strain)
        return grad(model(charges, *strained, pbc).energy.sum(), strain)[0].double()

    exact = virial(atoms_in(cell), 1e-13, backend="dense")
    law.float()
    single = as_type(atoms_in(cell), torch.float32)
    found = virial(single, 1e-6, backend="mesh", engine=engine)
    # The slope of a sampled kernel has fewer digits than its value.
    assert relative_error(found, exact) <= 2e-4


def test_a_finer_tolerance_has_a_smaller_error():
    structure, law = atoms_in(BOXES["triclinic"][0]), Ewald(1.0)
    exact = reciprocal_forces(law, structure, 1e-13, "dense")
    errors = [
        relative_error(reciprocal_forces(law, structure, t, "mesh"), exact)
        for t in (1e-2, 1e-4, 1e-6, 1e-8, 1e-10)
    ]
    assert all(b < 0.1 * a for a, b in itertools.pairwise(errors))


def smallest_shape(lengths, kernel, tolerance):
    """Shape of the smallest mesh, odd along every axis, before it is made fast."""
    cutoff = TAPER * wave_number_onset(kernel.min_width, tolerance)
    width = window_width(tolerance)
    needed = [2 * math.floor(a * cutoff / TURN) + 1 for a in lengths]
    return [max(n, width + 1) for n in needed], width


@every_engine
@pytest.mark.parametrize("extra", list(itertools.product((0, 1), repeat=3)))
def test_odd_and_even_meshes_are_equally_good(extra, engine):
    tolerance, kernel = 1e-3, make_kernel("coulomb")
    cell = torch.diag(tensor([7.0, 7.5, 8.5]))
    structure = atoms_in(cell)
    shape, width = smallest_shape(cell.diagonal().tolist(), kernel, tolerance)
    meshes = Meshes((tuple(n + e for n, e in zip(shape, extra, strict=True)),), width)
    parameters = tuple(kernel.parameters())

    def derivatives(function, *options):
        inputs = [x.clone().requires_grad_() for x in (*structure[:2], structure.cell[None])]
        batch = torch.zeros(len(structure.charges), dtype=torch.int64)
        energy, _ = function(kernel, *inputs, batch, *options)
        return (energy.detach(), *grad(energy.sum(), (*inputs, *parameters)))

    found = derivatives(mesh_energy, tolerance, find_engine(engine, CPU), meshes)
    expected = derivatives(dense_energy, 1e-13)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) <= SLACK * tolerance


@every_engine
@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_a_box_that_holds_the_zero_mode_alone(tolerance, engine):
    structure = atoms_in(3.0 * torch.eye(3, dtype=DOUBLE))
    options = {"backend": "mesh", "engine": engine, "remove_self": False}
    law = sum_of_gaussians(power_law(6.0), min_width=8.0, max_width=20.0, zero_mode=True)
    found = energy_value(LongRangeEnergy(law, tolerance=tolerance, **options), structure)
    amplitudes, widths = law.amplitudes.detach(), law.widths.detach()
    at_zero = float((amplitudes * TURN**1.5 * widths**3).sum())
    expected = 0.5 * at_zero * float(structure.charges.sum(0).square().sum()) / 27.0
    assert found == pytest.approx(expected, rel=SLACK * tolerance)
    without = sum_of_gaussians(coulomb(), min_width=8.0, max_width=20.0)
    assert energy_value(LongRangeEnergy(without, tolerance=tolerance, **options), structure) == 0.0


# Exact gradients of the energy as computed.


@every_engine
@pytest.mark.parametrize("exponent", [2, 3, 4, 5, 6, 7])
def test_forces_and_stress_are_the_gradient_of_the_energy_as_computed(exponent, engine):
    law = make_kernel("per_channel")
    model = LongRangeEnergy(law, tolerance=10.0**-exponent, backend="mesh", engine=engine)
    for box in ("triclinic", "left-handed", "skewed"):
        structure = atoms_in(BOXES[box][0], n_atoms=5)
        # Steps so short that no atom leaves its interval of the window.
        assert_forces_match_finite_differences(
            energy_of(model), structure, step=1e-4, tolerance=1e-7
        )


def two_structures(n_channels=2):
    """A right-handed and a left-handed structure of different size."""
    return join([random_structure(s, 4 - s % 2, n_channels, edge=5.0) for s in (2, 3)])


BACKENDS = {
    "none": SUMS["mesh"],
    "numba": SUMS["numba"],
    "finufft": SUMS["finufft"],
}
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def backend_options(name):
    if name == "finufft":
        pytest.importorskip("finufft", reason="FINUFFT is not installed.")
    return BACKENDS[name]


# FINUFFT's noise, a tenth of the tolerance, would show in finite differences.
DERIVATIVE_TOLERANCES = {"none": 0.05, "numba": 0.05, "finufft": 1e-12}


@pytest.mark.parametrize(
    ("backend", "own_channels"),
    [
        ("none", 1),
        ("numba", 1),
        pytest.param("finufft", 1, marks=pytest.mark.slow),
        *(pytest.param(name, 2, marks=pytest.mark.slow) for name in BACKENDS),
    ],
)
def test_energy_is_twice_differentiable_in_inputs_and_parameters(backend, own_channels):
    options = {"num_channels": own_channels, "num_gaussians": 2}
    # With few modes, but some of them along no axis; few also at FINUFFT's tight tolerance.
    wide = {"min_width": 3.0, "max_width": 6.0} if backend == "finufft" else {"max_width": 2.5}
    kernel = sum_of_gaussians(coulomb(), **options, **wide)
    tolerance = DERIVATIVE_TOLERANCES[backend]
    model = LongRangeEnergy(kernel, tolerance=tolerance, **backend_options(backend))
    names, values = zip(*model.named_parameters(), strict=True)
    charges, positions, cell, *rest = two_structures()

    def energy(q, r, c, *parameters):
        state = dict(zip(names, parameters, strict=True))
        return functional_call(model, state, (q, r, c, *rest)).energy

    # Steps so long that the rounding of d(kernel)/d(k^2) does not show.
    assert_twice_differentiable(energy, (charges, positions, cell, *values), step=1e-5)


@every_backend
def test_wrong_second_derivatives_would_be_noticed(backend, monkeypatch):
    from sog_longrange.summation import finufft, mesh

    owner = finufft.FinufftBackend if backend == "finufft" else mesh.MeshBackend
    right = owner.gather_hessian
    monkeypatch.setattr(owner, "gather_hessian", lambda *args: 1.01 * right(*args))
    tolerance = 1e-12 if backend == "finufft" else 0.05
    width = 3.0 if backend == "finufft" else 1.0
    model = LongRangeEnergy(Ewald(width), tolerance=tolerance, **backend_options(backend))
    charges, positions, *rest = two_structures(1)
    with pytest.raises(AssertionError, match="Second derivatives are wrong"):
        assert_twice_differentiable(lambda r: model(charges, r, *rest).energy, (positions,))


def training_gradients(model, batch):
    """Gradients of a loss of energies, forces, virials and charges, by name."""
    charges, positions, cell, *rest = batch
    strain = torch.zeros_like(cell).requires_grad_()
    inputs = {"charges": charges, "positions": positions, "cell": cell}
    inputs = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    r, c = inputs["positions"], inputs["cell"]
    moved = r + torch.einsum("na,nab->nb", r, strain[rest[1]])
    energy = model(inputs["charges"], moved, c + c @ strain, *rest).energy
    force, virial = grad(energy.sum(), (r, strain), create_graph=True)
    generator = torch.Generator().manual_seed(7)
    wanted = torch.randn(force.shape, generator=generator, dtype=force.dtype)
    loss = (force - wanted).square().sum() + 0.1 * (virial + 0.2).square().sum()
    loss = loss + (energy - 1.0).square().sum()
    inputs |= dict(model.named_parameters())
    return dict(zip(inputs, grad(loss, tuple(inputs.values())), strict=True))


def training_errors(options, tolerance, kernel):
    cells = [BOXES["triclinic"][0], BOXES["left-handed"][0]]
    batch = join([atoms_in(cell, seed) for seed, cell in enumerate(cells)])
    law = make_kernel(kernel)
    expected = training_gradients(LongRangeEnergy(law, tolerance=1e-13, backend="dense"), batch)
    found = training_gradients(LongRangeEnergy(law, tolerance=tolerance, **options), batch)
    return {name: relative_error(found[name], expected[name]) for name in expected}


@pytest.mark.parametrize("kernel", ["coulomb", "per_channel", "dispersion"])
@pytest.mark.parametrize(
    ("backend", "tolerance"),
    [("none", 1e-4), ("numba", 1e-4), ("none", 1e-6), ("numba", 1e-6), ("finufft", 1e-10)],
)
def test_training_gradients_are_those_of_the_direct_sum(backend, tolerance, kernel):
    errors = training_errors(backend_options(backend), tolerance, kernel=kernel)
    assert set(errors) >= {"charges", "positions", "cell", "kernel.log_amplitudes"}
    for name, error in errors.items():
        assert error <= 10.0 * tolerance, name


# Compiled loops against pure torch.


def ragged_meshes(width):
    """One smallest mesh, one without atoms and one of several slabs and blocks."""
    small = width + 1
    return Meshes(((small, small, small), (small, 20, 21), (2 * width + 9, small, 20)), width)


def compare(found, expected, dtype):
    pairs = [(found, expected)] if torch.is_tensor(found) else zip(found, expected, strict=True)
    for a, b in pairs:
        assert a.dtype == b.dtype == dtype
        assert a.shape == b.shape
        assert relative_error(a, b) < ROUNDING[dtype]


# A width takes seconds to compile. The loops' vectors have 4, 8 or 16 numbers, which even widths
# may fill, as 16 does, and odd ones never. No tolerance needs fewer than 7 grid points.
WIDTHS = [
    7,
    pytest.param(10, marks=pytest.mark.slow),
    pytest.param(16, marks=pytest.mark.full),
]


def numba_engine():
    pytest.importorskip("numba", reason="Numba is not installed.")
    return find_engine("numba", CPU)


@pytest.mark.parametrize("width", WIDTHS)
@every_dtype
def test_compiled_stencils_equal_pure_torch(width, dtype):
    meshes = ragged_meshes(width)
    generator = torch.Generator().manual_seed(width)
    batch = torch.tensor([0] * 3 + [2] * 30)
    phases = TURN * torch.rand(len(batch), 3, generator=generator, dtype=DOUBLE).to(dtype)
    # Both ends of a turn, where windows wrap around.
    phases[0], phases[3] = 0.0, (1.0 - 1e-5) * TURN
    for channels in (1, 3):
        shapes = ((len(batch), channels), (len(batch), 3, channels), (len(batch), 3))
        draws = [torch.randn(s, generator=generator, dtype=DOUBLE).to(dtype) for s in shapes]
        charges, dipoles, direction = draws
        nodes = torch.randn(channels, meshes.starts[-1], generator=generator, dtype=DOUBLE)
        found = numba_engine().stencil(meshes, phases, batch)
        expected = TorchStencil(meshes, phases, batch)
        for method, *args in (
            ("spread", charges, None),
            ("spread", charges, dipoles),
            ("gather", nodes.to(dtype)),
            ("gather_hessian", nodes.to(dtype), direction),
        ):
            compare(getattr(found, method)(*args), getattr(expected, method)(*args), dtype)


@pytest.mark.parametrize("width", [7])
@every_dtype
@every_engine
def test_phases_at_both_ends_of_a_turn_meet(width, dtype, engine):
    end = torch.tensor(TURN, dtype=dtype)
    below = torch.nextafter(end, torch.zeros_like(end))
    batch = torch.zeros(1, dtype=torch.int64)
    meshes = Meshes(((width + 1, 33, 20),), width)
    densities = []
    for phase in (torch.zeros_like(end), below, end):
        stencil = find_engine(engine, CPU).stencil(meshes, phase.repeat(1, 3), batch)
        densities.append(stencil.spread(torch.ones(1, 1, dtype=dtype), None))
    # The window jumps at its ends.
    jump = 5.0 * math.exp(-2.2 * width) + 1e-5 * (dtype == torch.float32)
    for density in densities[1:]:
        assert relative_error(density, densities[0]) < jump


def test_stencils_on_several_threads_equal_those_on_one(monkeypatch):
    compiled = pytest.importorskip(
        "sog_longrange.summation.engines.numba_engine", exc_type=ImportError
    )
    meshes = Meshes(((31, 12, 13), (8, 8, 8), (24, 8, 9)), 7)
    batch = torch.arange(3).repeat_interleave(torch.tensor([200, 0, 100]))
    torch.manual_seed(0)
    phases = TURN * torch.rand(300, 3, dtype=DOUBLE)
    charges, dipoles = torch.randn(300, 2, dtype=DOUBLE), torch.randn(300, 3, 2, dtype=DOUBLE)
    nodes = torch.randn(2, meshes.starts[-1], dtype=DOUBLE)
    expected = TorchStencil(meshes, phases, batch)
    for threads in (2, 3, 7):
        monkeypatch.setattr(compiled, "_threads", lambda work, threads=threads: threads)
        found = numba_engine().stencil(meshes, phases, batch)
        compare(found.spread(charges, dipoles), expected.spread(charges, dipoles), DOUBLE)
        compare(found.gather(nodes), expected.gather(nodes), DOUBLE)


class SamplerCase:
    """Random samples, and samplers of the modes of ragged boxes."""

    def __init__(self, dtype, channels):
        self.dtype = dtype
        generator = torch.Generator().manual_seed(3)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=DOUBLE).to(dtype)

        cell = torch.stack([random_cell(s, 4.0 + s) for s in (2, 3, 4)]).to(dtype)
        lengths = torch.linalg.vector_norm(cell, dim=-1).double().tolist()
        self.intervals = choose_intervals(max(map(max, lengths)), 3.0, dtype)
        self.boxes = mode_boxes(choose_meshes(lengths, TAPER * 3.0, 5), cell)
        self.reciprocal, self.direction = reciprocal_cell(cell), draw(3, 3, 3)
        shape = (channels, self.intervals.rows, self.intervals.degree + 1)
        self.u, self.c = draw(*shape), draw(*shape)
        # As `sample_kernel` leaves them: a constant at k = 0 and nothing beyond the cutoff.
        for coefficients in (self.u, self.c):
            coefficients[:, 0, 1:] = 0.0
            coefficients[:, -1] = 0.0
        self.grad = draw(channels, self.boxes.starts[-1])

    def results(self, sampler):
        own = sampler(self.intervals, self.boxes)
        for extra in ((), (self.c, self.direction)):
            yield own.values(self.u, self.reciprocal, *extra)
            by_samples, by_cell = own.gradients(self.grad, self.u, self.reciprocal, *extra)
            # Neither the samples beyond the cutoff nor the slope at k = 0 mean anything.
            yield by_samples[:, 1:-1]
            yield by_samples[:, 0, 0]
            yield by_cell


@every_dtype
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("threads", [1, 4])
def test_compiled_samplers_equal_pure_torch(dtype, channels, threads, monkeypatch):
    sampler = numba_engine().sampler
    if threads > 1:
        compiled = pytest.importorskip(
            "sog_longrange.summation.engines.numba_engine", exc_type=ImportError
        )
        monkeypatch.setattr(compiled, "_threads", lambda work: threads)
    case = SamplerCase(dtype, channels)
    for a, b in zip(case.results(sampler), case.results(TorchSampler), strict=True):
        assert a.dtype == b.dtype == dtype
        assert float((a - b).norm()) <= 50.0 * ROUNDING[dtype] * float(b.norm())


# Symmetries.


def model_of(backend, tolerance=1e-4, kernel="coulomb"):
    return LongRangeEnergy(make_kernel(kernel), tolerance=tolerance, **backend_options(backend))


@every_backend
def test_a_batch_gives_what_its_structures_give(backend):
    structures = [atoms_in(BOXES[name][0], n_atoms=n) for name, n in NAMES_AND_SIZES]
    model = model_of(backend)
    assert_batch_consistent(energy_of(model), structures, tolerance=1e-12)
    charges, positions, *rest = join(structures)
    positions.requires_grad_()
    together = -grad(model(charges, positions, *rest).energy.sum(), positions)[0]
    parts = [x for x in structures if len(x.charges)]
    alone = [reciprocal_forces(model.kernel, x, 1e-4, **BACKENDS[backend]) for x in parts]
    assert relative_error(together, torch.cat(alone)) < 1e-11


NAMES_AND_SIZES = [("triclinic", 5), ("3 Å", 0), ("left-handed", 9), ("skewed", 1), ("flat", 0)]


@every_backend
@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_the_energy_has_the_symmetries_of_the_lattice(backend, seed):
    tolerance = 1e-4
    structure = atoms_in(random_cell(seed, 6.0), seed, n_atoms=5)
    energy = energy_of(model_of(backend, tolerance))
    assert_permutation_invariant(energy, structure, tolerance=1e-12, seed=seed)
    assert_image_invariant(energy, structure, tolerance=1e-10, seed=seed)
    assert_rotation_invariant(energy, structure, tolerance=1e-10, seed=seed)
    assert_translation_invariant(energy, structure, tolerance=2.0 * tolerance, seed=seed)
    assert_extensive(energy, structure, repeats=(2, 1, 1), tolerance=2.0 * tolerance)


@every_backend
def test_atoms_a_million_cells_away_are_where_their_images_are(backend):
    structure = atoms_in(BOXES["triclinic"][0])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(-(10**6), 10**6, (8, 3), generator=generator).to(DOUBLE)
    moved = structure._replace(positions=structure.positions + images @ structure.cell)
    options = {"tolerance": 1e-4, **backend_options(backend)}
    law = make_kernel("coulomb")
    found, expected = (reciprocal_forces(law, x, **options) for x in (moved, structure))
    assert relative_error(found, expected) < 1e-7


# A cell that changes.


@every_engine
def test_the_energy_is_smooth_as_the_cell_passes_through_meshes(engine):
    tolerance = 1e-3
    structure = atoms_in(BOXES["triclinic"][0])
    scales = torch.linspace(0.85, 1.25, 161, dtype=DOUBLE)
    structures = [
        structure._replace(positions=s * structure.positions, cell=s * structure.cell)
        for s in scales
    ]
    law = make_kernel("ewald")
    lengths = [torch.linalg.vector_norm(s.cell, dim=-1).tolist() for s in structures]
    meshes = choose_meshes(lengths, TAPER * wave_number_onset(1.0, tolerance), 6)
    assert len(set(meshes.shapes)) >= 4
    options = {"tolerance": tolerance, "remove_self": False}
    mesh, direct = (
        LongRangeEnergy(law, backend=b, engine=engine, **options)(*join(structures))
        for b in ("mesh", "dense")
    )
    scale = float(direct.energy.abs().mean())
    assert float((mesh.energy - direct.energy).abs().max()) <= tolerance * scale
    curvature = direct.energy.diff(n=2).abs().max()
    assert float(mesh.energy.diff(n=2).abs().max()) <= float(curvature) + tolerance * scale


# Memory.


def test_chunks_do_not_change_the_result(monkeypatch):
    batch = join([atoms_in(BOXES[name][0], n_atoms=7) for name in ("triclinic", "skewed")])
    model = LongRangeEnergy(
        make_kernel("per_channel"), tolerance=1e-3, backend="mesh", engine="none"
    )
    expected = training_gradients(model, batch)
    sizes = []
    first_nodes = TorchStencil._first_nodes

    def recorded(self, part):
        sizes.append(len(self.phases[part]))
        return first_nodes(self, part)

    monkeypatch.setattr(TorchStencil, "_first_nodes", recorded)
    monkeypatch.setattr(stencils, "_CHUNK", 2 * 7**3)
    monkeypatch.setattr(radial, "_CHUNK", 1)
    found = training_gradients(model, batch)
    assert max(sizes) == 2
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)
