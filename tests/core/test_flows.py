"""Charges that flow along edges: conservation, derivatives, options and errors."""

import pytest
import torch
from references import DOUBLE
from torch.autograd import gradcheck, gradgradcheck

from sog_longrange import ConfigError, InputError, SOGConfig, SOGLongRange
from sog_longrange.charges.bonds import (
    BROKEN,
    INTACT,
    NONMETALS,
    ONLY_BROKEN,
    ONLY_INTACT,
    covalent,
)
from sog_longrange.charges.elements import initial_charges, parse_element_charges
from sog_longrange.charges.flows import GENTLE, SHORTEST, FlowingCharges
from sog_longrange.charges.sites import Edges, Sites

SIZES, CUTOFF = (3, 2), 4.0


def make_readout(**options):
    torch.manual_seed(0)
    return FlowingCharges(SIZES, 2, 5, cutoff=CUTOFF, **options).double()


def all_pairs(positions, reach=CUTOFF):
    """Edges of all pairs within a reach, each in both orders."""
    r = torch.cdist(positions, positions)
    centres, neighbours = ((r < reach) & (r > 0.0)).nonzero().T
    vectors = positions[centres] - positions[neighbours]
    return Edges(centres, neighbours, vectors.norm(dim=1))


def two_fragments(distance):
    generator = torch.Generator().manual_seed(0)
    positions = torch.randn(7, 3, generator=generator, dtype=DOUBLE)
    positions[4:, 0] += distance
    features = torch.randn(7, sum(SIZES), generator=generator, dtype=DOUBLE)
    return features, positions


def test_fragments_keep_their_charge_at_any_distance():
    readout = make_readout(element_charges={8: 1.0, 1: -0.5, 11: 0.25})
    assert readout.gain.tolist() == pytest.approx([GENTLE, 1.0])  # elements tell the first channel
    readout.gain.data.fill_(1.0)
    species = torch.tensor([2, 1, 1, 0, 2, 2, 0])
    features, positions = two_fragments(50.0)
    charges = readout(features, Sites(all_pairs(positions), species)).detach()
    kept = torch.tensor([0.25, 1.5], dtype=DOUBLE)
    found = torch.stack([charges[:4, 0].sum(), charges[4:, 0].sum()])
    torch.testing.assert_close(found, kept, atol=1e-14, rtol=0.0)
    assert float(charges[:, 1].sum().detach()) == pytest.approx(0.0, abs=1e-14)
    # Charge flows inside of them, and across where they touch.
    own = readout.element_charges.detach()[species[:4], 0]
    assert float((charges[:4, 0] - own).abs().min()) > 1e-3
    features, positions = two_fragments(1.0)
    touching = readout(features, Sites(all_pairs(positions), species)).detach()
    assert abs(float(touching[:4, 0].sum() - kept[0])) > 1e-3
    torch.testing.assert_close(touching[:, 0].sum(), kept.sum())


def two_waters(hydrogen_bond):
    """Oxygen, two hydrogens, and another such molecule at a distance from oxygen to hydrogen."""
    turn = torch.tensor([[1.0, 0.0, 0.0], [-0.27, 0.96, 0.0]], dtype=DOUBLE)
    first = torch.cat([torch.zeros(1, 3, dtype=DOUBLE), turn])
    second = first + torch.tensor([-1.0 - hydrogen_bond, 0.0, 0.0], dtype=DOUBLE)
    return torch.cat([first, second]), torch.tensor([1, 0, 0] * 2)


@pytest.mark.parametrize("hydrogen_bond", [1.45, 1.8, 30.0])
def test_molecules_keep_their_charge_in_contact(hydrogen_bond):
    readout = make_readout(atomic_numbers=(1, 8))
    positions, species = two_waters(hydrogen_bond)
    features = torch.randn(6, sum(SIZES), dtype=DOUBLE)
    sites = Sites(all_pairs(positions), species)
    charges = readout(features, sites).detach()
    torch.testing.assert_close(charges[:3].sum(0), torch.zeros(2).double(), atol=1e-5, rtol=0.0)
    for parameter in readout.ends.parameters():
        parameter.detach().zero_()
    # What is left is an electronegativity, the larger of oxygen, and no slope along a bond.
    rest = readout(features, sites)[:, 0]
    expected = torch.tensor([-0.62, 0.31, 0.31] * 2, dtype=DOUBLE)
    torch.testing.assert_close(rest.detach(), expected, atol=1e-3, rtol=0.0)


