import dataclasses
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sog_longrange import (
    ConfigError,
    CoupledGaussians,
    Ewald,
    SOGConfig,
    SOGLongRange,
    SumOfGaussians,
)
from sog_longrange.config import OF_SUMS
from sog_longrange.kernels.coulomb import Coulomb
from sog_longrange.kernels.power_law import PowerLaw
from sog_longrange.kernels.yukawa import Yukawa
from sog_longrange.options import help_of
from sog_longrange.units import COULOMB_CONSTANT

FIELDS = {field.name: field for field in dataclasses.fields(SOGConfig)}
FLOATS = [name for name, field in FIELDS.items() if "float" in field.type]
INTEGERS = [name for name, field in FIELDS.items() if field.type == "int"]
FLAGS = [name for name, field in FIELDS.items() if "bool" in field.type]
STRINGS = [name for name, field in FIELDS.items() if field.type.startswith("str")]
OPTIONAL = [name for name, field in FIELDS.items() if "None" in field.type]

WRONG_TYPES = [
    *((name, value) for name in FLOATS for value in (True, "1.0", [1.0], 1j)),
    *((name, value) for name in INTEGERS for value in (True, 2.0, "2", None)),
    *((name, value) for name in FLAGS for value in (1, 0.0, "yes")),
    *((name, value) for name in STRINGS for value in (1, None, True)),
    *((name, None) for name in FIELDS if name not in OPTIONAL),
]


def test_every_option_has_a_type_that_is_tested():
    assert {*FLOATS, *INTEGERS, *FLAGS, *STRINGS} == set(FIELDS)


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES)
def test_a_wrong_type_is_refused_with_name_and_value(name, value):
    with pytest.raises(
        ConfigError, match=f"`{name}` must be .*, got {value!r} of type ".replace("[", r"\[")
    ):
        SOGConfig(**{name: value})


@pytest.mark.parametrize("name", sorted(set(FLOATS) - {"tolerance"}))
def test_integers_stand_for_floats(name):
    value = getattr(SOGConfig(**{name: 2}), name)
    assert type(value) is float
    assert value == 2.0


@pytest.mark.parametrize("name", OPTIONAL)
def test_none_is_accepted_where_it_means_the_default(name):
    assert getattr(SOGConfig(**{name: None}), name) is None


@pytest.mark.parametrize("name", FIELDS)
def test_options_cannot_be_changed(name):
    config = SOGConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, getattr(config, name))


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("latent_dipole", "latent_dipoles"),
        ("num_channel", "num_channels"),
        ("tollerance", "tolerance"),
        ("min_widht", "min_width"),
        ("Kernel", "kernel"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_name(key, nearest):
    with pytest.raises(ConfigError, match=f"got '{key}'. Did you mean '{nearest}'?"):
        SOGConfig.from_dict({key: 1.0})


@pytest.mark.parametrize("key", ["sgima", "", 3])
def test_an_unknown_option_without_a_near_name_is_refused_with_all_names(key):
    with pytest.raises(ConfigError, match=f"one of kernel, .*, engine, got {key!r}"):
        SOGConfig.from_dict({key: 1.0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "colomb"}, "`kernel` must be one of .*, got 'colomb'. Did you mean 'coulomb'"),
        ({"kernel": "xyz"}, "`kernel` must be one of .*, got 'xyz'.$"),
        ({"charge_constraint": "neutrall"}, "`charge_constraint` .* Did you mean 'neutral'"),
    ],
)
def test_an_unknown_choice_is_refused_with_the_nearest(options, message):
    with pytest.raises(ConfigError, match=message):
        SOGConfig(**options)


NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_channels": 0}, "num_channels"),
        ({"kernel": "coulomb+coulomb", "num_channels": -1}, "num_channels"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"charge_embedding": -1}, "charge_embedding"),
        ({"num_gaussians": 1}, "num_gaussians"),
        ({"min_width": 0.0}, "min_width"),
        ({"min_width": 90.0}, "max_width"),
        ({"max_width": NAN}, "max_width"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": 0.2}, "tolerance"),
        ({"tolerance": NAN}, "tolerance"),
        ({"kernel": "power_law(exponent=-1)"}, "exponent"),
        ({"kernel": "power_law(exponent=6, strength=0)"}, "strength"),
        ({"kernel": "yukawa(kappa=0)"}, "kappa"),
        ({"kernel": "ewald(smearing=-1)"}, "smearing"),
        ({"fractional_charge": True, "charge_constraint": "none"}, "fractional_charge"),
        ({"fractional_charge": True, "charge_constraint": "neutral"}, "fractional_charge"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(options, name):
    with pytest.raises(ConfigError, match=f"`[^`]*{name}[^`]*` must be"):
        SOGLongRange([4], SOGConfig(**options))


of_sums = {"learn_widths": st.booleans()}
exponents, kappas = st.floats(0.5, 8.0), st.floats(0.1, 0.5)
potentials = st.one_of(
    st.just("coulomb"),
    st.builds("power_law(exponent={})".format, exponents),
    st.builds("yukawa(kappa={}, strength={})".format, kappas, st.floats(0.5, 20.0)),
)
ewald = st.builds("ewald(smearing={})".format, st.floats(0.5, 3.0))
of_each_kernel = st.one_of(
    st.fixed_dictionaries({"kernel": potentials, **of_sums}),
    st.fixed_dictionaries({"kernel": ewald}),
)
of_all_kernels = st.fixed_dictionaries(
    {
        "num_channels": st.integers(1, 4),
        "charge_constraint": st.sampled_from(["auto", "none", "neutral", "total"]),
        "charge_embedding": st.integers(0, 3),
    }
)
configurations = st.builds(lambda a, b: SOGConfig(**a, **b), of_each_kernel, of_all_kernels)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(configurations)
def test_a_dictionary_gives_the_configuration_back(config):
    assert SOGConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 1),
        ({"num_channels": 3}, 1),
        ({"kernel": "ewald", "num_channels": 3}, 1),
        ({"kernel": "coulomb+coulomb", "num_channels": 4}, 4),
        ({"couple_channels": True, "num_channels": 3}, 3),
    ],
)
def test_channels_share_a_kernel_unless_several_are_asked_for(options, count):
    assert SOGConfig(**options).build_kernel().num_channels == count


@pytest.mark.parametrize(
    ("text", "initial"),
    [
        ("coulomb", Coulomb()),
        ("power_law(exponent=6, strength=-2)", PowerLaw(6.0, -2.0)),
        (" power_law ( exponent = 4 ) ", PowerLaw(4.0, 1.0)),
        ("yukawa", Yukawa(0.1, COULOMB_CONSTANT)),
        ("yukawa(kappa=0.3)", Yukawa(0.3, COULOMB_CONSTANT)),
        ("yukawa(strength=2,kappa=3e-1,)", Yukawa(0.3, 2.0)),
        ("sog_longrange.kernels.yukawa:Yukawa(kappa=0.3)", Yukawa(0.3, COULOMB_CONSTANT)),
    ],
)
def test_the_kernel_begins_as_the_options_say(text, initial):
    kernel = SOGConfig(kernel=text).build_kernel()
    assert isinstance(kernel, SumOfGaussians)
    assert kernel.initial == initial


DISPERSION = "power_law(exponent=6, strength=-2)"


def combined(kernel=f"coulomb+{DISPERSION}", **options):
    return SOGConfig(**{"num_channels": 4, "zero_mode": False} | options, kernel=kernel)


SIXTH, FOURTH = PowerLaw(6.0, -2.0), PowerLaw(4.0)
SCREENED = Yukawa(0.3, COULOMB_CONSTANT)


@pytest.mark.parametrize(
    ("kernel", "potentials"),
    [
        (f"coulomb+{DISPERSION}", (Coulomb(), Coulomb(), SIXTH, SIXTH)),
        (["coulomb", f"{DISPERSION}+coulomb", "coulomb"], (Coulomb(), SIXTH, Coulomb(), Coulomb())),
        (("yukawa(kappa=0.3)", DISPERSION), (SCREENED, SCREENED, SIXTH, SIXTH)),
        (f"{DISPERSION}+power_law(exponent=4)", (SIXTH, SIXTH, FOURTH, FOURTH)),
    ],
)
def test_combined_potentials_get_equal_blocks_of_channels_in_their_order(kernel, potentials):
    kernel = combined(kernel).build_kernel()
    assert kernel.potentials == potentials
    assert kernel.num_channels == len(potentials)
    assert kernel.zero_mode == (False,) * 4


