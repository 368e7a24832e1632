import dataclasses

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
from sog_longrange.config import USED_BY
from sog_longrange.kernels.initial import PowerLaw, Yukawa
from sog_longrange.units import COULOMB_CONSTANT

FIELDS = {field.name: field for field in dataclasses.fields(SOGConfig)}
FLOATS = [name for name, field in FIELDS.items() if "float" in field.type]
INTEGERS = [name for name, field in FIELDS.items() if field.type == "int"]
FLAGS = [name for name, field in FIELDS.items() if "bool" in field.type]
STRINGS = [name for name, field in FIELDS.items() if field.type == "str"]
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
    kernel = "yukawa" if name == "strength" else USED_BY.get(name, ("coulomb",))[0]
    kernel = "power_law" if name == "exponent" else kernel
    value = getattr(SOGConfig(**{"kernel": kernel, name: 2}), name)
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
        ("smering", "smearing"),
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
        ({"num_channels": -1, "share_kernel": False}, "num_channels"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"charge_embedding": -1}, "charge_embedding"),
        ({"num_gaussians": 1}, "num_gaussians"),
        ({"min_width": 0.0}, "min_width"),
        ({"min_width": 90.0}, "max_width"),
        ({"max_width": NAN}, "max_width"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": 0.2}, "tolerance"),
        ({"tolerance": NAN}, "tolerance"),
        ({"kernel": "power_law", "exponent": -1.0}, "exponent"),
        ({"kernel": "power_law", "exponent": 6.0, "strength": 0.0}, "strength"),
        ({"kernel": "yukawa", "kappa": 0.0}, "kappa"),
        ({"kernel": "ewald", "smearing": -1.0}, "smearing"),
        ({"fractional_charge": True, "charge_constraint": "none"}, "fractional_charge"),
        ({"fractional_charge": True, "charge_constraint": "neutral"}, "fractional_charge"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(options, name):
    with pytest.raises(ConfigError, match=f"`[^`]*{name}[^`]*` must be"):
        SOGLongRange([4], SOGConfig(**options))


of_sums = {"share_kernel": st.booleans(), "learn_widths": st.booleans()}
strengths = st.none() | st.floats(0.5, 20.0)
of_each_kernel = st.one_of(
    st.fixed_dictionaries({"kernel": st.just("coulomb"), **of_sums}),
    st.fixed_dictionaries({"kernel": st.just("ewald"), "smearing": st.floats(0.5, 3.0)}),
    st.fixed_dictionaries(
        {"kernel": st.just("power_law"), "exponent": st.floats(0.5, 8.0), **of_sums}
    ),
    st.fixed_dictionaries(
        {"kernel": st.just("yukawa"), "kappa": st.floats(0.1, 0.5), "strength": strengths} | of_sums
    ),
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


@settings(max_examples=50, deadline=None, derandomize=True)
@given(configurations)
def test_kernels_have_one_law_or_one_of_each_channel(config):
    shared = config.share_kernel or config.kernel == "ewald"
    assert config.build_kernel().num_channels == (1 if shared else config.num_channels)


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({}, PowerLaw(1.0, COULOMB_CONSTANT)),
        ({"kernel": "power_law", "exponent": 6, "strength": -2}, PowerLaw(6.0, -2.0)),
        ({"kernel": "power_law", "exponent": 4}, PowerLaw(4.0, 1.0)),
        ({"kernel": "yukawa", "kappa": 0.3}, Yukawa(0.3, COULOMB_CONSTANT)),
        ({"kernel": "yukawa", "kappa": 0.3, "strength": 2}, Yukawa(0.3, 2.0)),
    ],
)
def test_the_kernel_starts_as_the_options_say(options, start):
    kernel = SOGConfig(**options).build_kernel()
    assert isinstance(kernel, SumOfGaussians)
    assert kernel.start == start


CHARGE_AND_DISPERSION = {
    "kernel": "coulomb+power_law",
    "exponent": 6,
    "strength": -2,
    "num_channels": 4,
    "share_kernel": False,
    "zero_mode": False,
}


def joined(**options):
    return SOGConfig(**(CHARGE_AND_DISPERSION | options))


COULOMB, SIXTH = PowerLaw(1.0, COULOMB_CONSTANT), PowerLaw(6.0, -2.0)
SCREENED = Yukawa(0.3, COULOMB_CONSTANT)


@pytest.mark.parametrize(
    ("options", "starts"),
    [
        ({}, (COULOMB, COULOMB, SIXTH, SIXTH)),
        ({"kernel": "coulomb+power_law+coulomb+coulomb"}, (COULOMB, SIXTH, COULOMB, COULOMB)),
        ({"kernel": "yukawa+power_law", "kappa": 0.3}, (SCREENED, SCREENED, SIXTH, SIXTH)),
        (
            {"kernel": "coulomb+yukawa", "exponent": None, "num_channels": 2},
            (COULOMB, Yukawa(0.1, -2.0)),
        ),
    ],
)
def test_joined_laws_get_equal_blocks_of_channels_in_their_order(options, starts):
    kernel = joined(**options).build_kernel()
    assert kernel.starts == starts
    assert kernel.num_channels == len(starts)
    assert kernel.zero_mode is False


def test_joined_laws_that_agree_need_no_zero_mode():
    assert joined(kernel="yukawa+power_law", zero_mode=None).build_kernel().zero_mode
    assert not joined(exponent=2, zero_mode=None).build_kernel().zero_mode


def test_joined_laws_that_differ_each_decide_on_their_zero_mode():
    assert joined(zero_mode=None).build_kernel().zero_mode == (False, False, True, True)
    assert joined(zero_mode=True).build_kernel().zero_mode is True


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ({}, (0, 1)),
        ({"exponent": 3}, (0, 1, 2, 3)),
        ({"kernel": "yukawa+power_law"}, (0, 1)),
        ({"kernel": "yukawa+power_law", "exponent": 2}, (0, 1, 2, 3)),
        ({"kernel": "coulomb+yukawa", "exponent": None}, (0, 1, 2, 3)),
        ({"kernel": "coulomb+power_law+coulomb+coulomb"}, (0, 2, 3)),
        ({"kernel": "power_law+power_law"}, (0, 1, 2, 3)),
        ({"kernel": "power_law"}, (0, 1, 2, 3)),
    ],
)
def test_constraints_hold_for_channels_of_electric_charges(options, channels):
    assert joined(**options, charge_constraint="neutral").constrained_channels == channels
    assert joined(**options, charge_constraint="none").constrained_channels == ()


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ({}, (0, 1)),
        ({"kernel": "power_law+power_law"}, ()),
        ({"kernel": "power_law", "exponent": 6.0}, ()),
        ({"kernel": "power_law", "exponent": 3.0}, (0, 1, 2, 3)),
    ],
)
def test_by_default_conserved_charges_alone_are_constrained(options, channels):
    assert joined(**options).constrained_channels == channels


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
        ({"kernel": "power_law", "exponent": 6.0}, True, "none"),
        ({"charge_constraint": "none"}, True, "none"),
        ({"charge_constraint": "neutral"}, True, "neutral"),
    ],
)
def test_data_decide_on_the_constraint_where_it_is_auto(options, known, constraint):
    config = SOGConfig(**options)
    resolved = config.resolve(known)
    assert resolved.charge_constraint == constraint
    assert resolved.fractional_charge == (config.fractional_charge and constraint == "total")


