"""Dispersion that begins at free atoms, attracts throughout, and keeps its sign."""

import copy
import math

import pytest
import torch
from references import DOUBLE
from torch.autograd import gradcheck, gradgradcheck

from sog_longrange import ConfigError, InputError, SOGConfig, SOGLongRange
from sog_longrange.charge_summary import ChargeSummary
from sog_longrange.charges.dispersion import DispersionCoefficients
from sog_longrange.charges.readout import LatentCharges
from sog_longrange.charges.sites import Edges, Sites
from sog_longrange.kernels.dispersion import dispersion
from sog_longrange.kernels.free_atoms import free_atom_c6
from sog_longrange.kernels.initial import log_spaced

EV_PER_ATOMIC_UNIT = 0.597527  # 1 Hartree bohr^6 in eV Å^6, from 27.2114 eV and 0.529177 Å.
ELEMENTS = (1, 6, 8, 18)
SIZES, CUTOFF = [3, 2], 5.0
SPECIES = torch.tensor([3, 3, 0, 1, 2])


def make(kernel="dispersion", elements=ELEMENTS, **options):
    torch.manual_seed(0)
    config = SOGConfig(kernel=kernel, tolerance=1e-6, **options)
    return SOGLongRange(SIZES, config, cutoff=CUTOFF, atomic_numbers=elements).double()


def sites_of(species, positions=None):
    """Species, and edges of an open structure within the cutoff."""
    none = torch.zeros(0, dtype=torch.int64)
    if positions is None:
        return Sites(Edges(none, none, torch.zeros(0, dtype=DOUBLE)), species)
    vectors = positions[:, None] - positions
    near = (vectors.detach().norm(dim=-1) < CUTOFF) & ~torch.eye(len(positions), dtype=torch.bool)
    i, j = near.nonzero().T
    return Sites(Edges(i, j, vectors[i, j].norm(dim=-1)), species)


def features(n_atoms):
    generator = torch.Generator().manual_seed(n_atoms)
    return torch.randn(n_atoms, sum(SIZES), generator=generator, dtype=DOUBLE)


def argon(r):
    return torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, r]], dtype=DOUBLE)


@pytest.mark.parametrize("exponent", [4.0, 6.0, 8.0])
@pytest.mark.parametrize(("min_width", "max_width"), [(1.0, 10.0), (1.0, 100.0), (2.0, 200.0)])
def test_the_kernel_is_the_power_law_far_away_and_damped_at_contact(exponent, min_width, max_width):
    config = SOGConfig(
        kernel=f"dispersion(exponent={exponent})", min_width=min_width, max_width=max_width
    )
    kernel = config.build_kernel().double().snapshot().in_double()
    r = torch.linspace(4.0 * min_width, min(0.8 * max_width, 20.0), 50, dtype=DOUBLE)
    errors = kernel.radial(r**2)[0] / dispersion(exponent).radial(r) - 1.0
    assert float(errors.abs().max()) < 0.1
    assert float(dispersion(exponent).radial(r[-1:])) * -(float(r[-1]) ** exponent) > 0.9
    inside = -kernel.radial(torch.linspace(0.0, 2.0, 9, dtype=DOUBLE) ** 2)[0]
    assert float(inside.max()) < 1.2 / 2.5**exponent
    assert float(inside.min()) > 0.0


