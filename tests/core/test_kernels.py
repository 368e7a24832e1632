import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import (
    CELLS,
    DOUBLE,
    PERIODIC,
    SUMS,
    atoms_in,
    energy_of,
    energy_value,
    evaluate,
    forces_of,
    perturbed,
    random_structure,
    relative_error,
    sum_of_gaussians,
    tensor,
)
from scipy.special import erf

from sog_longrange import (
    ConfigError,
    Ewald,
    LongRangeEnergy,
    SumOfGaussians,
    coulomb,
    power_law,
    yukawa,
)
from sog_longrange.kernels.ewald import boys_zero
from sog_longrange.kernels.long_waves import coulomb_strength
from sog_longrange.testing import assert_twice_differentiable, join
from sog_longrange.units import COULOMB_CONSTANT

few = settings(max_examples=30, deadline=None, derandomize=True)
POTENTIALS = {
    "coulomb": coulomb(),
    "dispersion": power_law(6.0, -3.0),
    "fourth": power_law(4.0),
    "yukawa": yukawa(0.2),
}
every_potential = pytest.mark.parametrize("initial", POTENTIALS.values(), ids=POTENTIALS)


def with_raw_parameters(kernel, seed, size):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=DOUBLE)
    return kernel


@few
@given(
    raw=st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4),
    min_width=st.floats(0.1, 5.0),
)
def test_widths_stay_above_their_bound_whatever_the_raw_parameters(raw, min_width):
    kernel = sum_of_gaussians(num_gaussians=4, min_width=min_width, max_width=10.0)
    with torch.no_grad():
        kernel.raw_widths.copy_(tensor([raw]))
    assert bool((kernel.widths >= min_width).all())
    assert bool(kernel.widths.isfinite().all())


@every_potential
@pytest.mark.parametrize("max_width", [2.0, 20.0, 5000.0])
def test_widths_begin_log_spaced_from_above_the_bound_to_max_width(initial, max_width):
    widths = sum_of_gaussians(initial, min_width=1.0, max_width=max_width).widths[0].detach()
    ratios = widths[1:] / widths[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-5, atol=0.0)
    assert float(widths[0]) == pytest.approx(1.2, rel=1e-6)
    assert float(widths[-1]) == pytest.approx(max_width, rel=1e-6)


@every_potential
@few
@given(seed=st.integers(0, 1000), size=st.floats(0.0, 3.0))
def test_value_at_the_normalisation_radius_is_pinned(initial, seed, size):
    kernel = sum_of_gaussians(initial, num_channels=2, num_gaussians=6)
    r2 = tensor([kernel.normalisation_radius**2])
    before = kernel.radial(r2).detach()
    after = with_raw_parameters(kernel, seed, size).radial(r2).detach()
    torch.testing.assert_close(after, before, rtol=1e-6, atol=0.0)


@every_potential
def test_the_scale_of_amplitudes_is_no_direction_of_training(initial):
    kernel = sum_of_gaussians(initial)
    before = kernel.amplitudes.detach()
    with torch.no_grad():
        kernel.log_amplitudes += 0.7
    torch.testing.assert_close(kernel.amplitudes.detach(), before)


@every_potential
def test_amplitudes_keep_their_initial_sign(initial):
    kernel = sum_of_gaussians(initial)
    sign = kernel.amplitudes.sign()
    assert torch.equal(with_raw_parameters(kernel, 0, 5.0).amplitudes.sign(), sign)


@every_potential
def test_amplitudes_begin_as_those_of_the_potential(initial):
    kernel = sum_of_gaussians(initial)
    torch.testing.assert_close(kernel.amplitudes[0], kernel.initial_amplitudes, rtol=1e-6, atol=0.0)


def ripple(log_ratio):
    return 2.0 * math.sqrt(2.0) * math.exp(-(math.pi**2) / (2.0 * log_ratio))


@pytest.mark.parametrize("ratio", [2.2, 2.0, 1.8, 1.6])
def test_initial_error_of_coulomb_is_the_ripple_of_the_trapezoidal_rule(ratio):
    n, narrowest = 200, 1.2e-3
    widest = narrowest * ratio ** (n - 1)
    kernel = sum_of_gaussians(num_gaussians=n, min_width=1e-3, max_width=widest)
    middle = math.sqrt(narrowest * widest)
    assert kernel.initial_error(middle / 10, middle * 10) == pytest.approx(
        ripple(math.log(ratio)), rel=0.05
    )


