"""FINUFFT against the dense sum, and how its plans are shared."""

import copy
import gc
import importlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from references import (
    CELLS,
    DOUBLE,
    PERIODIC,
    SUMS,
    as_type,
    atoms_in,
    energy_of,
    evaluate,
    forces_of,
    random_cell,
    random_structure,
    relative_error,
    sum_of_gaussians,
)
from torch.autograd import grad

from sog_longrange import ConfigError, Ewald, LongRangeEnergy, coulomb, power_law
from sog_longrange.errors import MissingLibraryError
from sog_longrange.summation import cost_model as auto
from sog_longrange.summation import finufft as backend
from sog_longrange.testing import Structure, assert_batch_consistent, join

library = pytest.importorskip("finufft", reason="FINUFFT is not installed.")

SLACK = 3.0
"""Relative l2 error of forces over tolerance that is accepted."""

FLOORS = {torch.float32: 1e-5, torch.float64: 5e-13}
KERNELS = {
    "coulomb": sum_of_gaussians(),
    "ewald": Ewald(1.0),
    "per_channel": sum_of_gaussians(num_channels=3),
    "dispersion": sum_of_gaussians(power_law(6.0, -20.0), zero_mode=True),
}


def forces(kernel, structure, tolerance, **options):
    return forces_of(LongRangeEnergy(kernel, tolerance=tolerance, **options), structure)


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        *(("coulomb", cell) for cell in CELLS),
        *((name, "skewed") for name in ("ewald", "per_channel", "dispersion")),
    ],
)
def test_forces_follow_the_dense_sum_to_twelve_digits(name, cell):
    structure, kernel = atoms_in(CELLS[cell]), KERNELS[name]
    exact = forces(kernel, structure, 1e-15, **SUMS["dense"])
    for exponent in range(2, 13, 2):
        tolerance = 10.0**-exponent
        truncated = forces(kernel, structure, tolerance, **SUMS["dense"])
        found = forces(kernel, structure, tolerance, **SUMS["finufft"])
        allowed = SLACK * tolerance + FLOORS[DOUBLE]
        assert relative_error(found, exact) <= allowed, tolerance
        assert relative_error(found, truncated) <= allowed, tolerance


@pytest.mark.parametrize("cell", ["triclinic", "skewed"])
def test_float32_forces_end_at_their_floor(cell):
    structure, kernel = atoms_in(CELLS[cell]), sum_of_gaussians()
    exact = forces(kernel, structure, 1e-14, **SUMS["dense"])
    single = as_type(structure, torch.float32)
    for tolerance in (1e-2, 1e-4, 1e-6, 1e-9):
        found = forces(kernel.float(), single, tolerance, **SUMS["finufft"])
        assert found.dtype == torch.float32
        error = relative_error(found.double(), exact)
        assert error <= SLACK * tolerance + FLOORS[torch.float32], tolerance


def test_structures_without_atoms_anywhere_in_a_batch_change_nothing():
    full = [
        atoms_in(CELLS[name], 0, n) for name, n in (("triclinic", 5), ("3 Å", 1), ("skewed", 4))
    ]
    none = full[0]._replace(charges=full[0].charges[:0], positions=full[0].positions[:0])
    structures = [none, full[0], none, none, full[1], full[2], none]
    model = LongRangeEnergy(sum_of_gaussians(coulomb()), tolerance=1e-6, **SUMS["finufft"])
    assert_batch_consistent(energy_of(model), structures, tolerance=1e-12)
    energies = model(*join(structures)).energy
    assert (energies != 0).tolist() == [bool(len(s.charges)) for s in structures]


# Plans.


@pytest.fixture
def plans(monkeypatch):
    """Every plan that is made while a test runs, from an empty pool."""
    made = []
    plan = library.Plan

    def counted(*args, **kwargs):
        made.append(plan(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(library, "Plan", counted)
    monkeypatch.setattr(backend, "_POOL", backend._Pool())
    return made


def energy_and_second_derivatives(structure, **options):
    """Energy, forces and the gradient of the squared forces, as one flat tensor."""
    model = LongRangeEnergy(Ewald(1.0), tolerance=1e-3, **options)
    positions = structure.positions.clone().requires_grad_()
    energy = evaluate(model, structure._replace(positions=positions)).energy.sum()
    (force,) = grad(energy, positions, create_graph=True)
    (second,) = grad(force.square().sum(), positions)
    return torch.cat([energy[None], force.flatten(), second.flatten()]).detach()


def test_plans_are_used_again(plans):
    structure = random_structure(0, 5)
    energy_and_second_derivatives(structure, **SUMS["finufft"])
    first = len(plans)
    assert first > 0
    for seed in range(50):
        moved = structure._replace(positions=random_structure(seed, 5).positions)
        energy_and_second_derivatives(moved, **SUMS["finufft"])
    assert len(plans) == first


def test_another_shape_or_accuracy_gets_a_plan_of_its_own(plans):
    counts = []
    for edge, tolerance in ((4.0, 1e-3), (8.0, 1e-3), (4.0, 1e-5)):
        forces(Ewald(1.0), random_structure(0, edge=edge), tolerance, **SUMS["finufft"])
        counts.append(len(plans))
    assert counts == sorted(set(counts))


def test_an_evaluation_keeps_its_points_while_others_run(plans):
    model = LongRangeEnergy(Ewald(1.0), tolerance=1e-3, **SUMS["finufft"])
    structures = [random_structure(s, 5)._replace(cell=random_cell(0)) for s in range(3)]
    expected = [forces(Ewald(1.0), s, 1e-3, **SUMS["finufft"]) for s in structures]
    positions = [s.positions.clone().requires_grad_() for s in structures]
    energies = [
        evaluate(model, s._replace(positions=r)).energy.sum()
        for s, r in zip(structures, positions, strict=True)
    ]
    first = [grad(e, r, create_graph=True)[0] for e, r in zip(energies, positions, strict=True)]
    second = [
        grad(f.square().sum(), r)[0]
        for f, r in zip(reversed(first), reversed(positions), strict=True)
    ]
    for f, e in zip(first, expected, strict=True):
        torch.testing.assert_close(-f.detach(), e, rtol=1e-12, atol=1e-12)
    for s, value in zip(reversed(structures), second, strict=True):
        alone = energy_and_second_derivatives(s, **SUMS["finufft"])[-value.numel() :]
        torch.testing.assert_close(value.flatten(), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["mesh", "numba", "finufft"])
def test_threads_that_evaluate_at_once_agree_with_one(name):
    structures = [random_structure(s, 6)._replace(cell=random_cell(0)) for s in range(4)] * 5
    expected = [energy_and_second_derivatives(s, **SUMS[name]) for s in structures]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda s: energy_and_second_derivatives(s, **SUMS[name]), structures))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def resident_mebibytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Needs Linux's /proc.")
