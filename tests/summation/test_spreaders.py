"""Compiled loops between atoms and grids against pure torch, and both against each other."""

import math

import pytest
import torch
from references import DOUBLE, relative_error

from sog_longrange.summation.engines.select import find_engine
from sog_longrange.summation.engines.torch_engine import PURE_TORCH
from sog_longrange.summation.grids import Grids
from sog_longrange.summation.multipoles import monomials

CPU = torch.device("cpu")
TURN = 2.0 * math.pi
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-13}
slow = pytest.mark.slow
every_engine = pytest.mark.parametrize("engine", ["none", "numba"])


def engine_of(name):
    if name == "numba":
        pytest.importorskip("numba", reason="Numba is not installed.")
    return find_engine(name, CPU)


def ragged_grids(width):
    """One smallest grid, one without atoms and one of several slabs and blocks."""
    small = width + 1
    return Grids(((small, small, small), (small, 20, 21), (2 * width + 9, small, 20)), width)


class Case:
    """Random phases, sources, potentials and weights on ragged grids."""

    def __init__(self, width, order, dtype=DOUBLE, channels=2):
        generator = torch.Generator().manual_seed(width)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=DOUBLE).to(dtype)

        self.order, self.grids = order, ragged_grids(width)
        self.batch = torch.tensor([0] * 3 + [2] * 30)
        n_atoms, count = len(self.batch), len(monomials(order))
        self.phases = (TURN * torch.rand(n_atoms, 3, generator=generator, dtype=DOUBLE)).to(dtype)
        # Both ends of a turn, where windows wrap around.
        self.phases[0], self.phases[3] = 0.0, (1.0 - 1e-5) * TURN
        self.sources, self.weights = draw(n_atoms, count, channels), draw(n_atoms, count, channels)
        self.field = draw(channels, self.grids.starts[-1])

    def results(self, engine):
        spreader = engine_of(engine).spreader(self.grids, self.phases, self.batch)
        return {
            "spread": spreader.spread(self.sources),
            "interpolate": spreader.interpolate(self.field, self.order),
            "interpolate_gradient": spreader.interpolate_gradient(self.field, self.weights),
        }


def assert_equal(found, expected):
    for name, own in found.items():
        assert own.dtype == expected[name].dtype
        assert own.shape == expected[name].shape
        assert relative_error(own, expected[name]) < ROUNDING[own.dtype], name


# A loop takes a second to compile, once on each machine. Its vectors have 8 or 16 numbers, which
# a width of 7 or 10 leaves partly empty.
@pytest.mark.parametrize(
    ("width", "order", "dtype"),
    [
        *((7, order, DOUBLE) for order in (0, 1, 2)),
        pytest.param(7, 3, DOUBLE, marks=slow),
        *(pytest.param(7, order, torch.float32, marks=slow) for order in (0, 1, 2, 3)),
        *(pytest.param(10, order, DOUBLE, marks=slow) for order in (0, 1, 2, 3)),
    ],
    ids=str,
)
def test_compiled_spreaders_equal_pure_torch(width, order, dtype):
    for channels in (1, 3):
        case = Case(width, order, dtype, channels)
        assert_equal(case.results("numba"), case.results("none"))


def test_orders_beyond_those_that_are_compiled_are_pure_torchs():
    case = Case(7, 4)
    assert_equal(case.results("numba"), case.results("none"))


@pytest.mark.parametrize("order", [0, 1, 2])
@every_engine
def test_spreading_and_interpolation_are_adjoint(order, engine):
    case = Case(7, order)
    found = case.results(engine)
    left = (found["spread"] * case.field).sum()
    right = (found["interpolate"] * case.sources).sum()
    scale = float(found["spread"].norm() * case.field.norm())
    assert abs(float(left - right)) < 1e-13 * scale


def test_spreaders_on_several_threads_equal_those_on_one(monkeypatch):
    compiled = pytest.importorskip(
        "sog_longrange.summation.engines.numba_engine", exc_type=ImportError
    )
    case = Case(7, 1)
    case.grids = Grids(((31, 12, 13), (8, 8, 8), (24, 9, 11)), 7)
    case.field = torch.randn(2, case.grids.starts[-1], dtype=DOUBLE)
    for threads in (2, 7):
        monkeypatch.setattr(compiled, "threads_for", lambda work, threads=threads: threads)
        assert_equal(case.results("numba"), case.results("none"))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["float32", "float64"])
@every_engine
def test_phases_at_both_ends_of_a_turn_meet(dtype, engine):
    end = torch.tensor(TURN, dtype=dtype)
    below = torch.nextafter(end, torch.zeros_like(end))
    batch, grids = torch.zeros(1, dtype=torch.int64), Grids(((8, 33, 20),), 7)
    densities = []
    for phase in (torch.zeros_like(end), below, end):
        spreader = engine_of(engine).spreader(grids, phase.repeat(1, 3), batch)
        densities.append(spreader.spread(torch.ones(1, 1, 1, dtype=dtype)))
    # The window jumps at its ends.
    jump = 5.0 * math.exp(-2.2 * 7) + 1e-5 * (dtype == torch.float32)
    for density in densities[1:]:
        assert relative_error(density, densities[0]) < jump


def test_a_batch_without_atoms_has_empty_results():
    for name in ("none", "numba"):
        nothing, batch = torch.zeros(0, 3, dtype=DOUBLE), torch.zeros(0, dtype=torch.int64)
        spreader = engine_of(name).spreader(ragged_grids(7), nothing, batch)
        field = spreader.spread(nothing[:, :1, None].expand(-1, -1, 2))
        assert field.shape == (2, ragged_grids(7).starts[-1])
        assert not field.any()
        assert spreader.interpolate(field, 1).shape == (0, 4, 2)


def test_chunks_of_atoms_change_nothing(monkeypatch):
    case = Case(7, 1)
    expected = case.results("none")
    monkeypatch.setattr("sog_longrange.summation.engines.torch_engine._CHUNK", 2 * 7**3)
    spreader = PURE_TORCH.spreader(case.grids, case.phases, case.batch)
    assert max(len(case.phases[part]) for part in spreader._chunks()) == 2
    assert_equal(case.results("none"), expected)
