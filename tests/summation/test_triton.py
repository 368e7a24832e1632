"""Triton kernels against pure torch: compiled where there is a GPU, interpreted elsewhere."""

import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from references import random_cell, random_structure, relative_error, sum_of_gaussians
from torch.autograd import grad

from sog_longrange import LongRangeEnergy, coulomb
from sog_longrange.errors import SizeError
from sog_longrange.geometry import reciprocal_cell
from sog_longrange.summation.dense import dense_sum
from sog_longrange.summation.engines.torch_direct import TorchDirect
from sog_longrange.summation.engines.torch_engine import PURE_TORCH, TorchSpreader
from sog_longrange.summation.engines.torch_table import TorchSampler
from sog_longrange.summation.grids import Grids
from sog_longrange.summation.kernel_table import choose_intervals
from sog_longrange.summation.mesh import mesh_sum
from sog_longrange.summation.multipoles import Multipoles, monomials
from sog_longrange.summation.rows import grid_rows, sphere_rows
from sog_longrange.testing import join
from sog_longrange.testing.operations import Operations
from sog_longrange.validation import Structures

# Triton decides at its first import whether kernels are compiled or interpreted on the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
triton = pytest.importorskip("triton", reason="Triton is not installed.")
kernels = importlib.import_module("sog_longrange.summation.engines.triton_engine")
tables = importlib.import_module("sog_longrange.summation.engines.triton_table")
direct = importlib.import_module("sog_longrange.summation.engines.triton_direct")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COMPILED = isinstance(triton.language.sum, triton.JITFunction)
if COMPILED and DEVICE.type == "cpu":
    pytest.skip(
        "There is no GPU, and Triton was imported without TRITON_INTERPRET=1.",
        allow_module_level=True,
    )

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-13}
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


# The dense sum and the kernel's table.

CUTOFF = 3.0
CELLS = torch.stack(
    [
        random_cell(1, 4.0),
        torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)[:, None] * random_cell(2, 5.0),
        torch.diag(torch.tensor([3.0, 4.0, 18.0], dtype=torch.float64)),
        0.5 * torch.eye(3, dtype=torch.float64),
    ]
)
"""Sheared, left-handed, long, and so small that k = 0 is the only mode."""

# Half of the modes in a sphere, along rows that begin anywhere, and all modes of grids.
ROWS = {
    "sphere": lambda: sphere_rows(CELLS.numpy(), CUTOFF),
    "grid": lambda: grid_rows(Grids(((5, 4, 6), (4, 5, 4), (3, 3, 36), (3, 3, 3)), 2)),
}


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=["float32", "float64"])
@pytest.mark.parametrize(("rows", "channels"), [("sphere", 1), ("grid", 2)])
def test_tables_agree_with_pure_torch(rows, channels, dtype):
    torch.manual_seed(0)
    like = {"dtype": dtype, "device": DEVICE}
    intervals, rows = choose_intervals(18.0, CUTOFF, dtype), ROWS[rows]()
    reciprocal = (reciprocal_cell(CELLS) / CUTOFF).to(**like)
    u, c = torch.randn(2, channels, intervals.rows, intervals.degree + 1, **like)
    u[:, -1] = c[:, -1] = 0.0
    upstream = torch.randn(channels, rows.total, **like)
    samplers = [make(intervals, rows) for make in (tables.TritonSampler, TorchSampler)]
    for extra in ((), (c, torch.randn(4, 3, 3, **like))):
        found, expected = (own.values(u, reciprocal, *extra) for own in samplers)
        assert relative_error(found, expected) < TOLERANCES[dtype]
        results = [own.gradients(upstream, u, reciprocal, *extra) for own in samplers]
        for found, expected in zip(*results, strict=True):
            assert found.dtype == expected.dtype
            assert found.shape == expected.shape
            # The last row, beyond the cutoff, belongs to no parameter.
            kept = slice(None) if found is results[0][1] else slice(-1)
            assert relative_error(found[:, kept], expected[:, kept]) < TOLERANCES[dtype]


def direct_sums(rows, counts, order, dtype=torch.float64, channels=1):
    """Structure factors, derivatives and a gradient by Triton and by PyTorch."""
    torch.manual_seed(order)
    like = {"dtype": dtype, "device": DEVICE}
    batch = torch.arange(len(counts), device=DEVICE).repeat_interleave(
        torch.tensor(counts, device=DEVICE)
    )
    phases = TURN * torch.rand(sum(counts), 3, **like)
    sources = torch.randn(channels, len(monomials(order)), sum(counts), **like).permute(2, 1, 0)
    field = torch.randn(rows.total, channels, dtype=dtype.to_complex(), device=DEVICE).T.conj()
    for make in (direct.TritonDirect, TorchDirect):
        own = make(rows, phases, batch)
        results = [own.spread(sources), own.interpolate(field, order)]
        # The gradient takes the derivatives of the next order.
        yield results if order > 1 else [*results, own.interpolate_gradient(field, sources)]


@pytest.mark.parametrize(
    ("rows", "order", "dtype", "channels"),
    [
        *(("sphere", order, torch.float64, 1) for order in (0, 1, 2, 3)),
        ("sphere", 4, torch.float64, 1),
        ("grid", 1, torch.float64, 2),
        ("sphere", 0, torch.float32, 3),
        ("grid", 2, torch.float32, 1),
    ],
    ids=str,
)
def test_direct_sums_agree_with_pure_torch(rows, order, dtype, channels):
    results = direct_sums(ROWS[rows](), (3, 0, 6, 1), order, dtype, channels)
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert relative_error(found, expected) < TOLERANCES[dtype]