def test_combined_potentials_each_decide_on_their_zero_mode():
    assert combined(zero_mode=None).build_kernel().zero_mode == (False, False, True, True)
    assert combined(zero_mode=True).build_kernel().zero_mode == (True,) * 4


def test_a_kernel_has_one_text_however_it_is_written():
    texts = ["coulomb+power_law(exponent=1e+1)", "coulomb() + power_law(strength=1, exponent=10)"]
    configs = [combined(kernel) for kernel in (*texts, ["coulomb", "power_law(exponent=10.0)"])]
    assert {config.kernel for config in configs} == {"coulomb+power_law(exponent=10.0)"}
    assert len(set(configs)) == 1


@pytest.mark.parametrize(
    ("kernel", "channels"),
    [
        (f"coulomb+{DISPERSION}", (0, 1)),
        ("coulomb+power_law(exponent=3)", (0, 1, 2, 3)),
        (f"yukawa+{DISPERSION}", (0, 1)),
        ("yukawa+power_law(exponent=2)", (0, 1, 2, 3)),
        (f"coulomb+{DISPERSION}+coulomb+coulomb", (0, 2, 3)),
        (f"{DISPERSION}+{DISPERSION}", (0, 1, 2, 3)),
        (DISPERSION, (0, 1, 2, 3)),
    ],
)
def test_constraints_hold_for_channels_of_electric_charges(kernel, channels):
    assert combined(kernel, charge_constraint="neutral").constrained_channels == channels
    assert combined(kernel, charge_constraint="none").constrained_channels == ()


@pytest.mark.parametrize(
    ("kernel", "channels"),
    [
        (f"coulomb+{DISPERSION}", (0, 1)),
        (f"{DISPERSION}+power_law(exponent=4)", ()),
        (DISPERSION, ()),
        ("power_law(exponent=3)", (0, 1, 2, 3)),
    ],
)
def test_by_default_conserved_charges_alone_are_constrained(kernel, channels):
    assert combined(kernel).constrained_channels == channels


def test_ewald_charges_are_conserved():
    assert SOGConfig(kernel="ewald").constrained_channels == (0,)


@pytest.mark.parametrize(
    ("options", "takes"),
    [({}, False), ({"charge_embedding": 2}, True), ({"charge_constraint": "total"}, True)],
)
def test_charges_sum_to_the_total_charge_where_it_must_be_given(options, takes):
    assert SOGConfig(**options).takes_total_charge is takes


@pytest.mark.parametrize(
    ("options", "known", "constraint"),
    [
        ({}, True, "total"),
        ({}, False, "neutral"),
        ({"fractional_charge": True}, True, "total"),
        ({"fractional_charge": True}, False, "neutral"),
        ({"kernel": DISPERSION}, True, "none"),
        ({"charge_constraint": "none"}, True, "none"),
        ({"charge_constraint": "neutral"}, True, "neutral"),
    ],
)
def test_data_decide_on_the_constraint_where_it_is_auto(options, known, constraint):
    config = SOGConfig(**options)
    resolved = config.resolve(known)
    assert resolved.charge_constraint == constraint
    assert resolved.fractional_charge == (config.fractional_charge and constraint == "total")


COUPLED = {"couple_channels": True, "num_channels": 3}


def test_coupled_channels_have_a_kernel_of_each_pair():
    kernel = SOGConfig(kernel="yukawa(kappa=0.3)", **COUPLED).build_kernel()
    assert isinstance(kernel, CoupledGaussians)
    assert kernel.initial == SCREENED
    assert (kernel.num_channels, kernel.raw_widths.shape) == (3, (6, 12))
    assert not kernel.couplings.any()
    mixed = combined(couple_channels=True, num_channels=2, zero_mode=None).build_kernel()
    assert mixed.zero_mode == (False, False, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_channels": 1}, "`num_channels` must be at least 2 where channels are coupled"),
        ({"learn_amplitudes": False}, "`learn_amplitudes` must be True with couple_channels"),
        ({"kernel": "ewald"}, "`couple_channels` must be left out with kernel='ewald'"),
    ],
)
def test_channels_that_cannot_be_coupled_so_are_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        SOGConfig(**(COUPLED | options))


