"""Figures of what a long-range model learned, in one style.

Needs matplotlib (extra ``plot``), which is loaded where it is used. Each ``draw_*`` function
draws into the axes it is given, or into those of a new figure, and returns them. Colours are
those of Okabe and Ito, which all kinds of colour vision tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .errors import InputError, explain
from .hosts import load_library
from .kernels.channels import channel_pairs
from .kernels.kernel import Kernel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^Dvp"
INK, FAINT, SHADE = "#1a1a1a", "#6b6b6b", "#E9EFF4"
STYLE: dict[str, Any] = {
    "font.size": 15,
    "font.family": "sans-serif",
    "axes.titlesize": 17,
    "axes.labelsize": 16,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 1.1,
    "axes.axisbelow": True,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "savefig.dpi": 200,
    "legend.frameon": False,
}
"""Settings of matplotlib in all figures of the project."""

Potential = Callable[[Tensor], Tensor]
"""Value in eV/e^2 of an interaction at distances in Å."""


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the style of the project, whatever the settings of matplotlib are.

    Raises
    ------
    MissingLibraryError
        If matplotlib is not installed.
    """
    with load_library("matplotlib", "plot").rc_context(STYLE):
        yield


def panels(count: int, size: float = 5.4) -> tuple[Figure, list[Axes]]:
    """Open a figure of panels in a row.

    Parameters
    ----------
    count : int
    size : float
        Width and height of a panel, in inches.

    Returns
    -------
    tuple
        The figure and its axes.
    """
    library = load_library("matplotlib.pyplot", "plot")
    figure, axes = library.subplots(1, count, figsize=(size * count, size), squeeze=False)
    figure.subplots_adjust(wspace=0.35)
    return figure, list(axes[0])


def save_figure(figure: Figure, path: Path | str) -> None:
    """Write a figure and release it.

    Parameters
    ----------
    figure : Figure
    path : Path
        The suffix tells the format.
    """
    figure.savefig(path, bbox_inches="tight", facecolor="white")
    load_library("matplotlib.pyplot", "plot").close(figure)


def draw_kernel(
    kernel: Kernel,
    *,
    channel: int | tuple[int, int] = 0,
    potentials: Mapping[str, Potential] | None = None,
    scale: float = 1.0,
    reach: tuple[float, float] = (2.0, 20.0),
    ax: Axes | None = None,
) -> Axes:
    """Draw the size of a learned kernel over distance, beside potentials of other decay.

    Parameters
    ----------
    kernel : Kernel
    channel : int or tuple of 2 ints
        Whose kernel; a pair of channels for the one between them, where channels are coupled.
    potentials : mapping of str to callable, optional
        What to compare with, by name. By default 1/r and 1/r^6 through the kernel's value at
        the geometric mean of `reach`, so that slopes can be compared.
    scale : float
        Factor of the kernel.
    reach : tuple of 2 floats
        Distances, in Å.
    ax : Axes, optional

    Returns
    -------
    Axes
        With logarithmic scales; where a kernel is negative it is dashed.

    Raises
    ------
    InputError
        If the kernel has no such channel.
    """
    row = _row_of(kernel, channel)
    with house_style(), torch.no_grad():
        near, far = reach
        steps = torch.linspace(0.0, math.log(far / near), 400, dtype=torch.float64)
        r = near * steps.exp()
        middle = torch.tensor([near * far], dtype=torch.float64)
        found, pivot = (scale * _radial(kernel, x)[row] for x in (r.square(), middle))
        if potentials is None:
            ratio = r / middle.sqrt()
            lines = {"1/r": pivot.abs() / ratio, "1/r⁶": pivot.abs() / ratio**6}
        else:
            lines = {name: value(r).abs() for name, value in potentials.items()}
        ax = _axes(ax)
        for (name, values), dashes in zip(lines.items(), ("--", ":", "-."), strict=False):
            ax.plot(r, values, dashes, color=INK, lw=1.6, label=name, zorder=3)
        for sign, dash in ((1.0, "-"), (-1.0, (0, (2, 1)))):
            part = torch.where(sign * found > 0.0, found.abs(), torch.nan)
            label = "kernel" if sign * float(pivot) > 0.0 else None
            ax.plot(r, part, ls=dash, color=COLOURS[0], lw=3.4, label=label, zorder=2)
        ax.set(xscale="log", yscale="log", xlabel="distance (Å)", ylabel="|K(r)| (eV/e²)")
        _label_decades(ax)
        ax.legend()
    return ax


