"""Charge states: an embedding of the total charge, and what it costs."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import DOUBLE, random_structure, tensor
from torch.fx.experimental.proxy_tensor import make_fx

from sog_longrange import (
    ChargeStates,
    ConfigError,
    InputError,
    InputTypeError,
    SOGConfig,
    SOGLongRange,
)
from sog_longrange.testing import assert_twice_differentiable, join

WIDTH, SIZES = 5, [3, 2]
few = settings(max_examples=20, deadline=None, derandomize=True)
STATES = [-1.0, 0.0, 1.0]


def excite(module, size=0.4, seed=3):
    """Random weights everywhere, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter)
    return module


def make_states(hidden_size=4):
    torch.manual_seed(1)
    return excite(ChargeStates(WIDTH, hidden_size).double())


def random_features(n_atoms, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_atoms, WIDTH, generator=generator, dtype=DOUBLE)


def evaluate(states, features, charge, batch=None):
    charge = tensor(charge)
    batch = torch.zeros(len(features), dtype=torch.int64) if batch is None else batch
    return states(states.embedding(features, charge, batch), charge, batch)


def make_module(seed=0, **options):
    torch.manual_seed(seed)
    options = {"tolerance": 1e-2, "charge_embedding": 4} | options
    return SOGLongRange(SIZES, SOGConfig(**options)).double()


def make_batch():
    return join([random_structure(s, 3, WIDTH, periodic=s != 1) for s in range(3)])


def test_energy_starts_at_zero_with_a_gradient_where_there_is_charge():
    torch.manual_seed(0)
    states, features = ChargeStates(WIDTH).double(), random_features(4)
    out = evaluate(states, features, [2.0])
    assert not out.energy.any()
    assert not out.atomic_energies.any()
    out.energy.sum().backward()
    last = states.perceptron[2]
    # Weights of atoms matter only once there is something to weigh.
    assert bool((last.weight.grad[1:] != 0.0).all())
    assert bool((last.bias.grad[1:] != 0.0).all())


