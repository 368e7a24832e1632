import pytest
import torch
from references import evaluate, perturbed, random_structure, sum_of_gaussians
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.func import functional_call

from sog_longrange import (
    DerivativeError,
    Ewald,
    LongRangeEnergy,
    SOGConfig,
    SOGLongRange,
    coulomb,
    power_law,
)
from sog_longrange.geometry import (
    choose_modes,
    reciprocal_cell,
    squared_wave_numbers,
    wave_number_onset,
)
from sog_longrange.kernels.gaussians import FixedGaussians, gaussian_fourier, gaussian_radial
from sog_longrange.testing import assert_twice_differentiable, join

# Few modes, but some of them along no axis, so that every mixed derivative counts.
TOLERANCE, EDGE = 0.05, 5.0
BOUNDARIES = ("right_handed", "left_handed", "open", "mixed")
KERNELS = ("shared", "per_channel", "ewald")


def make_kernel(name, num_channels=2, **options):
    if name == "ewald":
        return Ewald(1.0)
    own = 1 if name == "shared" else num_channels
    start = coulomb()
    if name == "joined":
        start = [coulomb(), power_law(6.0, -20.0)][:own]
        options = {"zero_mode": False} | options
    kernel = sum_of_gaussians(start, num_channels=own, num_gaussians=2, max_width=2.5, **options)
    return perturbed(kernel, 0.2)


def make_batch(boundary, n_channels=2, n_atoms=3):
    right = random_structure(2, n_atoms, n_channels, edge=EDGE)
    left = random_structure(3, 2, n_channels, edge=EDGE)
    free = random_structure(4, n_atoms, n_channels, edge=EDGE, periodic=False)
    batches = {"right_handed": [right], "left_handed": [left], "open": [free]}
    return join(batches.get(boundary, [left, free]))


