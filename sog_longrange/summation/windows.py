"""Windows that carry atoms to mesh nodes and back."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from numpy.typing import NDArray

SHAPE: float = 2.2
"""Exponent of the window per node of its width."""

MAX_WINDOW: int = 16
"""Widest window, in nodes; float64 gains nothing beyond it."""

_IMAGES = 3


class Window(NamedTuple):
    """A window of `width` nodes, a polynomial between any two neighbouring nodes.

    An atom at mesh coordinate u touches the nodes b + `first`, ..., b + `first` + width - 1,
    where b = floor(u + shift) and t = u + shift - b; node i sees the polynomial of row i at t.

    Attributes
    ----------
    coefficients : array, shape (width, degree + 1)
        Of rising powers of t, one row for each node.
    """

    coefficients: NDArray[np.float64]

    @property
    def width(self) -> int:
        """Number of nodes that an atom touches along each axis."""
        return len(self.coefficients)

    @property
    def shift(self) -> float:
        """Half a mesh spacing for odd widths, so that the nodes surround the atom."""
        return 0.5 * (self.width % 2)

    @property
    def first(self) -> int:
        """Offset of the first node from b."""
        odd = self.width % 2
        return 1 - odd - (self.width - odd) // 2

    def derivative(self, order: int) -> NDArray[np.float64]:
        """Coefficients of a derivative in t, in the shape of the window's own."""
        c = self.coefficients
        for _ in range(order):
            c = np.pad(c[:, 1:] * np.arange(1, c.shape[1]), ((0, 0), (0, 1)))
        return c


@lru_cache(maxsize=32)
def make_window(width: int) -> Window:
    """Exponential of a semicircle, exp(beta (sqrt(1 - (2x/w)^2) - 1)), as polynomials.

    Parameters
    ----------
    width : int
        Number of nodes.

    Returns
    -------
    Window

    References
    ----------
    Barnett, Magland, af Klinteberg, arXiv:1808.06736 (the window).
    """
    degree = width + 2
    t = 0.5 - 0.5 * np.cos(np.pi * (np.arange(4 * degree) + 0.5) / (4 * degree))
    rows = []
    for node in range(width):
        x = node - 0.5 * width + 1.0 - t
        root = np.sqrt(np.maximum(1.0 - (2.0 * x / width) ** 2, 0.0))
        values = np.exp(SHAPE * width * (root - 1.0))
        fit = Chebyshev.fit(t, values, degree, domain=[0.0, 1.0])
        rows.append(fit.convert(kind=Polynomial).coef)
    return Window(np.array(rows))


def window_transform(window: Window, size: int, modes: NDArray[Any]) -> NDArray[np.float64]:
    """Fourier transform of a window at integer modes of a mesh.

    Parameters
    ----------
    window : Window
    size : int
        Number of nodes of the mesh.
    modes : array, shape (n_modes,)

    Returns
    -------
    array, shape (n_modes,)
        int W(x) exp(-2 pi i m x / size) dx, real because the window is even.
    """
    nodes, weights = np.polynomial.legendre.leggauss(24)
    t = 0.5 * (nodes + 1.0)
    values = window.coefficients @ np.stack([t**d for d in range(window.coefficients.shape[1])])
    x = np.arange(window.width)[:, None] - 0.5 * window.width + 1.0 - t
    angles = (2.0 * np.pi / size) * modes[:, None, None] * x
    transform: NDArray[np.float64] = np.einsum("iq,q,miq->m", values, 0.5 * weights, np.cos(angles))
    return transform


@lru_cache(maxsize=1024)
def influence(width: int, size: int) -> NDArray[np.float64]:
    """Factor of one axis that undoes spreading and interpolation, in the order of an FFT.

    It minimises the mean square error of the energy over all places of the atoms relative
    to the mesh, for a kernel that does not reach the aliases.

    Parameters
    ----------
    width : int
        Of the window.
    size : int
        Number of nodes.

    Returns
    -------
    array, shape (size,)
        What(m)^2 / (sum_a What(m + a size)^2)^2 for m = 0, 1, ..., -2, -1.

    References
    ----------
    Hockney, Eastwood, Computer Simulation Using Particles (1988), chapter 8.
    """
    window = make_window(width)
    modes = np.fft.fftfreq(size, 1.0 / size)
    images = [
        window_transform(window, size, modes + a * size) for a in range(-_IMAGES, _IMAGES + 1)
    ]
    power = np.square(images)
    factor: NDArray[np.float64] = power[_IMAGES] / power.sum(0) ** 2
    return factor