def draw_parity(
    reference: ArrayLike,
    predicted: ArrayLike,
    groups: Sequence[str],
    *,
    quantity: str = "energy (eV)",
    ax: Axes | None = None,
) -> Axes:
    """Draw predicted against reference numbers, each group in its own colour.

    Parameters
    ----------
    reference, predicted : array, shape (n,)
    groups : sequence of str, length n
        Names for the legend, in the order in which they first come.
    quantity : str
        What the numbers are, for the labels of the axes.
    ax : Axes, optional

    Returns
    -------
    Axes
        With the slope of predicted over reference and R^2 of the fit in its title.

    Raises
    ------
    InputError
        If the lengths differ or there are fewer than two numbers.
    """
    x, y = _pair("predicted", reference, predicted)
    return _parity(ax, x, y, _members("groups", groups, x), quantity)


def draw_charges(
    reference: ArrayLike, predicted: ArrayLike, elements: Sequence[str], *, ax: Axes | None = None
) -> Axes:
    """Draw predicted against reference charges, each element in its own colour.

    Parameters
    ----------
    reference, predicted : array, shape (n_atoms,), in e
        Latent charges have a free common sign: turn them as the reference before.
    elements : sequence of str, length n_atoms
        Chemical symbols.
    ax : Axes, optional

    Returns
    -------
    Axes
        With the slope of predicted over reference and R^2 of the fit in its title.

    Raises
    ------
    InputError
        If the lengths differ or there are fewer than two charges.
    """
    x, y = _pair("predicted", reference, predicted)
    members = _members("elements", elements, x)
    return _parity(ax, x, y, dict(sorted(members.items())), "charge (e)")