def split_batch(batch):
    """Differentiable inputs, and a function that rebuilds the arguments from them."""
    charges, positions, cell, pbc, index, num_graphs = batch
    if not pbc.any():
        return (charges, positions), lambda q, r: (q, r, None, None, index, num_graphs)
    return (charges, positions, cell), lambda q, r, c: (q, r, c, pbc, index, num_graphs)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("n_channels", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_energy_is_twice_differentiable_in_every_input(boundary, kernel, n_channels):
    model = LongRangeEnergy(make_kernel(kernel, n_channels), tolerance=TOLERANCE)
    inputs, arguments = split_batch(make_batch(boundary, n_channels))
    assert_twice_differentiable(lambda *x: model(*arguments(*x)).energy, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("boundary", ["left_handed", "open", "mixed"])
@pytest.mark.parametrize("kernel", ["shared", "per_channel", "joined"])
def test_energy_is_twice_differentiable_in_raw_parameters(boundary, kernel):
    model = LongRangeEnergy(make_kernel(kernel), tolerance=TOLERANCE)
    names, values = zip(*model.named_parameters(), strict=True)
    (charges, positions, *_), arguments = split_batch(make_batch(boundary, n_atoms=2))
    rest = make_batch(boundary, n_atoms=2)[2:]

    def energy(q, r, *parameters):
        state = dict(zip(names, parameters, strict=True))
        return functional_call(model, state, (q, r, *rest)).energy

    assert_twice_differentiable(energy, (charges, positions, *values))


@pytest.mark.slow
@pytest.mark.parametrize("boundary", ["left_handed", "open", "mixed"])
@pytest.mark.parametrize("own_channels", [1, 2])
@pytest.mark.parametrize("zero_mode", [False, True])
def test_energy_is_twice_differentiable_in_amplitudes_and_widths(boundary, own_channels, zero_mode):
    amplitudes = torch.tensor([[3.0, 1.5], [-2.0, 0.5]], dtype=torch.float64)[:own_channels]
    widths = torch.tensor([[1.1, 2.0], [1.3, 1.6]], dtype=torch.float64)[:own_channels]
    batch = make_batch(boundary, n_atoms=2)

    def energy(q, r, a, s):
        model = LongRangeEnergy(FixedGaussians(a, s, 1.0, zero_mode), tolerance=TOLERANCE)
        return model(q, r, *batch[2:]).energy

    assert_twice_differentiable(energy, (*batch[:2], amplitudes, widths))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("output", ["potential", "atomic_energies"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_potential_and_atomic_energies_are_differentiable(boundary, output, kernel):
    model = LongRangeEnergy(make_kernel(kernel), tolerance=TOLERANCE)
    parameters = dict(model.named_parameters())
    inputs, arguments = split_batch(make_batch(boundary))

    def value(*x):
        state = dict(zip(parameters, x[len(inputs) :], strict=True))
        return getattr(functional_call(model, state, arguments(*x[: len(inputs)])), output)

    leaves = tuple(x.detach().clone().requires_grad_() for x in (*inputs, *parameters.values()))
    assert gradcheck(value, leaves)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_energy_without_self_removal_is_twice_differentiable(boundary):
    model = LongRangeEnergy(make_kernel("per_channel"), tolerance=TOLERANCE, remove_self=False)
    inputs, arguments = split_batch(make_batch(boundary, n_atoms=2))
    assert_twice_differentiable(lambda *x: model(*arguments(*x)).energy, inputs)


@pytest.mark.parametrize("kernel", KERNELS)
def test_coincident_atoms_have_finite_second_derivatives(kernel):
    structure = random_structure(5, 2, 2, periodic=False)
    structure.positions[1] = structure.positions[0]
    model = LongRangeEnergy(make_kernel(kernel))
    inputs, arguments = split_batch(join([structure]))
    assert_twice_differentiable(lambda *x: model(*arguments(*x)).energy, inputs)


@pytest.mark.parametrize("boundary", ["left_handed", "open"])
@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)])
def test_derivatives_do_not_depend_on_which_inputs_want_them(boundary, wanted):
    model = LongRangeEnergy(make_kernel("per_channel"), tolerance=TOLERANCE)
    inputs, arguments = split_batch(make_batch(boundary))
    everything = [x.clone().requires_grad_() for x in inputs]
    expected = grad(model(*arguments(*everything)).energy.sum(), everything)
    model.requires_grad_(False)
    some = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
    found = grad(model(*arguments(*some)).energy.sum(), [some[i] for i in wanted])
    for index, value in zip(wanted, found, strict=True):
        torch.testing.assert_close(value, expected[index], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kernel", ["ewald", "frozen"])
def test_forces_of_a_kernel_without_trainable_parameters(boundary, kernel):
    frozen = {"learn_amplitudes": False, "learn_widths": False}
    kernel = make_kernel("ewald") if kernel == "ewald" else make_kernel("shared", **frozen)
    model = LongRangeEnergy(kernel, tolerance=TOLERANCE)
    charges, positions, *rest = make_batch(boundary)
    positions.requires_grad_()

    def force(r):
        energy = model(charges, r, *rest).energy.sum()
        return grad(energy, r, create_graph=True)[0]

    assert gradcheck(force, positions)


def test_a_force_evaluation_never_computes_the_kernel_gradient(monkeypatch):
    from sog_longrange.summation.dense import DenseBackend

    calls = []
    monkeypatch.setattr(DenseBackend, "correlate", lambda *_: calls.append("correlate"))
    model = LongRangeEnergy(make_kernel("shared"), tolerance=TOLERANCE)
    charges, positions, *rest = make_batch("right_handed")
    positions.requires_grad_()
    (gradient,) = grad(model(charges, positions, *rest).energy.sum(), positions)
    assert gradient.norm() > 0.0
    assert calls == []


@pytest.mark.parametrize("boundary", ["left_handed", "open"])
def test_third_derivatives_are_refused(boundary):
    model = LongRangeEnergy(make_kernel("shared"), tolerance=TOLERANCE)
    charges, positions, *rest = make_batch(boundary)
    charges.requires_grad_()
    (first,) = grad(model(charges, positions, *rest).energy.sum(), charges, create_graph=True)
    (second,) = grad(first.square().sum(), charges, create_graph=True)
    with pytest.raises(DerivativeError, match="not available"):
        grad(second.square().sum(), charges)


def test_third_derivatives_in_the_kernel_are_refused():
    model = LongRangeEnergy(make_kernel("shared"), tolerance=TOLERANCE)
    charges, positions, *rest = make_batch("right_handed")
    charges.requires_grad_()
    widths = model.kernel.raw_widths
    (first,) = grad(model(charges, positions, *rest).energy.sum(), widths, create_graph=True)
    (second,) = grad(first.square().sum(), charges, create_graph=True)
    with pytest.raises(DerivativeError, match="not available"):
        grad(second.square().sum(), charges)


def test_second_derivatives_of_the_potential_are_refused():
    model = LongRangeEnergy(make_kernel("ewald"), tolerance=TOLERANCE)
    structure = random_structure(6)
    positions = structure.positions.requires_grad_()
    potential = evaluate(model, structure).potential
    (first,) = grad(potential.square().sum(), positions, create_graph=True)
    with pytest.raises(DerivativeError, match="not available"):
        grad(first.square().sum(), positions)


def force_and_stress_loss(model, batch, create_graph=True):
    """Squared errors of forces and stress against arbitrary references."""
    _, positions, cell, *rest = batch
    strain = torch.zeros_like(cell).requires_grad_()
    positions = positions.clone().requires_grad_()
    strained = positions + torch.einsum("na,nab->nb", positions, strain[rest[1]])
    # Features follow the atoms, as in a real model.
    directions = torch.linspace(-1.0, 1.0, 15, dtype=positions.dtype).view(3, 5)
    features = torch.tanh(strained @ directions)
    energy = model(features, strained, cell + cell @ strain, *rest).energy.sum()
    force, stress = grad(energy, (positions, strain), create_graph=create_graph)
    return (force - 0.1).square().sum() + 0.01 * (stress + 0.2).square().sum()


def make_module(**options):
    torch.manual_seed(0)
    if options.get("kernel") != "ewald":
        options |= {"num_gaussians": 2, "max_width": 3.0}
    config = SOGConfig(num_channels=2, hidden_size=2, tolerance=TOLERANCE, **options)
    return SOGLongRange([3, 2], config).double()


def five_point_difference(function, entry, step=1e-3):
    """Derivative of `function` in one entry of a parameter, changed in place."""
    origin = entry.clone()
    values = []
    for factor in (1.0, -1.0, 2.0, -2.0):
        entry.copy_(origin + factor * step)
        values.append(float(function()))
    entry.copy_(origin)
    return (8.0 * (values[0] - values[1]) - (values[2] - values[3])) / (12.0 * step)


@pytest.mark.parametrize(
    "options",
    [
        {"share_kernel": False, "charge_constraint": "neutral"},
        {"kernel": "yukawa"},
        {"kernel": "ewald"},
        {
            "kernel": "coulomb+power_law",
            "exponent": 6,
            "strength": -20,
            "share_kernel": False,
        },
        {"share_kernel": False, "couple_channels": True},
    ],
    ids=["per_channel", "shared", "ewald", "joined", "coupled"],
)
def test_force_loss_gradient_of_every_parameter_equals_finite_differences(options):
    model = make_module(**options)
    batch = make_batch("mixed")
    parameters = dict(model.named_parameters())
    analytic = grad(force_and_stress_loss(model, batch), tuple(parameters.values()))
    for (name, parameter), expected in zip(parameters.items(), analytic, strict=True):
        entries = parameter.detach().view(-1)
        found = [
            five_point_difference(lambda: force_and_stress_loss(model, batch, False), entries[i])
            for i in range(len(entries))
        ]
        error = (torch.tensor(found).double().view_as(expected) - expected).norm()
        assert error < 1e-6 * expected.norm(), name


def test_the_modes_of_these_tests_have_components_along_every_pair_of_axes():
    cell = random_structure(2, 3, edge=EDGE).cell[None]
    cutoff = wave_number_onset(1.0, TOLERANCE)
    box = choose_modes(cell, cutoff)
    modes = torch.cartesian_prod(*box.axes)
    waves = squared_wave_numbers(box, reciprocal_cell(cell)).flatten()
    inside = modes[waves < cutoff**2]
    for pair in ([0, 1], [0, 2], [1, 2]):
        assert bool((inside[:, pair] != 0).all(1).any())


def test_gradgradcheck_would_notice_a_wrong_second_derivative(monkeypatch):
    from sog_longrange.summation.dense import DenseBackend

    right = DenseBackend.gather_hessian
    monkeypatch.setattr(DenseBackend, "gather_hessian", lambda *args: 1.01 * right(*args))
    model = LongRangeEnergy(make_kernel("ewald"), tolerance=TOLERANCE)
    inputs, arguments = split_batch(make_batch("right_handed"))
    with pytest.raises(AssertionError, match="Second derivatives are wrong"):
        assert_twice_differentiable(lambda *x: model(*arguments(*x)).energy, inputs)


def test_kernel_functions_are_twice_differentiable():
    x = torch.tensor([0.0, 0.3, 4.0], dtype=torch.float64, requires_grad=True)
    amplitudes = torch.tensor([[3.0, -1.5]], dtype=torch.float64, requires_grad=True)
    widths = torch.tensor([[1.1, 2.0]], dtype=torch.float64, requires_grad=True)
    for function in (gaussian_fourier, gaussian_radial):
        assert gradgradcheck(function, (x, amplitudes, widths))