@every_potential
def test_initial_error_decreases_as_the_ratio_decreases(initial):
    errors = [
        sum_of_gaussians(initial, num_gaussians=n, min_width=0.02, max_width=4e4).initial_error(
            1, 8
        )
        for n in (14, 20, 28)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0, 4.5, 6.0])
def test_a_power_law_is_reproduced_in_its_range(exponent):
    initial, widest = power_law(exponent, 2.5), 20.0 * 100.0 ** (1.0 / exponent)
    count = 2 + int(math.log(widest / 0.24) / math.log(1.6))
    kernel = sum_of_gaussians(initial, num_gaussians=count, min_width=0.2, max_width=widest)
    assert kernel.initial_error(2.0, 8.0) < 0.02
    assert float(initial.radial(tensor(2.0))) == pytest.approx(2.5 / 2.0**exponent)


@pytest.mark.parametrize("min_width", [0.5, 1.0, 2.0])
def test_forces_of_the_default_kernel_follow_coulomb_where_documented(min_width):
    kernel = sum_of_gaussians(min_width=min_width, max_width=100.0 * min_width)
    r = torch.linspace(4.0, 15.0, 500, dtype=DOUBLE) * min_width
    r.requires_grad_()
    (slope,) = torch.autograd.grad(kernel.radial(r**2).sum(), r)
    expected = -COULOMB_CONSTANT / r.detach() ** 2
    torch.testing.assert_close(slope, expected, rtol=6e-4, atol=0.0)


def test_initial_error_is_of_the_kernel_as_it_is_now():
    kernel = sum_of_gaussians(num_gaussians=20, min_width=0.2, max_width=2000.0)
    before = kernel.initial_error(3.0, 6.0)
    assert with_raw_parameters(kernel, 0, 1.0).initial_error(3.0, 6.0) > 10.0 * before


@pytest.mark.parametrize(
    ("initial", "kept"),
    [(coulomb(), False), (power_law(3.0), False), (power_law(3.5), True), (yukawa(0.1), True)],
)
def test_zero_mode_is_kept_where_the_potential_is_integrable(initial, kept):
    assert SumOfGaussians(initial).zero_mode == (kept,)
    assert SumOfGaussians(initial, zero_mode=not kept).zero_mode == (not kept,)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3), (2, 0, 3)])
@pytest.mark.parametrize("kernel", [Ewald(), SumOfGaussians(), SumOfGaussians(num_channels=2)])
def test_kernel_values_have_the_shape_of_their_argument(kernel, shape):
    x = torch.full(shape, 0.5)
    assert kernel.radial(x).shape == (kernel.num_channels, *shape)
    assert kernel.fourier(x).shape == (kernel.num_channels, *shape)


def test_boys_function_equals_scipy():
    t = torch.cat([torch.logspace(-18, 3, 4000, dtype=DOUBLE), torch.linspace(0.9, 1.1, 401)])
    expected = 0.5 * torch.sqrt(math.pi / t) * torch.from_numpy(erf(t.sqrt().numpy()))
    torch.testing.assert_close(boys_zero(t), expected, rtol=4e-15, atol=0.0)
    assert float(boys_zero(tensor(0.0))) == 1.0


def test_boys_function_is_accurate_in_float32():
    t = torch.logspace(-6, 4, 2000)
    torch.testing.assert_close(boys_zero(t).double(), boys_zero(t.double()), rtol=5e-7, atol=0.0)


@pytest.mark.parametrize("t", [1e-12, 1e-3, 0.5, 1.0 - 1e-9, 1.0, 1.0 + 1e-9, 5.0])
def test_boys_function_is_twice_differentiable(t):
    assert_twice_differentiable(boys_zero, [tensor([max(t, 1e-5)])])


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("t", [0.0, 1.0 - 1e-12, 1.0 + 1e-12])
def test_derivatives_of_the_boys_function_are_those_of_its_integral(t, order):
    # F_0^(n)(t) = (-1)^n times the integral of u^2n exp(-t u^2) over u from 0 to 1.
    u = (torch.arange(20000, dtype=DOUBLE) + 0.5) / 20000
    expected = float(((-(u**2)) ** order * torch.exp(-t * u**2)).mean())
    x = tensor([t]).requires_grad_()
    value = boys_zero(x)
    for _ in range(order):
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("kernel", [Ewald(1.3), sum_of_gaussians(num_channels=2)])
def test_kernels_survive_a_copy(kernel):
    twin = copy.deepcopy(kernel)
    x = tensor([0.3, 4.0])
    assert torch.equal(twin.radial(x), kernel.radial(x))
    assert str(twin) == str(kernel)