COUPLED = {"share_kernel": False, "couple_channels": True, "num_channels": 3}


def test_coupled_channels_have_a_law_of_each_pair():
    kernel = SOGConfig(kernel="yukawa", kappa=0.3, **COUPLED).build_kernel()
    assert isinstance(kernel, CoupledGaussians)
    assert kernel.start == SCREENED
    assert (kernel.num_channels, kernel.raw_widths.shape) == (3, (6, 12))
    assert not kernel.couplings.any()
    mixed = joined(couple_channels=True, num_channels=2, zero_mode=None).build_kernel()
    assert mixed.zero_mode == (False, False, True)


def test_options_from_before_channels_could_be_coupled_mean_that_they_are_not():
    options = joined().to_dict()
    assert options.pop("couple_channels") is False
    assert SOGConfig.from_dict(options) == joined()
    pickled = joined()
    del pickled.__dict__["couple_channels"]
    assert pickled == joined()
    assert type(pickled.build_kernel()) is SumOfGaussians


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share_kernel": True}, "`share_kernel` must be False with couple_channels=True"),
        ({"num_channels": 1}, "`num_channels` must be at least 2 where channels are coupled"),
        ({"learn_amplitudes": False}, "`learn_amplitudes` must be True with couple_channels"),
        (
            {"kernel": "ewald", "share_kernel": True},
            "`couple_channels` must be left out unless `kernel` is one of coulomb",
        ),
    ],
)
def test_channels_that_cannot_be_coupled_so_are_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        SOGConfig(**(COUPLED | options))


