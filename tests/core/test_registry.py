"""Kernels by name: every one keeps the contract, and one of a user's own is found and used."""

import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from damped_dispersion import DampedDispersion
from references import DOUBLE, energy_value, evaluate, random_structure, relative_error
from torch import nn

from sog_longrange import (
    ConfigError,
    Ewald,
    InitialPotential,
    Kernel,
    LongRangeEnergy,
    SOGConfig,
    SumOfGaussians,
    list_kernels,
    register,
)
from sog_longrange.kernels.gaussians import FixedGaussians, gaussian_fourier, gaussian_radial
from sog_longrange.kernels.initial import fit_amplitudes, fit_error, log_spaced
from sog_longrange.kernels.registry import find_kernel, kernel_names, options_of, summary
from sog_longrange.kernels.spec import kernel_from, parse_kernels

DAMPED = "damped_dispersion:DampedDispersion"
SAMPLES = {float: 2.0, int: 2, bool: True, str: "text"}
every_kernel = pytest.mark.parametrize("name", [*kernel_names(), DAMPED])
DOCS = Path(__file__).parents[2] / "docs" / "extend"


def example(name):
    """Text of a kernel, with the options that have no default."""
    needed = [x for x in options_of(find_kernel(name)) if x.default is x.empty]
    return f"{name}({', '.join(f'{x.name}={SAMPLES[x.annotation]!r}' for x in needed)})"


def build(name, **options):
    (spec,) = parse_kernels(example(name))
    sums = {"num_gaussians": 8, "max_width": 15.0} | options if spec.is_potential else {}
    return SOGConfig(kernel=example(name), **sums).build_energy().double().kernel


@every_kernel
def test_options_of_every_kernel_are_typed_and_documented(name):
    kernel = find_kernel(name)
    assert 10 < len(summary(kernel)) < 100
    for option in options_of(kernel):
        assert option.annotation in SAMPLES
        assert re.search(rf"^ *{option.name} : ", kernel.__doc__, re.MULTILINE)


@every_kernel
def test_radial_and_fourier_of_every_kernel_are_a_pair(name):
    # Back from the transform: K(r) = int k^2 Khat(k) sin(k r) / (k r) dk / (2 pi^2).
    kernel, step = build(name), 2e-3
    k = step * (torch.arange(5000, dtype=DOUBLE) + 0.5)
    r = torch.linspace(0.3, 12.0, 9, dtype=DOUBLE)
    angles = k * r[:, None]
    waves = k**2 * torch.sin(angles) / angles
    found = (kernel.fourier(k**2)[:, None] * waves).sum(-1) * step / (2.0 * math.pi**2)
    torch.testing.assert_close(found, kernel.radial(r**2), rtol=1e-9, atol=1e-12)


@every_kernel
def test_every_kernel_falls_as_its_narrowest_width_promises(name):
    kernel = build(name)
    k2 = torch.linspace(1.0, 5.0, 50, dtype=DOUBLE) ** 2
    scaled = kernel.fourier(k2).detach().abs() * torch.exp(0.5 * kernel.min_width**2 * k2)
    assert bool((scaled.diff() <= 0.0).all())
    assert len(kernel.zero_mode) == len(scaled) == 1
    finite = kernel.fourier(torch.zeros(1, dtype=DOUBLE)).isfinite()
    assert bool(finite.all()) or kernel.zero_mode == (False,)


@every_kernel
def test_every_kernel_survives_its_text_and_its_options(name):
    (spec,) = parse_kernels(example(name))
    assert parse_kernels(str(spec)) == (spec,)
    assert SOGConfig.from_dict(SOGConfig(kernel=[str(spec)]).to_dict()).kernels == (spec,)
    kernel, x = build(name), torch.linspace(0.1, 9.0, 20, dtype=DOUBLE)
    gaussians = kernel.gaussians or (x.new_empty(1, 0),) * 2
    twin = kernel_from(json.loads(kernel.to_options()), *gaussians)
    for part in (twin, kernel.in_double()):
        assert torch.equal(part.radial(x), kernel.radial(x))
        assert torch.equal(part.fourier(x), kernel.fourier(x))
        assert (part.zero_mode, part.min_width) == (kernel.zero_mode, kernel.min_width)
        assert part.conserved == kernel.conserved


