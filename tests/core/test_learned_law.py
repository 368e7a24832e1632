"""The law that a kernel learned, and its uncertainty."""

import math

import pytest
import torch

from sog_longrange import InputError, SOGConfig, SOGLongRange
from sog_longrange.charges.sites import Edges, Sites
from sog_longrange.learned_law import LawEstimate, _forces

BOX = 14.0


def make(dtype=torch.float64, **options):
    torch.manual_seed(0)
    return SOGLongRange([2], SOGConfig(**options)).to(dtype)


def structure(seed, dtype, channels=1, box=BOX, count=24):
    """Charges, positions, cell and pbc of a neutral structure in a box."""
    random = torch.Generator().manual_seed(seed)
    positions = box * torch.rand(count, 3, generator=random, dtype=torch.float64)
    signs = (-1.0) ** torch.arange(count)[:, None].expand(count, channels)
    cell = box * torch.eye(3)[None]
    pbc = torch.ones(1, 3, dtype=torch.bool)
    return signs.to(dtype), positions.to(dtype), cell.to(dtype), pbc


def forces(module, charges, positions, cell, pbc):
    positions = positions.clone().requires_grad_()
    out = module.energy(charges, positions, cell, pbc)
    return -torch.autograd.grad(out.energy.sum(), positions)[0]


def estimate(module, reference, noise=0.01, total=0, seeds=range(3), **options):
    """Estimate of a module from forces of another and noise."""
    dtype = module.energy.kernel.raw_widths.dtype
    made = LawEstimate(module, total, **options)
    random = torch.Generator().manual_seed(7)
    for seed in seeds:
        own = structure(seed, dtype, module.config.num_channels)
        exact = forces(reference, *own)
        exact = exact + noise * torch.randn(exact.shape, generator=random).to(dtype)
        batch = torch.zeros(len(exact), dtype=torch.int64)
        made.add(*own[:1], *own[1:], batch, exact - forces(module, *own))
    return made


def test_an_exact_law_has_exponent_one_and_is_known_better_from_more_structures():
    (few,), (many,) = (estimate(make(), make(), total=n).laws() for n in (0, 300))
    torch.testing.assert_close(few.relative, torch.ones(4).double(), rtol=2e-3, atol=0.0)
    assert (few.exponent[1:] - 1.0).abs().max() < 0.02
    assert few.reach == pytest.approx(BOX / 2)
    inside = few.distances <= few.reach
    assert (many.exponent_error < few.exponent_error)[inside].all()
    assert float(few.relative_error[0]) == pytest.approx(0.0, abs=1e-12)
    assert 1e-4 < float(few.relative_error[1]) < 0.1


@pytest.mark.parametrize("seed", [1, 2])
def test_a_kernel_that_has_not_yet_moved_to_the_law_says_so(seed):
    reference, module = make(), make()
    torch.manual_seed(seed)
    with torch.no_grad():
        reference.energy.kernel.log_amplitudes += 0.3 * torch.randn(1, 12, dtype=torch.float64)
    (true,) = estimate(reference, reference, noise=1e-4).laws()
    (told,) = estimate(module, reference, noise=1e-4, total=10_000).laws()
    (sure,) = estimate(module, module, noise=1e-4, total=10_000).laws()
    off = (told.exponent - true.exponent).abs()[:2]
    assert (off < 3.0 * told.exponent_error[:2]).all()
    assert (off > 3.0 * sure.exponent_error[:2]).any()
    assert (told.exponent_error[:2] < 10.0 * off.max()).all()


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("power_law(exponent=6, strength=-20)", lambda r: 6.0),
        # Of exp(-k r) / r.
        ("yukawa(kappa=0.2)", lambda r: 1 + 0.2 * r - 0.2 * r / (1 + 0.2 * r)),
    ],
)
def test_the_exponent_is_that_of_the_force(kernel, expected):
    module = make(kernel=kernel, max_width=20.0)
    (law,) = estimate(module, module, distances=(6.0, 7.0)).laws()
    # The sum of Gaussians follows its potential to about 1 %.
    for r, found in zip(law.distances, law.exponent, strict=True):
        assert float(found) == pytest.approx(expected(float(r)), rel=0.1)