def test_joined_laws_survive_dictionaries_and_are_compared():
    config = joined()
    assert SOGConfig.from_dict(config.to_dict()) == config
    assert config.differences(joined(backend="dense")) == ""
    other = joined(kernel="yukawa+power_law")
    expected = "kernel coulomb+power_law here, yukawa+power_law there"
    assert config.differences(other) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share_kernel": True}, "`share_kernel` must be False with kernel='coulomb.power_law'"),
        ({"num_channels": 3}, "`num_channels` must be a multiple of 2, .*'coulomb.*', got 3"),
        ({"num_channels": 0}, "`num_channels` must be at least 1, got 0"),
        ({"exponent": None}, "`exponent` must be given"),
        ({"kappa": 0.3}, "`kappa` must be left out unless `kernel` is one of yukawa"),
        ({"smearing": 2.0}, "`smearing` must be left out unless `kernel` is one of ewald"),
        ({"kernel": "coulomb+ewald"}, '`kernel` must be "ewald" alone or .*, got .coulomb.ewald'),
        ({"kernel": "coulomb+powerlaw"}, "`kernel` must be .* Did you mean 'power_law'"),
        ({"kernel": "power_law+coulomb"}, "`kernel` must be with 'coulomb' first: charges and"),
        ({"kernel": "power_law+yukawa"}, "`kernel` must be with 'yukawa' first"),
        ({"kernel": "coulomb+"}, "`kernel` must be one of .*, got ''"),
    ],
)
def test_laws_that_cannot_be_joined_so_are_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        joined(**options)


def test_options_reach_the_kernel():
    config = SOGConfig(
        num_gaussians=5, min_width=0.8, learn_widths=False, learn_amplitudes=False, zero_mode=True
    )
    kernel = config.build_kernel()
    assert kernel.raw_widths.shape == (1, 5)
    assert kernel.min_width == 0.8
    assert kernel.zero_mode
    assert not any(parameter.requires_grad for parameter in kernel.parameters())


def test_ewald_has_the_smearing_of_the_options():
    kernel = SOGConfig(kernel="ewald", smearing=1.7).build_kernel()
    assert isinstance(kernel, Ewald)
    assert kernel.smearing == 1.7


IGNORED = pytest.mark.parametrize(
    "options",
    [
        {"exponent": 6.0},
        {"strength": 2.0},
        {"kernel": "ewald", "zero_mode": True},
        {"kernel": "ewald", "min_width": 0.5},
        {"kernel": "yukawa", "smearing": 2.0},
        {"kernel": "power_law", "kappa": 0.3},
    ],
)


def test_a_power_law_needs_its_exponent():
    with pytest.raises(ConfigError, match='`exponent` must be given for kernel="power_law"'):
        SOGConfig(kernel="power_law")


def test_differences_are_named():
    ours, theirs = SOGConfig(min_width=0.5), SOGConfig(tolerance=1e-3)
    expected = "min_width 0.5 here, 1.0 there, tolerance 1e-05 here, 0.001 there"
    assert ours.differences(theirs) == expected
    assert ours.differences(SOGConfig(min_width=0.5)) == ""


@IGNORED
def test_option_that_the_kernel_would_ignore_is_refused(options):
    name = list(options)[-1]
    with pytest.raises(ConfigError, match=f"`{name}` must be left out unless `kernel` is one of"):
        SOGConfig(**options)