@pytest.mark.parametrize("name", ["mesh", "numba", "finufft"])
def test_hundreds_of_evaluations_leave_no_memory_behind(name):
    # A leak of one grid per evaluation would be 14 MiB.
    structure = random_structure(0, 3, edge=16.0)

    def run(count):
        for _ in range(count):
            forces(Ewald(1.0), structure, 1e-2, **SUMS[name])
        gc.collect()
        return resident_mebibytes()

    before = run(50)
    assert run(300) - before < 6.0


# Missing libraries.


def test_a_missing_library_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(auto, "_has_finufft", lambda *_: False)
    with pytest.raises(ConfigError, match="pip install finufft"):
        LongRangeEnergy(Ewald(1.0), backend="finufft")


def test_a_library_that_does_not_import_is_named_with_its_remedy(monkeypatch):
    model = LongRangeEnergy(Ewald(1.0), **SUMS["finufft"])
    monkeypatch.setattr(backend, "_POOL", backend._Pool())
    monkeypatch.setitem(sys.modules, "finufft", None)
    with pytest.raises(MissingLibraryError, match=r"sog-longrange\[finufft\]"):
        evaluate(model, random_structure(0))


# CUDA.


def _has_cuda():
    return torch.cuda.is_available() and importlib.util.find_spec("cufinufft") is not None


needs_cuda = pytest.mark.skipif(not _has_cuda(), reason="Needs a GPU and cuFINUFFT.")


def derivatives(model, structures, device):
    """Energies, forces and the gradients of a force loss in positions, charges and kernel."""
    model = copy.deepcopy(model).to(device)
    charges, positions, *rest = (x.to(device) for x in join(structures)[:-1])
    charges, positions = (x.clone().requires_grad_() for x in (charges, positions))
    energies = model(charges, positions, *rest, len(structures)).energy
    (slopes,) = grad(energies.sum(), positions, create_graph=True)
    loss = slopes.square().mean() + energies.square().mean()
    found = grad(loss, (positions, charges, *model.parameters()))
    return [x.detach().cpu() for x in (energies, slopes, *found)]


@needs_cuda
@pytest.mark.parametrize("name", ["coulomb", "per_channel"])
def test_cuda_agrees_with_the_cpu_up_to_second_derivatives_of_batches(name):
    structures = [atoms_in(CELLS[cell], seed) for seed, cell in enumerate(("triclinic", "skewed"))]
    model = LongRangeEnergy(KERNELS[name], tolerance=1e-10, **SUMS["finufft"])
    expected, found = (derivatives(model, structures, device) for device in ("cpu", "cuda"))
    for here, there in zip(expected, found, strict=True):
        assert there.dtype == DOUBLE
        assert relative_error(there, here) < 1e-8


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["float32", "float64"])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_cuda_gives_the_derivatives_of_the_cpu(tolerance, dtype):
    structure, kernel = atoms_in(CELLS["triclinic"]), sum_of_gaussians()
    exact = forces(kernel, structure, 1e-14, **SUMS["dense"])
    there = Structure(*(x.to("cuda", dtype) for x in structure[:3]), PERIODIC.cuda())
    found = forces(kernel.to("cuda", dtype), there, tolerance, **SUMS["finufft"])
    assert found.device.type == "cuda"
    assert relative_error(found.cpu().double(), exact) <= SLACK * tolerance + FLOORS[dtype]


@needs_cuda
def test_cuda_plans_work_on_a_stream_of_their_own():
    structure = random_structure(0, 5)
    there = Structure(*(x.cuda() for x in structure))
    expected = energy_and_second_derivatives(structure, **SUMS["finufft"])
    with torch.cuda.stream(torch.cuda.Stream()):
        found = energy_and_second_derivatives(there, **SUMS["finufft"])
    assert relative_error(found.cpu(), expected) < 1e-3
