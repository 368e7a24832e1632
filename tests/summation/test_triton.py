"""Triton kernels against pure torch: compiled where there is a GPU, interpreted elsewhere."""

import importlib
import math
import os

import pytest
import torch
from references import relative_error, sum_of_gaussians
from torch.autograd import grad

from sog_longrange import LongRangeEnergy, coulomb
from sog_longrange.errors import SizeError
from sog_longrange.summation.engines.torch_engine import PURE_TORCH, TorchSpreader
from sog_longrange.summation.grids import Grids
from sog_longrange.summation.mesh import mesh_sum
from sog_longrange.summation.multipoles import Multipoles, monomials
from sog_longrange.validation import Structures

# Triton decides at its first import whether kernels are compiled or interpreted on the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
triton = pytest.importorskip("triton", reason="Triton is not installed.")
kernels = importlib.import_module("sog_longrange.summation.engines.triton_engine")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COMPILED = isinstance(triton.language.sum, triton.JITFunction)
if COMPILED and DEVICE.type == "cpu":
    pytest.skip(
        "There is no GPU, and Triton was imported without TRITON_INTERPRET=1.",
        allow_module_level=True,
    )

TOLERANCES = {torch.float32: 3e-6, torch.float64: 1e-13}
TURN = 2.0 * math.pi

# Vectors of 8 and 16 numbers, which these widths leave partly empty.
WIDTHS = (7, 10)


def ragged_grids(width):
    """One smallest grid, one without atoms and one of several blocks."""
    small = width + 1
    return Grids(((small, small, small), (small, 20, 21), (small + 8, small + 1, 20)), width)


class Case:
    """Random phases, sources, potentials and weights, and the spreaders themselves."""

    def __init__(self, width, order, dtype=torch.float64, channels=2):
        torch.manual_seed(width)
        self.order, self.grids = order, ragged_grids(width)
        batch = torch.tensor([0, 0, 2, 2, 2], device=DEVICE)
        like = {"dtype": dtype, "device": DEVICE}
        count = len(monomials(order))
        self.phases = TURN * torch.rand(5, 3, **like)
        self.sources = torch.randn(5, count, channels, **like)
        self.weights = torch.randn(5, count, channels, **like)
        self.field = torch.randn(channels, self.grids.starts[-1], **like)
        self.found = kernels.TritonSpreader(self.grids, self.phases, batch)
        self.expected = TorchSpreader(self.grids, self.phases, batch)

    def compare(self, method, *args):
        found, expected = (getattr(s, method)(*args) for s in (self.found, self.expected))
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert relative_error(found, expected) < TOLERANCES[self.phases.dtype]


@pytest.mark.parametrize(
    ("width", "order", "dtype", "channels"),
    [
        *((width, order, torch.float64, 1) for width in WIDTHS for order in (0, 1, 2, 3)),
        *((7, order, torch.float32, 3) for order in (0, 1, 2)),
        (7, 4, torch.float64, 1),
    ],
    ids=str,
)
def test_spreaders_agree_with_pure_torch(width, order, dtype, channels):
    case = Case(width, order, dtype, channels)
    case.compare("spread", case.sources)
    case.compare("interpolate", case.field, order)
    case.compare("interpolate_gradient", case.field, case.weights)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_spreading_and_interpolation_are_adjoint(order):
    case = Case(7, order)
    density = case.found.spread(case.sources)
    left = (density * case.field).sum()
    right = (case.found.interpolate(case.field, order) * case.sources).sum()
    assert abs(float(left - right)) < 1e-13 * float(density.norm() * case.field.norm())


