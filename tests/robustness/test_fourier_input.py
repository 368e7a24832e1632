"""Input that is wrong or extreme ends in an error or a right result in every backend."""

import math

import pytest
import torch
from references import (
    DOUBLE,
    PERIODIC,
    LargestTensor,
    as_type,
    evaluate,
    forces_of,
    interaction_of,
    random_structure,
    relative_error,
    sum_of_gaussians,
)
from torch.autograd import grad

from sog_longrange import ConfigError, Ewald, InputError, LongRangeEnergy, SizeError, SOGError
from sog_longrange.summation.finufft import finufft_sum
from sog_longrange.summation.mesh import mesh_sum
from sog_longrange.summation.multipoles import Multipoles
from sog_longrange.testing import join
from sog_longrange.validation import Structures

NAN, INF = float("nan"), float("inf")
BACKENDS = {
    "auto": {},
    "dense": {"backend": "dense"},
    "mesh": {"backend": "mesh", "engine": "none"},
    "numba": {"backend": "mesh", "engine": "numba"},
    "finufft": {"backend": "finufft"},
}
every_backend = pytest.mark.parametrize("name", BACKENDS)
LIBRARIES = {"numba": "numba", "finufft": "finufft"}


def model_of(name, kernel=None, tolerance=1e-2, **options):
    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name], reason=f"{LIBRARIES[name]} is not installed.")
    kernel = Ewald(1.0) if kernel is None else kernel
    return LongRangeEnergy(kernel, tolerance=tolerance, **BACKENDS[name], **options)


@pytest.fixture
def no_native_code(monkeypatch):
    """Fail the test if compiled loops or FINUFFT are reached."""

    def reached(*args, **kwargs):
        pytest.fail("Native code was called.")

    compiled = pytest.importorskip(
        "sog_longrange.summation.engines.numba_engine", exc_type=ImportError
    )
    for function in ("spread_loop", "interpolation_loop", "sampler_loops", "sort_atoms"):
        monkeypatch.setattr(compiled, function, reached)
    library = pytest.importorskip("finufft", reason="FINUFFT is not installed.")
    monkeypatch.setattr(library, "Plan", reached)
    return reached


@every_backend
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("field", ["charges", "positions", "cell"])
def test_values_that_are_not_finite_never_reach_native_code(name, field, value, no_native_code):
    structures = [random_structure(s, 3, 2) for s in (0, 1)]
    wrong = getattr(structures[1], field).clone()
    wrong[2, 1] = value
    structures[1] = structures[1]._replace(**{field: wrong})
    with pytest.raises(InputError, match=f"`{field}` must be finite"):
        model_of(name)(*join(structures))


def test_native_code_would_be_noticed(no_native_code):
    for name in ("numba", "finufft"):
        with pytest.raises(pytest.fail.Exception, match="Native code"):
            evaluate(model_of(name, tolerance=3.3e-3), random_structure(0))


@pytest.mark.parametrize("value", [NAN, INF])
def test_compiled_backends_that_are_called_themselves_check_positions(value):
    pytest.importorskip("numba", reason="Numba is not installed.")
    pytest.importorskip("finufft", reason="FINUFFT is not installed.")
    charges, *geometry = join([random_structure(0, 3)])
    structures = Structures(*geometry)
    structures.positions[1, 2] = value
    how = interaction_of(Ewald(1.0), 1e-2, "numba")
    for own in (mesh_sum, finufft_sum):
        with pytest.raises(InputError, match="`positions` must be finite"):
            own(how, Multipoles(charges), structures)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("size", [0.3, 1.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_positions_beyond_all_digits_end_in_an_error_or_a_number(name, dtype, size, sign):
    structure = as_type(random_structure(0, 3), dtype)
    structure.positions[1] = sign * size * torch.finfo(dtype).max
    message = ""
    try:
        energy = evaluate(model_of(name), structure).energy
    except SOGError as error:
        message = str(error)
    assert "`positions` must be" in message if message else bool(energy.isfinite().all())


@every_backend
@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, 1e38), (torch.float64, 1e300), (torch.float64, 1e18)]
)
def test_positions_without_a_fraction_of_a_cell_end_in_a_number(name, dtype, size):
    structure = as_type(random_structure(0, 3), dtype)
    structure.positions[0] = size
    structure.positions[2, 1] = -size
    positions = structure.positions.requires_grad_()
    energy = evaluate(model_of(name), structure).energy
    assert bool(energy.isfinite().all())
    assert bool(grad(energy.sum(), positions)[0].isfinite().all())


@every_backend
def test_atoms_a_million_cells_away_have_the_forces_of_their_images(name):
    structure = random_structure(8, 5)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(-(10**6), 10**6, (5, 3), generator=generator).to(DOUBLE)
    moved = structure._replace(positions=structure.positions + images @ structure.cell)
    model = model_of(name, tolerance=1e-3)
    assert relative_error(forces_of(model, moved), forces_of(model, structure)) < 1e-7


