"""What an engine provides: sums between atoms and grids or modes, and a table of the kernel."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from sog_longrange.summation.grids import Grids
from sog_longrange.summation.kernel_table import Sampler
from sog_longrange.summation.rows import ModeRows


class Spreader(Protocol):
    """Sums between atoms and grids; no argument requires a gradient.

    Sources and derivatives have one entry for each of :func:`~sog_longrange.summation.
    multipoles.monomials`; the number of sources says their order.

    Parameters
    ----------
    grids : Grids
    phases : Tensor, shape (n_atoms, 3), in [0, 2 pi]
    batch : Tensor, shape (n_atoms,), sorted
    """

    def __init__(self, grids: Grids, phases: Tensor, batch: Tensor) -> None: ...

    def spread(self, sources: Tensor) -> Tensor:
        """Densities (P, n_points) of sources (N, n_sources, P)."""
        ...

    def interpolate(self, field: Tensor, order: int) -> Tensor:
        """Phase derivatives (N, n_derivatives, P) of potentials (P, n_points)."""
        ...

    def interpolate_gradient(self, field: Tensor, weights: Tensor) -> Tensor:
        """Phase gradient (N, 3) of the sum of derivatives times weights (N, n_sources, P)."""
        ...


class Direct(Protocol):
    """Sums between atoms and modes without a grid, otherwise as a :class:`Spreader`.

    Parameters
    ----------
    rows : ModeRows
    phases : Tensor, shape (n_atoms, 3)
    batch : Tensor, shape (n_atoms,), sorted
    """

    def __init__(self, rows: ModeRows, phases: Tensor, batch: Tensor) -> None: ...

    def spread(self, sources: Tensor) -> Tensor:
        """Spectra (P, n_modes), sum_j sum_a W_ja d^a exp(-i m.theta_j), of sources."""
        ...

    def interpolate(self, field: Tensor, order: int) -> Tensor:
        """Phase derivatives (N, n_derivatives, P) of Re sum_m psi_m exp(i m.theta)."""
        ...

    def interpolate_gradient(self, field: Tensor, weights: Tensor) -> Tensor:
        """Phase gradient (N, 3) of the sum of derivatives times weights (N, n_sources, P)."""
        ...


class Engine(NamedTuple):
    """Code that runs the inner loops of the sums.

    Attributes
    ----------
    name : str
    spreader : type of Spreader
    sampler : type of Sampler
    direct : type of Direct
    """

    name: str
    spreader: type[Spreader]
    sampler: type[Sampler]
    direct: type[Direct]
