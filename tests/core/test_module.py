import copy
import io
import pickle
import re

import pytest
import torch
from old_models import write_old_model
from references import DOUBLE, evaluate, random_structure, tensor
from torch.fx.experimental.proxy_tensor import make_fx

from sog_longrange import (
    ConfigError,
    InputError,
    InputTypeError,
    SOGConfig,
    SOGLongRange,
    __version__,
    uniform_field,
)
from sog_longrange.hosts import explain_old_models
from sog_longrange.long_range import FORMAT
from sog_longrange.observables.external_field import field_term
from sog_longrange.testing import join
from sog_longrange.training import parameter_groups
from sog_longrange.validation import Structures

SIZES = [3, 2]
every_kernel = pytest.mark.parametrize(
    "options",
    [
        {"kernel": "coulomb"},
        {"kernel": "power_law(exponent=6)"},
        {"kernel": "yukawa"},
        {"kernel": "ewald"},
    ],
)


def make_module(seed=0, **options):
    torch.manual_seed(seed)
    return SOGLongRange(SIZES, SOGConfig(tolerance=1e-2, **options)).double()


def make_batch():
    structures = [random_structure(s, 3, sum(SIZES), periodic=s != 1) for s in range(3)]
    return join(structures)


def force_loss(module, batch, **options):
    features, positions, *rest = batch
    positions = positions.clone().requires_grad_()
    energy = module(
        features + positions.sin() @ torch.ones(3, 5).to(features), positions, *rest, **options
    ).energy.sum()
    (force,) = torch.autograd.grad(energy, positions, create_graph=True)
    return (force - 0.3).square().sum()


def take_steps(optimizer, count):
    for _ in range(count):
        optimizer.step()


def optimizer_of(module):
    return torch.optim.SGD(module.parameters(), lr=0.0)


def test_gate_is_open_unless_warmed_up():
    assert float(make_module().gate) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 49, 100, 333, 1000, 12345])
def test_gate_is_exactly_one_after_its_steps_and_below_before(steps, dtype):
    module = make_module().to(dtype)
    optimizer = optimizer_of(module)
    module.warm_up(optimizer, steps)
    take_steps(optimizer, steps - 1)
    assert float(module.gate) < 1.0
    take_steps(optimizer, 1)
    assert float(module.gate) == 1.0
    take_steps(optimizer, 2)
    assert float(module.gate) == 1.0


def test_gate_rises_by_equal_steps():
    module = make_module()
    optimizer = optimizer_of(module)
    module.warm_up(optimizer, 8)
    gates = []
    for _ in range(10):
        gates.append(float(module.gate))
        optimizer.step()
    assert gates == pytest.approx([0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1, 1])


def test_closed_gate_gives_no_energy_no_force_and_finite_gradients():
    module, batch = make_module(), make_batch()
    module.warm_up(optimizer_of(module))
    out = module(*batch)
    for value in (out.energy, out.atomic_energies, out.potential, out.charges):
        assert not value.any()
    gradients = torch.autograd.grad(force_loss(module, batch), tuple(module.parameters()))
    assert all(bool(g.isfinite().all()) for g in gradients)


def test_a_half_open_gate_scales_energy_and_forces_alike():
    module, batch = make_module(), make_batch()
    full = module(*batch)
    module.gate.fill_(0.25)
    gated = module(*batch)
    torch.testing.assert_close(gated.energy, 0.25 * full.energy)
    torch.testing.assert_close(gated.charges, 0.5 * full.charges)
    per_atom = 0.5 * (gated.charges * gated.potential).sum(-1)
    torch.testing.assert_close(gated.atomic_energies, per_atom)
    torch.testing.assert_close(gated.atomic_energies.sum(), gated.energy.sum())


@pytest.mark.parametrize("steps", [0, -1])
def test_warm_up_wants_a_positive_number_of_steps(steps):
    module = make_module()
    with pytest.raises(ConfigError, match=f"`steps` must be at least 1, got {steps}"):
        module.warm_up(optimizer_of(module), steps)
    assert float(module.gate) == 1.0


