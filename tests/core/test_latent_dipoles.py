"""Latent dipoles of a model: readout, options, gate, saved states, and what follows from them."""

import copy
import pickle

import pytest
import torch
from references import DOUBLE, random_structure

from sog_longrange import (
    ConfigError,
    InputError,
    InputTypeError,
    LatentDipoles,
    SOGConfig,
    SOGLongRange,
    born_charges,
    dipole,
    field_energy,
    polarisation,
    uniform_field,
)
from sog_longrange.testing import assert_twice_differentiable, join

SIZES, VECTORS = [3, 2], 4
BOX = 9.0 * torch.eye(3, dtype=DOUBLE)[None]
BOUNDARIES = {"open": [False] * 3, "slab": [True, True, False], "periodic": [True] * 3}


def make_module(seed=0, **options):
    torch.manual_seed(seed)
    config = SOGConfig(latent_dipoles=True, tolerance=1e-3, **options)
    return SOGLongRange(SIZES, config, num_vectors=VECTORS).double()


def make_inputs():
    inputs = join([random_structure(s, 3, sum(SIZES), periodic=s != 1) for s in range(3)])
    generator = torch.Generator().manual_seed(1)
    return inputs, torch.randn(len(inputs[1]), 3, VECTORS, generator=generator, dtype=DOUBLE)


def evaluate(module, vectors=None):
    inputs, own = make_inputs()
    return module(*inputs, vectors=own if vectors is None else vectors)


@pytest.mark.parametrize("hidden_size", [0, 5])
def test_the_readout_turns_with_the_vectors(hidden_size):
    torch.manual_seed(0)
    readout = LatentDipoles(VECTORS, 2, 3, hidden_size).double()
    vectors, features = torch.randn(6, 3, VECTORS).double(), torch.randn(6, 5).double()
    found = readout(vectors, features)
    assert found.shape == (6, 3, 2)
    assert 1e-3 < float(found.detach().abs().max()) < 10.0
    turn, _ = torch.linalg.qr(torch.randn(3, 3).double())
    for change in (turn, -turn):
        turned = readout(torch.einsum("ab,nbv->nav", change, vectors), features)
        torch.testing.assert_close(turned, torch.einsum("ab,nbp->nap", change, found))
    other = features.clone()
    other[:, -1] += 1.0
    changed = readout(vectors, other)
    assert torch.equal(changed, found) == (hidden_size == 0)


def test_the_readout_refuses_wrong_sizes_and_vectors():
    with pytest.raises(ConfigError, match="num_vectors"):
        LatentDipoles(0)
    with pytest.raises(ConfigError, match="num_channels"):
        LatentDipoles(1, 0)
    with pytest.raises(ConfigError, match="num_invariants"):
        LatentDipoles(1, 1, 0, 4)
    readout, features = LatentDipoles(2), torch.zeros(5, 1)
    with pytest.raises(InputError, match=r"`vectors` must be .*n_atoms=5, 3, 2"):
        readout(torch.zeros(5, 2, 3), features)
    with pytest.raises(InputTypeError, match="readout's weights"):
        readout(torch.zeros(5, 3, 2).double(), features)


def test_the_module_evaluates_charges_and_dipoles():
    module = make_module(num_channels=2, charge_constraint="none")
    inputs, vectors = make_inputs()
    out = module(*inputs, vectors=vectors)
    expected = module.energy(
        module.readout(inputs[0]), *inputs[1:], dipoles=module.dipole_readout(vectors, inputs[0])
    )
    for name, own in expected._asdict().items():
        torch.testing.assert_close(getattr(out, name), own)
    assert torch.equal(out.electric_dipoles, out.dipoles[:, :, 0])
    module.gate.fill_(0.25)
    gated = module(*inputs, vectors=vectors)
    torch.testing.assert_close(gated.energy, 0.25 * out.energy)
    torch.testing.assert_close(gated.dipoles, 0.5 * out.dipoles)
    torch.testing.assert_close(gated.field, 0.5 * out.field)
    again = 0.5 * (gated.charges * gated.potential).sum(-1)
    again = again - 0.5 * (gated.dipoles * gated.field).sum((1, 2))
    torch.testing.assert_close(again, gated.atomic_energies)


def test_dipoles_may_be_all_that_there_is():
    module = make_module()
    for parameter in module.readout.parameters():
        torch.nn.init.zeros_(parameter)
    out = evaluate(module)
    assert not out.charges.any()
    assert float(out.energy.detach().abs().min()) > 0.0
    assert float(evaluate(module, 0.0 * make_inputs()[1]).energy.detach().abs().max()) == 0.0


def test_vectors_do_not_matter_without_the_option():
    torch.manual_seed(0)
    plain = SOGLongRange(SIZES)
    torch.manual_seed(0)
    other = SOGLongRange(SIZES, SOGConfig(latent_dipoles=False), num_vectors=VECTORS)
    assert plain.state_dict().keys() == other.state_dict().keys()
    for name, value in plain.named_parameters():
        assert torch.equal(value, dict(other.named_parameters())[name])
    inputs, _ = make_inputs()
    out = plain.double()(*inputs)
    assert out.dipoles is None
    assert out.electric_dipoles is None


