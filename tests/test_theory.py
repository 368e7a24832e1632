"""Formulas of the pages in docs/theory, as they are written there, beside the code."""

import math

import pytest
import torch
from references import DOUBLE

from sog_longrange import (
    ChargeStates,
    LongRangeEnergy,
    SumOfGaussians,
    project_total_charge,
    yukawa,
)
from sog_longrange.charges.bonds import bond_order
from sog_longrange.charges.flows import FlowingCharges
from sog_longrange.charges.sites import Edges, Sites
from sog_longrange.geometry import taper
from sog_longrange.kernels.dispersion import Dispersion
from sog_longrange.kernels.initial import log_spaced
from sog_longrange.near_pairs import switch
from sog_longrange.units import COULOMB_CONSTANT

WIDTHS = log_spaced(1.2, 100.0, 12)
RATIO = float(WIDTHS[1] / WIDTHS[0])


@pytest.fixture(autouse=True)
def double():
    default = torch.get_default_dtype()
    torch.set_default_dtype(DOUBLE)
    torch.manual_seed(2)
    yield
    torch.set_default_dtype(default)


def gaussians(r, amplitudes, widths):
    return (amplitudes * torch.exp(-0.5 * r**2 / widths**2)).sum()


@pytest.mark.parametrize(("n", "radius"), [(6, 2.5), (8, 3.0)])
def test_dispersion(n, radius):
    found, half = Dispersion(n, radius), n / 2
    scale = math.gamma(half + 12) / (math.gamma(12) * math.gamma(half + 1))
    rho = radius * scale ** (1 / n)
    r = torch.tensor([0.0, 2.0, 5.0, 9.0])
    squares, total = r**2 + rho**2, 0.0
    for m in range(12):
        binomial = math.gamma(half + m) / (math.gamma(m + 1) * math.gamma(half))
        total = total + binomial * (rho**2 / squares) ** m
    torch.testing.assert_close(found.radial(r), -(squares**-half) * total)
    assert float(found.radial(r[:1])) == pytest.approx(-(radius**-n))
    kept = torch.special.gammaincc(torch.full_like(WIDTHS, 12.0), rho**2 / (2.0 * WIDTHS**2))
    power = -(2 ** (1 - half)) / math.gamma(half) * math.log(RATIO) * WIDTHS**-n
    torch.testing.assert_close(found.amplitudes(WIDTHS), power * kept)


def test_the_switch_of_near_pairs_and_the_taper():
    x = torch.linspace(0.0, 1.0, 11)
    torch.testing.assert_close(switch(5.0 * x, 5.0), 1 - x**12 * (91 - 168 * x + 78 * x**2))
    k2 = 4.0 * (1.0 + x * (32.0 / 29.0 - 1.0))
    torch.testing.assert_close(taper(k2, 2.0), 1 - x**3 * (10 - 15 * x + 6 * x**2))


def test_a_sum_of_gaussians_as_it_begins_and_as_it_is_normalised():
    kernel, kappa = SumOfGaussians(yukawa(0.2)), 0.2
    first = COULOMB_CONSTANT * math.log(RATIO) / (2**-0.5 * math.gamma(0.5)) / WIDTHS
    first = first * torch.exp(-0.5 * (kappa * WIDTHS) ** 2)
    torch.testing.assert_close(kernel.initial_amplitudes, first)
    torch.testing.assert_close(kernel.widths[0], WIDTHS)
    with torch.no_grad():
        kernel.log_amplitudes.normal_()
        kernel.raw_widths.add_(0.3)
    widths, free = kernel.widths[0], first * kernel.log_amplitudes[0].exp()
    torch.testing.assert_close(widths, 1.0 + torch.log1p(kernel.raw_widths[0].exp()))
    kept = gaussians(4.0, first, WIDTHS) / gaussians(4.0, free, widths)
    torch.testing.assert_close(kernel.amplitudes[0], free * kept)


