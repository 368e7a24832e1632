"""Figures of the demo: labelled in place, large enough for a talk."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
import matplotlib.ticker

from sog_longrange.plots import COLOURS, FAINT, INK, SHADE, house_style, panels, save_figure
from sog_longrange.plots import draw_parity as draw_groups

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

POINTS = {"ls": "", "marker": ".", "ms": 6, "alpha": 0.6}


class Curve:
    """One panel of a figure of binding curves.

    Parameters
    ----------
    title, subtitle : what the panel shows.
    separations : ndarray, shape (n,), in Å.
    exact : ndarray, shape (n,), reference energy in eV.
    models : mapping of str to ndarray, shape (n,), energies in eV.
    """

    def __init__(
        self,
        title: str,
        subtitle: str,
        separations: np.ndarray,
        exact: np.ndarray,
        models: Mapping[str, np.ndarray],
    ) -> None:
        order = np.argsort(separations)
        self.title, self.subtitle = title, subtitle
        self.separations, self.exact = separations[order], exact[order]
        self.models = {name: energies[order] for name, energies in models.items()}


def draw_curves(
    curves: list[Curve],
    trained_to: float,
    path: Path,
    lines: bool = True,
    ylabel: str = "energy relative to the\nseparate molecules (eV)",
    reference: str = "reference",
) -> None:
    """Energies against separation, one panel each, with a strip of errors below.

    Parameters
    ----------
    curves : the panels, left to right.
    trained_to : largest trained separation in Å; up to it the panels are shaded.
    path : PNG to write.
    lines : whether models are drawn as lines (a scan) or as points (unrelated frames).
    ylabel : what the energies are.
    reference : name of the reference.
    """
    with house_style():
        figure, axes = plt.subplots(
            2,
            len(curves),
            figsize=(max(5.4 * len(curves), 7.5), 7.4),
            sharex=True,
            squeeze=False,
            gridspec_kw={"height_ratios": [2.7, 1.0], "hspace": 0.09, "wspace": 0.27},
        )
        for (top, bottom), curve in zip(axes.T, curves, strict=True):
            for ax in (top, bottom):
                ax.axvspan(0.0, trained_to, color=SHADE, lw=0, zorder=-2)
            _energy_panel(top, curve, lines)
            _error_panel(bottom, curve, lines)
        axes[0, 0].set_ylabel(ylabel)
        axes[1, 0].set_ylabel("error (meV)")
        _common_ranges(axes, curves)
        _name_lines(axes[0, 0], curves[0], reference) if lines else _key(axes[0, 0], curves[0])
        _name_region(axes[0, 0], trained_to)
        save_figure(figure, path)


def _energy_panel(ax: Axes, curve: Curve, lines: bool) -> None:
    """Reference as points, models as lines under them."""
    ax.axhline(0.0, color=FAINT, lw=0.8, zorder=0)
    every = slice(None, None, max(1, len(curve.separations) // 30) if lines else 1)
    points = {"ms": 5.5, "mew": 0, "zorder": 4} if lines else {"ms": 4, "mew": 0, "zorder": 2}
    ax.plot(curve.separations[every], curve.exact[every], "o", color=INK, **points)
    for energies, colour in zip(curve.models.values(), COLOURS, strict=False):
        style = {"lw": 3.4, "solid_capstyle": "round"} if lines else POINTS
        ax.plot(curve.separations, energies, color=colour, zorder=3, **style)
    ax.set_title(f"{curve.title}\n", loc="left", fontweight="bold", pad=4)
    ax.text(0.0, 1.022, curve.subtitle, transform=ax.transAxes, color=FAINT, va="bottom")
    ax.margins(y=0.1)
    ax.tick_params(axis="x", length=0)


def _error_panel(ax: Axes, curve: Curve, lines: bool) -> None:
    """Absolute error of each model on a logarithmic scale."""
    for energies, colour in zip(curve.models.values(), COLOURS, strict=False):
        style = {"lw": 2.6, "solid_capstyle": "round"} if lines else POINTS
        error = np.maximum(1e3 * np.abs(energies - curve.exact), 0.1)
        ax.plot(curve.separations, error, color=colour, **style)
    ax.set_yscale("log")
    ax.minorticks_off()
    ax.grid(axis="y", color="#D8DDE1", lw=0.8)
    ax.set_xlabel("separation (Å)")


def _common_ranges(axes: np.ndarray, curves: list[Curve]) -> None:
    """One range of separations, and one of errors: the decades from 1 meV upwards."""
    near = min(curve.separations[0] for curve in curves)
    far = max(curve.separations[-1] for curve in curves)
    axes[0, 0].set_xlim(near - 0.03 * (far - near), far + 0.02 * (far - near))
    axes[0, 0].xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, nbins=7))
    highest = max(ax.get_ylim()[1] for ax in axes[1])
    decades = np.arange(0, max(np.ceil(np.log10(highest)), 2) + 1)
    for ax in axes[1]:
        ax.set_ylim(10 ** decades[0], 10 ** decades[-1])
        ax.set_yticks(10**decades, [f"{10**d:g}" for d in decades])


def _name_lines(ax: Axes, curve: Curve, reference: str) -> None:
    """Write the names beside the curves: models at the right, the reference at the left."""
    low, high = ax.get_ylim()
    gap = 0.045 * (high - low)
    stack = np.vstack([curve.exact, *curve.models.values()])
    for place, ((name, energies), colour) in enumerate(
        zip(curve.models.items(), COLOURS, strict=False)
    ):
        at = int(np.searchsorted(curve.separations, np.quantile(curve.separations, 0.9)))
        above = energies[at] > stack[:, at].min() if place else False
        edge = stack[:, at].max() + gap if above else energies[at] - gap
        style = {"va": "bottom" if above else "top", "fontweight": "bold", "ha": "center"}
        ax.text(curve.separations[at], edge, name, color=colour, fontsize=17, **style)
    at = len(curve.separations) // 3
    point = curve.separations[at], curve.exact[at]
    ax.annotate(
        reference,
        point,
        xytext=(point[0] + 0.14 * np.ptp(ax.get_xlim()), point[1] - 4 * gap),
        ha="left",
        va="center",
        arrowprops={"arrowstyle": "-", "color": FAINT, "lw": 1, "shrinkB": 5},
    )


def _key(ax: Axes, curve: Curve) -> None:
    """Names in their colours in a corner, for panels of points."""
    names = [("reference", INK), *zip(curve.models, COLOURS, strict=False)]
    for row, (name, colour) in enumerate(names):
        place = {"transform": ax.transAxes, "ha": "right", "va": "bottom"}
        ax.text(0.98, 0.03 + 0.07 * row, name, color=colour, fontweight="bold", **place)


def _name_region(ax: Axes, trained_to: float) -> None:
    """Say what the shading means."""
    left = ax.get_xlim()[0]
    place = {"transform": ax.get_xaxis_transform(), "ha": "right", "va": "bottom"}
    ax.text(trained_to - 0.02 * (trained_to - left), 0.02, "trained", color=FAINT, **place)


def draw_parity(
    exact: dict[str, np.ndarray], models: dict[str, dict[str, np.ndarray]], path: Path
) -> None:
    """Predicted against reference force components, one panel for each model.

    Parameters
    ----------
    exact : reference components in eV/Å by the heading of the split.
    models : the same for each model.
    path : PNG to write.
    """
    with house_style():
        figure, axes = plt.subplots(
            1, len(models), figsize=(5.6 * len(models), 5.6), sharex=True, sharey=True
        )
        everything = np.concatenate(list(exact.values()))
        limits = np.array([everything.min(), everything.max()]) * 1.05
        for ax, (name, splits), colour in zip(axes, models.items(), COLOURS, strict=False):
            ax.plot(limits, limits, color=FAINT, lw=1)
            for (split, values), marker, face in zip(
                splits.items(), "os^", (colour, "none", "none"), strict=False
            ):
                error = 1e3 * np.sqrt(np.mean((values - exact[split]) ** 2))
                ax.plot(
                    exact[split],
                    values,
                    marker,
                    ms=4,
                    mec=colour,
                    mfc=face,
                    alpha=0.5,
                    label=f"{split}: {error:.0f} meV/Å",
                    rasterized=True,
                )
            ax.set_title(name, color=colour, fontweight="bold", loc="left")
            ax.legend(frameon=False, loc="upper left", handletextpad=0.2)
            ax.set_xlabel("reference force (eV/Å)")
            ax.set(xlim=limits, ylim=limits, aspect="equal")
        axes[0].set_ylabel("predicted force (eV/Å)")
        save_figure(figure, path)


def draw_learning(
    histories: Mapping[str, list[float]],
    exact: Mapping[str, np.ndarray],
    models: Mapping[str, np.ndarray],
    path: Path,
) -> None:
    """Force error against epochs at the left, forces against the reference at the right.

    Parameters
    ----------
    histories : force RMSE of each epoch in meV/Å, by model.
    exact, models : force components in eV/Å, of the reference and of each model.
    path : PNG to write.
    """
    with house_style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(13.0, 5.6))
        everything = np.concatenate(list(exact.values()))
        limits = np.quantile(everything, [0.001, 0.999]) * 1.1
        right.plot(limits, limits, color=FAINT, lw=1)
        for (name, values), colour in zip(histories.items(), COLOURS, strict=False):
            epochs = np.arange(1, len(values) + 1)
            error = 1e3 * np.sqrt(np.mean((models[name] - exact[name]) ** 2))
            label = f"{name}: {error:.0f} meV/Å in the test"
            left.plot(epochs, values, color=colour, lw=3, solid_capstyle="round", label=label)
            points = {**POINTS, "ms": 3, "alpha": 0.35, "rasterized": True}
            right.plot(exact[name], models[name], color=colour, **points)
        left.set(yscale="log", xlabel="epoch", ylabel="force error in training (meV/Å)")
        left.grid(axis="y", color="#D8DDE1", lw=0.8)
        left.minorticks_off()
        left.set_ylim(top=6.0 * left.get_ylim()[1])
        left.legend(frameon=False, loc="upper right", labelcolor="linecolor", handlelength=0)
        right.set(xlim=limits, ylim=limits, aspect="equal")
        right.set(xlabel="exact force (eV/Å)", ylabel="predicted force (eV/Å)")
        save_figure(figure, path)


class Parity(NamedTuple):
    """One panel of predicted against reference numbers.

    Parameters
    ----------
    title : what the panel shows.
    exact, found : ndarray, shape (n,).
    groups : list of str, length n, which have a colour each.
    quantity : what the numbers are.
    """

    title: str
    exact: np.ndarray
    found: np.ndarray
    groups: list[str]
    quantity: str


def draw_parities(parts: list[Parity], path: Path) -> None:
    """Predicted against reference numbers, one panel each.

    Parameters
    ----------
    parts : the panels, left to right.
    path : PNG to write.
    """
    with house_style():
        figure, axes = panels(len(parts))
        for ax, part in zip(axes, parts, strict=True):
            draw_groups(part.exact, part.found, part.groups, quantity=part.quantity, ax=ax)
            ax.set_title(f"{part.title}\n{ax.get_title(loc='left')}", loc="left")
        save_figure(figure, path)