@pytest.mark.parametrize("amplitudes", [True, False])
@pytest.mark.parametrize("widths", [True, False])
def test_only_what_may_be_learned_is(amplitudes, widths):
    kernel = SumOfGaussians(learn_amplitudes=amplitudes, learn_widths=widths)
    assert kernel.log_amplitudes.requires_grad is amplitudes
    assert kernel.raw_widths.requires_grad is widths


def test_channels_have_parameters_of_their_own():
    kernel = sum_of_gaussians(num_channels=2)
    with torch.no_grad():
        kernel.raw_widths[0] += 1.0
    first, second = kernel.widths.detach()
    assert bool((first > second).all())


def test_min_and_default_dtype_decide_the_parameters(double_default):
    assert SumOfGaussians().raw_widths.dtype == DOUBLE


@pytest.fixture
def double_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(DOUBLE)
    yield
    torch.set_default_dtype(before)


PAIR = (coulomb(), power_law(6.0, -20.0))


def combined(initials=PAIR, **options):
    options = {"num_gaussians": 6, "max_width": 8.0, "zero_mode": False} | options
    return sum_of_gaussians(initials, num_channels=len(initials), **options)


def parts_of(kernel):
    """One kernel for each channel of `kernel`, with its potential and parameters."""
    state = kernel.state_dict()
    parts = []
    for channel, initial in enumerate(kernel.potentials):
        options = {"num_gaussians": kernel.widths.shape[1], "zero_mode": kernel.zero_mode[channel]}
        parts.append(combined([initial], **options))
        own = {name: x[channel] for name, x in state.items()}
        own |= {name: own[name][None] for name in ("log_amplitudes", "raw_widths")}
        parts[-1].load_state_dict(own)
    return parts


def energy_of_parts(kernel, structure, value=energy_value, **options):
    return sum(
        value(LongRangeEnergy(part, **options), structure._replace(charges=charges[:, None]))
        for part, charges in zip(parts_of(kernel), structure.charges.T, strict=True)
    )


def test_each_channel_follows_its_own_potential():
    initials = (coulomb(), power_law(6.0, -3.0), yukawa(0.2), power_law(4.0))
    options = {"num_gaussians": 20, "min_width": 0.5, "max_width": 5000.0}
    kernel = combined(initials, **options)
    r = torch.linspace(3.0, 8.0, 50, dtype=DOUBLE)
    errors = [kernel.initial_error(3.0, 8.0, channel) for channel in range(4)]
    for initial, error, found in zip(initials, errors, kernel.radial(r**2).detach(), strict=True):
        alone = sum_of_gaussians(initial, **options)
        assert error == pytest.approx(alone.initial_error(3.0, 8.0), rel=1e-6)
        assert float((found / initial.radial(r) - 1.0).abs().max()) <= error
        assert error < 0.03
    assert kernel.initial_error(3.0, 8.0) == max(errors)


def test_each_channel_keeps_sign_and_value_at_the_normalisation_radius():
    kernel = combined()
    r2 = tensor([kernel.normalisation_radius**2])
    before = kernel.radial(r2).detach()
    expected = torch.cat([part.radial(r2) for part in parts_of(kernel)]).detach()
    assert torch.equal(before, expected)
    with_raw_parameters(kernel, 0, 3.0)
    torch.testing.assert_close(kernel.radial(r2).detach(), before, rtol=1e-6, atol=0.0)
    assert kernel.amplitudes.detach().sign().unique(dim=1).tolist() == [[1.0], [-1.0]]


def test_one_potential_in_a_sequence_is_that_potential():
    kernel, single = SumOfGaussians([power_law(6.0)]), SumOfGaussians(power_law(6.0))
    assert kernel.initial == single.initial
    assert kernel.zero_mode == (True,)
    kernel.load_state_dict(single.state_dict())


@pytest.mark.parametrize("num_channels", [1, 3])
def test_the_state_of_a_kernel_with_one_potential_has_one_row_of_amplitudes(num_channels):
    state = SumOfGaussians(num_channels=num_channels).state_dict()
    assert {name: tuple(x.shape) for name, x in state.items()} == {
        "log_amplitudes": (num_channels, 12),
        "raw_widths": (num_channels, 12),
        "initial_amplitudes": (12,),
        "pinned_value": (),
    }


