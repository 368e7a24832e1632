import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import DOUBLE, tensor
from torch.fx.experimental.proxy_tensor import make_fx

from sog_longrange import (
    ChargeEmbedding,
    ConfigError,
    InputError,
    InputTypeError,
    LatentCharges,
    project_total_charge,
)
from sog_longrange.testing import assert_twice_differentiable

few = settings(max_examples=30, deadline=None, derandomize=True)


@st.composite
def batches(draw):
    """Charges, a wanted total of each structure (some without atoms) and the batch index."""
    sizes = draw(st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any))
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    charges = torch.randn(len(batch), draw(st.integers(1, 3)), generator=generator, dtype=DOUBLE)
    return charges, torch.randn(len(sizes), generator=generator, dtype=DOUBLE), batch


def sums(charges, batch, num_graphs):
    return charges.new_zeros(num_graphs, charges.shape[1]).index_add(0, batch, charges)


@few
@given(batches())
def test_first_channel_sums_to_the_total_charge_and_the_others_to_zero(inputs):
    charges, total, batch = inputs
    found = sums(project_total_charge(charges, total, batch), batch, len(total))
    occupied = torch.bincount(batch, minlength=len(total)) > 0
    torch.testing.assert_close(found[occupied, 0], total[occupied], rtol=0, atol=1e-13)
    torch.testing.assert_close(found[:, 1:], torch.zeros_like(found[:, 1:]), rtol=0, atol=1e-13)


@few
@given(batches(), st.randoms(use_true_random=False))
def test_only_chosen_channels_are_projected_and_the_first_of_them_has_the_total(inputs, random):
    charges, total, batch = inputs
    order = random.sample(range(charges.shape[1]), random.randint(1, charges.shape[1]))
    found = project_total_charge(charges, total, batch, order)
    alone = project_total_charge(charges[:, order], total, batch)
    torch.testing.assert_close(found[:, order], alone)
    free = [channel for channel in range(charges.shape[1]) if channel not in order]
    assert torch.equal(found[:, free], charges[:, free])


@pytest.mark.slow
@pytest.mark.parametrize("channels", [None, (2, 0)])
def test_a_trace_of_the_projection_serves_other_sizes(channels):
    def project(charges, total, batch):
        return project_total_charge(charges, total, batch, channels)

    def inputs(*sizes):
        batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        generator = torch.Generator().manual_seed(0)
        return torch.randn(len(batch), 3, generator=generator), torch.randn(len(sizes)), batch

    graph = make_fx(project, tracing_mode="symbolic")(*inputs(3, 4))
    others = inputs(5, 0, 2, 4)
    assert torch.equal(graph(*others), project(*others))


@few
@given(batches())
def test_projection_changes_nothing_twice(inputs):
    _, total, batch = inputs
    once = project_total_charge(*inputs)
    torch.testing.assert_close(project_total_charge(once, total, batch), once)


@few
@given(batches(), st.floats(-2.0, 2.0))
def test_projection_is_affine_in_the_charges(inputs, weight):
    charges, total, batch = inputs
    other = charges.sin()
    mixed = project_total_charge(weight * charges + (1 - weight) * other, total, batch)
    parts = (project_total_charge(x, total, batch) for x in (charges, other))
    first, second = parts
    torch.testing.assert_close(mixed, weight * first + (1 - weight) * second)


@few
@given(batches(), st.integers(0, 1000))
def test_no_other_charges_with_the_same_sum_are_closer(inputs, seed):
    charges, total, batch = inputs
    nearest = project_total_charge(charges, total, batch)
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(charges.shape, generator=generator, dtype=DOUBLE)
    neutral_step = project_total_charge(step, torch.zeros_like(total), batch)
    other = nearest + 0.3 * neutral_step
    assert (other - charges).norm() >= (nearest - charges).norm() - 1e-12


@few
@given(batches(), st.integers(0, 1000))
def test_projection_does_not_depend_on_the_order_of_atoms(inputs, seed):
    charges, total, batch = inputs
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    found = project_total_charge(charges[order], total, batch[order])
    torch.testing.assert_close(found, project_total_charge(*inputs)[order])


def test_projection_is_twice_differentiable():
    batch = torch.tensor([0, 0, 2])
    charges = tensor([[0.1, 0.2], [0.3, -0.4], [0.5, 0.6]])
    assert_twice_differentiable(
        lambda q, total: project_total_charge(q, total, batch) ** 2,
        (charges, tensor([1.0, 0.0, -1.0])),
    )


@pytest.mark.parametrize("hidden_size", [0, 3])
def test_zero_features_give_zero_charges(hidden_size):
    readout = LatentCharges([4, 2], 3, hidden_size)
    assert torch.equal(readout(torch.zeros(5, 6)), torch.zeros(5, 3))


