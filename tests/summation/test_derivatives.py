"""Derivatives of energies, potentials and fields, once for each backend and boundary."""

import pytest
import torch
from references import (
    DOUBLE,
    SUMS,
    dipoles_of,
    perturbed,
    random_structure,
    relative_error,
    sum_of_gaussians,
    tensor,
)
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call

from sog_longrange import (
    CoupledGaussians,
    DerivativeError,
    Ewald,
    LongRangeEnergy,
    SOGConfig,
    SOGLongRange,
    coulomb,
    potential_and_field,
    power_law,
)
from sog_longrange.kernels.closed_forms import pinned_amplitudes, sum_of_transforms
from sog_longrange.kernels.gaussians import FixedGaussians, gaussian_fourier, gaussian_radial
from sog_longrange.summation import dispatch
from sog_longrange.summation.dense import DenseBackend
from sog_longrange.summation.mesh import MeshBackend
from sog_longrange.summation.resolution import Resolution
from sog_longrange.summation.rows import sphere_rows
from sog_longrange.testing import assert_twice_differentiable, join
from sog_longrange.validation import Structures

# Few modes, but some of them along no axis, so that every mixed derivative counts.
TOLERANCE, EDGE = 0.05, 5.0
BACKENDS = {
    "dense": ("two", SUMS["dense"]),
    "mesh": ("two", SUMS["mesh"]),
    "numba": ("right_handed", SUMS["numba"]),
    "finufft": ("left_handed", SUMS["finufft"]),
    "pairs": ("non_periodic", SUMS["mesh"]),
    "padded": ("non_periodic", SUMS["mesh"]),
    "slab": ("slab", SUMS["mesh"]),
    "one periodic direction": ("one_direction", SUMS["mesh"]),
}
"""Boundary and options with which each sum is tested."""

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def make_batch(boundary, n_channels=2, n_atoms=2):
    right = random_structure(2, n_atoms, n_channels, edge=EDGE)
    left = random_structure(3, 2, n_channels, edge=EDGE)
    free = random_structure(4, n_atoms, n_channels, edge=EDGE, periodic=False)
    near = right._replace(positions=0.3 * right.positions)
    batches = {
        "right_handed": [right],
        "left_handed": [left],
        "two": [left, random_structure(2, 1, n_channels, edge=EDGE)],
        "non_periodic": [free._replace(positions=0.5 * free.positions)],
        "slab": [near._replace(pbc=torch.tensor([True, False, True]))],
        "one_direction": [near._replace(pbc=torch.tensor([False, True, False]))],
        "mixed": [left, free],
    }
    return join(batches[boundary])


def make_kernel(name, num_channels=2, **options):
    if name == "ewald":
        return Ewald(1.0)
    options = {"num_gaussians": 2, "max_width": 2.5} | options
    if name == "coupled":
        kernel = CoupledGaussians(coulomb(), num_channels=2, coupling=0.4, **options).double()
        return perturbed(kernel, 0.1)
    own = 1 if name == "shared" else num_channels
    initial = coulomb()
    if name == "combined":
        initial = [coulomb(), power_law(6.0, -20.0)]
        options = {"zero_mode": False} | options
    return perturbed(sum_of_gaussians(initial, num_channels=own, **options), 0.2)


@pytest.fixture
def always_padded(monkeypatch):
    """Non-periodic structures of any size are summed on a padded grid."""
    monkeypatch.setattr(dispatch, "MOST_PAIRED", 0)
    monkeypatch.setattr(dispatch, "pairs_are_faster", lambda size: False)


@pytest.fixture
def sums(backend, request):
    """Boundary and options of a backend."""
    boundary, options = BACKENDS[backend]
    for library in {"numba", "finufft"} & {backend}:
        pytest.importorskip(library, reason=f"{library} is not installed.")
    if backend == "padded":
        request.getfixturevalue("always_padded")
    # FINUFFT's noise, a tenth of the tolerance, would show in finite differences.
    tolerance = 1e-12 if backend == "finufft" else TOLERANCE
    return boundary, options | {"tolerance": tolerance}


def kernel_of(backend, amplitudes, widths):
    # Few modes at FINUFFT's tight tolerance, too.
    scale = 3.0 if backend == "finufft" else 1.0
    return FixedGaussians(amplitudes, scale * widths, scale, zero_mode=False)


AMPLITUDES, WIDTHS = tensor([[3.0, 1.5], [-2.0, 0.5]]), tensor([[1.1, 2.0], [1.3, 1.6]])