def test_direct_sums_of_which_programs_share_the_atoms_and_rows(monkeypatch):
    # As on a GPU with room for many more programs, and with more rows than one program takes.
    monkeypatch.setattr(direct, "_SPLIT", 1)
    monkeypatch.setattr(direct, "_SPANS", (2, 4))
    for enough in (1, 1000):
        monkeypatch.setattr(direct, "_ENOUGH", enough)
        for found, expected in zip(*direct_sums(ROWS["sphere"](), (5, 1, 4, 0), 0), strict=True):
            assert relative_error(found, expected) < 1e-13


def test_blocks_of_many_atoms_reach_over_several_structures():
    rows = sphere_rows(CELLS[[0, 1, 3]].numpy(), 2.0)
    for found, expected in zip(*direct_sums(rows, (41, 20, 2), 0), strict=True):
        assert relative_error(found, expected) < 1e-13


def test_phase_factors_of_single_precision_lose_no_digits_to_many_turns():
    cell = torch.diag(torch.tensor([2.0, 2.0, 400.0], dtype=torch.float64))
    rows = sphere_rows(cell[None].numpy(), CUTOFF)
    batch = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    phases = TURN * torch.rand(3, 3, device=DEVICE)
    ones = torch.ones(3, 1, 1, device=DEVICE)
    found = direct.TritonDirect(rows, phases, batch).spread(ones)
    expected = TorchDirect(rows, phases.double(), batch).spread(ones.double())
    assert rows.reach.max() > 180
    assert relative_error(found, expected) < 3e-7


def test_a_direct_sum_without_atoms_is_zero():
    rows, batch = ROWS["sphere"](), torch.zeros(0, dtype=torch.int64, device=DEVICE)
    empty = torch.zeros(0, 3, device=DEVICE)
    own = direct.TritonDirect(rows, empty, batch)
    field = own.spread(empty[:, :1, None].expand(-1, -1, 2))
    assert field.shape == (2, rows.total)
    assert not field.any()
    assert own.interpolate(field, 1).shape == (0, 4, 2)


def test_direct_sums_repeat_with_tables_kept_on_the_device(monkeypatch):
    rows = ROWS["sphere"]()
    list(direct_sums(rows, (3, 0, 6, 1), 0))
    monkeypatch.setattr(direct, "on_device", None)
    monkeypatch.setattr(direct, "row_tiles", None)
    list(direct_sums(rows, (1, 1, 1, 2), 1))


# Energies.


def energy_and_derivatives(engine, order, evaluate):
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
    energy = LongRangeEnergy(kernel, tolerance=0.01)
    interaction = energy.interaction()._replace(engine=engine)
    sources = Multipoles(charges, dipoles if order else None)
    structures = Structures(positions, cell, pbc, batch, 2)
    out = evaluate(interaction, sources, structures, field=True)
    inputs = [*leaves, *kernel.parameters()]
    first = grad(out.energy.sum(), inputs, create_graph=True)
    square = sum(x.square().sum() for x in (*first[: len(leaves)], *out[1:]))
    return [x.detach() for x in (*out, *first, *grad(square, inputs))]


@pytest.fixture
def engines(monkeypatch):
    """Triton's engine, interpreted on CPUs, where it is none otherwise, and PyTorch's."""
    monkeypatch.setattr(
        "sog_longrange.summation.interaction.find_engine",
        lambda name, device: kernels.TRITON if name == "triton" else PURE_TORCH,
    )
    # Of the name alone, whatever device there is.
    monkeypatch.setattr("sog_longrange.energy.check_engine", lambda name: None)


@pytest.mark.parametrize(("evaluate", "order"), [(mesh_sum, 0), (mesh_sum, 1), (dense_sum, 1)])
def test_energy_forces_and_second_derivatives_agree_with_pure_torch(evaluate, order, engines):
    results = (energy_and_derivatives(name, order, evaluate) for name in ("triton", "none"))
    for a, b in zip(*results, strict=True):
        assert relative_error(a, b) < 1e-11


LAUNCHES = {"dense": (4, 8), "mesh": (5, 10)}
"""Of energy and forces, and of a training step; the same for every batch."""


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("backend", LAUNCHES)
def test_launches_are_as_many_for_a_batch_as_for_one_structure(backend, count, engines):
    structures = join([random_structure(seed, 3) for seed in range(count)])
    charges, positions, *rest = [x.to(DEVICE) if torch.is_tensor(x) else x for x in structures]
    kernel = sum_of_gaussians(coulomb(), num_gaussians=2, max_width=2.5).to(positions)
    leaves = [positions.requires_grad_(), charges.requires_grad_(), *kernel.parameters()]
    results = {}
    for engine in ("none", "triton"):
        model = LongRangeEnergy(kernel, tolerance=0.01, backend=backend, engine=engine)
        with Operations() as first:
            energy = model(charges, positions, *rest).energy.sum()
            (forces,) = grad(energy, positions, create_graph=True)
        with Operations() as second:
            gradients = grad(energy.square() + forces.square().sum(), leaves)
        results[engine] = [energy.detach(), forces.detach(), *gradients]
    launches = first.counts["launch"], first.counts["launch"] + second.counts["launch"]
    assert launches == LAUNCHES[backend]
    assert second.host_reads == 0
    for a, b in zip(*results.values(), strict=True):
        assert relative_error(a, b) < 1e-11


@pytest.mark.slow
def test_all_kernels_compile_for_a_gpu_that_is_not_there():
    worker = Path(__file__).parent / "compile_kernels.py"
    options = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, worker], capture_output=True, text=True, check=False, env=options
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 20