def test_kernels_are_listed_with_their_options():
    listed = list_kernels()
    assert listed["power_law(exponent, strength=1.0)"].startswith("strength / r^exponent")
    assert {call.partition("(")[0] for call in listed} == set(kernel_names())


def install(folder, value, monkeypatch):
    """Pretend that a package with an entry point is installed."""
    info = folder / "own-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sog_longrange.kernels]\ndamped = {value}\n")
    monkeypatch.syspath_prepend(folder)


def test_a_kernel_of_an_installed_package_is_found_by_its_entry_point(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="`kernel` must be one of"):
        SOGConfig(kernel="damped")
    install(tmp_path, DAMPED, monkeypatch)
    config = SOGConfig(kernel="coulomb+damped(radius=4)", num_channels=2)
    assert config.build_kernel().potentials[1] == DampedDispersion(radius=4.0)
    assert config.constrained_channels == (0,)
    assert list_kernels()["damped"] == DAMPED
    with pytest.raises(ConfigError, match="Did you mean 'damped'"):
        SOGConfig(kernel="dampt")


def test_a_broken_entry_point_is_named_only_when_it_is_used(tmp_path, monkeypatch):
    install(tmp_path, "nowhere:Kernel", monkeypatch)
    assert "damped" in list_kernels()
    with pytest.raises(ConfigError, match="that can be imported, got 'nowhere:Kernel' .Module"):
        SOGConfig(kernel="damped")


@pytest.mark.parametrize("name", ["coulomb", "two words", ""])
def test_names_are_words_of_one_class(name):
    with pytest.raises(ConfigError, match="`name` must be"):
        register(name)(DampedDispersion)


RANGES = {"num_gaussians": 20, "min_width": 0.5, "max_width": 100.0}


@pytest.mark.parametrize("name", ["coulomb", "power_law(exponent=4)", "yukawa(kappa=0.2)"])
def test_potentials_with_a_closed_form_can_be_fitted_too(name):
    (spec,) = parse_kernels(name)
    potential, widths = spec.build_potential(), log_spaced(0.6, 100.0, 16)
    amplitudes = fit_amplitudes(potential, widths)
    assert fit_error(potential, amplitudes, widths) < 0.02
    assert fit_error(potential, 1.5 * amplitudes, widths) > 0.3


def test_a_fitted_kernel_is_the_potential_in_its_range():
    potential = DampedDispersion(30.0, 4.0)
    kernel = SumOfGaussians(potential, **RANGES).double()
    assert kernel.initial_error(2.0, 15.0) < 0.02
    r = torch.tensor([3.0, 6.0, 12.0], dtype=DOUBLE)
    expected = -30.0 / (r**6 + 4.0**6)
    torch.testing.assert_close(kernel.radial(r**2)[0].detach(), expected, rtol=0.02, atol=0.0)


@dataclass(frozen=True)
class Ripples(InitialPotential):
    zero_mode = True
    phase: float = 0.0

    def radial(self, r):
        return torch.cos(3.0 * r + self.phase) / r**3


class Overflow(Ripples):
    def radial(self, r):
        return r * math.inf


class Undecided(InitialPotential):
    def radial(self, r):
        return 1.0 / r


@pytest.mark.parametrize(
    ("potential", "message"),
    [
        (Ripples(), "a sum of 12 Gaussians .* to 10%, got .*Ripples.* Use more Gaussians"),
        (Overflow(), "`initial` must be finite and not zero from"),
        (Undecided(), "`zero_mode` must be True or False, got no such attribute of Undecided"),
    ],
)
def test_a_potential_that_no_sum_can_begin_as_is_refused(potential, message):
    with pytest.raises(ConfigError, match=message):
        SumOfGaussians(potential)


class Bell(nn.Module, Kernel):
    """amplitude exp(-r^2 / (2 width^2)), a whole kernel.

    Parameters
    ----------
    amplitude, width : float
    learn : bool
    """

    zero_mode = (True,)

    def __init__(self, amplitude: float, width: float = 1.5, learn: bool = False) -> None:
        super().__init__()
        self.min_width = width
        self.amplitude = nn.Parameter(torch.tensor(amplitude)) if learn else amplitude

    def numbers(self, x):
        return self.amplitude * x.new_ones(1, 1), x.new_full((1, 1), self.min_width)

    def fourier(self, k2):
        return gaussian_fourier(k2, *self.numbers(k2))

    def radial(self, r2):
        return gaussian_radial(r2, *self.numbers(r2))