def test_the_self_term_is_what_the_sum_with_it_has_more():
    kernel, edge = SumOfGaussians(max_width=10.0), 9.0
    charges, dipoles = torch.randn(4, 1), torch.randn(4, 3, 1)
    box = (edge * torch.rand(4, 3), edge * torch.eye(3), torch.tensor([True] * 3))
    energies = [
        LongRangeEnergy(kernel, remove_self=own, engine="none")(charges, *box, dipoles=dipoles)
        for own in (False, True)
    ]
    a, s = kernel.amplitudes[0], kernel.widths[0]
    slope = (-0.5 * a / s**2).sum()
    expected = 0.5 * a.sum() * charges.square().sum() - slope * dipoles.square().sum()
    torch.testing.assert_close(energies[0].energy - energies[1].energy, expected[None])
    work = charges * energies[1].potential - (dipoles * energies[1].field).sum(1)
    torch.testing.assert_close(0.5 * work.sum()[None], energies[1].energy)


def test_flows_and_constraints():
    readout, cutoff = FlowingCharges([8], 1, 4, cutoff=4.0), 4.0
    features, positions = torch.randn(3, 8), torch.randn(3, 3)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    centres, neighbours = torch.tensor(pairs).T
    r = (positions[centres] - positions[neighbours]).norm(dim=1)
    charges = readout(features, Sites(Edges(centres, neighbours, r)))
    a, b = readout.ends(features).view(3, 2, 16).unbind(1)
    reach = torch.tensor([0.4, 0.6, 0.8, 1.0]).repeat_interleave(4) * cutoff
    expected = torch.zeros(3)
    for (i, j), distance in zip(pairs, r, strict=True):
        weights = (1.0 - (distance / reach) ** 2).clamp_min(0.0) ** 3
        expected[i] += (weights * (a[i] * (1 + b[j]) - (1 + b[i]) * a[j])).mean()
    torch.testing.assert_close(charges[:, 0], expected)
    bonded = FlowingCharges([8], 1, 4, cutoff=4.0, atomic_numbers=(1, 8))
    r = torch.tensor([1.6, 1.6, 1.65, 1.65])
    centres, neighbours = torch.tensor([[0, 1], [1, 0], [0, 2], [2, 0]]).T
    sites = Sites(Edges(centres, neighbours, r), torch.tensor([0, 1, 1]))
    end = (1 - (r[1:3] / cutoff) ** 6) ** 3
    asked = torch.exp(25 * (1 - r[1:3] / (0.31 + 0.66))) * end
    u = (1.9 - r[1:3] / (0.31 + 0.66)) / (1.9 - 1.5)
    order = u**3 * (10 - 15 * u + 6 * u**2) * end * asked / asked.sum()
    a, b = (0.1 * bonded.ends(features)).view(3, 2, 16).unbind(1)
    flow = (a[0] * (1 + b[1:]) - (1 + b[0]) * a[1:]).mean(1) + 0.25 * (3.44 - 2.20)
    found = bonded(features, sites)[:, 0]
    expected = torch.cat([(order * flow).sum()[None], -order * flow])
    torch.testing.assert_close(found, expected)
    x = torch.tensor([1.2, 1.3, 1.4, 1.5], dtype=torch.float64)
    u = ((1.45 - x) / (1.45 - 1.25)).clamp(0.0, 1.0)
    order = bond_order(x, torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(order, u**3 * (10 - 15 * u + 6 * u**2))
    shifted = project_total_charge(charges, torch.ones(1), torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(shifted, charges - (charges.sum() - 1.0) / 3.0)


def test_charge_states():
    states = ChargeStates(5, 4)
    with torch.no_grad():
        for parameter in states.parameters():
            parameter.normal_()
    features, charge, batch = torch.randn(3, 5), torch.tensor([2.0]), torch.zeros(3).long()
    u, v = states.embedding.hidden.weight.T
    inside = torch.tanh(u * 2.0 + v * 4.0)
    embedded = states.embedding(features, charge, batch)
    torch.testing.assert_close(embedded, features + states.embedding.output.weight @ inside)
    t, chi, eta = states.perceptron(embedded).unbind(1)
    share = 2.0 * t.softmax(0)
    expected = (chi * share + eta * share**2).sum()
    torch.testing.assert_close(states(embedded, charge, batch).energy, expected[None])
