"""Presets: sets of options that those given explicitly win over."""

import pytest

from sog_longrange import ConfigError, SOGConfig
from sog_longrange.presets import (
    AUTO,
    NONE,
    PRESETS,
    Preset,
    apply_preset,
    describe_options,
    find_preset,
)

OWN = Preset(
    "", {"hidden_size": 8, "min_width": 2.0}, {"latent_dipoles": True}, {"any_schedule": 1}
)
IONS = Preset("", {"readout": "ions", "element_charges": "Na=1,Cl=-1", "min_width": 2.0})


def test_there_are_presets_for_four_kinds_of_matter():
    assert list(PRESETS) == ["ionic", "molecular", "dispersive", "interface"]
    assert all(preset.purpose for preset in PRESETS.values())
    assert not {NONE, AUTO} & set(PRESETS)


@pytest.mark.parametrize("has_vectors", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_set_of_options(name, has_vectors):
    config = SOGConfig.from_dict(apply_preset(name, {}, has_vectors=has_vectors, cutoff=4.5))
    assert config != SOGConfig()
    assert config.min_width == (1.5 if PRESETS[name].by_cutoff else 1.0)


def test_given_options_win_and_vectors_bring_their_own():
    assert apply_preset(OWN, {}) == {"hidden_size": 8, "min_width": 2.0}
    merged = apply_preset(OWN, {"hidden_size": 32, "tolerance": 1e-3}, has_vectors=True)
    assert merged == {
        "hidden_size": 32,
        "min_width": 2.0,
        "latent_dipoles": True,
        "tolerance": 1e-3,
    }
    off = apply_preset(OWN, {"latent_dipoles": False}, has_vectors=True)
    assert off["latent_dipoles"] is False


def test_no_preset_leaves_the_given_options():
    assert apply_preset(NONE, {"min_width": 0.7}) == {"min_width": 0.7}
    assert find_preset(NONE).options == {}


def test_charges_of_elements_are_left_out_of_another_readout():
    assert "element_charges" not in apply_preset(IONS, {"readout": "atoms"})
    assert apply_preset(IONS, {"readout": "ions"})["element_charges"] == "Na=1,Cl=-1"
    given = apply_preset(IONS, {"readout": "atoms", "element_charges": "K=1"})
    assert given["element_charges"] == "K=1", "an error of the options, and not of the preset"


@pytest.mark.parametrize("kernel", ["power_law(exponent=6)", ["power_law(exponent=6)"]])
def test_what_is_said_of_charges_is_left_out_of_a_kernel_without(kernel):
    assert apply_preset(IONS, {"kernel": kernel}) == {"kernel": kernel, "min_width": 2.0}


@pytest.mark.parametrize("kernel", ["yukawa", "ewald", "coulomb+power_law(exponent=6)"])
def test_what_is_said_of_charges_is_kept_for_a_kernel_with_them(kernel):
    kept = dict(IONS.options)
    if kernel == "ewald":
        del kept["min_width"]
    assert apply_preset(IONS, {"kernel": kernel}) == {**kept, "kernel": kernel}


@pytest.mark.parametrize(
    ("channels", "kernel"), [(1, "coulomb"), (2, "coulomb+dispersion"), (3, "coulomb")]
)
def test_kernels_that_cannot_share_the_given_channels_are_left_out(channels, kernel):
    config = SOGConfig.from_dict(apply_preset("molecular", {"num_channels": channels}))
    assert (config.kernel, config.num_channels) == (kernel, channels)
    with pytest.raises(ConfigError, match="num_channels` must be a multiple of 2"):
        SOGConfig(kernel="coulomb+dispersion", num_channels=2 * channels + 1, readout="flows")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(
    "given",
    [
        {"charge_constraint": "none"},
        {"charge_constraint": "total"},
        {"charge_embedding": 4},
        {"couple_channels": True, "num_channels": 2},
        {"learn_amplitudes": False, "learn_widths": False},
        {"latent_dipoles": False},
        {"readout": "atoms"},
        {"zero_mode": False},
        {"backend": "dense", "engine": "none", "tolerance": 1e-3},
    ],
)
def test_any_single_option_can_be_given_beside_a_preset(name, given):
    options = apply_preset(name, given, has_vectors=True, cutoff=5.0)
    config = SOGConfig.from_dict(options)
    assert {key: getattr(config, key) for key in given} == given


def test_presets_are_joined_and_the_first_wins():
    joined = OWN.joined(IONS)
    assert joined.options == {**IONS.options, **OWN.options}
    assert joined.with_vectors == OWN.with_vectors
    assert not joined.by_cutoff
    assert OWN.joined(PRESETS["molecular"]).by_cutoff


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError, match="`preset` must be one of .*Did you mean 'molecular'"):
        apply_preset("moleculer", {})
    with pytest.raises(ConfigError, match="got None"):
        find_preset(None)


def test_auto_needs_data_and_names_the_command():
    with pytest.raises(ConfigError, match="before there are data.*`sog_preset train.xyz` prints"):
        find_preset(AUTO)


def test_the_description_says_what_was_given():
    given = {"min_width": 1.0}
    text = describe_options(apply_preset(OWN, given), given)
    assert text == "hidden_size=8, min_width=1.0 (given)"
    assert describe_options({}, {}) == "the defaults of all options"