def test_a_hydrogen_has_one_bond():
    """With the nearest of its partners; with each by half where they are as near."""
    readout, species = make_readout(atomic_numbers=(1, 8)), torch.tensor([1, 0, 1])
    for parameter in readout.ends.parameters():
        parameter.detach().zero_()

    def at(first, second):
        """Charges of O, H, O in a line, and forces of a potential that grows along it."""
        x = torch.tensor([-first, 0.0, second], dtype=DOUBLE, requires_grad=True)
        positions = torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)], 1)
        ends = torch.tensor([(i, j) for i in range(3) for j in range(3) if i != j]).T
        r = (positions[ends[0]] - positions[ends[1]]).norm(dim=1)
        charges = readout(torch.zeros(3, 5, dtype=DOUBLE), Sites(Edges(*ends, r), species))[:, 0]
        (slope,) = torch.autograd.grad((x.detach() * charges).sum(), x)
        return charges.detach(), float(slope.abs().max())

    whole = torch.tensor([-0.31, 0.31, 0.0], dtype=DOUBLE)
    for second in (1.3, 1.36, 1.6, 3.0):
        charges, slope = at(1.0, second)
        torch.testing.assert_close(charges, whole, atol=5e-4, rtol=0.0)
        assert slope < 0.02  # e/Å, of a potential of 1 V/Å
    torch.testing.assert_close(at(1.36, 1.0)[0], at(1.0, 1.36)[0].flip(0))
    assert at(1.2, 1.2)[0].tolist() == pytest.approx([-0.155, 0.31, -0.155], abs=1e-3)


@pytest.mark.parametrize(
    ("number", "intact", "broken"), [(1, ONLY_INTACT, ONLY_BROKEN), (6, INTACT, BROKEN)]
)
def test_bonds_vibrate_whole_and_break_smoothly(number, intact, broken):
    readout = make_readout(atomic_numbers=(number, 8))
    features, species = torch.randn(2, sum(SIZES), dtype=DOUBLE), torch.tensor([0, 1])
    ends, length = torch.tensor([[0, 1], [1, 0]]), covalent(number).radius + covalent(8).radius

    def at(stretch, order=0):
        r = torch.tensor(length * stretch, dtype=DOUBLE, requires_grad=True)
        value = readout(features, Sites(Edges(*ends, r.expand(2)), species))[0, 0]
        for _ in range(order):
            (value,) = torch.autograd.grad(value, r, create_graph=True)
        return float(value.detach())

    assert at(1.0) == pytest.approx(at(1.2), rel=2e-2)  # what is left is the end at the cutoff
    assert abs(at(0.5 * (intact + broken))) < 0.6 * abs(at(1.0))
    assert at(broken + 1e-6) == at(2.0) == 0.0
    for place in (intact, broken):
        for order in (1, 2):
            assert at(place - 2e-7, order) == pytest.approx(at(place + 2e-7, order), abs=2e-3)


def test_where_charge_flows():
    """Along bonds between nonmetals, as far as the cutoff where there is a metal."""
    readout, far = make_readout(atomic_numbers=(1, 8, 11)), torch.tensor([3.0, 3.0], dtype=DOUBLE)
    features, ends = torch.randn(2, sum(SIZES), dtype=DOUBLE), torch.tensor([[0, 1], [1, 0]])
    for pair, flows in (((0, 1), False), ((1, 1), False), ((1, 2), True), ((2, 2), True)):
        found = readout(features, Sites(Edges(*ends, far), torch.tensor(pair)))
        assert bool(found.any()) is flows
    assert {number for number in range(1, 119) if covalent(number).radius} == NONMETALS


def test_flows_end_smoothly_at_the_cutoff_and_do_not_ask_for_an_order():
    readout = make_readout()
    features, positions = two_fragments(2.0)
    charges = readout(features, Sites(all_pairs(positions)))
    beyond = readout(features, Sites(all_pairs(positions, 3.0 * CUTOFF)))
    torch.testing.assert_close(charges, beyond)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    turned = readout(features[order], Sites(all_pairs(positions[order])))
    torch.testing.assert_close(turned, charges[order])
    single = make_readout()
    pair = torch.randn(2, sum(SIZES), dtype=DOUBLE)

    def at(r):
        distances = torch.as_tensor(r, dtype=DOUBLE).expand(2)
        return single(pair, Sites(Edges(torch.tensor([0, 1]), torch.tensor([1, 0]), distances)))

    for reach in torch.linspace(SHORTEST, 1.0, 4).double() * CUTOFF:
        for order in (1, 2):
            slopes = []
            for shift in (-1e-7, 1e-7):
                r = (reach + shift).requires_grad_()
                value = at(r)[0, 0]
                for _ in range(order):
                    (value,) = torch.autograd.grad(value, r, create_graph=True)
                slopes.append(value.detach())
            assert float((slopes[0] - slopes[1]).abs()) < 1e-5
    assert float(at(CUTOFF).detach().abs().max()) == 0.0


def test_derivatives():
    readout = make_readout(element_charges={1: 0.5, 8: -0.5, 11: 0.0})
    features, positions = two_fragments(1.0)
    species = torch.tensor([0, 1, 2, 1, 0, 1, 0])
    for atom, x in ((1, 1.6), (3, -1.55)):  # of bonds that break, and of one hydrogen
        positions[atom] = positions[0] + torch.tensor([x, 0.0, 0.0])
    pairs = all_pairs(positions)

    def charges(features, positions, *elements):
        vectors = positions[pairs.centres] - positions[pairs.neighbours]
        edges = pairs._replace(distances=vectors.norm(dim=1))
        swapped = dict(zip(readout.by_element, elements, strict=True))
        given = (features, Sites(edges, species))
        return torch.func.functional_call(readout, swapped, given)

    elements = [getattr(readout, name).detach().clone() for name in readout.by_element]
    inputs = [x.requires_grad_() for x in (features, positions, *elements)]
    assert gradcheck(charges, inputs)
    assert gradgradcheck(charges, inputs)