def test_one_step_makes_every_weight_count():
    states, features = ChargeStates(WIDTH).double(), random_features(4)
    optimizer = torch.optim.SGD(states.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        evaluate(states, features, [1.0]).energy.sum().backward()
        optimizer.step()
    evaluate(states, features, [1.0]).energy.sum().backward()
    for name, parameter in states.named_parameters():
        assert bool(parameter.grad.any()), name


@few
@given(seed=st.integers(0, 1000), n_atoms=st.integers(1, 6))
def test_neutral_structures_have_no_energy_and_keep_their_features(seed, n_atoms):
    states, features = make_states(), random_features(n_atoms, seed)
    out = evaluate(states, features, [0.0])
    assert torch.equal(out.energy, torch.zeros(1, dtype=DOUBLE))
    assert torch.equal(out.atomic_energies, torch.zeros(n_atoms, dtype=DOUBLE))
    batch = torch.zeros(n_atoms, dtype=torch.int64)
    assert torch.equal(states.embedding(features, tensor([0.0]), batch), features)


@few
@given(charge=st.sampled_from([-2.0, -1.0, 1.0, 3.0]), n_atoms=st.integers(1, 5))
def test_energy_is_that_of_electronegativity_and_hardness(charge, n_atoms):
    states, features = make_states(), random_features(n_atoms)
    batch = torch.zeros(n_atoms, dtype=torch.int64)
    rows = states.perceptron(states.embedding(features, tensor([charge]), batch)).detach()
    sums, expected = sum(float(row[0].exp()) for row in rows), []
    for weight, electronegativity, hardness in rows.tolist():
        share = charge * float(torch.tensor(weight, dtype=DOUBLE).exp()) / sums
        expected.append(electronegativity * share + hardness * share**2)
    out = evaluate(states, features, [charge])
    torch.testing.assert_close(out.atomic_energies, tensor(expected))
    torch.testing.assert_close(out.energy, tensor([sum(expected)]))


@few
@given(seed=st.integers(0, 1000))
def test_order_of_atoms_and_batches_do_not_matter(seed):
    states, features = make_states(), random_features(9, seed)
    batch, charges = torch.tensor([0, 0, 2, 2, 2, 3, 4, 4, 4]), [1.0, -1.0, -2.0, 3.0, 0.0]
    out = evaluate(states, features, charges, batch)
    for graph, charge in enumerate(charges):
        alone = evaluate(states, features[batch == graph], [charge])
        torch.testing.assert_close(out.energy[graph], alone.energy[0])
        torch.testing.assert_close(out.atomic_energies[batch == graph], alone.atomic_energies)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    order = order[batch[order].argsort(stable=True)]
    mixed = evaluate(states, features[order], charges, batch)
    torch.testing.assert_close(mixed.energy, out.energy)
    torch.testing.assert_close(mixed.atomic_energies, out.atomic_energies[order])


@pytest.mark.parametrize("copies", [2, 10, 300])
def test_one_charge_costs_no_more_in_a_larger_structure(copies):
    states, features = make_states(), random_features(3)
    batch = torch.zeros(3, dtype=torch.int64)
    _, electronegativity, _ = states.perceptron(
        states.embedding(features, tensor([1.0]), batch)
    ).unbind(1)
    one = evaluate(states, features, [1.0]).energy
    many = evaluate(states, features.repeat(copies, 1), [1.0]).energy
    # Spread over ever more atoms a charge costs the electronegativity alone.
    weights = states.perceptron(states.embedding(features, tensor([1.0]), batch))[:, 0].softmax(0)
    limit = (weights * electronegativity).sum()
    torch.testing.assert_close(many - limit, (one - limit) / copies)


def test_many_charges_shared_by_as_many_molecules_cost_as_many_times():
    states, features = make_states(), random_features(3)
    # In the limit of features without the charge, of which shares do not depend.
    torch.nn.init.zeros_(states.embedding.output.weight)
    one = evaluate(states, features, [1.0]).energy
    many = evaluate(states, features.repeat(7, 1), [7.0]).energy
    torch.testing.assert_close(many, 7.0 * one)


def test_first_and_second_derivatives():
    states, batch = make_states(), torch.tensor([0, 0, 0, 2])

    def function(features, charge):
        return tuple(states(states.embedding(features, charge, batch), charge, batch))

    assert_twice_differentiable(function, (random_features(4), tensor([1.0, 2.0, -1.0])))


def test_large_weights_stay_finite_in_float32():
    states = make_states().float()
    with torch.no_grad():
        states.perceptron[2].weight[0] = 1e4
    features = random_features(6).float().requires_grad_()
    batch, charge = torch.zeros(6, dtype=torch.int64), torch.ones(1)
    out = states(states.embedding(features, charge, batch), charge, batch)
    (slope,) = torch.autograd.grad(out.energy.sum(), features)
    assert bool(out.energy.isfinite().all())
    assert bool(slope.isfinite().all())


def test_features_in_float32_give_energies_in_the_dtype_of_the_charges():
    states, batch, charge = make_states(), torch.zeros(4, dtype=torch.int64), tensor([1.0])
    expected = states(random_features(4), charge, batch).energy
    found = states.float()(random_features(4).float(), charge, batch).energy
    assert found.dtype == DOUBLE
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_energy_and_its_gradient_can_be_traced_for_any_size():
    states = make_states()

    def function(features, charge, batch):
        energy = states(states.embedding(features, charge, batch), charge, batch).energy
        return energy, torch.autograd.grad(energy.sum(), features, create_graph=True)[0]

    def inputs(*sizes):
        batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        features = random_features(sum(sizes)).requires_grad_()
        return features, torch.arange(1.0, len(sizes) + 1.0, dtype=DOUBLE), batch

    traced = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs(3, 4))
    for sizes in ((2, 5), (4, 1, 3)):
        for found, expected in zip(traced(*inputs(*sizes)), function(*inputs(*sizes)), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("hidden_size", [0, -1])
def test_sizes_out_of_range_are_refused(hidden_size):
    with pytest.raises(ConfigError, match=f"`charge_embedding` must be .* got {hidden_size}"):
        ChargeStates(WIDTH, hidden_size)


def test_malformed_features_are_named():
    states, batch, charge = make_states(), torch.zeros(4, dtype=torch.int64), tensor([1.0])
    with pytest.raises(InputError, match=r"`features` must be of shape \(n_atoms, 5\)"):
        states(random_features(4)[:, :3], charge, batch)
    with pytest.raises(InputTypeError, match="`features` must be torch.float64"):
        states(random_features(4).float(), charge, batch)
    with pytest.raises(InputError, match="`total_charge` must be of shape"):
        states(random_features(4), charge[:, None], batch)


@pytest.mark.parametrize("constraint", ["none", "neutral", "total"])
def test_a_new_module_is_that_without_charge_states(constraint):
    batch, total = make_batch(), tensor([1.0, 0.0, -1.0])
    out = make_module(charge_constraint=constraint)(*batch, total_charge=total)
    bare = make_module(charge_embedding=0, charge_constraint=constraint)
    for found, expected in zip(out[:4], bare(*batch, total_charge=total)[:4], strict=True):
        assert torch.equal(found, expected)


def test_a_closed_gate_leaves_nothing_of_a_new_module():
    module = make_module()
    module.warm_up(torch.optim.SGD(module.parameters(), lr=0.0))
    out = module(*make_batch(), total_charge=tensor(STATES))
    assert not any(value.any() for value in out[:4])


def test_energies_hold_both_parts():
    module, batch = excite(make_module(charge_constraint="total")), make_batch()
    total = tensor([1.0, 0.0, -1.0])
    out = module(*batch, total_charge=total)
    charges, state, _ = out.parts
    assert torch.equal(out.energy, charges.energy + state.energy)
    assert torch.equal(out.atomic_energies, charges.atomic_energies + state.atomic_energies)
    per_atom = 0.5 * (out.charges * out.potential).sum(-1)
    torch.testing.assert_close(charges.atomic_energies, per_atom)
    summed = torch.zeros(3, dtype=DOUBLE).index_add(0, batch[4], out.atomic_energies)
    torch.testing.assert_close(summed, out.energy)
    assert state.energy[1].item() == 0.0
    assert bool((state.energy[[0, 2]].abs() > 1e-3).all())


def test_without_the_option_there_is_no_charge_state():
    assert make_module(charge_embedding=0)(*make_batch()).parts.charge_state is None


def test_charges_respond_to_the_total_charge_also_without_a_constraint():
    module, batch = excite(make_module()), make_batch()
    found = [module(*batch, total_charge=tensor([q] * 3)).charges for q in STATES]
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[1], found[2])