def test_the_closed_form_is_that_of_the_gaussians_and_of_its_ends():
    for potential in (dispersion(), dispersion(4.0, 3.0), dispersion(8.5, 2.0)):
        widths = log_spaced(0.05, 300.0, 400)
        r = torch.tensor([1e-3, 1.0, 2.5, 4.0, 8.0, 20.0], dtype=DOUBLE)
        sums = torch.exp(-0.5 * (r[:, None] / widths) ** 2) @ potential.amplitudes(widths)
        torch.testing.assert_close(sums, potential.radial(r), rtol=1e-5, atol=0.0)
        n, radius = potential.exponent, potential.radius
        assert float(potential.radial(r[:1])) == pytest.approx(-(radius**-n), rel=1e-5)
        far = torch.tensor([60.0], dtype=DOUBLE)
        assert float(potential.radial(far)) == pytest.approx(-(60.0**-n), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_all_amplitudes_attract_whatever_training_does(dtype):
    kernel = SOGConfig(kernel="dispersion", min_width=2.0).build_kernel().to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for own in kernel.parameters():
            own += 2.0 * torch.randn(own.shape, generator=generator)
    r = torch.linspace(0.0, 30.0, 100, dtype=dtype)
    assert bool((kernel.in_double().radial(r.double() ** 2) < 0.0).all())


def test_atoms_begin_as_free_ones():
    assert free_atom_c6(18) == pytest.approx(64.3 * EV_PER_ATOMIC_UNIT, rel=1e-5)
    module = make()
    values = module.readout(features(5), Sites(species=SPECIES))[:, 0]
    expected = [EV_PER_ATOMIC_UNIT * x for x in (64.3, 64.3, 6.5, 46.6, 15.6)]
    torch.testing.assert_close(
        values, torch.tensor(expected, dtype=DOUBLE).sqrt(), rtol=0.02, atol=0.0
    )


def test_ions_begin_as_the_noble_gas_with_as_many_electrons():
    elements, charges = (8, 11, 17, 30, 36), "Na=1,Cl=-1,O=-2,Zn=2"
    module = make(
        "coulomb+dispersion", elements, num_channels=2, readout="ions", element_charges=charges
    )
    found = module.readout.parts[1].log_starts[:, 0].exp().square()
    expected = [free_atom_c6(number) for number in (10, 10, 18, 30, 36)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=DOUBLE), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("r", [8.0, 12.0])
def test_two_argon_atoms_attract_by_their_c6(channels, r):
    module = make(num_channels=channels)
    sites = sites_of(torch.tensor([3, 3]))
    out = module(torch.zeros(2, 5, dtype=DOUBLE), argon(r), sites=sites)
    expected = -64.3 * EV_PER_ATOMIC_UNIT / r**6
    assert out.energy.item() == pytest.approx(expected, rel=0.03)


def test_other_exponents_begin_with_the_energy_of_dispersion_at_contact():
    sixth, fourth = dispersion(), dispersion(4.0)
    assert fourth.start(6) ** 2 / 4.0**4 == pytest.approx(sixth.start(6) ** 2 / 4.0**6)


def test_values_stay_positive_and_move_within_bounds():
    module = make().readout
    start = module(features(5), Sites(species=SPECIES))
    with torch.no_grad():
        for own in module.factors.parameters():
            own *= 1e6
    moved = module(features(5), Sites(species=SPECIES))
    assert bool((moved > 0.0).all())
    assert (moved / start).log().abs().max().item() < 1.6


def test_derivatives_of_the_readout_are_right():
    readout = make("coulomb+dispersion", num_channels=2).readout
    with torch.no_grad():
        for own in readout.parameters():
            own += 0.5 * torch.randn_like(own)
    x = features(5).requires_grad_()
    call = lambda x: readout(x, Sites(species=SPECIES))  # noqa: E731
    assert gradcheck(call, (x,))
    assert gradgradcheck(call, (x,))


def test_every_parameter_of_the_readout_is_learned():
    module = make("coulomb+dispersion", num_channels=4)
    positions = torch.randn(5, 3, dtype=DOUBLE) * 3.0
    sites = sites_of(SPECIES, positions)
    module(features(5), positions, sites=sites).energy.sum().backward()
    assert all(bool(own.grad.any()) for own in module.readout.parameters())


def test_charges_and_dispersion_have_channels_and_readouts_of_their_own():
    module = make("coulomb+dispersion+dispersion(exponent=8)", num_channels=6)
    config = module.config
    assert config.conserved_channels == config.constrained_channels == (0, 1)
    assert config.positive_channels == (2, 3, 4, 5)
    assert [part.num_channels for part in module.readout.parts] == [2, 4]
    positions = torch.randn(5, 3, dtype=DOUBLE) * 3.0
    charges = module(features(5), positions, sites=sites_of(SPECIES, positions)).charges
    assert charges[:, :2].sum(0).abs().max().item() < 1e-12
    sixth, eighth = charges[:, 2:4].square().sum(1), charges[:, 4:].square().sum(1)
    torch.testing.assert_close(sixth * 16.0, eighth, rtol=0.05, atol=0.0)


def test_without_dispersion_the_readout_is_that_of_charges():
    assert type(make("coulomb+power_law(exponent=6)", num_channels=2).readout) is LatentCharges


def test_models_that_do_not_tell_their_elements_begin_as_carbon():
    module = make(elements=())
    values = module.readout(features(4))
    assert values.mean().item() ** 2 == pytest.approx(46.6 * EV_PER_ATOMIC_UNIT, rel=0.03)


def test_species_that_are_missing_or_too_few_are_refused():
    module = make()
    with pytest.raises(InputError, match="species"):
        module(features(2), argon(5.0))
    with pytest.raises(InputError, match="n_atoms=2"):
        module(features(2), argon(5.0), sites=sites_of(SPECIES))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "dispersion(exponent=3)"}, "above 3"),
        ({"kernel": "dispersion(radius=0)"}, "radius"),
        ({"kernel": "dispersion+coulomb", "num_channels": 2}, "electric charges first"),
        ({"kernel": "dispersion", "charge_constraint": "neutral"}, "charge_constraint"),
        ({"kernel": "dispersion", "charge_constraint": "total"}, "charge_constraint"),
        ({"kernel": "dispersion", "latent_dipoles": True}, "latent_dipoles"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SOGConfig(**options)


@pytest.mark.parametrize("kernel", ["dispersion", "coulomb+dispersion", "dispersion+dispersion"])
def test_neighbours_are_left_to_the_network_smoothly(kernel):
    options = {"kernel": kernel, "num_channels": kernel.count("+") + 1}
    far = make(**options)
    near = make(**options | {"kernel": kernel.replace("dispersion", "dispersion(near=True)")})
    species, x = torch.tensor([3, 1]), 0.1 * features(2)
    channels = list(far.config.positive_channels)
    for r in (1.5, 4.0, 4.9, 5.0, 6.0):
        sites = sites_of(species, argon(r))
        ours, all_pairs = (m(x, argon(r), sites=sites) for m in (far, near))
        t = min(r / CUTOFF, 1.0)
        share = 1.0 - 91.0 * t**12 + 168.0 * t**13 - 78.0 * t**14
        own = far.energy.kernel.radial(torch.tensor(r, dtype=DOUBLE) ** 2).expand(2, -1)[:2]
        values = ours.charges[:, channels].prod(0) * own.flatten()[channels]
        left_out = float((share * values.sum()).detach())
        difference = float((all_pairs.energy - ours.energy).detach())
        assert difference == pytest.approx(left_out, rel=1e-4, abs=1e-9)
        assert ours.atomic_energies.sum().item() == pytest.approx(ours.energy.item(), abs=1e-12)


def test_dispersion_has_no_dipoles():
    torch.manual_seed(0)
    options = {"kernel": "coulomb+dispersion", "num_channels": 4, "latent_dipoles": True}
    module = SOGLongRange(
        SIZES, SOGConfig(**options), num_vectors=2, cutoff=CUTOFF, atomic_numbers=ELEMENTS
    ).double()
    positions = torch.randn(5, 3, dtype=DOUBLE) * 3.0
    given = {"vectors": torch.randn(5, 3, 2, dtype=DOUBLE), "sites": sites_of(SPECIES, positions)}
    dipoles = module(features(5), positions, **given).dipoles
    assert dipoles.shape == (5, 3, 4)
    assert bool(dipoles[..., :2].any())
    assert not bool(dipoles[..., 2:].any())


def test_forces_hold_what_is_left_out():
    module = make("coulomb+dispersion", num_channels=2, min_width=0.8)
    x = features(5)
    positions = torch.randn(5, 3, dtype=DOUBLE) * 2.5

    def energy(positions):
        moving = x * (1.0 + 0.1 * positions.sin().sum(1, keepdim=True))
        return module(moving, positions, sites=sites_of(SPECIES, positions)).energy

    assert gradcheck(energy, (positions.requires_grad_(),), atol=1e-6)
    assert gradgradcheck(energy, (positions,), atol=1e-5)


def test_the_potential_is_the_derivative_in_the_charges():
    module = make(num_channels=2)
    positions = torch.randn(5, 3, dtype=DOUBLE) * 2.5
    out = module(features(5), positions, sites=sites_of(SPECIES, positions))
    (slope,) = torch.autograd.grad(out.energy.sum(), out.charges)
    torch.testing.assert_close(slope, out.potential.detach())


def test_hosts_without_edges_are_told_of_the_other_way():
    with pytest.raises(ConfigError, match=r"dispersion\(near=True\)"):
        SOGLongRange(SIZES, SOGConfig(kernel="dispersion"))
    SOGLongRange(SIZES, SOGConfig(kernel="dispersion(near=True)"))
    with pytest.raises(InputError, match="edges"):
        make()(features(5), torch.randn(5, 3, dtype=DOUBLE), sites=Sites(species=SPECIES))


def test_elements_without_a_free_atom_are_refused():
    with pytest.raises(ConfigError, match="from 1 to 102"):
        make(elements=(6, 110))


def test_starts_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="rows"):
        DispersionCoefficients([2], torch.ones(3, 1), atomic_numbers=(1, 6))
    with pytest.raises(ConfigError, match="positive"):
        DispersionCoefficients([2], torch.zeros(1, 1))