def test_combined_potentials_survive_dictionaries_and_are_compared():
    config = combined()
    assert SOGConfig.from_dict(config.to_dict()) == config
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301
    assert config.differences(combined(backend="dense")) == ""
    expected = "kernel coulomb+power_law(exponent=6.0, strength=-2.0) here, yukawa+coulomb there"
    assert config.differences(combined("yukawa+coulomb")) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_channels": 3}, "`num_channels` must be a multiple of 2, .*'coulomb.*', got 3"),
        ({"num_channels": 0}, "`num_channels` must be at least 1, got 0"),
        ({"kernel": "coulomb+ewald"}, "`kernel` must be a single kernel, or .*combined, got"),
        ({"kernel": f"{DISPERSION}+coulomb"}, "`kernel` must be a potential of electric .* first"),
        ({"kernel": "power_law(exponent=3.5)+yukawa"}, "`kernel` must be a potential of electric"),
    ],
)
def test_kernels_that_cannot_be_combined_so_are_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        combined(**options)


NOT_TEXT = "`kernel` must be str or a sequence of str, got"
SYNTAX = "`kernel` must be kernels joined by .*, each name or name.option=value"


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ([], "`kernel` must be at least one, got an empty list"),
        (["coulomb", 1], NOT_TEXT),
        ("coulomb+", "`kernel` must be one of .*coulomb.*, got ''"),
        ("coulomb+powerlaw(exponent=6)", "`kernel` must be .* Did you mean 'power_law'"),
        ("power_law", r"`exponent` must be given for the kernel power_law.exponent, strength=1.0"),
        ("power_law(6)", f"{SYNTAX}.*Options have names"),
        ("power_law(exponent=6", SYNTAX),
        ("power_law(exponent=)", SYNTAX),
        ("power_law(exponent=6))", SYNTAX),
        ("power_law exponent=6", SYNTAX),
        ("power_law(exponent=six)", "`exponent` must be a number, True, .*, got six"),
        ("power_law(exponent=2*3)", "`exponent` must be a number, .*, got 2 . 3"),
        ("power_law(exponent='6')", "`exponent` must be float, got '6' of type str"),
        ("power_law(exponant=6)", "`option of power_law` must be .* Did you mean 'exponent'"),
        ("coulomb(kappa=1)", "`kappa` must be left out: coulomb has no options"),
        ("nowhere:Kernel", "`kernel` must be a class that can be imported.* PYTHONPATH"),
        ("math:Kernel", "`kernel` must be a class that can be imported"),
        ("math:pi", "`kernel` must be a class derived from Kernel or InitialPotential"),
        ("collections:Counter", "`kernel` must be a class derived from"),
    ],
)
def test_text_that_is_no_kernel_is_refused_by_name(kernel, message):
    with pytest.raises(ConfigError, match=message):
        SOGConfig(kernel=kernel)


def test_every_option_has_a_line_of_help():
    assert set(help_of(SOGConfig)) == set(FIELDS)
    assert all(0 < len(text) < 250 for text in help_of(SOGConfig).values())


def test_options_reach_the_kernel():
    config = SOGConfig(
        num_gaussians=5, min_width=0.8, learn_widths=False, learn_amplitudes=False, zero_mode=True
    )
    kernel = config.build_kernel()
    assert kernel.raw_widths.shape == (1, 5)
    assert kernel.min_width == 0.8
    assert kernel.zero_mode == (True,)
    assert not any(parameter.requires_grad for parameter in kernel.parameters())


def test_ewald_has_the_smearing_of_the_options():
    kernel = SOGConfig(kernel="ewald(smearing=1.7)").build_kernel()
    assert isinstance(kernel, Ewald)
    assert kernel.smearing == 1.7


def test_differences_are_named():
    ours, theirs = SOGConfig(min_width=0.5), SOGConfig(tolerance=1e-3)
    expected = "min_width 0.5 here, 1.0 there, tolerance 1e-05 here, 0.001 there"
    assert ours.differences(theirs) == expected
    assert ours.differences(SOGConfig(min_width=0.5)) == ""


@pytest.mark.parametrize("name", OF_SUMS)
def test_an_option_that_the_kernel_would_ignore_is_refused(name):
    value = {"zero_mode": True, "couple_channels": True, "num_gaussians": 5}.get(name, 2.0)
    value = False if name.startswith("learn") else value
    with pytest.raises(ConfigError, match=f"`{name}` must be left out with kernel='ewald'"):
        SOGConfig(kernel="ewald", **{name: value})