@pytest.mark.parametrize("charge", [-1, 1])
def test_forces_are_the_derivative_of_the_energy(charge):
    module, (features, positions, *rest) = excite(make_module()), make_batch()
    mixing = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)

    def energy(positions):
        moved = features + positions.sin() @ mixing
        return module(moved, positions, *rest, torch.tensor([charge] * 3)).energy.sum()

    moved = positions.clone().requires_grad_()
    (slope,) = torch.autograd.grad(energy(moved), moved)
    for atom, axis in [(0, 0), (4, 1), (8, 2)]:
        step = torch.zeros_like(positions)
        step[atom, axis] = 1e-5
        difference = (energy(positions + step) - energy(positions - step)) / 2e-5
        assert float(slope[atom, axis]) == pytest.approx(float(difference.detach()), rel=1e-6)


@pytest.mark.slow
def test_charge_states_of_one_molecule_are_learned():
    features, positions, *_ = random_structure(0, 4, WIDTH, periodic=False)
    arguments = features.repeat(3, 1), positions.repeat(3, 1)
    batch = torch.arange(3).repeat_interleave(4)
    wanted, total = tensor([-1.5, 0.0, 9.0]), tensor(STATES)
    module = make_module(charge_constraint="total")
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        energy = module(*arguments, batch=batch, total_charge=total).energy
        # What a host knows is one energy for all three.
        loss = (energy - energy[1] - wanted).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1e-2


@pytest.mark.parametrize("options", [{}, {"charge_constraint": "neutral"}])
def test_a_total_charge_is_asked_for(options):
    with pytest.raises(InputError, match="`total_charge` must be given for charge_embedding"):
        make_module(**options)(*make_batch())


def test_states_of_models_without_charge_states_are_refused():
    state = make_module(charge_embedding=0).state_dict()
    with pytest.raises(ConfigError, match="charge_embedding 4 here, 0 there"):
        make_module().load_state_dict(state, strict=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])  # noqa: S301
def test_copies_are_equal(duplicate):
    module, batch = excite(make_module()), make_batch()
    total = tensor([1.0, 0.0, -1.0])
    expected = module(*batch, total_charge=total).energy
    assert torch.equal(duplicate(module)(*batch, total_charge=total).energy, expected)
    other = make_module(1)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(*batch, total_charge=total).energy, expected)


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({}, False),
        ({"charge_constraint": "neutral"}, False),
        ({"charge_constraint": "total"}, True),
        ({"charge_embedding": 2}, True),
        ({"charge_embedding": 2, "fractional_charge": True}, True),
    ],
)
def test_options_tell_whether_a_total_charge_is_needed(options, needed):
    assert SOGConfig(**options).needs_total_charge is needed