@pytest.fixture
def bell(monkeypatch):
    """Text of a whole kernel that can be imported."""
    monkeypatch.setitem(sys.modules, "bells", type(sys)("bells"))
    sys.modules["bells"].Bell = Bell
    return "bells:Bell(amplitude=2)"


@pytest.mark.parametrize("periodic", [True, False])
def test_a_whole_kernel_of_a_users_own_has_the_energy_of_its_function(bell, periodic):
    config = SOGConfig(kernel=bell, tolerance=1e-7)
    assert not config.is_sum_of_gaussians
    assert config.constrained_channels == ()
    structure = random_structure(3, 5, periodic=periodic, edge=7.0)
    energy = config.build_energy()
    expected = LongRangeEnergy(twin_of_bell(), tolerance=1e-7)
    found, wanted = evaluate(energy, structure), evaluate(expected, structure)
    assert energy_value(energy, structure) == pytest.approx(float(wanted.energy), rel=1e-9)
    assert relative_error(found.potential, wanted.potential) < 1e-9


def twin_of_bell():
    """The same as a sum of two equal Gaussians."""
    numbers = torch.ones(1, 2, dtype=DOUBLE), torch.full((1, 2), 1.5, dtype=DOUBLE)
    return FixedGaussians(*numbers, 1.5, True)


def test_a_kernel_with_parameters_of_its_own_cannot_be_traced(bell):
    assert "bells:Bell(amplitude=2.0)" in SOGConfig(kernel=bell).build_kernel().to_options()
    learned = SOGConfig(kernel="bells:Bell(amplitude=2, learn=True)").build_kernel()
    assert len(list(learned.parameters())) == 1
    with pytest.raises(ConfigError, match="`kernel` must be a sum of Gaussians, or .* traced"):
        learned.to_options()


def test_options_of_sums_are_refused_for_a_whole_kernel(bell):
    with pytest.raises(ConfigError, match="`max_width` must be left out with kernel='bells:Bell"):
        SOGConfig(kernel=bell, max_width=50.0)


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    text = (DOCS / "add_a_kernel.md").read_text(encoding="utf-8")
    module, *examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_kernels.py").write_text(module, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    names = {}
    for code in examples:
        exec(code, names)  # noqa: S102
    assert names["config"].build_kernel().potentials[1].radius == 3.5
    assert re.findall(r"--sog_kernel=\"(.*)\"", text) == [names["config"].kernel]


class HalfEwald(Ewald):
    """Half of the Ewald kernel, which is not what the text of its parent says."""

    def fourier(self, k2):
        return 0.5 * super().fourier(k2)

    def radial(self, r2):
        return 0.5 * super().radial(r2)


def test_a_derived_kernel_is_not_taken_for_its_parent():
    charges, positions = torch.randn(4, 1), torch.randn(4, 3)
    with pytest.raises(ConfigError, match="registered and without parameters, to be traced"):
        LongRangeEnergy(HalfEwald(1.0), opaque=True)(charges, positions)
    changed = Ewald(1.0)
    changed.smearing = changed.min_width = 2.0
    found, expected = (
        LongRangeEnergy(changed, opaque=opaque)(charges, positions).energy
        for opaque in (True, False)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "text",
    [
        "yukawa(kappa=0.2, kappa=0.5)",
        "yukawa(kappa=0.2)(kappa=0.5)",
        "power_law(exponent=6).strip(exponent=7)",
        "power_law(exponent={[]: 1})",
        f"power_law(exponent={'-' * 50_000}1)",
    ],
    ids=["twice", "called twice", "attribute", "unhashable", "deep"],
)
def test_text_that_would_be_read_in_part_is_refused(text):
    with pytest.raises(ConfigError):
        parse_kernels(text)


@pytest.mark.parametrize("keeps", [True, (), (False, False), (1,)])
def test_zero_modes_that_fit_no_kernel_are_refused(keeps):
    kernel = Ewald(1.0)
    kernel.zero_mode = keeps
    with pytest.raises(ConfigError, match="`zero_mode` must be a tuple of bool"):
        LongRangeEnergy(kernel)