def everything(energy, batch, weights):
    """Function of charges, dipoles, positions and cells that needs all that is computed."""
    _, _, _, pbc, index, num_graphs = batch

    def function(charges, dipoles, positions, cell):
        structures = Structures(positions, cell, pbc, index, num_graphs)
        out = energy.potentials(charges, structures, dipoles, field=True)
        return sum((w * own).sum() for w, own in zip(weights, out, strict=True))

    return function


def check(function, inputs, *, fast=False, step=1e-6, tolerance=1e-6):
    """Check two derivatives, of all inputs or, where that takes long, in random directions."""
    if not fast:
        assert_twice_differentiable(function, inputs, step=step, tolerance=tolerance)
        return
    leaves = tuple(x.detach().clone().requires_grad_() for x in inputs)
    options = {"eps": step, "atol": tolerance, "rtol": tolerance, "fast_mode": True}
    assert gradcheck(function, leaves, **options)
    assert gradgradcheck(function, leaves, **options)


def weights_of(batch):
    generator = torch.Generator().manual_seed(5)
    charges, num_graphs = batch[0], batch[5]
    shapes = (num_graphs,), charges.shape, (len(charges), 3, charges.shape[1])
    return [torch.randn(shape, generator=generator, dtype=DOUBLE) for shape in shapes]


@every_backend
def test_energy_potential_and_field_are_twice_differentiable(backend, sums):
    boundary, options = sums
    batch = make_batch(boundary)
    charges, positions, cell, pbc, *_ = batch
    weights = weights_of(batch)

    def function(charges, dipoles, positions, amplitudes, widths, cell=cell):
        energy = LongRangeEnergy(kernel_of(backend, amplitudes, widths), **options)
        return 0.1 * everything(energy, batch, weights)(charges, dipoles, positions, cell)

    inputs = [charges, dipoles_of(charges), positions, AMPLITUDES, WIDTHS]
    inputs += [cell] if pbc.any() else []
    # Windows and the end of the sum are smooth, but not so smooth as Gaussians.
    check(function, inputs, fast=backend not in ("mesh", "pairs"), step=1e-5, tolerance=1e-5)


KERNELS = [("shared", 2), ("ewald", 1), ("ewald", 2), ("coupled", 2), ("combined", 2)]


@pytest.mark.parametrize(("name", "n_channels"), KERNELS)
@pytest.mark.parametrize("backend", ["dense", "pairs"])
def test_every_kernel_is_twice_differentiable(name, n_channels, backend, sums):
    boundary, options = sums
    energy = LongRangeEnergy(make_kernel(name), **options)
    batch = make_batch(boundary, n_channels)
    charges, positions, *rest = batch
    names = [own for own, _ in energy.named_parameters()]
    values = [own.detach() for own in energy.parameters()]
    weights = weights_of(batch)[1][:, 0]

    def function(charges, dipoles, positions, *parameters):
        state = dict(zip(names, parameters, strict=True))
        keywords = {"dipoles": dipoles}
        out = functional_call(energy, state, (charges, positions, *rest), keywords)
        return out.energy.sum() + out.atomic_energies @ weights

    check(function, (charges, dipoles_of(charges), positions, *values), fast=True)


@pytest.mark.parametrize("backend", ["dense", "mesh", "padded"])
def test_sums_with_the_self_interaction_are_twice_differentiable(backend, sums):
    boundary, options = sums
    energy = LongRangeEnergy(make_kernel("per_channel"), remove_self=False, **options)
    batch = make_batch(boundary, n_atoms=2)
    charges, positions, cell, *_ = batch
    function = everything(energy, batch, weights_of(batch))
    inputs = (charges, dipoles_of(charges), positions)
    check(lambda q, mu, r: function(q, mu, r, cell), inputs, fast=True)