def reload(module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel": "coulomb+coulomb", "num_channels": 2},
        {"kernel": "ewald"},
        {"kernel": "yukawa+power_law(exponent=6)", "num_channels": 2},
    ],
)
def test_state_dict_restores_the_energy(options):
    module, batch = make_module(0, **options), make_batch()
    module.gate.fill_(0.3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1
    other = make_module(1, **options)
    assert not torch.equal(other(*batch).energy, module(*batch).energy)
    other.load_state_dict(reload(module))
    assert torch.equal(other(*batch).energy, module(*batch).energy)


def test_a_restarted_training_goes_on_where_the_gate_stood():
    module = make_module()
    optimizer = optimizer_of(module)
    module.warm_up(optimizer, 10)
    take_steps(optimizer, 4)
    restarted = make_module()
    optimizer = optimizer_of(restarted)
    restarted.warm_up(optimizer, 10)
    restarted.load_state_dict(reload(module))
    assert float(restarted.gate) == pytest.approx(0.4)
    take_steps(optimizer, 5)
    assert float(restarted.gate) == pytest.approx(0.9)
    take_steps(optimizer, 1)
    assert float(restarted.gate) == 1.0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel": "power_law(exponent=6)"},
        {"kernel": "yukawa", "charge_constraint": "neutral"},
        {"kernel": "ewald", "num_channels": 3},
        {"kernel": "coulomb+coulomb", "num_channels": 2},
    ],
)
def test_every_parameter_gets_a_gradient_from_a_force_loss_at_the_start(options):
    module = make_module(**options)
    names, values = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(force_loss(module, make_batch()), values)
    for name, gradient in zip(names, gradients, strict=True):
        assert bool(gradient.isfinite().all()), name
        assert bool((gradient.abs() > 0.0).any(dim=-1).all()), name


def test_frozen_parameters_get_no_gradient():
    module = make_module(learn_amplitudes=False, learn_widths=False)
    force_loss(module, make_batch()).backward()
    kernel = module.energy.kernel
    assert kernel.raw_widths.grad is None
    assert kernel.log_amplitudes.grad is None
    assert module.readout.linear.weight.grad is not None


