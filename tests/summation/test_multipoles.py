"""Spreading and interpolation: adjoint, each the other's derivative, and as sums over modes."""

import math

import pytest
import torch
from references import DOUBLE, random_cell, relative_error

from sog_longrange.summation.dense import DenseBackend
from sog_longrange.summation.engines.select import find_engine
from sog_longrange.summation.engines.torch_engine import PURE_TORCH, TorchSpreader
from sog_longrange.summation.finufft import FinufftBackend
from sog_longrange.summation.grids import Grids
from sog_longrange.summation.mesh import MeshBackend
from sog_longrange.summation.multipoles import (
    Multipoles,
    convolve,
    interpolate,
    monomials,
    order_of,
    raised,
    spread,
)
from sog_longrange.summation.rows import centred_rows
from sog_longrange.testing import assert_twice_differentiable

COUNTS = (2, 0, 3)
BATCH = torch.tensor([0] * COUNTS[0] + [2] * COUNTS[2])
REACH = (2, 1, 2)
"""Largest mode along each axis."""


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=DOUBLE)


def phases_of(n_atoms=5):
    generator = torch.Generator().manual_seed(1)
    return 2.0 * math.pi * torch.rand(n_atoms, 3, generator=generator, dtype=DOUBLE)


def full_axes():
    return [torch.arange(-n, n + 1).to(DOUBLE) for n in REACH]


SHAPE = tuple(2 * n + 1 for n in REACH)


def dense_backend(engine):
    """All modes, rather than half of them, so that they are those of FINUFFT."""
    return DenseBackend(centred_rows((SHAPE,) * 3), BATCH, engine.direct)


def numba_backend():
    pytest.importorskip("numba", reason="Numba is not installed.")
    return dense_backend(find_engine("numba", torch.device("cpu")))


def finufft_backend():
    pytest.importorskip("finufft", reason="FINUFFT is not installed.")
    return FinufftBackend([SHAPE] * 3, BATCH, [0, 2, 2, 5], 1e-13)


def waves_of(order):
    """(i m)^a exp(i m.theta) of all modes, derivatives and atoms, from the definition."""
    modes = torch.cartesian_prod(*full_axes())
    powers = [1j ** sum(a) * (modes ** torch.tensor(a)).prod(-1) for a in monomials(order)]
    return torch.stack(powers)[:, None] * torch.exp(1j * (phases_of() @ modes.T))


MODE_BACKENDS = {
    "dense": lambda: dense_backend(PURE_TORCH),
    "dense-numba": numba_backend,
    "finufft": finufft_backend,
}


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("name", MODE_BACKENDS)
def test_sums_over_modes_are_those_of_their_definition(name, order):
    backend, waves = MODE_BACKENDS[name](), waves_of(order)
    backend.set_phases(phases_of())
    sources = draw(len(BATCH), len(monomials(order)), 2)
    one = torch.nn.functional.one_hot(BATCH, 3).to(waves)
    expected = torch.einsum("ng,nap,anm->gpm", one, sources.to(waves), waves.conj())
    spectrum = backend.spread(sources)
    assert relative_error(spectrum.view(2, 3, -1).transpose(0, 1), expected) < 1e-11
    # The spectrum of a real field, as those of sources are.
    values = torch.einsum("ng,gpm,anm->nap", one, expected, waves)
    found = backend.interpolate(spectrum, order)
    assert relative_error(found, values.real) < 1e-11
    weights = draw(len(BATCH), len(monomials(order)), 2, seed=2)
    gradient = backend.interpolate_gradient(spectrum, weights)
    higher = torch.einsum("ng,gpm,anm->nap", one, expected, waves_of(order + 1)).real
    columns = [(weights * higher[:, list(own)]).sum((1, 2)) for own in raised(order)]
    assert relative_error(gradient, torch.stack(columns, 1)) < 1e-11


def test_monomials_are_ordered_by_degree_and_raised_along_each_axis():
    assert [len(monomials(order)) for order in range(4)] == [1, 4, 10, 20]
    assert [order_of(len(monomials(order))) for order in range(4)] == [0, 1, 2, 3]
    assert monomials(1) == ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    for axis, places in enumerate(raised(2)):
        for own, place in zip(monomials(2), places, strict=True):
            higher = list(own)
            higher[axis] += 1
            assert monomials(3)[place] == tuple(higher)


def test_dipoles_are_sources_of_first_order_in_the_phases():
    charges, dipoles = draw(5, 2), draw(5, 3, 2, seed=1)
    reciprocal = torch.stack([random_cell(s) for s in range(3)])
    found = Multipoles(charges, dipoles).in_phase_space(reciprocal, BATCH)
    assert torch.equal(found[:, 0], charges)
    # mu.grad = sum_k (mu.B_k) d/dtheta_k, as theta_k = B_k.r.
    for atom, graph in enumerate(BATCH.tolist()):
        torch.testing.assert_close(found[atom, 1:], reciprocal[graph] @ dipoles[atom])


@pytest.fixture
def mesh():
    """Two grids of different shapes, each with half of its modes; the last one has a mirror."""
    grids = Grids(((6, 5, 7), (5, 8, 5)), 4)
    return MeshBackend(grids, torch.tensor([0, 1]), PURE_TORCH)


def as_sum(backend, order):
    """Interpolation of the potential of sources of one order, through a kernel; (2, n_a, 1)."""

    def function(sources, phases, table):
        backend.set_phases(phases.detach())
        psi = convolve(backend, table, spread(backend, sources, phases))
        return interpolate(backend, psi, phases, order)

    return function


@pytest.mark.parametrize("order", [0, 1, 2])
def test_spreading_and_interpolation_are_each_others_derivatives(order, mesh):
    sources = draw(2, len(monomials(order)), 1)
    weights = draw(2, len(monomials(order)), 1, seed=3)
    table = draw(1, mesh.mode_starts[-1], seed=4)
    function = as_sum(mesh, order)

    def contraction(sources, phases, amplitude):
        # A random direction of the table: all of its modes would take minutes.
        return (weights * function(sources, phases, table * amplitude.exp())).sum()

    amplitude = draw(1, mesh.mode_starts[-1], seed=5).mul_(0.3)
    scale = float(contraction(sources, phases_of(2), amplitude).abs())
    assert_twice_differentiable(
        lambda w, theta, a: contraction(w, theta, amplitude * a) / scale,
        (sources, phases_of(2), torch.ones(1, dtype=DOUBLE)),
        step=1e-5,
    )


@pytest.mark.parametrize("method", ["spread", "interpolate"])
def test_a_wrong_pair_would_be_noticed(method, mesh, monkeypatch):
    right = getattr(TorchSpreader, method)

    def wrong(self, values, *order):
        own = right(self, values, *order)
        highest = values.shape[1] == 4 if method == "spread" else order == (1,)
        return 1.01 * own if highest else own

    monkeypatch.setattr(TorchSpreader, method, wrong)
    function, table = as_sum(mesh, 0), draw(1, mesh.mode_starts[-1]).abs()
    with pytest.raises(AssertionError, match="derivatives are wrong"):
        assert_twice_differentiable(
            lambda theta: function(draw(2, 1, 1), theta, table).sum(), (phases_of(2),)
        )