def test_charges_of_an_atom_depend_on_its_own_features_only():
    readout = LatentCharges([4, 2], 2)
    features = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    changed = features.clone()
    changed[1] += 1.0
    difference = (readout(changed) - readout(features)).abs().amax(1)
    assert (difference > 1e-6).tolist() == [False, True, False]


def test_without_a_perceptron_charges_are_linear_in_the_features():
    readout = LatentCharges([4], 2, hidden_size=0)
    features = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(readout(3.0 * features), 3.0 * readout(features))


def test_the_perceptron_sees_the_last_layer_only():
    readout = LatentCharges([4, 2], 1)
    torch.nn.init.zeros_(readout.linear.weight)
    features = torch.ones(1, 6)
    first, last = features.clone(), features.clone()
    first[:, :4] = 7.0
    last[:, 4:] = 7.0
    assert torch.equal(readout(first), readout(features))
    assert not torch.equal(readout(last), readout(features))


BAD_SIZES = [
    (lambda: LatentCharges([]), r"`layer_sizes` must be positive numbers, got \[\]"),
    (lambda: LatentCharges([4, 0]), r"`layer_sizes` must be positive numbers, got \[4, 0\]"),
    (lambda: LatentCharges([4], 0), "`num_channels` must be at least 1, got 0"),
    (lambda: LatentCharges([4], 1, -1), "`hidden_size` must be at least 0, got -1"),
    (lambda: ChargeEmbedding(0), "`num_features` must be at least 1, got 0"),
    (lambda: ChargeEmbedding(4, 0), "`hidden_size` must be at least 1, got 0"),
]


@pytest.mark.parametrize(("build", "message"), BAD_SIZES)
def test_a_size_out_of_range_is_named(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def trained_embedding(num_features=4):
    """An embedding whose weights are not those of its start."""
    embedding = ChargeEmbedding(num_features).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in embedding.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return embedding


EMBEDDED = torch.tensor([0, 0, 2])


def test_an_embedding_starts_as_nothing_with_a_living_gradient():
    embedding, features = ChargeEmbedding(4).double(), torch.ones(3, 4, dtype=DOUBLE)
    out = embedding(features, tensor([1.0, 0.0, -1.0]), EMBEDDED)
    assert torch.equal(out, features)
    (out**2).sum().backward()
    assert float(embedding.output.weight.grad.abs().min()) > 0.0


def test_an_embedding_leaves_neutral_structures_alone_and_tells_charges_apart():
    embedding = trained_embedding().requires_grad_(False)
    features = torch.zeros(3, 4, dtype=DOUBLE)
    minus, zero, plus = (
        embedding(features, tensor([q, 0.0, 0.0]), EMBEDDED) for q in (-1.0, 0.0, 1.0)
    )
    assert torch.equal(zero, features)
    assert torch.equal(plus[2], features[2])
    assert torch.equal(plus[0], plus[1])
    for one, other in ((plus, zero), (minus, zero), (plus, minus), (plus, -minus)):
        assert float((one - other)[0].abs().max()) > 0.1


def test_an_embedding_is_twice_differentiable_and_bounded():
    embedding = trained_embedding(2).requires_grad_(False)
    features = tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    charge = tensor([1.0, 0.0, -2.0])
    function = lambda x, q: embedding(x, q, EMBEDDED)  # noqa: E731
    assert_twice_differentiable(function, (features, charge))
    largest = embedding.output.weight.abs().sum(1).max()
    assert float((function(features, 1e3 * charge) - features).abs().max()) <= float(largest)


def test_whole_numbers_of_any_dtype_are_embedded():
    embedding, features = trained_embedding(), torch.zeros(3, 4, dtype=DOUBLE)
    whole = embedding(features, torch.tensor([1, 0, -1]), EMBEDDED)
    assert torch.equal(whole, embedding(features, tensor([1.0, 0.0, -1.0]), EMBEDDED))


def test_malformed_arguments_of_an_embedding_are_named():
    embedding, charge = trained_embedding(), torch.zeros(3)
    with pytest.raises(InputError, match=r"`features` must be of shape \(n_atoms, 4\)"):
        embedding(torch.zeros(3, 5, dtype=DOUBLE), charge, EMBEDDED)
    with pytest.raises(InputTypeError, match="like the embedding's weights"):
        embedding(torch.zeros(3, 4), charge, EMBEDDED)
    with pytest.raises(InputError, match=r"`total_charge` must be of shape \(n_graphs,\)"):
        embedding(torch.zeros(3, 4, dtype=DOUBLE), charge[:, None], EMBEDDED)
