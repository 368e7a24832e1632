"""The mesh against the dense sum: its energy, its exact gradients, and its kernel tables."""

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
    dipoles_of,
    energy_of,
    energy_value,
    forces_of,
    perturbed,
    random_cell,
    relative_error,
    sum_of_gaussians,
    tensor,
)
from torch.autograd import grad

from sog_longrange import Ewald, LongRangeEnergy, coulomb, power_law
from sog_longrange.geometry import TAPER, reciprocal_cell
from sog_longrange.summation.engines import torch_engine, torch_table
from sog_longrange.summation.engines.select import find_engine
from sog_longrange.summation.engines.torch_table import TorchSampler
from sog_longrange.summation.grids import Grids, choose_grids
from sog_longrange.summation.kernel_table import choose_intervals
from sog_longrange.summation.resolution import Resolution
from sog_longrange.summation.rows import grid_rows
from sog_longrange.testing import (
    assert_batch_consistent,
    assert_extensive,
    assert_forces_match_finite_differences,
    assert_image_invariant,
    assert_permutation_invariant,
    assert_rotation_invariant,
    assert_translation_invariant,
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


# Accuracy against the dense sum.


SWEPT = [
    *(("none", box, "coulomb") for box in BOXES),
    *(("none", "skewed", kernel) for kernel in ("ewald", "per_channel", "dispersion")),
    ("numba", "left-handed", "per_channel"),
    ("numba", "60 Å", "dispersion"),
]


@pytest.mark.parametrize(("engine", "box", "kernel"), SWEPT)
def test_forces_follow_the_dense_sum_at_every_tolerance(kernel, box, engine):
    cell, min_width = BOXES[box]
    structure, law = atoms_in(cell), make_kernel(kernel, min_width)
    exact = reciprocal_forces(law, structure, 1e-13, "dense")
    # Each width of the window takes seconds to compile.
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6) if engine == "none" else (1e-3, 1e-5):
        truncated = reciprocal_forces(law, structure, tolerance, "dense")
        found = reciprocal_forces(law, structure, tolerance, "mesh", engine)
        assert relative_error(found, exact) <= SLACK * tolerance, tolerance
        assert relative_error(found, truncated) <= SLACK * tolerance, tolerance


@pytest.mark.parametrize(
    ("engine", "box", "kernel"),
    [("none", "skewed", "coulomb"), ("none", "60 Å", "per_channel"), ("numba", "3 Å", "coulomb")],
)
def test_float32_forces_end_at_their_floor(kernel, box, engine):
    cell, min_width = BOXES[box]
    structure, law = atoms_in(cell), make_kernel(kernel, min_width)
    exact = reciprocal_forces(law, structure, 1e-13, "dense")
    single = as_type(structure, torch.float32)
    for tolerance in (1e-2, 1e-4, 1e-6) if engine == "none" else (1e-2, 1e-4):
        found = reciprocal_forces(law.float(), single, tolerance, "mesh", engine)
        assert found.dtype == torch.float32
        assert relative_error(found.double(), exact) <= SLACK * tolerance + FLOAT32_FLOOR, tolerance


@pytest.mark.parametrize(
    ("engine", "box", "kernel"),
    [("none", "left-handed", "coulomb"), ("numba", "20 Å", "dispersion")],
)
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


def smallest_grids(lengths, extra, resolution):
    """The smallest grids, odd along every axis, and some points more, before they are made fast."""
    needed = [2 * math.floor(a * resolution.cutoff / TURN) + 1 for a in lengths]
    shape = [max(n, resolution.window + 1) + e for n, e in zip(needed, extra, strict=True)]
    return Grids((tuple(shape),), resolution.window)


@pytest.mark.parametrize("extra", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_odd_and_even_grids_are_equally_good(extra, monkeypatch):
    tolerance, kernel = 1e-3, make_kernel("coulomb")
    cell = torch.diag(tensor([7.0, 7.5, 8.5]))
    structure = atoms_in(cell)
    dipoles = dipoles_of(structure.charges)
    grids = smallest_grids(cell.diagonal().tolist(), extra, Resolution.of(1.0, tolerance, 1))
    monkeypatch.setattr("sog_longrange.summation.mesh.choose_grids", lambda *_: grids)

    def derivatives(tolerance, **options):
        model = LongRangeEnergy(kernel, tolerance=tolerance, engine="none", **options)
        charges, positions, cell, *rest = join([structure])
        inputs = [x.clone().requires_grad_() for x in (charges, dipoles, positions, cell)]
        energy = model(inputs[0], *inputs[2:], *rest, dipoles=inputs[1]).energy
        return (energy.detach(), *grad(energy.sum(), (*inputs, *kernel.parameters())))

    found = derivatives(tolerance, backend="mesh")
    expected = derivatives(1e-13, backend="dense")
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) <= 2.0 * SLACK * tolerance


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