@pytest.mark.parametrize("given", [None, False, True])
def test_potentials_that_agree_decide_on_the_zero_mode(given):
    kernel = combined([power_law(6.0), yukawa(0.1)], zero_mode=given)
    assert kernel.zero_mode == (given is not False,) * 2


def test_each_potential_decides_on_the_zero_mode_of_its_channel():
    initials = (coulomb(), power_law(6.0), yukawa(0.1), power_law(2.0))
    assert combined(initials, zero_mode=None).zero_mode == (False, True, True, False)
    assert combined(initials, zero_mode=None).snapshot().zero_mode == (False, True, True, False)
    assert combined(initials, zero_mode=True).zero_mode == (True,) * 4


@pytest.mark.parametrize("name", SUMS)
def test_each_net_charge_has_the_energy_of_its_kernel_at_zero(name):
    if name == "finufft":
        pytest.importorskip("finufft", reason="FINUFFT is not installed.")
    if name == "numba":
        pytest.importorskip("numba", reason="numba is not installed.")
    structure = atoms_in(CELLS["triclinic"], n_channels=2)
    options = {"tolerance": 1e-6} | SUMS[name]
    mixed, dropped = (
        LongRangeEnergy(combined(zero_mode=keep), **options) for keep in (None, False)
    )
    mean = mixed.kernel.fourier(torch.zeros(1, dtype=DOUBLE))[1, 0].detach()
    volume, total = structure.cell.det().abs(), structure.charges.sum(0)
    assert float(total.abs().min()) > 0.5
    found = energy_value(mixed, structure) - energy_value(dropped, structure)
    assert found == pytest.approx(float(0.5 * mean * total[1] ** 2 / volume), rel=1e-7)
    shift = evaluate(mixed, structure).potential - evaluate(dropped, structure).potential
    expected = torch.stack([torch.zeros_like(mean), mean * total[1] / volume])
    torch.testing.assert_close(shift.detach(), expected.expand_as(shift), rtol=1e-6, atol=1e-9)


def test_combined_kernels_survive_pickle_and_state():
    kernel, x = perturbed(combined(), 0.3), tensor([0.3, 4.0])
    twin = pickle.loads(pickle.dumps(kernel))  # noqa: S301
    assert str(twin) == str(kernel)
    assert twin.potentials == PAIR
    other = combined()
    other.load_state_dict(kernel.state_dict())
    for copied in (twin, other, kernel.snapshot()):
        assert torch.equal(copied.radial(x), kernel.radial(x))
        assert torch.equal(copied.fourier(x), kernel.fourier(x))


def test_open_energy_of_combined_kernels_is_the_sum_of_their_energies():
    kernel, structure = perturbed(combined(), 0.3), random_structure(1, 6, 2, periodic=False)
    distances = torch.pdist(structure.positions)
    first, second = torch.triu_indices(6, 6, 1)
    pairs = (structure.charges[first] * structure.charges[second]).T
    expected = float((pairs * kernel.radial(distances**2)).sum().detach())
    assert energy_value(LongRangeEnergy(kernel), structure) == pytest.approx(expected, rel=1e-12)
    assert energy_of_parts(kernel, structure) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("boundary", [PERIODIC, PERIODIC & tensor([1, 1, 0]).bool()])
@pytest.mark.parametrize("zero_mode", [False, True, None])
@pytest.mark.parametrize("name", SUMS)
def test_periodic_energy_of_combined_kernels_is_the_sum_of_their_energies(
    name, zero_mode, boundary
):
    if name == "finufft":
        pytest.importorskip("finufft", reason="FINUFFT is not installed.")
    if name == "numba":
        pytest.importorskip("numba", reason="numba is not installed.")
    kernel = perturbed(combined(zero_mode=zero_mode), 0.3)
    structure = atoms_in(CELLS["triclinic"], n_channels=2)._replace(pbc=boundary)
    options = {"tolerance": 1e-6} | SUMS[name]
    model = LongRangeEnergy(kernel, **options)
    for value in (energy_value, forces_of):
        found = torch.as_tensor(value(model, structure))
        expected = torch.as_tensor(energy_of_parts(kernel, structure, value, **options))
        assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("periodic", [True, False])
