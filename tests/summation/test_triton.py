"""Triton kernels against pure torch: compiled where there is a GPU, interpreted elsewhere."""

import importlib
import math
import os

import pytest
import torch
from references import relative_error, sum_of_gaussians
from torch.autograd import grad

from sog_longrange import coulomb
from sog_longrange.errors import SizeError
from sog_longrange.summation.engines.torch_engine import PURE_TORCH, TorchStencil
from sog_longrange.summation.mesh import Meshes, mesh_energy

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

every_width = pytest.mark.parametrize("width", [5, 6, 7, 10])
every_dtype = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=["float32", "float64"])
every_channel_count = pytest.mark.parametrize("channels", [1, 3])


def ragged_meshes(width):
    """One smallest mesh, one without atoms and one of several blocks."""
    small = width + 1
    return Meshes(((small, small, small), (small, 20, 21), (small + 8, small + 1, 20)), width)


class Case:
    """Random input of a stencil and the stencils themselves."""

    def __init__(self, width, dtype, channels):
        torch.manual_seed(width)
        self.meshes = ragged_meshes(width)
        self.batch = torch.tensor([0, 0, 2, 2, 2], device=DEVICE)
        self.like = {"dtype": dtype, "device": DEVICE}
        self.phases = TURN * torch.rand(5, 3, **self.like)
        self.charges = torch.randn(5, channels, **self.like)
        self.dipoles = torch.randn(5, 3, channels, **self.like)
        self.direction = torch.randn(5, 3, **self.like)
        self.nodes = torch.randn(channels, self.meshes.starts[-1], **self.like)
        self.found = kernels.TritonStencil(self.meshes, self.phases, self.batch)
        self.expected = TorchStencil(self.meshes, self.phases, self.batch)

    def compare(self, method, *args):
        found, expected = (getattr(s, method)(*args) for s in (self.found, self.expected))
        pairs = [(found, expected)] if torch.is_tensor(found) else zip(found, expected, strict=True)
        for a, b in pairs:
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert relative_error(a, b) < TOLERANCES[self.phases.dtype]


@every_width
@every_dtype
@every_channel_count
def test_stencils_agree_with_pure_torch(width, dtype, channels):
    case = Case(width, dtype, channels)
    case.compare("spread", case.charges, None)
    case.compare("spread", case.charges, case.dipoles)
    case.compare("gather", case.nodes)
    case.compare("gather_hessian", case.nodes, case.direction)


@pytest.mark.parametrize("width", [4, 16])
def test_the_extreme_widths_agree_with_pure_torch(width):
    case = Case(width, torch.float64, 1)
    case.compare("spread", case.charges, case.dipoles)
    case.compare("gather", case.nodes)


def test_inputs_need_not_be_contiguous():
    case = Case(5, torch.float64, 3)
    dipoles = case.dipoles.transpose(1, 2).contiguous().transpose(1, 2)
    assert not dipoles.is_contiguous()
    case.compare("spread", case.charges.T.contiguous().T, dipoles)
    case.compare("gather", case.nodes.T.contiguous().T)
    direction = case.direction.T.contiguous().T
    case.compare("gather_hessian", case.nodes, direction)


@every_dtype
@pytest.mark.parametrize("width", [5, 6])
def test_phases_at_both_ends_of_a_turn_meet(width, dtype):
    last = torch.nextafter(torch.tensor(TURN, dtype=dtype), torch.zeros((), dtype=dtype))
    batch = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    charges = torch.ones(1, 1, dtype=dtype, device=DEVICE)
    meshes = Meshes(((width + 1, 9, 8),), width)
    densities = []
    for phase in (torch.zeros_like(last), last):
        stencil = kernels.TritonStencil(meshes, phase.to(DEVICE).expand(1, 3), batch)
        densities.append(stencil.spread(charges, None))
    # The window jumps at its ends, by exp(-2.2 width).
    assert relative_error(densities[1], densities[0]) < 1e-4


def test_a_batch_without_atoms_has_empty_results():
    meshes = ragged_meshes(5)
    empty = torch.zeros(0, 3, device=DEVICE)
    batch = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    stencil = kernels.TritonStencil(meshes, empty, batch)
    nodes = stencil.spread(empty[:, :2], None)
    assert nodes.shape == (2, meshes.starts[-1])
    assert not nodes.any()
    assert [x.shape for x in stencil.gather(nodes)] == [(0, 2), (0, 3, 2)]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_phases_that_are_not_finite_stay_inside_the_mesh():
    phases = torch.tensor([[math.nan, 1.0, 2.0], [0.5, 0.5, 0.5]], device=DEVICE)
    batch = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    charges = torch.ones(2, 1, device=DEVICE)
    meshes = Meshes(((8, 8, 8),), 5)
    nodes = kernels.TritonStencil(meshes, phases, batch).spread(charges, None)
    assert nodes.isnan().any()


def test_meshes_narrower_than_the_window_are_refused():
    case = Case(5, torch.float32, 1)
    with pytest.raises(SizeError, match="window of 5 nodes"):
        kernels.TritonStencil(Meshes(((4, 8, 8),) * 3, 5), case.phases, case.batch)


def energy_and_derivatives(engine):
    """Energy, its gradient and the gradient of the squared gradient, as a flat list."""
    torch.manual_seed(0)
    like = {"dtype": torch.float64, "device": DEVICE}
    cell = 4.0 * torch.eye(3, **like) + 0.4 * torch.rand(2, 3, 3, **like)
    positions = 4.0 * torch.rand(6, 3, **like)
    charges = torch.randn(6, 2, **like)
    batch = torch.tensor([0, 0, 0, 1, 1, 1], device=DEVICE)
    kernel = sum_of_gaussians(coulomb(), num_gaussians=2, max_width=2.5).to(**like)
    inputs = [x.requires_grad_() for x in (positions, charges, cell)] + list(kernel.parameters())
    energy, _ = mesh_energy(kernel, charges, positions, cell, batch, 0.01, engine)
    first = grad(energy.sum(), inputs, create_graph=True)
    square = sum(x.square().sum() for x in first[:3])
    return [x.detach() for x in (energy, *first, *grad(square, inputs))]


def test_energy_forces_and_second_derivatives_agree_with_pure_torch():
    found, expected = map(energy_and_derivatives, (kernels.TRITON, PURE_TORCH))
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-11
