"""Phonon bands along lines of the Brillouin zone, and their figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.lines import Line2D

from .figures import COLOURS, FAINT, INK, house_style, plt, save_figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from phonopy import Phonopy

POINTS = 61  # along each line
PLAIN = {"color": FAINT, "lw": 1.6, "ls": (0, (4, 2))}
WAVES = {"color": INK, "ls": "", "marker": "o", "ms": 8, "mfc": "white", "mew": 1.6}


class Bands(NamedTuple):
    """Frequencies along lines from corner to corner.

    Parameters
    ----------
    distances : ndarray, shape (n_lines, n_points), in 1/Å.
    frequencies : ndarray, shape (n_lines, n_points, n_bands), in THz.
    """

    distances: np.ndarray
    frequencies: np.ndarray


class Panel(NamedTuple):
    """What one panel of the figure shows.

    Parameters
    ----------
    title : name of the model.
    without, corrected : bands without and with the non-analytical term.
    places : ndarray, shape (n,), distances in 1/Å of frozen waves.
    frozen : ndarray, shape (n, n_bands), their frequencies in THz.
    """

    title: str
    without: Bands
    corrected: Bands
    places: np.ndarray
    frozen: np.ndarray


def bands_of(phonons: Phonopy, corners: Sequence[Sequence[float]]) -> Bands:
    """Bands between corners, reduced wave vectors, with the term that `phonons` has."""
    pairs = zip(corners[:-1], corners[1:], strict=True)
    phonons.run_band_structure([np.linspace(a, b, POINTS) for a, b in pairs])
    found = phonons.band_structure
    return Bands(np.array(found.distances), np.array(found.frequencies))


def draw_bands(panels: list[Panel], names: Sequence[str], path: Path) -> None:
    """Bands without and with the non-analytical term, and frozen waves, one panel a model.

    Parameters
    ----------
    panels : what to show.
    names : of the corners.
    path : PNG to write.
    """
    with house_style():
        figure, axes = plt.subplots(1, len(panels), figsize=(6.4 * len(panels), 5.6), sharey=True)
        for ax, panel, colour in zip(axes, panels, COLOURS[1::-1], strict=False):
            _draw_panel(ax, panel, names, colour)
        axes[0].set_ylabel("frequency (THz)")
        handles = [
            Line2D([], [], color=INK, lw=2.4, label="with Born charges"),
            Line2D([], [], **PLAIN, label="force constants only"),
            Line2D([], [], **WAVES, label="frozen waves in long rods"),
        ]
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.04)}
        figure.legend(handles=handles, ncols=len(handles), frameon=False, **place)
        save_figure(figure, path)


def _draw_panel(ax: Axes, panel: Panel, names: Sequence[str], colour: str) -> None:
    _draw_lines(ax, panel.without, **PLAIN)
    _draw_lines(ax, panel.corrected, color=colour, lw=2.4)
    ax.plot(panel.places, panel.frozen, **WAVES, zorder=4)
    distances = panel.without.distances
    ticks = [distances[0, 0], *distances[:, -1]]
    ax.set(xticks=ticks, xticklabels=names, xlim=(ticks[0], ticks[-1]), ylim=(0, None))
    for place in ticks[1:-1]:
        ax.axvline(place, color="#D8DDE1", lw=1, zorder=0)
    ax.set_title(panel.title, color=colour, fontweight="bold", loc="left")


def _draw_lines(ax: Axes, bands: Bands, **style: object) -> None:
    for distances, frequencies in zip(bands.distances, bands.frequencies, strict=True):
        ax.plot(distances, frequencies, **style)
