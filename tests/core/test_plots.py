import sys

import numpy as np
import pytest
import torch
from references import sum_of_gaussians

from sog_longrange import (
    CoupledGaussians,
    Ewald,
    InputError,
    MissingLibraryError,
    SumOfGaussians,
    coulomb,
    power_law,
)

pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")

from sog_longrange import plots  # noqa: E402


@pytest.fixture(autouse=True)
def _no_window():
    backend = pyplot.get_backend()
    pyplot.switch_backend("Agg")
    yield
    pyplot.close("all")
    pyplot.switch_backend(backend)


def line(ax, label):
    (found,) = (x for x in ax.get_lines() if x.get_label() == label)
    return np.asarray(found.get_xdata(), dtype=float), np.asarray(found.get_ydata(), dtype=float)


@pytest.mark.parametrize(
    "kernel",
    [Ewald(1.0), SumOfGaussians(), sum_of_gaussians(power_law(6.0, -20.0)).requires_grad_(False)],
    ids=["ewald", "float32", "negative"],
)
def test_a_kernel_is_drawn_as_it_is_beside_potentials_that_cross_it(kernel):
    ax = plots.draw_kernel(kernel, scale=2.0)
    r, drawn = line(ax, "kernel")
    like = next(iter(kernel.parameters()), torch.zeros(1, dtype=torch.float64))
    expected = 2.0 * kernel.radial(torch.tensor(r).to(like) ** 2)[0].detach().abs().double()
    np.testing.assert_allclose(drawn, expected.numpy(), rtol=1e-5)
    for name, power in (("1/r", 1), ("1/r⁶", 6)):
        x, y = line(ax, name)
        slopes = np.diff(np.log(y)) / np.diff(np.log(x))
        np.testing.assert_allclose(slopes, -power, rtol=1e-6)
        middle = np.sqrt(40.0)
        assert np.interp(middle, x, y) == pytest.approx(np.interp(middle, r, drawn), rel=1e-3)


PAIR = (coulomb(), power_law(6.0, -20.0))


@pytest.mark.parametrize(
    ("kernel", "channel", "row"),
    [
        (SumOfGaussians(PAIR, num_channels=2), 1, 1),
        (CoupledGaussians(PAIR, coupling=-0.5), 0, 0),
        (CoupledGaussians(PAIR, coupling=-0.5), 1, 2),
        (CoupledGaussians(PAIR, coupling=-0.5), (0, 1), 1),
        (CoupledGaussians(PAIR, coupling=-0.5), (1, 0), 1),
    ],
)
def test_the_kernel_of_each_channel_and_of_each_pair_is_drawn(kernel, channel, row):
    r, drawn = line(plots.draw_kernel(kernel, channel=channel), "kernel")
    expected = kernel.radial(torch.tensor(r).float() ** 2)[row].detach().abs()
    np.testing.assert_allclose(drawn, expected.numpy(), rtol=1e-5)
    assert drawn.min() > 0.0


@pytest.mark.parametrize(
    ("kernel", "channel", "message"),
    [
        (SumOfGaussians(), 1, "`channel` must be from 0 to 0, got 1"),
        (SumOfGaussians(PAIR, num_channels=2), -1, "`channel` must be from 0 to 1, got -1"),
        (SumOfGaussians(PAIR, num_channels=2), (0, 1), "to 1, got .0, 1.. Its .* not coupled"),
        (CoupledGaussians(PAIR), (0, 2), "from 0 to 1, or a pair of such, got .0, 2."),
    ],
)
def test_a_channel_that_the_kernel_has_not_is_refused(kernel, channel, message):
    with pytest.raises(InputError, match=message):
        plots.draw_kernel(kernel, channel=channel)


def test_potentials_can_be_given_and_axes_reused():
    figure, (ax, other) = plots.panels(2)
    same = plots.draw_kernel(
        Ewald(1.0), ax=ax, potentials={"mine": lambda r: -3.0 / r}, reach=(1.0, 9.0)
    )
    assert same is ax
    x, y = line(ax, "mine")
    np.testing.assert_allclose(y, 3.0 / x)
    assert (x[0], x[-1]) == pytest.approx((1.0, 9.0))
    assert not other.get_lines()