@every_kernel
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])  # noqa: S301
def test_copies_are_equal_and_independent(options, duplicate):
    module, batch = make_module(**options), make_batch()
    expected = module(*batch).energy.detach()
    twin = duplicate(module)
    assert torch.equal(twin(*batch).energy, expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter += 0.5
    twin.gate.zero_()
    assert torch.equal(module(*batch).energy, expected)


def test_a_copy_does_not_follow_the_warm_up_of_the_original():
    module = make_module()
    optimizer = optimizer_of(module)
    module.warm_up(optimizer, 4)
    twin = copy.deepcopy(module)
    take_steps(optimizer, 2)
    assert float(twin.gate) == 0.0


def test_a_module_can_be_copied_after_an_evaluation():
    module, batch = make_module(), make_batch()
    force_loss(module, batch).backward()
    assert torch.equal(copy.deepcopy(module)(*batch).energy, module(*batch).energy)


def in_float32(batch):
    return tuple(x.float() if getattr(x, "dtype", None) == DOUBLE else x for x in batch)


@every_kernel
def test_float32_agrees_with_float64(options):
    module, batch = make_module(**options), make_batch()
    expected = module(*batch).energy
    found = module.float()(*in_float32(batch)).energy
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(module.double()(*batch).energy, expected, rtol=1e-5, atol=1e-7)


def test_float32_forces_and_their_training_gradients_agree_with_float64():
    module, batch = make_module(), make_batch()
    double = torch.autograd.grad(force_loss(module, batch), tuple(module.parameters()))
    module.float()
    single = torch.autograd.grad(force_loss(module, in_float32(batch)), tuple(module.parameters()))
    for found, expected in zip(single, double, strict=True):
        assert (found.double() - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("constraint", ["neutral", "total"])
def test_charges_obey_the_constraint(constraint):
    module, batch = make_module(charge_constraint=constraint, num_channels=2), make_batch()
    wanted = tensor([1.0, -2.0, 3.0]) if constraint == "total" else torch.zeros(3, dtype=DOUBLE)
    out = module(*batch, total_charge=wanted)
    sums = torch.stack([part.sum(0) for part in out.charges.split(3)])
    torch.testing.assert_close(sums[:, 0], wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(sums[:, 1], torch.zeros_like(wanted), rtol=0, atol=1e-12)


@pytest.mark.parametrize("constraint", ["neutral", "total"])
def test_dispersion_beside_coulomb_is_free_of_the_constraint(constraint):
    options = {"kernel": "coulomb+power_law(exponent=6)", "num_channels": 4}
    batch, wanted = make_batch(), torch.zeros(3, dtype=DOUBLE)
    free = make_module(**options)(*batch).charges
    module = make_module(charge_constraint=constraint, **options)
    if constraint == "total":
        wanted = tensor([1.0, -2.0, 3.0])
    charges = module(*batch, total_charge=wanted).charges
    assert torch.equal(charges[:, 2:], free[:, 2:])
    sums = torch.stack([part.sum(0) for part in charges[:, :2].split(3)])
    expected = torch.stack([wanted, torch.zeros_like(wanted)], 1)
    torch.testing.assert_close(sums, expected, rtol=0, atol=1e-12)


def test_by_default_charges_are_those_of_a_neutral_structure():
    batch = make_batch()
    default, neutral = make_module()(*batch), make_module(charge_constraint="neutral")(*batch)
    assert torch.equal(default.energy, neutral.energy)
    assert torch.equal(make_module()(*batch, total_charge=torch.zeros(3)).energy, default.energy)


def test_charged_structures_are_not_taken_as_neutral_by_default():
    message = r"`total_charge` must be zero .*'auto', got \[0.0, 1.0, 0.0\]. Choose .*'total'"
    with pytest.raises(InputError, match=message):
        make_module()(*make_batch(), total_charge=tensor([0.0, 1.0, 0.0]))
    make_module(charge_constraint="none")(*make_batch(), total_charge=tensor([0.0, 1.0, 0.0]))


def test_a_charge_embedding_constrains_charges_to_total_charges_by_default():
    total = tensor([1.0, -1.0, 0.0])
    charges = make_module(charge_embedding=2)(*make_batch(), total_charge=total).charges
    sums = torch.cat([part.sum(0) for part in charges.split(3)])
    torch.testing.assert_close(sums, total, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stored", ["none", "neutral", "total"])
def test_states_decide_on_the_constraint_of_modules_that_leave_it_open(stored):
    state = make_module(charge_constraint=stored).state_dict()
    module = make_module(seed=1)
    module.load_state_dict(state)
    assert module.config.charge_constraint == stored
    other = {"none": "neutral", "neutral": "none", "total": "neutral"}[stored]
    with pytest.raises(ConfigError, match=f"charge_constraint {other} here, {stored} there"):
        make_module(charge_constraint=other).load_state_dict(state)


def test_states_of_neutral_modules_that_left_it_open_are_those_of_neutral_ones():
    state = make_module().state_dict()
    make_module(charge_constraint="neutral").load_state_dict(state)
    with pytest.raises(ConfigError, match="charge_constraint none here, neutral there"):
        make_module(charge_constraint="none").load_state_dict(state)


def test_positions_that_overflow_are_not_blamed_on_the_weights():
    features, positions = make_batch()[0][:3], torch.full((3, 3), 1e308, dtype=DOUBLE)
    box = 0.1 * torch.eye(3, dtype=DOUBLE), torch.ones(3, dtype=torch.bool)
    with pytest.raises(InputError, match="`positions` must be finite, and not so large") as error:
        make_module()(features, positions, *box)
    assert "weights" not in str(error.value)


def test_integer_total_charges_are_accepted():
    module, batch = make_module(charge_constraint="total"), make_batch()
    integers = module(*batch, total_charge=torch.tensor([1, 0, -1]))
    floats = module(*batch, total_charge=torch.tensor([1.0, 0.0, -1.0]))
    assert torch.equal(integers.energy, floats.energy)


def test_a_required_total_charge_is_asked_for():
    module = make_module(charge_constraint="total")
    with pytest.raises(InputError, match='`total_charge` must be given for .*"total", got None'):
        module(*make_batch())


@pytest.mark.parametrize("length", [0, 1, 2, 4])
def test_a_total_charge_of_the_wrong_length_is_refused(length):
    module = make_module(charge_constraint="total")
    message = rf"`total_charge` must be of shape \(n_graphs=3,\), got shape \({length},\)"
    with pytest.raises(InputError, match=message):
        module(*make_batch(), total_charge=torch.zeros(length))


def test_forces_respond_to_the_total_charge():
    module, batch = make_module(charge_constraint="total"), make_batch()
    losses = [
        float(force_loss(module, batch, total_charge=tensor([q] * 3)).detach()) for q in (0, 2)
    ]
    assert losses[0] != pytest.approx(losses[1])


def test_the_default_configuration_is_used_if_none_is_given():
    module = SOGLongRange(SIZES)
    assert module.config == SOGConfig()
    assert float(evaluate(module.double(), random_structure(0, 3, 5)).energy.detach()) != 0.0


def test_training_fits_forces_of_the_same_model():
    target, module = make_module(0), make_module(1)
    features, positions, *rest = make_batch()
    positions.requires_grad_()
    energy = target(features, positions, *rest).energy.sum()
    expected = torch.autograd.grad(energy, positions)[0]
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        energy = module(features, positions, *rest).energy.sum()
        (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
        loss = (gradient - expected).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_state_of_other_options_is_refused():
    state = make_module().state_dict()
    with pytest.raises(ConfigError, match="trained with other options: min_width 0.7 here, 1.0"):
        make_module(min_width=0.7).load_state_dict(state)


def test_the_cutoff_that_charges_flow_within_is_part_of_the_state():
    flows = SOGConfig(readout="flows")
    state = SOGLongRange([4], flows, cutoff=5.0).state_dict()
    SOGLongRange([4], flows, cutoff=5.0).load_state_dict(state)
    with pytest.raises(ConfigError, match="other options: cutoff 8.0 here, 5.0 there"):
        SOGLongRange([4], flows, cutoff=8.0).load_state_dict(state)
    atoms = SOGLongRange([4], SOGConfig(), cutoff=5.0).state_dict()
    SOGLongRange([4], SOGConfig(), cutoff=8.0).load_state_dict(atoms)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": FORMAT + 1, "version": "7.1"}, "of sog-longrange 7.1. Update sog-longrange"),
        (
            {"format": 2},
            f"of format {FORMAT}, .* got format 2 of a version before .* Train the model again",
        ),
    ],
)
def test_states_in_another_format_are_refused(change, message):
    state = make_module().state_dict()
    del state["_extra_state"]["version"]
    state["_extra_state"] |= change
    with pytest.raises(InputError, match=message):
        make_module().load_state_dict(state)


def test_pickles_in_another_format_are_refused():
    module = make_module()
    del module.format
    with pytest.raises(
        InputError, match=f"`model` must be of format {FORMAT}, .* or export it with the"
    ):
        pickle.loads(pickle.dumps(module))  # noqa: S301


@pytest.mark.parametrize("module", ["sog_longrange.module", "sog_longrange.kernels"])
def test_files_of_older_versions_are_explained(tmp_path, module):
    write_old_model(tmp_path / "old.model", module)
    reader = re.escape(f"sog-longrange {__version__} reads")
    message = f"{reader}, got a file of an older version, with `{module}.* Train"
    with pytest.raises(InputError, match=message), explain_old_models():
        torch.load(tmp_path / "old.model", weights_only=False)
    for code in ("import surely_no_module", "torch.surely_no_attribute"):
        with pytest.raises((ImportError, AttributeError)), explain_old_models():
            exec(code)  # noqa: S102


def test_results_keep_their_meaning_in_another_order_of_atoms():
    module = make_module(charge_embedding=2, charge_constraint="total")
    total, field = tensor([1.0, -1.0, 0.0]), tensor([0.1, 0.2, -0.3])
    out = module(*make_batch(), total_charge=total, external_field=field)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    moved = out.reorder(order)
    assert torch.equal(moved.energy, out.energy)
    assert torch.equal(moved.electric_charges, out.charges[order, 0])
    assert torch.equal(moved.potential, out.potential[order])
    assert torch.equal(moved.atomic_energies, out.atomic_energies[order])
    for found, expected in zip(moved.parts, out.parts, strict=True):
        assert torch.equal(found.energy, expected.energy)
        assert torch.equal(found.atomic_energies, expected.atomic_energies[order])


def test_an_external_field_acts_on_the_gated_electric_charges():
    module, batch = make_module(num_channels=2, charge_constraint="neutral"), make_batch()
    module.gate.fill_(0.25)
    field = tensor([[0.1, 0.2, -0.3], [0.0, 0.1, 0.0], [0.0, 0.0, 0.0]])
    out, without = module(*batch, external_field=field), module(*batch)
    assert without.parts.external_field is None
    expected = uniform_field(without.charges[:, 0], batch[1], field, *batch[2:])
    for found, own in zip(out.parts.external_field, expected, strict=True):
        assert torch.equal(found, own)
    torch.testing.assert_close(out.energy, without.energy + expected.energy)
    torch.testing.assert_close(
        out.atomic_energies, without.atomic_energies + expected.atomic_energies
    )
    assert torch.equal(out.parts.long_range.energy, without.energy)
    for wrong in (field[:2], field.float(), torch.nan * field):
        with pytest.raises((InputError, InputTypeError), match="`external_field` must be"):
            module(*batch, external_field=wrong)


def test_a_traced_field_is_that_of_structures_without_periodic_axes_along_it():
    module = make_module(charge_constraint="neutral")
    _, positions, cell, _, batch, n_graphs = make_batch()
    pbc = torch.tensor([[False] * 3, [True, True, False], [False, False, True]])
    cell = torch.diag_embed(cell.diagonal(dim1=1, dim2=2))  # each along x, y and z
    field = tensor([[0.1, 0.2, -0.3], [0.0, 0.0, 0.2], [0.0, 0.0, 0.2]])
    charges = module(*make_batch()).electric_charges.detach()

    def in_field(charges, positions, field):
        structures = Structures(positions, cell, pbc, batch, n_graphs)
        return field_term(charges, structures, field)

    traced = make_fx(in_field)(charges, positions, field)(charges, positions, field)
    eager = in_field(charges, positions, field)
    for found, expected in zip(traced[:2], eager[:2], strict=True):
        part = slice(6 if len(found) == 9 else 2)
        torch.testing.assert_close(found[part], expected[part])
        assert bool(found[part.stop :].isnan().all())
        assert bool(expected.isfinite().all())


def test_a_traced_field_on_charges_and_dipoles_serves_any_number_of_atoms():
    def in_field(charges, positions, field, dipoles):
        cell, pbc = torch.zeros(1, 3, 3), torch.zeros(1, 3, dtype=torch.bool)
        batch = torch.zeros_like(charges, dtype=torch.int64)
        structures = Structures(positions, cell.to(positions), pbc, batch, 1)
        out = field_term(charges, structures, field, dipoles=dipoles)
        return *out, *torch.autograd.grad(out.energy, (charges, positions))

    def inputs(n):
        numbers = torch.arange(7.0 * n, dtype=DOUBLE).view(n, 7).sin()
        charges, positions = numbers[:, 0].requires_grad_(), numbers[:, 1:4].requires_grad_()
        return charges, positions, tensor([[0.1, 0.2, -0.3]]), numbers[:, 4:]

    traced = make_fx(in_field, tracing_mode="symbolic")(*inputs(4))
    for found, expected in zip(traced(*inputs(6)), in_field(*inputs(6)), strict=True):
        torch.testing.assert_close(found, expected)


def test_kernel_and_charges_are_all_parameters_and_get_rates_of_their_own():
    modules = [make_module(charge_embedding=2), make_module(learn_widths=False)]
    charges, kernel = parameter_groups(modules, charges=1e-2, kernel=1e-3)
    found = [id(p) for group in (charges, kernel) for p in group["params"]]
    assert sorted(found) == sorted(id(p) for module in modules for p in module.parameters())
    own = {id(p) for module in modules for p in module.energy.parameters()}
    assert {id(p) for p in kernel["params"]} == own
    assert (charges["lr"], kernel["lr"], kernel["weight_decay"]) == (1e-2, 1e-3, 0.0)
    (alone,) = parameter_groups(modules, kernel=1e-3)
    assert alone == kernel
    for rate in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="`kernel_lr` must be finite and not negative"):
            parameter_groups(modules, kernel=rate)


def test_a_gate_that_is_not_open_is_explained():
    module = make_module()
    assert module.explain_gate("Train longer.") == ""
    module.gate.fill_(0.4)
    assert module.explain_gate("Train longer.").endswith("scaled by 40% only. Train longer.")


def test_fade_in_goes_on_from_where_the_gate_stands():
    module = make_module()
    module.gate.fill_(0.5)
    optimizer = optimizer_of(module)
    module.fade_in(optimizer, 4)
    take_steps(optimizer, 1)
    assert float(module.gate) == pytest.approx(0.75)