@every_backend
@pytest.mark.parametrize("num_graphs", [1, 3])
def test_no_atoms_have_no_energy(name, num_graphs):
    cell = 4.0 * torch.eye(3, dtype=DOUBLE).expand(num_graphs, 3, 3)
    charges = torch.zeros(0, 2, dtype=DOUBLE, requires_grad=True)
    positions = torch.zeros(0, 3, dtype=DOUBLE, requires_grad=True)
    batch = torch.zeros(0, dtype=torch.int64)
    pbc = PERIODIC.expand(num_graphs, 3)
    out = model_of(name)(charges, positions, cell, pbc, batch, num_graphs)
    assert out.energy.tolist() == [0.0] * num_graphs
    assert out.potential.shape == (0, 2)


@every_backend
def test_a_lone_atom_has_the_forces_of_its_images_alone(name):
    structure = random_structure(0, 1, 2)
    tolerance = 1e-4
    model = model_of(name, tolerance=tolerance, remove_self=False)
    expected = evaluate(LongRangeEnergy(Ewald(1.0), tolerance=1e-13, remove_self=False), structure)
    energy = float(evaluate(model, structure).energy)
    assert energy == pytest.approx(float(expected.energy), rel=5.0 * tolerance)
    assert float(forces_of(model, structure).abs().max()) <= 5.0 * tolerance * abs(energy)


ABSURD = {
    "one vast cell": (1, 1e5),
    "one cell of 1e12 Å": (1, 1e12),
    "many large cells": (256, 150.0),
}


@every_backend
@pytest.mark.parametrize("case", ABSURD)
def test_grids_that_fit_into_no_memory_are_refused_before_they_are_made(name, case):
    count, edge = ABSURD[case]
    one = random_structure(0, 2)
    structure = one._replace(cell=edge * torch.eye(3, dtype=DOUBLE))
    model = model_of(name, tolerance=1e-4)
    with LargestTensor() as largest, pytest.raises(SizeError, match="min_width"):
        model(*join([structure] * count))
    assert largest.numel < 10**6


def test_large_tensors_would_be_noticed():
    with LargestTensor() as largest:
        torch.zeros(2000, 1000, dtype=DOUBLE).add_(1.0)
    assert largest.numel >= 2 * 10**6


@pytest.mark.parametrize("name", ["auto"])
@pytest.mark.parametrize("tolerance", [0.0, -1e-3, 1e-16, 0.2, 1.0, NAN, INF])
def test_a_tolerance_out_of_range_is_refused(name, tolerance):
    with pytest.raises(ConfigError, match="`tolerance` must be between"):
        model_of(name, tolerance=tolerance)


@every_backend
@pytest.mark.parametrize("tolerance", [0.1, 1e-15])
def test_tolerances_at_the_ends_of_their_range_work(name, tolerance):
    structure = random_structure(0, 12, edge=8.0)
    kernel = Ewald(1.5)
    exact = forces_of(LongRangeEnergy(kernel, tolerance=1e-15, backend="dense"), structure)
    found = forces_of(model_of(name, kernel, tolerance), structure)
    assert relative_error(found, exact) <= max(3.0 * tolerance, 1e-11)


@every_backend
@pytest.mark.parametrize("value", [NAN, INF])
def test_cotangents_that_are_not_finite_do_not_crash(name, value):
    kernel = sum_of_gaussians(num_gaussians=3, max_width=4.0)
    charges, positions, cell, *rest = join([random_structure(s, 3) for s in (0, 1)])
    inputs = [x.requires_grad_() for x in (charges, positions, cell)]
    energy = model_of(name, kernel)(*inputs, *rest).energy
    first = grad(energy, inputs, torch.full_like(energy, value), retain_graph=True)
    assert not any(bool(x.isfinite().all()) for x in first)
    force, virial = grad(energy.sum(), inputs[1:], create_graph=True)
    loss = value * (force.square().sum() + virial.square().sum() + energy.sum())
    second = grad(loss, [*inputs, *kernel.parameters()])
    assert not any(bool(x.isfinite().all()) for x in second)


@every_backend
def test_an_evaluation_after_a_refused_one_is_right(name):
    structure = random_structure(0, 4)
    model = model_of(name)
    expected = forces_of(model, structure)
    wrong = structure.positions.clone()
    wrong[0, 0] = NAN
    with pytest.raises(InputError, match="finite"):
        evaluate(model, structure._replace(positions=wrong))
    assert torch.equal(forces_of(model, structure), expected)
    assert math.isfinite(float(expected.norm()))