def test_states_and_copies_hold_the_option():
    module, plain = make_module(), SOGLongRange(SIZES, SOGConfig(tolerance=1e-3)).double()
    fresh = make_module(seed=1)
    fresh.load_state_dict(module.state_dict())
    torch.testing.assert_close(evaluate(fresh).energy, evaluate(module).energy)
    with pytest.raises(ConfigError, match="latent_dipoles"):
        plain.load_state_dict(module.state_dict(), strict=False)
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),  # noqa: S301
    ):
        torch.testing.assert_close(evaluate(other).energy, evaluate(module).energy)


def test_what_has_no_dipoles_says_so():
    config = SOGConfig(latent_dipoles=True)
    with pytest.raises(ConfigError, match="`latent_dipoles` must be False for a model without"):
        SOGLongRange(SIZES, config)
    module = make_module()
    with pytest.raises(InputError, match="`vectors` must be given"):
        module(*make_inputs()[0])


def small_system(boundary):
    generator = torch.Generator().manual_seed(3)
    positions = 4.0 + torch.rand(4, 3, generator=generator, dtype=DOUBLE)
    return positions, {"cell": BOX, "pbc": torch.tensor([BOUNDARIES[boundary]])}


def charges_of(positions):
    flow = 0.3 * torch.tanh(positions[1] - positions[0]).sum()
    return torch.stack([0.4 + flow, -0.4 - flow, 0.1 + 0.0 * flow, -0.1 + 0.0 * flow])


def dipoles_of(positions):
    """Vectors that point from each atom to the others, of another length for each atom."""
    arms = positions[None] - positions[:, None]
    sizes = torch.tensor([[1.0], [2.0], [0.5], [-1.0]], dtype=DOUBLE)
    return sizes * (arms * torch.exp(-arms.square().sum(-1, keepdim=True))).sum(1)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_dipoles_of_atoms_add_to_that_of_the_structure(boundary):
    positions, box = small_system(boundary)
    charges, own = charges_of(positions), dipoles_of(positions)
    own = own + torch.tensor([0.1, 0.2, 0.3], dtype=DOUBLE)
    found = dipole(charges, positions, **box, dipoles=own)
    torch.testing.assert_close(found, dipole(charges, positions, **box) + own.sum(0))
    field = torch.tensor([0.1, -0.2, 0.3], dtype=DOUBLE)
    out = uniform_field(charges, positions, field, **box, eps_inf=2.0, dipoles=own)
    torch.testing.assert_close(out.dipole, found)
    torch.testing.assert_close(out.energy, -(2.0**0.5) * found @ field)
    torch.testing.assert_close(out.atomic_energies.sum(), out.energy[0])
    energy = field_energy(charges, positions, field, **box, eps_inf=2.0, dipoles=own)
    torch.testing.assert_close(energy, out.energy)
    if boundary == "periodic":
        per_volume = polarisation(charges, positions, **box, dipoles=own)
        torch.testing.assert_close(per_volume, found / 9.0**3)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("as_function", [True, False])
def test_born_charges_hold_the_response_of_dipoles(boundary, as_function):
    """The derivative of the dipole, where no atom is at a jump of its branch."""
    positions, box = small_system(boundary)
    centre = positions.mean(0)

    def moment(r):
        own = {"origin": centre, "dipoles": dipoles_of(r)}
        return dipole(charges_of(r), r, **box, **own)[0]

    expected = torch.autograd.functional.jacobian(moment, positions).transpose(0, 1)
    leaf = positions.clone().requires_grad_()
    sources = (charges_of, dipoles_of) if as_function else (charges_of(leaf), dipoles_of(leaf))
    born = born_charges(sources[0], leaf, **box, dipoles=sources[1])
    torch.testing.assert_close(born.values, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(born.sum_rule, torch.zeros(1, 3, 3, dtype=DOUBLE), rtol=0, atol=1e-9)
    without = born_charges(charges_of, positions, **box).values
    assert (without - born.values).abs().max() > 0.01


def test_field_energy_of_dipoles_is_twice_differentiable():
    positions, box = small_system("open")
    field = torch.tensor([0.1, -0.2, 0.3], dtype=DOUBLE)
    assert_twice_differentiable(
        lambda q, r, mu: field_energy(q, r, field, **box, dipoles=mu).square(),
        (charges_of(positions), positions, dipoles_of(positions)),
    )


def test_malformed_dipoles_of_atoms_are_refused():
    positions, _ = small_system("open")
    charges = charges_of(positions)
    with pytest.raises(InputError, match=r"`dipoles` must be .*one channel"):
        dipole(charges, positions, dipoles=torch.zeros(4, 3, 1, dtype=DOUBLE))
    with pytest.raises(InputError, match="`dipoles` must be a tensor or a function"):
        born_charges(charges_of, positions, dipoles=torch.zeros(4, 3, dtype=DOUBLE))
    leaf = positions.clone().requires_grad_()
    with pytest.raises(InputError, match="`dipoles` must be in the graph"):
        born_charges(charges_of(leaf), leaf, dipoles=torch.zeros(4, 3, dtype=DOUBLE))