def test_inputs_need_not_be_contiguous():
    case = Case(7, 1, channels=3)
    sources = case.sources.transpose(1, 2).contiguous().transpose(1, 2)
    assert not sources.is_contiguous()
    case.compare("spread", sources)
    case.compare("interpolate", case.field.T.contiguous().T, 1)
    case.compare("interpolate_gradient", case.field, sources)


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=["float32", "float64"])
@pytest.mark.parametrize("width", [5, 6])
def test_phases_at_both_ends_of_a_turn_meet(width, dtype):
    last = torch.nextafter(torch.tensor(TURN, dtype=dtype), torch.zeros((), dtype=dtype))
    batch = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    sources = torch.ones(1, 1, 1, dtype=dtype, device=DEVICE)
    grids = Grids(((width + 1, 9, 8),), width)
    densities = []
    for phase in (torch.zeros_like(last), last):
        spreader = kernels.TritonSpreader(grids, phase.to(DEVICE).expand(1, 3), batch)
        densities.append(spreader.spread(sources))
    # The window jumps at its ends, by exp(-2.2 width).
    assert relative_error(densities[1], densities[0]) < 1e-4


def test_a_batch_without_atoms_has_empty_results():
    grids = ragged_grids(7)
    empty = torch.zeros(0, 3, device=DEVICE)
    batch = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    spreader = kernels.TritonSpreader(grids, empty, batch)
    field = spreader.spread(empty[:, :1, None].expand(-1, -1, 2))
    assert field.shape == (2, grids.starts[-1])
    assert not field.any()
    assert spreader.interpolate(field, 1).shape == (0, 4, 2)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_phases_that_are_not_finite_stay_inside_the_grid():
    phases = torch.tensor([[math.nan, 1.0, 2.0], [0.5, 0.5, 0.5]], device=DEVICE)
    batch = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    grids = Grids(((8, 8, 8),), 7)
    spreader = kernels.TritonSpreader(grids, phases, batch)
    assert spreader.spread(torch.ones(2, 1, 1, device=DEVICE)).isnan().any()


def test_grids_narrower_than_the_window_are_refused():
    phases = torch.zeros(1, 3, device=DEVICE)
    batch = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    with pytest.raises(SizeError, match="5"):
        kernels.TritonSpreader(Grids(((4, 8, 8),), 5), phases, batch)


def energy_and_derivatives(engine, order):
    """Energy, potential, field, gradients and gradients of squared gradients, as a flat list."""
    torch.manual_seed(0)
    like = {"dtype": torch.float64, "device": DEVICE}
    cell = 4.0 * torch.eye(3, **like) + 0.4 * torch.rand(2, 3, 3, **like)
    positions = 4.0 * torch.rand(6, 3, **like)
    charges, dipoles = torch.randn(6, 2, **like), torch.randn(6, 3, 2, **like)
    batch = torch.tensor([0, 0, 0, 1, 1, 1], device=DEVICE)
    kernel = sum_of_gaussians(coulomb(), num_gaussians=2, max_width=2.5).to(**like)
    pbc = torch.ones(2, 3, dtype=torch.bool, device=DEVICE)
    leaves = [x.requires_grad_() for x in (positions, charges, cell, dipoles)[: 3 + order]]
    energy = LongRangeEnergy(kernel, tolerance=0.01, backend="mesh")
    interaction = energy.interaction()._replace(engine=engine)
    sources = Multipoles(charges, dipoles if order else None)
    structures = Structures(positions, cell, pbc, batch, 2)
    out = mesh_sum(interaction, sources, structures, field=True)
    inputs = [*leaves, *kernel.parameters()]
    first = grad(out.energy.sum(), inputs, create_graph=True)
    square = sum(x.square().sum() for x in (*first[: len(leaves)], *out[1:]))
    return [x.detach() for x in (*out, *first, *grad(square, inputs))]


@pytest.mark.parametrize("order", [0, 1])
def test_energy_forces_and_second_derivatives_agree_with_pure_torch(order, monkeypatch):
    # Interpreted on the CPU, where it is no engine otherwise.
    monkeypatch.setattr(
        "sog_longrange.summation.interaction.find_engine",
        lambda name, device: kernels.TRITON if name == "triton" else PURE_TORCH,
    )
    found, expected = (energy_and_derivatives(name, order) for name in ("triton", "none"))
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-11
