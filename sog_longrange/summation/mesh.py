"""Particle mesh: a non-uniform FFT of real densities whose forces are exact gradients.

References
----------
Ji, Liang, Xu, arXiv:2502.04668 (the sum); Hockney, Eastwood, Computer Simulation Using
Particles (1988) (meshes); Barnett, arXiv:1808.06736 (the window).
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from sog_longrange.validation import Structures, layout_of

from .blocks import running_sum
from .engines.engine import Engine
from .grids import Grids, choose_grids
from .interaction import Interaction, Potentials
from .modes import FlatBackend, periodic_sum
from .multipoles import Multipoles
from .rows import grid_rows


def mesh_sum(
    interaction: Interaction, sources: Multipoles, part: Structures, *, field: bool = False
) -> Potentials:
    """Sum over periodic images on grids, self-interaction included.

    Parameters
    ----------
    interaction : Interaction
    sources : Multipoles
    part : Structures
        Periodic along all axes, with reduced cells.
    field : bool
        Whether the field of charges is wanted, too.

    Returns
    -------
    Potentials
        Of the energy 1/(2V) sum_k Khat(k) |S(k)|^2; gradients are exact for what is computed.

    Raises
    ------
    SizeError
        If the grids fit into no memory.
    InputError
        If positions are so large that they overflow.
    """
    resolution = interaction.resolution(sources.order)
    lengths = layout_of(part).lengths
    grids = choose_grids(lengths, resolution.cutoff, resolution.window)
    engine = interaction.engine_on(part.positions.device)
    backend = MeshBackend(grids, part.batch, engine)
    rows = grid_rows(grids)
    return periodic_sum(interaction, sources, part, [(backend, rows)], lengths, field=field)


class MeshBackend(FlatBackend):
    """Adjoint sums by spreading to grids, real FFTs and interpolation.

    Spectra hold half of the modes; :meth:`correlate` counts their mirror images.

    Parameters
    ----------
    grids : Grids
    batch : Tensor, shape (n_atoms,), sorted
    engine : Engine
    """

    has_grid = True

    def __init__(self, grids: Grids, batch: Tensor, engine: Engine) -> None:
        sizes = [math.prod(shape) for shape in grids.half_shapes]
        super().__init__(running_sum(sizes).tolist(), batch)
        self.grids = grids
        self._spreader = engine.spreader
        # One transform for all grids of one shape that follow each other, and their places in
        # the flat arrays of points and modes.
        self._runs = []
        first = 0
        for shape, run in groupby(grids.shapes):
            last = first + len(list(run))
            real = slice(grids.starts[first], grids.starts[last])
            half = slice(self.mode_starts[first], self.mode_starts[last])
            self._runs.append(_Run((-1, last - first, *shape), real, half))
            first = last

    def set_phases(self, phases: Tensor) -> None:
        """Take the phases of all atoms, shape (n_atoms, 3)."""
        self.spreader = self._spreader(self.grids, phases, self.batch)

    def spread(self, sources: Tensor) -> Tensor:
        """Density of sources on the grids."""
        return self.spreader.spread(sources)

    def interpolate(self, field: Tensor, order: int) -> Tensor:
        """Phase derivatives of the potential at the atoms."""
        return self.spreader.interpolate(field, order)

    def interpolate_gradient(self, field: Tensor, weights: Tensor) -> Tensor:
        """Gradient in the phases of sum_a W_a d^a phi."""
        return self.spreader.interpolate_gradient(field, weights)

    def transform(self, density: Tensor) -> Tensor:
        """Structure factor, still convolved with the window."""
        boxes = [
            torch.fft.rfftn(density[:, run.real].view(run.shape), dim=(2, 3, 4)).flatten(1)
            for run in self._runs
        ]
        return boxes[0] if len(boxes) == 1 else torch.cat(boxes, 1)

    def invert(self, spectrum: Tensor) -> Tensor:
        """Potentials on the points of all grids."""
        boxes = []
        for run in self._runs:
            box = spectrum[:, run.half].view(run.half_shape)
            lengths = run.shape[2:]
            points = torch.fft.irfftn(box, s=lengths, dim=(2, 3, 4), norm="forward")
            boxes.append(points.flatten(1))
        return boxes[0] if len(boxes) == 1 else torch.cat(boxes, 1)

    def correlate(self, first: Tensor, second: Tensor, table: Tensor) -> Tensor:
        """Re(S* R) of each mode and its mirror image, for each kernel."""
        product = super().correlate(first, second, table)
        for run in self._runs:
            product[:, run.half].view(run.half_shape)[..., 1:].mul_(2.0)
        return product


class _Run(NamedTuple):
    """Grids of one shape."""

    shape: tuple[int, ...]
    real: slice
    half: slice

    @property
    def half_shape(self) -> tuple[int, ...]:
        return (*self.shape[:-1], self.shape[-1] // 2 + 1)