@pytest.mark.slow
@every_backend
def test_third_derivatives_in_atoms_are_right(backend, sums):
    boundary, options = sums
    energy = LongRangeEnergy(kernel_of(backend, AMPLITUDES, WIDTHS), **options)
    batch = make_batch(boundary)
    charges, positions, cell, *_ = batch
    function = everything(energy, batch, weights_of(batch))

    def second_derivatives(*inputs):
        first = grad(0.1 * function(*inputs, cell), inputs, create_graph=True)
        loss = sum(own.sin().sum() for own in first)
        return grad(loss, inputs, create_graph=True)

    leaves = [x.clone().requires_grad_() for x in (charges, dipoles_of(charges), positions)]
    assert gradcheck(second_derivatives, leaves, eps=1e-5, atol=1e-4, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize("backend", ["mesh", "numba", "finufft"])
@pytest.mark.parametrize("wanted", ["cell", "kernel"])
def test_third_derivatives_in_the_cell_and_the_kernel_are_refused(wanted, backend, sums):
    boundary, options = sums
    energy = LongRangeEnergy(make_kernel("shared"), **options)
    charges, positions, cell, *rest = make_batch(boundary)
    charges.requires_grad_()
    cell.requires_grad_()
    by = cell if wanted == "cell" else energy.kernel.raw_widths
    (first,) = grad(energy(charges, positions, cell, *rest).energy.sum(), by, create_graph=True)
    (second,) = grad(first.square().sum(), charges, create_graph=True)
    with pytest.raises(DerivativeError, match="not available"):
        grad(second.square().sum(), charges)


@every_backend
def test_gradients_of_a_network_that_reads_potential_and_field(backend, sums):
    """Its force loss has second derivatives of nonlinear functions of both."""
    boundary, options = sums
    energy = LongRangeEnergy(kernel_of(backend, AMPLITUDES, WIDTHS), **options)
    charges, positions, *rest = make_batch(boundary, n_atoms=3)

    def loss(charges, positions):
        moved = positions if positions.requires_grad else positions.clone().requires_grad_()
        first = potential_and_field(energy, charges, moved, *rest)
        features = torch.tanh(0.1 * first.potential)
        dipoles = 0.1 * torch.tanh(first.field)
        second = potential_and_field(energy, features, moved, *rest, dipoles=dipoles)
        total = second.potential.sin().sum() + (second.field * first.field).sum()
        force = -grad(total, moved, create_graph=True)[0]
        return (force - 0.1).square().sum()

    leaves = [x.clone().requires_grad_() for x in (charges, positions)]
    for found, leaf in zip(grad(loss(*leaves), leaves), leaves, strict=True):
        entries = leaf.detach().view(-1)
        values = [
            five_point_difference(lambda: loss(*(x.detach() for x in leaves)), entries[i])
            for i in range(len(entries))
        ]
        assert relative_error(torch.tensor(values, dtype=DOUBLE).view_as(found), found) < 1e-6


def five_point_difference(function, entry, step=5e-4):
    """Derivative of `function` in one entry of a tensor, changed in place."""
    origin = entry.clone()
    values = []
    for factor in (1.0, -1.0, 2.0, -2.0):
        entry.copy_(origin + factor * step)
        values.append(float(function().detach()))
    entry.copy_(origin)
    return (8.0 * (values[0] - values[1]) - (values[2] - values[3])) / (12.0 * step)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shared", "ewald"])
def test_coincident_atoms_have_finite_second_derivatives(name):
    structure = random_structure(5, 2, 2, periodic=False)
    structure.positions[1] = structure.positions[0]
    batch = join([structure])
    function = everything(LongRangeEnergy(make_kernel(name)), batch, weights_of(batch))
    charges, positions, cell, *_ = batch
    inputs = (charges, dipoles_of(charges), positions)
    check(lambda q, mu, r: function(q, mu, r, cell), inputs, fast=True)


@pytest.mark.parametrize("backend", ["mesh", "dense", "pairs"])
def test_derivatives_do_not_depend_on_which_inputs_want_them(backend, sums):
    boundary, options = sums
    energy = LongRangeEnergy(make_kernel("per_channel"), **options)
    batch = make_batch(boundary)
    inputs = [batch[0], dipoles_of(batch[0]), *batch[1:3]]
    function = everything(energy, batch, weights_of(batch))

    def derivatives(wanted):
        leaves = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
        own = [leaves[i] for i in wanted]
        return grad(function(*leaves), own, allow_unused=True)

    expected = derivatives(range(4))
    energy.requires_grad_(False)
    for wanted in ((0,), (1,), (2,), (0, 3) if backend == "pairs" else (3,), (0, 2)):
        for index, found in zip(wanted, derivatives(wanted), strict=True):
            torch.testing.assert_close(found, expected[index], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("backend", ["dense", "mesh", "slab"])
def test_a_force_evaluation_never_computes_the_kernel_gradient(backend, sums, monkeypatch):
    boundary, options = sums
    calls = []
    name = "sog_longrange.summation.quadratic_form.correlate"
    monkeypatch.setattr(name, lambda *_: calls.append("correlate"))
    energy = LongRangeEnergy(make_kernel("shared"), **options)
    charges, positions, *rest = make_batch(boundary)
    positions.requires_grad_()
    (gradient,) = grad(energy(charges, positions, *rest).energy.sum(), positions)
    assert gradient.norm() > 0.0
    assert calls == []


@pytest.mark.parametrize("backend", ["dense", "mesh"])
def test_wrong_derivatives_would_be_noticed(backend, sums, monkeypatch):
    for owner in (DenseBackend, MeshBackend):
        right = owner.interpolate_gradient
        monkeypatch.setattr(owner, "interpolate_gradient", lambda *x, own=right: 1.01 * own(*x))
    energy = LongRangeEnergy(Ewald(1.0), **sums[1])
    batch = make_batch(sums[0])
    charges, positions, cell, *_ = batch
    function = everything(energy, batch, weights_of(batch))
    leaf = positions.clone().requires_grad_()
    options = {"eps": 1e-5, "atol": 1e-5, "rtol": 1e-5, "fast_mode": True}
    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        gradcheck(lambda r: function(charges, dipoles_of(charges), r, cell), leaf, **options)


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


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": "coulomb+coulomb", "charge_constraint": "neutral"},
        {"kernel": "yukawa"},
        {"kernel": "ewald"},
        {"kernel": "coulomb+power_law(exponent=6, strength=-20)"},
        {"couple_channels": True},
    ],
    ids=["per_channel", "shared", "ewald", "combined", "coupled"],
)
def test_force_loss_gradient_of_every_parameter_equals_finite_differences(options):
    model = make_module(**options)
    batch = make_batch("mixed")
    parameters = dict(model.named_parameters())
    analytic = grad(force_and_stress_loss(model, batch), tuple(parameters.values()))
    for (name, parameter), expected in zip(parameters.items(), analytic, strict=True):
        entries = parameter.detach().view(-1)
        found = [
            five_point_difference(
                lambda: force_and_stress_loss(model, batch, False), entries[i], 1e-3
            )
            for i in range(len(entries))
        ]
        error = (torch.tensor(found).double().view_as(expected) - expected).norm()
        assert error < 1e-6 * expected.norm(), name