def draw_dipoles(reference: ArrayLike, predicted: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Draw predicted against reference dipoles, each Cartesian component in its own colour.

    Parameters
    ----------
    reference, predicted : array, shape (n_structures, 3), in e Å
    ax : Axes, optional

    Returns
    -------
    Axes
        With the slope of predicted over reference and R^2 of the fit in its title.

    Raises
    ------
    InputError
        If a shape is wrong.
    """
    exact = np.asarray(reference, dtype=np.float64)
    if exact.ndim != 2 or exact.shape[1] != 3:
        expected = "of shape (n_structures, 3)"
        raise InputError(explain("reference", expected, f"shape {exact.shape}"))
    x, y = _pair("predicted", exact, predicted)
    which = np.tile(np.arange(3), len(exact))
    return _parity(ax, x, y, {name: which == i for i, name in enumerate("xyz")}, "dipole (e Å)")


def draw_binding(
    separations: ArrayLike,
    reference: ArrayLike,
    models: Mapping[str, ArrayLike],
    *,
    trained_to: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a binding curve: reference as points, models as lines.

    Parameters
    ----------
    separations : array, shape (n,), in Å
    reference : array, shape (n,), in eV
        Relative to the separate molecules, as all energies here.
    models : mapping of str to array, shape (n,), in eV
    trained_to : float, optional
        Largest trained separation in Å; up to it the panel is shaded.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        If the lengths differ.
    """
    x, exact = _pair("reference", separations, reference)
    order = np.argsort(x)
    with house_style():
        ax = _axes(ax)
        ax.axhline(0.0, color=FAINT, lw=0.8, zorder=0)
        if trained_to is not None:
            ax.axvspan(x.min(), trained_to, color=SHADE, lw=0, zorder=-2, label="trained")
        ax.plot(x[order], exact[order], "o", color=INK, ms=5.5, mew=0, zorder=4, label="reference")
        for index, (name, energies) in enumerate(models.items()):
            y = _pair(name, separations, energies)[1]
            ax.plot(x[order], y[order], color=_colour(index), lw=3.4, zorder=3, label=name)
        ax.set(xlabel="separation (Å)", ylabel="energy (eV)")
        ax.legend()
    return ax


def _label_decades(ax: Axes) -> None:
    """Plain numbers at 1, 2 and 5 of each decade; of many decades, powers of ten only."""
    ticker = load_library("matplotlib.ticker", "plot")
    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        if high < 100.0 * low:
            axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.set_minor_formatter(ticker.NullFormatter())


def _radial(kernel: Kernel, r2: Tensor) -> Tensor:
    """K(r) in float64 on the CPU, whatever the kernel's parameters are."""
    parameters: Iterator[Tensor] = getattr(kernel, "parameters", lambda: iter(()))()
    like = next(parameters, r2)
    return kernel.radial(r2.to(like)).double().cpu()


def _row_of(kernel: Kernel, channel: int | tuple[int, int]) -> int:
    """Where a channel, or a pair of channels, is among the values of the kernel."""
    count, channels = len(_radial(kernel, torch.ones(1))), kernel.num_channels
    coupled = count > channels
    pairs = channel_pairs(channels) if coupled else [(p, p) for p in range(channels)]
    pair = tuple(sorted(channel)) if isinstance(channel, tuple) else (channel, channel)
    if pair in pairs:
        return pairs.index(pair)
    expected = f"from 0 to {channels - 1}" + (", or a pair of such" if coupled else "")
    remedy = "" if coupled or not isinstance(channel, tuple) else "Its channels are not coupled."
    raise InputError(explain("channel", expected, str(channel), remedy))


def _axes(ax: Axes | None) -> Axes:
    return panels(1)[1][0] if ax is None else ax


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _pair(
    name: str, first: ArrayLike, second: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Check two series of the same shape and flatten them."""
    x, y = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if x.shape != y.shape or x.size < 2:
        expected = f"of shape {x.shape}, with two numbers or more"
        raise InputError(explain(name, expected, f"shape {y.shape}"))
    return x.ravel(), y.ravel()


def _members(
    name: str, groups: Sequence[str], values: NDArray[np.float64]
) -> dict[str, NDArray[np.bool_]]:
    """Tell which values belong to each group, in the order in which groups first come."""
    names = np.asarray(groups)
    if names.shape != values.shape:
        raise InputError(explain(name, f"of length {len(values)}", f"shape {names.shape}"))
    return {kind: names == kind for kind in dict.fromkeys(names.tolist())}


def _parity(
    ax: Axes | None,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    groups: Mapping[str, NDArray[np.bool_]],
    quantity: str,
) -> Axes:
    with house_style():
        ax = _axes(ax)
        limits = np.array([min(x.min(), y.min()), max(x.max(), y.max())])
        limits += 0.05 * np.ptp(limits) * np.array([-1.0, 1.0])
        ax.plot(limits, limits, color=FAINT, lw=1, zorder=1)
        for index, (name, members) in enumerate(groups.items()):
            marker, colour = MARKERS[index % len(MARKERS)], _colour(index)
            points = ax.plot(x[members], y[members], marker, color=colour, label=name)
            points[0].set(markersize=5, markeredgewidth=0, alpha=0.6)
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = np.polyfit(x, y, 1)[0] if np.ptp(x) > 0 else np.nan
            fit = np.corrcoef(x, y)[0, 1] ** 2
        ax.set_title(f"slope {slope:.3g}, R² {fit:.4g}", loc="left")
        ax.set(xlim=limits, ylim=limits, aspect="equal")
        ax.set(xlabel=f"reference {quantity}", ylabel=f"predicted {quantity}")
        ax.legend(markerscale=1.5, handletextpad=0.1)
    return ax
