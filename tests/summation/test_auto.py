"""The choice of backend and engine."""

import math
import warnings

import pytest
import torch
from references import evaluate, random_structure, relative_error, sum_of_gaussians
from torch.autograd import grad

from sog_longrange import ConfigError, Ewald, LongRangeEnergy
from sog_longrange.errors import PerformanceWarning
from sog_longrange.summation import cost_model as auto
from sog_longrange.summation.cost_model import BACKENDS, choose_backend
from sog_longrange.summation.cost_terms import Size
from sog_longrange.summation.engines import select as engines
from sog_longrange.summation.resolution import Resolution
from sog_longrange.testing import join
from sog_longrange.validation import check_structures

TINY, LARGE, HUGE = (4, 4.0), (10_000, 46.0), (2_000_000, 270.0)


def size_of(n_atoms, edge, **options):
    """Size of a structure of water's density."""
    options = {"n_channels": 1, "dtype": torch.float64, "compiled": True} | options
    resolution = Resolution.of(1.0, options.pop("tolerance", 1e-4), options.pop("order", 0))
    return Size(n_atoms, lengths=(edge, edge, edge), resolution=resolution, device="cpu", **options)


@pytest.fixture
def no_library(monkeypatch):
    """No engine is installed, and nothing has been announced."""
    monkeypatch.setattr(engines, "is_installed", lambda name: False)
    engines._announce.cache_clear()
    yield
    engines._announce.cache_clear()


@pytest.mark.parametrize(
    ("dtype", "compiled", "channels", "tolerance"),
    [
        (torch.float32, True, 1, 1e-2),
        (torch.float64, True, 4, 1e-6),
        (torch.float64, False, 1, 1e-4),
        (torch.float64, False, 4, 1e-6),
    ],
)
def test_ten_thousand_atoms_are_not_summed_mode_by_mode(dtype, compiled, channels, tolerance):
    if channels > 1 and not compiled:
        # Meshes in pure PyTorch alone are less than ten times faster.
        pytest.importorskip("finufft", reason="FINUFFT is not installed.")
    options = {"dtype": dtype, "compiled": compiled, "tolerance": tolerance}
    choice = choose_backend(size_of(*LARGE, n_channels=channels, **options))
    assert choice.backend in ("mesh", "finufft")
    assert choice.costs["dense"] > 10.0 * choice.costs[choice.backend]


@pytest.mark.parametrize("size", [TINY, LARGE, HUGE])
def test_the_choice_has_the_smallest_cost(size):
    choice = choose_backend(size_of(*size))
    assert set(choice.costs) == set(BACKENDS) - {"auto"}
    assert choice.costs[choice.backend] == min(choice.costs.values())
    assert math.isfinite(choice.costs[choice.backend])
    assert all(cost > 0.0 for cost in choice.costs.values())


@pytest.mark.parametrize("field", ["n_atoms", "n_channels", "edge"])
@pytest.mark.parametrize("name", ["mesh", "dense", "finufft"])
def test_costs_rise_with_the_size(name, field):
    if name == "finufft":
        pytest.importorskip("finufft", reason="FINUFFT is not installed.")
    small = {"n_atoms": 500, "n_channels": 1, "edge": 20.0}
    large = small | {field: 3 * small[field]}
    a, b = (choose_backend(size_of(**x)) for x in (small, large))
    assert b.costs[name] > a.costs[name]
    assert b.memory[name] > a.memory[name]


def test_what_fits_into_no_memory_is_never_chosen():
    costs = choose_backend(size_of(1000, 2000.0)).costs
    assert all(math.isinf(cost) for cost in costs.values())


def test_a_library_that_is_missing_is_never_chosen(monkeypatch):
    monkeypatch.setattr(auto, "_has_finufft", lambda *_: False)
    for tolerance in (1e-2, 1e-12):
        choice = choose_backend(size_of(*LARGE, tolerance=tolerance))
        assert math.isinf(choice.costs["finufft"])
        assert choice.backend != "finufft"


def choices_of(model, structures):
    charges, *rest = join(structures)
    return model.choices(charges, check_structures(*rest))


def mixed_structures():
    small = random_structure(1, 2, edge=3.0)
    large = random_structure(2, 300, edge=15.0)
    free = random_structure(3, 4, periodic=False)
    none = small._replace(charges=small.charges[:0], positions=small.positions[:0])
    return [large, free, small, none, large]