def test_energy_of_combined_kernels_is_twice_differentiable(periodic):
    model = LongRangeEnergy(perturbed(combined(num_gaussians=3), 0.2), tolerance=0.05)
    charges, positions, *rest = join([random_structure(2, 3, 2, periodic=periodic, edge=5.0)])
    assert_twice_differentiable(lambda q, r: energy_of(model)(q, r, *rest), (charges, positions))


def test_channels_of_combined_kernels_do_not_interact():
    structure = random_structure(3, 2, 2, periodic=False)
    structure.charges[:] = torch.eye(2, dtype=DOUBLE)
    assert energy_value(LongRangeEnergy(combined()), structure) == pytest.approx(0.0)


NAN, INF = float("nan"), float("inf")
BAD_KERNELS = [
    (lambda: SumOfGaussians(num_channels=0), "`num_channels` must be at least 1, got 0"),
    (lambda: SumOfGaussians(num_gaussians=1), "`num_gaussians` must be at least 2, got 1"),
    (lambda: SumOfGaussians([]), r"`initial` must be a potential or at least one .*, got \[\]"),
    (lambda: SumOfGaussians([coulomb()] * 2), "`num_channels` must be 2, one for .*, got 1"),
    (
        lambda: SumOfGaussians((coulomb(), power_law(6.0)), num_channels=3),
        "`num_channels` must be 2, one for each initial potential, got 3",
    ),
    (
        lambda: SumOfGaussians((yukawa(0.1), yukawa(100.0)), num_channels=2),
        "`initial` must be representable .*, got 0.0 for Yukawa.kappa=100.0",
    ),
    (lambda: SumOfGaussians().initial_error(1.0, 2.0, 1), "`channel` must be from 0 to 0, got 1"),
    (lambda: SumOfGaussians(min_width=0.0), "`min_width` must be positive and finite, got 0.0"),
    (lambda: SumOfGaussians(min_width=NAN), "`min_width` must be positive and finite, got nan"),
    (lambda: SumOfGaussians(max_width=1.2), "`max_width` must be .* above .* 1.2, got 1.2"),
    (lambda: SumOfGaussians(max_width=INF), "`max_width` must be finite .*, got inf"),
    (lambda: SumOfGaussians(yukawa(100.0)), "`initial` must be representable .*, got 0.0 for Yuk"),
    (
        lambda: SumOfGaussians(power_law(500.0)),
        "`initial` must be representable .*, got 0.0 for Po",
    ),
    (lambda: SumOfGaussians(power_law(1.0, 1e300)), "`initial` must be representable .*, got inf"),
    (lambda: Ewald(0.0), "`smearing` must be positive and finite, got 0.0"),
    (lambda: Ewald(INF), "`smearing` must be positive and finite, got inf"),
    (lambda: power_law(0.0), "`exponent` must be positive and finite, got 0.0"),
    (lambda: power_law(INF), "`exponent` must be positive and finite, got inf"),
    (lambda: power_law(NAN), "`exponent` must be positive and finite, got nan"),
    (lambda: power_law(6.0, 0.0), "`strength` must be finite and not zero, got 0.0"),
    (lambda: yukawa(0.0), "`kappa` must be positive .*, got 0.0. Use coulomb"),
    (lambda: yukawa(INF), "`kappa` must be positive and finite, got inf"),
    (lambda: yukawa(0.1, 0.0), "`strength` must be finite and not zero, got 0.0"),
    (lambda: yukawa(0.1, NAN), "`strength` must be finite and not zero, got nan"),
]


@pytest.mark.parametrize(("build", "message"), BAD_KERNELS)
def test_an_option_out_of_range_is_named(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (SumOfGaussians(), 1.0),
        (SumOfGaussians(min_width=0.6, num_gaussians=16), 1.0),
        (Ewald(smearing=1.0), 1.0),
        (SumOfGaussians(power_law(6.0)), 0.0),
    ],
)
def test_long_waves_tell_kernels_of_charges_from_others(kernel, expected):
    assert coulomb_strength(kernel) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("max_width", [10.0, 15.0, 20.0, 30.0])
def test_waves_are_no_longer_than_the_kernel_reaches(max_width):
    kernel = SumOfGaussians(max_width=max_width)
    assert coulomb_strength(kernel) == pytest.approx(1.0, abs=0.011)
