"""Predicted memory: against what PyTorch allocates, and what is refused or warned of by it."""

import warnings

import pytest
import torch
from references import as_type, random_structure
from torch.profiler import ProfilerActivity, profile

from sog_longrange import (
    Ewald,
    LongRangeEnergy,
    SizeError,
    SumOfGaussians,
    coulomb,
    potential_and_field,
)
from sog_longrange.errors import PerformanceWarning
from sog_longrange.summation import cost_model as auto
from sog_longrange.summation import dispatch, padded
from sog_longrange.summation.dispatch import plan_sums
from sog_longrange.summation.multipoles import Multipoles
from sog_longrange.testing import join
from sog_longrange.validation import check_structures

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_announced(monkeypatch):
    auto._warn_once.cache_clear()


@pytest.fixture
def predictions(monkeypatch):
    """Memory that each evaluation is predicted to take, in bytes."""
    made = []

    def record(memory, milliseconds, device):
        made.append(memory)

    monkeypatch.setattr(dispatch, "WORTH_A_LOOK", 0.0)
    for module in (dispatch.__name__, padded.__name__):
        monkeypatch.setattr(f"{module}.check_cost", record)
    return made


def make(n_atoms, edge, dtype=torch.float64, pbc=(True, True, True), n_channels=1):
    generator = torch.Generator().manual_seed(0)
    structure = random_structure(0, n_atoms, n_channels, edge=edge)
    positions = edge * torch.rand(n_atoms, 3, generator=generator, dtype=torch.float64)
    cell = edge * torch.eye(3, dtype=torch.float64)
    structure = structure._replace(positions=positions, cell=cell, pbc=torch.tensor(pbc))
    return as_type(structure, dtype)


def energy_of(dtype=torch.float64, **options):
    options = {"tolerance": 1e-4} | options
    return LongRangeEnergy(SumOfGaussians(min_width=1.0), **options).to(dtype)


def evaluate(energy, structure, path="charges"):
    """Energy of a path and its forces."""
    charges, positions, *geometry = join([structure])
    positions = positions.clone().requires_grad_()
    if path == "potential":
        total = (charges * potential_and_field(energy, charges, positions, *geometry)[0]).sum()
    else:
        dipoles = charges.new_zeros(len(charges), 3, charges.shape[1])
        options = {"dipoles": dipoles} if path == "dipoles" else {}
        total = energy(charges, positions, *geometry, **options).energy.sum()
    torch.autograd.grad(total, positions)