def test_the_choice_does_not_depend_on_the_batch():
    model = LongRangeEnergy(Ewald(1.0), tolerance=1e-3)
    structures = mixed_structures()
    together = choices_of(model, structures)
    assert sorted(together) == [0, 2, 3, 4]
    for index, choice in together.items():
        assert choices_of(model, [structures[index]])[0] == choice


def test_the_energy_is_that_of_the_chosen_backends_in_every_batch(monkeypatch):
    # Costs by which small structures and large ones part.
    times = {"mesh": 10.0, "finufft": 20.0}
    monkeypatch.setattr(auto, "_time", lambda kind, size: times.get(kind, 1.0 * size.n_atoms))
    model = LongRangeEnergy(Ewald(1.0), tolerance=1e-3, engine="none")
    structures = mixed_structures()
    names = {i: choice.backend for i, choice in choices_of(model, structures).items()}
    assert names == {0: "mesh", 2: "dense", 3: "dense", 4: "mesh"}
    charges, positions, *rest = join(structures)
    positions.requires_grad_()
    out = model(charges, positions, *rest)
    force = grad(out.energy.sum(), positions)[0]
    energies, forces, potentials = [], [], []
    for index, structure in enumerate(structures):
        alone = LongRangeEnergy(
            Ewald(1.0),
            tolerance=1e-3,
            engine="none",
            backend=names.get(index, "dense"),
        )
        r = structure.positions.clone().requires_grad_()
        part = evaluate(alone, structure._replace(positions=r))
        energies.append(part.energy)
        potentials.append(part.potential)
        forces.append(grad(part.energy.sum(), r)[0] if len(r) else r)
    for found, expected in ((out.energy, energies), (force, forces), (out.potential, potentials)):
        assert relative_error(found.detach(), torch.cat(expected).detach()) < 1e-12


@pytest.mark.parametrize(("n_atoms", "edge"), [(3, 3.0), (60, 8.0), (300, 15.0)])
def test_the_energy_of_auto_is_that_of_its_choice(n_atoms, edge):
    structure = random_structure(0, n_atoms, edge=edge)
    model = LongRangeEnergy(sum_of_gaussians(), tolerance=1e-3)
    choice = choices_of(model, [structure])[0]
    chosen = LongRangeEnergy(model.kernel, tolerance=1e-3, backend=choice.backend)
    found, expected = (evaluate(m, structure).energy for m in (model, chosen))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0.0)


def test_a_choice_tells_the_predicted_costs():
    (choice,) = choices_of(LongRangeEnergy(Ewald(1.0)), [random_structure(0)]).values()
    text = str(choice)
    assert text.startswith(f"{choice.backend} (predicted: ")
    for name, cost in choice.costs.items():
        assert f"{name} {cost:.3g} ms" in text


@pytest.mark.parametrize("name", ["pme", "", "Mesh", None])
def test_an_unknown_backend_is_refused_with_the_list(name):
    with pytest.raises(ConfigError, match="one of auto, dense, mesh, finufft") as caught:
        LongRangeEnergy(Ewald(1.0), backend=name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["jax", "", "Numba", None])
def test_an_unknown_engine_is_refused_with_the_list(name):
    with pytest.raises(ConfigError, match="one of auto, none, numba, triton") as caught:
        LongRangeEnergy(Ewald(1.0), engine=name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["numba", "triton"])
def test_an_engine_that_is_missing_is_refused_with_its_remedy(name, no_library):
    with pytest.raises(ConfigError, match=f"pip install {name}"):
        LongRangeEnergy(Ewald(1.0), engine=name)


def test_an_engine_for_another_device_is_refused():
    with pytest.raises(ConfigError, match="'numba' for tensors on cpu"):
        engines.find_engine("triton", torch.device("cpu"))


def test_a_missing_engine_is_announced_once(no_library):
    model = LongRangeEnergy(Ewald(1.0), tolerance=1e-2, backend="mesh")
    structure = random_structure(0)
    with pytest.warns(PerformanceWarning, match="pip install numba"):
        found = evaluate(model, structure).energy
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = evaluate(model, structure).energy
    assert torch.equal(found, again)


def test_pure_torch_on_purpose_is_not_announced(no_library):
    model = LongRangeEnergy(Ewald(1.0), tolerance=1e-2, backend="mesh", engine="none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bool(evaluate(model, random_structure(0)).energy.isfinite())


def test_auto_takes_numba_on_the_cpu():
    pytest.importorskip("numba", reason="Numba is not installed.")
    assert engines.find_engine("auto", torch.device("cpu")).name == "numba"
    assert engines.find_engine("none", torch.device("cpu")).name == "torch"