@pytest.mark.parametrize(("engine", "exponent"), [("none", 2), ("none", 6), ("numba", 3)])
def test_forces_and_stress_are_the_gradient_of_the_energy_as_computed(exponent, engine):
    law = make_kernel("per_channel")
    model = LongRangeEnergy(law, tolerance=10.0**-exponent, backend="mesh", engine=engine)
    for box in ("triclinic", "left-handed", "skewed"):
        structure = atoms_in(BOXES[box][0], n_atoms=5)
        # Steps so short that no atom leaves its interval of the window.
        assert_forces_match_finite_differences(
            energy_of(model), structure, step=1e-4, tolerance=1e-7
        )


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
    ("backend", "tolerance"), [("none", 1e-6), ("numba", 1e-3), ("finufft", 1e-10)]
)
def test_training_gradients_are_those_of_the_dense_sum(backend, tolerance, kernel):
    errors = training_errors(backend_options(backend), tolerance, kernel=kernel)
    assert set(errors) >= {"charges", "positions", "cell", "kernel.log_amplitudes"}
    for name, error in errors.items():
        assert error <= 10.0 * tolerance, name


# Compiled kernel tables against pure torch.


def numba_engine():
    pytest.importorskip("numba", reason="Numba is not installed.")
    return find_engine("numba", CPU)


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
        self.rows = grid_rows(choose_grids(lengths, TAPER * 3.0, 7))
        self.reciprocal, self.direction = reciprocal_cell(cell) / 3.0, draw(3, 3, 3)
        shape = (channels, self.intervals.rows, self.intervals.degree + 1)
        self.u, self.c = draw(*shape), draw(*shape)
        # As `sample_kernel` leaves them: a constant at k = 0 and nothing beyond the cutoff.
        for coefficients in (self.u, self.c):
            coefficients[:, 0, 1:] = 0.0
            coefficients[:, -1] = 0.0
        self.grad = draw(channels, self.rows.total)

    def results(self, sampler):
        own = sampler(self.intervals, self.rows)
        for extra in ((), (self.c, self.direction)):
            yield own.values(self.u, self.reciprocal, *extra)
            by_samples, by_cell = own.gradients(self.grad, self.u, self.reciprocal, *extra)
            # Neither the samples beyond the cutoff nor the slope at k = 0 mean anything.
            yield by_samples[:, 1:-1]
            yield by_samples[:, 0, 0]
            yield by_cell


@every_dtype
@pytest.mark.parametrize(("channels", "threads"), [(1, 1), (3, 4)])
def test_compiled_samplers_equal_pure_torch(dtype, channels, threads, monkeypatch):
    sampler = numba_engine().sampler
    if threads > 1:
        compiled = pytest.importorskip(
            "sog_longrange.summation.engines.numba_engine", exc_type=ImportError
        )
        monkeypatch.setattr(compiled, "threads_for", lambda work: threads)
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
def test_the_energy_is_smooth_as_the_cell_passes_through_grids(engine):
    tolerance = 1e-3
    structure = atoms_in(BOXES["triclinic"][0])
    scales = torch.linspace(0.85, 1.25, 161, dtype=DOUBLE)
    structures = [
        structure._replace(positions=s * structure.positions, cell=s * structure.cell)
        for s in scales
    ]
    law = make_kernel("ewald")
    lengths = [torch.linalg.vector_norm(s.cell, dim=-1).tolist() for s in structures]
    grids = choose_grids(lengths, Resolution.of(1.0, tolerance).cutoff, 7)
    assert len(set(grids.shapes)) >= 4
    options = {"tolerance": tolerance, "remove_self": False}
    mesh, dense = (
        LongRangeEnergy(law, backend=b, engine=engine, **options)(*join(structures))
        for b in ("mesh", "dense")
    )
    scale = float(dense.energy.abs().mean())
    assert float((mesh.energy - dense.energy).abs().max()) <= tolerance * scale
    curvature = dense.energy.diff(n=2).abs().max()
    assert float(mesh.energy.diff(n=2).abs().max()) <= float(curvature) + tolerance * scale


# Memory.


def test_chunks_do_not_change_the_result(monkeypatch):
    batch = join([atoms_in(BOXES[name][0], n_atoms=7) for name in ("triclinic", "skewed")])
    model = LongRangeEnergy(
        make_kernel("per_channel"), tolerance=1e-3, backend="mesh", engine="none"
    )
    expected = training_gradients(model, batch)
    monkeypatch.setattr(torch_engine, "_CHUNK", 2 * 7**3)
    monkeypatch.setitem(torch_table._CHUNK, "cpu", 7)
    found = training_gradients(model, batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)