def test_options():
    assert parse_element_charges("Cl=-1, Na=1") == {"Cl": -1.0, "Na": 1.0}
    config = SOGConfig(readout="ions", element_charges="Cl=-1, Na=1.0")
    assert config.element_charges == "Na=1,Cl=-1"
    assert SOGConfig.from_dict(config.to_dict()) == config
    exact = SOGConfig(readout="ions", element_charges="Na=0.87654321,Cl=-0.87654321")
    assert parse_element_charges(exact.element_charges)["Na"] == 0.87654321
    assert initial_charges(config.element_charges, (11, 17, 8)) == {11: 1.0, 17: -1.0, 8: 0.0}
    part = SOGLongRange(SIZES, config, cutoff=3.0, atomic_numbers=(17, 11))
    assert part.readout.element_charges.squeeze(1).tolist() == [-1.0, 1.0]
    free = SOGLongRange(SIZES, SOGConfig(readout="ions"), cutoff=3.0, atomic_numbers=(17, 11))
    assert 0.0 < float(free.readout.element_charges.detach().abs().max()) < 1.0


def test_a_state_of_more_elements_is_loaded_by_their_rows():
    config = SOGConfig(readout="ions", element_charges="Na=1,Cl=-1")
    large = SOGLongRange(SIZES, config, cutoff=3.0, atomic_numbers=(8, 11, 17))
    small = SOGLongRange(SIZES, config, cutoff=3.0, atomic_numbers=(17, 11))
    with torch.no_grad():
        large.readout.element_charges.mul_(0.5)
        large.readout.electronegativities.copy_(torch.tensor([[0.8], [0.11], [0.17]]))
    small.load_state_dict(large.state_dict())
    assert small.readout.element_charges.squeeze(1).tolist() == [-0.5, 0.5]
    assert small.readout.electronegativities.squeeze(1).tolist() == pytest.approx([0.17, 0.11])
    with pytest.raises(ConfigError, match=r"with values of the elements \[8, 11, 17\]"):
        large.load_state_dict(small.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readout": "flow"}, "Did you mean 'flows'"),
        ({"element_charges": "Na=1"}, "`element_charges` must be left out with readout='atoms'"),
        ({"readout": "ions", "element_charges": "Na=1,Na=2"}, "each once"),
        ({"readout": "ions", "element_charges": "Qq=1"}, "chemical symbols"),
        ({"readout": "ions", "element_charges": "Na"}, "chemical symbols"),
        ({"readout": "flows", "kernel": "power_law(exponent=6)"}, "alone are conserved"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SOGConfig(**options)


@pytest.mark.parametrize(
    ("readout", "given", "message"),
    [
        ("flows", {}, "'atoms' for a model without edges"),
        ("ions", {"cutoff": 3.0}, "does not tell its elements"),
        ("flows", {"cutoff": 0.0}, "`cutoff` must be positive"),
    ],
)
def test_hosts_that_cannot_have_flows(readout, given, message):
    with pytest.raises(ConfigError, match=message):
        SOGLongRange(SIZES, SOGConfig(readout=readout), **given)


def test_elements_that_the_model_does_not_have():
    config = SOGConfig(readout="ions", element_charges="Na=1")
    with pytest.raises(ConfigError, match=r"elements of the model, H, O, got Na"):
        SOGLongRange(SIZES, config, cutoff=3.0, atomic_numbers=(1, 8))


def test_edges_and_species_that_are_missing():
    config = SOGConfig(readout="ions", tolerance=1e-3)
    part = SOGLongRange(SIZES, config, cutoff=3.0, atomic_numbers=(1, 8)).double()
    features, positions = two_fragments(1.0)
    edges = all_pairs(positions)
    short = edges._replace(centres=edges.centres[:-1])
    for sites, message in (
        (None, "`edges` must be given"),
        (Sites(), "`edges` must be given"),
        (Sites(edges), "`species` must be given"),
        (Sites(edges, torch.zeros(3, dtype=torch.int64)), "n_atoms=7"),
        (Sites(short), "n_edges"),
    ):
        with pytest.raises(InputError, match=message):
            part(features, positions, sites=sites)


def test_total_charges_are_shared_where_none_flows_in():
    config = SOGConfig(readout="flows", charge_constraint="total", tolerance=1e-3)
    torch.manual_seed(0)
    part = SOGLongRange(SIZES, config, cutoff=CUTOFF).double()
    features, positions = two_fragments(50.0)
    total = torch.tensor([1.0], dtype=DOUBLE)
    sites = Sites(all_pairs(positions))
    charges = part(features, positions, total_charge=total, sites=sites).charges[:, 0]
    assert float(charges.sum().detach()) == pytest.approx(1.0)
    assert float(charges[:4].sum().detach()) == pytest.approx(4.0 / 7.0)