def test_the_modes_of_these_tests_have_components_along_every_pair_of_axes():
    cell = random_structure(2, 3, edge=EDGE).cell[None]
    cutoff = Resolution.of(1.0, TOLERANCE).taper_start
    rows = sphere_rows(cell.numpy(), cutoff)
    inside = rows.modes(torch.float64, torch.device("cpu"))
    for pair in ([0, 1], [0, 2], [1, 2]):
        assert bool((inside[:, pair] != 0).all(1).any())


def test_kernel_functions_are_twice_differentiable():
    x = torch.tensor([0.0, 0.3, 4.0], dtype=torch.float64, requires_grad=True)
    amplitudes = torch.tensor([[3.0, -1.5]], dtype=torch.float64, requires_grad=True)
    widths = torch.tensor([[1.1, 2.0]], dtype=torch.float64, requires_grad=True)
    for function in (gaussian_fourier, gaussian_radial):
        assert gradgradcheck(function, (x, amplitudes, widths))


def test_closed_forms_of_sums_of_gaussians_are_twice_differentiable():
    k2 = torch.tensor([0.0, 0.3, 4.0], dtype=torch.float64)
    values = ([[3.0, -1.5], [0.4, 2.0]], [[1.1, 2.0], [0.9, 1.7]], [[0.1, -0.2], [0.3, 0.0]])
    amplitudes, widths, logs = (torch.tensor(x, dtype=torch.float64) for x in values)
    pinned = torch.tensor([2.0, -0.7], dtype=torch.float64)
    own, at = (amplitudes,), (pinned, 2.5)
    cases = (
        (lambda a, s: sum_of_transforms(k2, a, s), amplitudes),
        (lambda x, s: pinned_amplitudes(*own, x, s, *at), logs),
        # As in a kernel, whose amplitudes depend on its widths.
        (
            lambda x, s: sum_of_transforms(k2, pinned_amplitudes(amplitudes, x, s, pinned, 2.5), s),
            logs,
        ),
    )
    for function, first in cases:
        leaves = first.clone().requires_grad_(), widths.clone().requires_grad_()
        assert gradcheck(function, leaves)
        assert gradgradcheck(function, leaves)