def allocated(function):
    """Largest number of bytes of tensors that exist at the same time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


CASES = {
    "empty box": (make(3, 50.0), {"backend": "mesh"}, "charges"),
    "empty box, four channels": (make(3, 50.0, n_channels=4), {"backend": "mesh"}, "charges"),
    "empty box, float32": (make(3, 50.0, torch.float32), {"backend": "mesh"}, "charges"),
    "pure torch": (make(3, 50.0), {"backend": "mesh", "engine": "none"}, "charges"),
    "potential": (make(3, 50.0), {}, "potential"),
    "dipoles": (make(3, 50.0), {}, "dipoles"),
    "dense box": (make(5000, 37.0), {"backend": "mesh"}, "charges"),
    "dense": (make(400, 16.0), {"backend": "dense"}, "charges"),
    "empty box, dense": (make(3, 30.0), {"backend": "dense"}, "charges"),
    "pairs": (make(450, 16.0, pbc=(False, False, False)), {}, "charges"),
    "pairs, potential": (make(450, 16.0, pbc=(False, False, False)), {}, "potential"),
    "slab": (make(300, 20.0, pbc=(True, True, False)), {}, "charges"),
    "slab, dipoles": (make(300, 20.0, pbc=(True, True, False)), {}, "dipoles"),
}


@pytest.mark.parametrize("name", CASES)
def test_memory_is_predicted_within_a_factor_of_three(name, predictions):
    structure, options, path = CASES[name]
    if options.get("engine") != "none":
        pytest.importorskip("numba", reason="Numba is not installed.")
    energy = energy_of(structure.positions.dtype, **options)
    evaluate(energy, make(3, 5.0, structure.positions.dtype), path)
    predictions.clear()
    found = allocated(lambda: evaluate(energy, structure, path))
    assert found / 3.0 < sum(predictions) < 3.0 * found


@pytest.mark.parametrize("path", ["charges", "dipoles", "potential"])
@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False)], ids=["box", "slab"])
def test_what_fits_into_no_memory_is_refused_before_it_is_taken(path, pbc, monkeypatch):
    structure = make(3, 150.0, pbc=pbc)
    with monkeypatch.context() as patch:
        patch.setattr(auto, "memory_of", lambda device: 1e8)
        patch.setattr("sog_longrange.summation.padded.kernel_on_padded_modes", None)
        patch.setattr("sog_longrange.summation.modes.kernel_on_modes", None)
        with pytest.raises(SizeError, match="at most the 0.1 GB of cpu, got .* GB") as caught:
            evaluate(energy_of(backend="mesh"), structure, path)
    for remedy in ("`tolerance`", "`min_width`", "smaller box", "`pbc` to False"):
        assert remedy in str(caught.value)


def test_what_is_expensive_is_announced_once(monkeypatch):
    monkeypatch.setattr(auto, "_MUCH", 1e6)
    for module in (auto, dispatch):
        monkeypatch.setattr(module, "WORTH_A_LOOK", 1e6)
    energy, structure = energy_of(), make(3, 40.0)
    with pytest.warns(PerformanceWarning, match="takes 2.* MB of memory, as predicted"):
        evaluate(energy, structure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(energy, structure)


def test_the_largest_boxes_are_announced_and_ordinary_ones_are_not(monkeypatch):
    plans = []
    monkeypatch.setattr(
        "sog_longrange.summation.dispatch.check_cost", lambda *cost: plans.append(cost)
    )
    for n_atoms, edge in ((3, 300.0), (10_000, 46.0)):
        structure = make(n_atoms, edge)
        charges, *rest = join([structure])
        how = energy_of(backend="mesh").interaction()
        plan_sums(how, Multipoles(charges), check_structures(*rest))
    (empty, dense) = plans
    with pytest.warns(PerformanceWarning, match="2.6 GB|3.* GB"):
        auto.check_cost(*empty)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        auto.check_cost(*dense)


@pytest.mark.parametrize("kind", ["dense", "mesh", "finufft", "pairs"])
@pytest.mark.parametrize("n_atoms", [1, 100, 20_000])
@pytest.mark.parametrize("edge", [1.0, 20.0, 120.0])
def test_no_prediction_is_above_its_bound(kind, n_atoms, edge):
    for n_channels, tolerance, order in ((1, 1e-2, 0), (4, 1e-8, 1)):
        structure = make(1, edge, n_channels=n_channels)
        charges, *rest = join([structure])
        how = energy_of(tolerance=tolerance).interaction()
        sources = Multipoles(charges, charges.new_zeros(1, 3, n_channels) if order else None)
        size = dispatch._sizes(how, sources, structure.positions)
        layout = check_structures(*rest).layout._replace(counts=[n_atoms])
        predicted = auto.predict_memory(kind, size(n_atoms, layout.lengths[0]))
        bound = dispatch._most_memory(layout, [kind], size)
        assert predicted <= max(bound, auto.WORTH_A_LOOK)


@pytest.mark.parametrize("channels", [1, 8])
def test_pairs_need_memory_for_each_gaussian(channels):
    structure = make(500, 20.0, n_channels=channels)
    charges, positions, *rest = join([structure])
    kernel = SumOfGaussians([coulomb()] * channels, num_channels=channels)
    how = LongRangeEnergy(kernel).interaction()
    size = dispatch._sizes(how, Multipoles(charges), positions)
    predicted = auto.predict_memory("pairs", size(500, (1.0, 1.0, 1.0)))
    assert predicted > 0.5 * 500 * 499 * 12 * channels * 3 * positions.element_size()


def test_pairs_of_kernels_without_gaussians_take_as_much_as_is_measured():
    charges, positions, *_ = join([make(700, 20.0)])
    how = LongRangeEnergy(Ewald(1.0)).interaction()
    size = dispatch._sizes(how, Multipoles(charges), positions)(700, (1.0, 1.0, 1.0))
    # 895 bytes a pair in float64, benchmarked by the peak of energy and forces.
    measured = 895 * size.pairs * positions.element_size() / 8
    assert 0.7 * measured < auto.predict_memory("pairs", size) < 1.5 * measured


def test_the_memory_of_this_machine_is_known():
    assert 1e8 < auto.memory_of(CPU) < 1e15
    assert auto.memory_of(torch.device("mps")) == float("inf")


def test_many_small_structures_are_not_announced():
    generator = torch.Generator().manual_seed(0)
    positions = 3.0 * torch.rand(4000, 3, generator=generator)
    cells, pbc = 3.0 * torch.eye(3).expand(2000, 3, 3), torch.ones(2000, 3, dtype=torch.bool)
    batch = torch.arange(2000).repeat_interleave(2)
    structures = check_structures(positions, cells, pbc, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        how = energy_of(torch.float32, backend="dense").interaction()
        plan_sums(how, Multipoles(torch.ones(4000, 1)), structures)