def test_a_state_of_more_elements_is_loaded_by_element():
    large = make()
    with torch.no_grad():
        large.readout.log_elements += torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    small = make(elements=(8, 1))
    small.load_state_dict(copy.deepcopy(large.state_dict()))
    assert small.readout.log_elements[:, 0].tolist() == [3.0, 1.0]
    one = Sites(species=torch.tensor([2, 0])), Sites(species=torch.tensor([0, 1]))
    x = features(2)
    torch.testing.assert_close(large.readout(x, one[0]), small.readout(x, one[1]))
    with pytest.raises(ConfigError, match=r"\[8, 1, 17\]"):
        make(elements=(8, 1, 17)).load_state_dict(large.state_dict())


def test_coefficients_are_told_by_element():
    module = make("coulomb+dispersion", num_channels=3 + 1)
    made = ChargeSummary(module)
    values = torch.tensor([[0.5, 0.0, 3.0, 4.0], [-0.5, 0.0, 1.0, 0.0]], dtype=DOUBLE)
    batch, energy = torch.tensor([0, 0]), torch.tensor([-1.0])
    made.add(values, torch.tensor([8, 1]), batch, energy, energy)
    lines = made.lines({1: "H", 8: "O"})
    place = next(i for i, line in enumerate(lines) if line.startswith("Coefficients C_n"))
    assert "dispersion" in lines[place]
    assert "eV Å^n" in lines[place]
    table = {line.split()[0]: float(line.split()[1]) for line in lines[place + 2 : place + 4]}
    assert table == {"H": 1.0, "O": 25.0}
    assert lines[0].startswith("Latent charges")


def test_dispersion_alone_is_not_told_as_charges():
    made = ChargeSummary(make())
    energy = torch.tensor([-1.0])
    made.add(
        torch.tensor([[4.0], [6.0]]), torch.tensor([8, 8]), torch.zeros(2).long(), energy, energy
    )
    lines = made.lines({8: "O"})
    assert lines[0].startswith("Coefficients C_n of dispersion")
    assert [float(x) for x in lines[2].split()[1:]] == [26.0, 16.0, 36.0]
    assert not any("charge" in line for line in lines)
    assert made.warnings() == []


def test_the_bound_of_attraction_inside_a_molecule():
    # At 1.5 Å, two carbon atoms without damping: -2.4 eV.
    energy = free_atom_c6(6) * float(dispersion().radial(torch.tensor([1.5], dtype=DOUBLE)))
    assert -0.15 < energy < 0.0
    assert math.isclose(free_atom_c6(6) / 1.5**6, 2.44, rel_tol=0.01)