def test_parity_of_charges_groups_elements_and_states_the_fit():
    reference = np.array([0.4, -0.8, 0.4, 0.5, -0.9])
    ax = plots.draw_charges(reference, 0.5 * reference, ["H", "O", "H", "H", "O"])
    np.testing.assert_allclose(line(ax, "O")[0], [-0.8, -0.9])
    np.testing.assert_allclose(line(ax, "H")[1], [0.2, 0.2, 0.25])
    assert ax.get_title(loc="left") == "slope 0.5, R² 1"


def test_parity_of_dipoles_groups_components():
    rng = np.random.default_rng(0)
    reference, noise = rng.normal(size=(2, 30, 3))
    ax = plots.draw_dipoles(reference, reference + 0.1 * noise)
    np.testing.assert_allclose(line(ax, "y")[0], reference[:, 1])
    fit = np.corrcoef(reference.ravel(), (reference + 0.1 * noise).ravel())[0, 1] ** 2
    assert ax.get_title(loc="left").endswith(f"R² {fit:.4g}")


def test_a_binding_curve_is_sorted_and_shaded():
    x = np.array([5.0, 3.0, 4.0])
    ax = plots.draw_binding(x, -1.0 / x, {"model": -2.0 / x}, trained_to=4.0)
    np.testing.assert_allclose(line(ax, "model")[0], [3.0, 4.0, 5.0])
    np.testing.assert_allclose(line(ax, "reference")[1], -1.0 / np.array([3.0, 4.0, 5.0]))
    assert "trained" in ax.get_legend_handles_labels()[1]


def test_a_figure_is_written_and_settings_are_left_as_they_were(tmp_path):
    before = pyplot.rcParams.copy()
    figure, (ax,) = plots.panels(1)
    plots.draw_kernel(Ewald(1.0), ax=ax)
    plots.save_figure(figure, tmp_path / "kernel.png")
    assert (tmp_path / "kernel.png").stat().st_size > 5000
    assert not pyplot.fignum_exists(figure.number)
    assert pyplot.rcParams == before


def luminance(colour):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255.0
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


# Viénot, Brettel, Mollon, Color Res. Appl. 24 (1999) 243: what dichromats see of linear RGB.
DICHROMATS = {
    "protan": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
    "deutan": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
}


@pytest.mark.parametrize("kind", DICHROMATS)
def test_colours_stay_apart_for_colour_blind_eyes(kind):
    seen = np.array([luminance(c) @ np.array(DICHROMATS[kind]).T for c in plots.COLOURS[:4]])
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(4)
    assert apart.min() > 0.08


MALFORMED = [
    (lambda: plots.draw_charges([1.0, 2.0], [1.0], ["H", "H"]), "`predicted` must be of shape"),
    (lambda: plots.draw_charges([1.0, 2.0], [1.0, 2.0], ["H"]), "`elements` must be of length 2"),
    (lambda: plots.draw_charges([1.0], [1.0], ["H"]), "with two numbers or more"),
    (lambda: plots.draw_dipoles([1.0, 2.0], [1.0, 2.0]), r"`reference` must be of shape \(n_str"),
    (lambda: plots.draw_binding([1.0, 2.0], [1.0], {}), "`reference` must be of shape"),
    (lambda: plots.draw_binding([1.0, 2.0], [1.0, 2.0], {"m": [1.0]}), "`m` must be of shape"),
]


@pytest.mark.parametrize(("call", "message"), MALFORMED)
def test_malformed_series_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_missing_matplotlib_is_named_with_its_remedy(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MissingLibraryError, match=r"pip install .*sog-longrange\[plot\]"):
            plots.draw_kernel(Ewald(1.0))


def test_parity_of_groups_keeps_their_order():
    reference = np.array([1.0, 2.0, 3.0, 5.0])
    ax = plots.draw_parity(reference, 2.0 * reference, ["late", "early", "late", "early"])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["late", "early"]
    assert line(ax, "early")[1].tolist() == [4.0, 10.0]
    assert ax.get_title(loc="left") == "slope 2, R² 1"
    assert ax.get_xlabel() == "reference energy (eV)"
    with pytest.raises(InputError, match="`groups` must be of length 4"):
        plots.draw_parity(reference, reference, ["one"])