def test_single_precision_tells_the_same():
    (double,), (single,) = (
        estimate(make(dtype), make(dtype), total=100).laws()
        for dtype in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(single.exponent, double.exponent, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(single.exponent_error, double.exponent_error, rtol=0.1, atol=1e-4)


def test_lines_tell_what_was_seen_and_each_channel():
    lines = estimate(make(), make(), total=300).lines()
    assert lines[0].startswith("Learned law, force between charges")
    assert lines[1].split(": ")[1].startswith("1.00")
    assert lines[1].endswith("at 6 Å, not seen from 8 Å on")
    assert "at 4 Å" in lines[2]
    options = {"kernel": "coulomb+yukawa", "num_channels": 2}
    lines = estimate(make(**options), make(**options)).lines()
    assert [line.split(",")[0] for line in lines[::3]] == [
        "Learned law of channel 0",
        "Learned law of channel 1",
    ]


def test_open_structures_are_seen_to_their_largest_distance():
    module = make()
    made = LawEstimate(module)
    positions = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 5.0]], dtype=torch.float64)
    charges = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    batch = torch.zeros(2, dtype=torch.int64)
    made.add(charges, positions, None, None, batch, torch.full_like(positions, math.nan))
    assert made.lines() == []
    made.add(charges, positions, None, None, batch, 0.1 * torch.ones_like(positions))
    assert made.laws()[0].reach == 5.0
    assert made.lines()[1].endswith("as 1 at 4 Å: not seen from 6 Å on")


def test_kernels_without_or_with_too_many_parameters_are_left_out():
    fixed = make(learn_amplitudes=False, learn_widths=False)
    assert not LawEstimate(fixed).wants_more
    assert estimate(fixed, fixed).lines() == []
    large = make(num_gaussians=60)
    assert not LawEstimate(large).wants_more
    assert "more than 100 numbers" in LawEstimate(large).lines()[0]
    with pytest.raises(InputError, match="`distances` must be"):
        LawEstimate(large, distances=(4.0, 2.0))


def edges_in_box(positions, cell, cutoff):
    """All pairs nearer than a cutoff of at most half a cubic box, and vectors to neighbours."""
    vectors = positions[None] - positions[:, None]
    vectors = vectors - cell[0, 0, 0] * (vectors / cell[0, 0, 0]).round()
    near = (vectors.norm(dim=-1) < cutoff) & ~torch.eye(len(positions), dtype=torch.bool)
    centres, neighbours = near.nonzero().T
    vectors = vectors[centres, neighbours]
    return Edges(centres, neighbours, vectors.norm(dim=-1)), vectors


def test_pairs_that_are_left_to_the_host_tell_nothing():
    torch.manual_seed(0)
    cutoff = 0.5 * BOX
    config = SOGConfig(kernel="dispersion", readout="atoms")
    module = SOGLongRange([2], config, cutoff=cutoff, atomic_numbers=(1,)).double()
    charges, positions, cell, pbc = structure(1, torch.float64)
    charges = 20.0 * charges.abs()
    edges, vectors = edges_in_box(positions, cell, cutoff)
    batch = torch.zeros(len(charges), dtype=torch.int64)
    given = charges, positions, cell, pbc, batch, 1e-3 * torch.randn(len(charges), 3).double()
    with pytest.raises(InputError, match="edges"):
        LawEstimate(module).add(*given)
    made = LawEstimate(module)
    made.add(*given, None, edges, vectors)
    (law,) = made.laws()

    def whole(r):
        r = r.clone().requires_grad_()
        d = r[edges.neighbours] - r[edges.centres] + vectors
        d = d - (positions[edges.neighbours] - positions[edges.centres])
        out = module.energy(charges, r, cell, pbc)
        sites = Sites(Edges(*edges[:2], d.norm(dim=-1)))
        out = module.near.leave_out(out, module.energy.kernel, sites, batch)
        return -torch.autograd.grad(out.energy.sum(), r)[0]

    (sample,) = made._samples
    found = _forces(module.energy, module.near, sample, torch.zeros(len(charges), 1).double())
    torch.testing.assert_close(found, whole(positions).reshape(-1))
    without = LawEstimate(module)
    without.add(*given, None, edges, vectors)
    without._samples[0] = without._samples[0]._replace(pairs=None)
    assert without.laws()[0].exponent_error[0] < 0.3 * law.exponent_error[0]
