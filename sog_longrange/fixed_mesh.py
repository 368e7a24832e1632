"""The long-range energy on a grid of fixed shape, in plain tensor operations.

Exporters that run without Python (AOTInductor, `torch.export`) can neither call an opaque
operator nor follow a grid that depends on the cell. Here the grid is sized once, from the
largest cell that will come, and every sum is one that they trace.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from .energy import LongRangeEnergy, LongRangeOutput
from .errors import ConfigError, explain
from .geometry import box_wave_numbers, cell_volume, reciprocal_cell, wrapped_phases
from .kernels.kernel import check_channels
from .source_checks import check_dipoles
from .summation.engines.engine import Engine
from .summation.engines.torch_direct import TorchDirect
from .summation.engines.torch_engine import TorchSpreader
from .summation.engines.torch_table import TorchSampler
from .summation.grids import choose_grids
from .summation.interaction import Interaction, Potentials
from .summation.kernel_table import tapered_fourier
from .summation.mesh import MeshBackend
from .summation.modes import sum_over_modes
from .summation.multipoles import Multipoles
from .summation.rows import grid_axes
from .summation.self_term import with_self_term
from .validation import (
    Structures,
    check_finite,
    check_no_overflow,
    check_shape,
)

_MARGIN = 1.0 + 1e-6


class FixedMeshEnergy(nn.Module):
    """Long-range energy of one periodic structure for export to C++.

    Energies and forces equal those of a :class:`~sog_longrange.LongRangeEnergy` with
    backend "mesh" to its tolerance, for every cell whose lattice vectors are no longer
    than the recorded ones; for a longer one they are NaN, because no graph can raise.
    Sheared cells are not reduced here: give lattice vectors that are short and nearly
    orthogonal, or errors are larger.

    Parameters
    ----------
    energy : LongRangeEnergy
        Its kernel, tolerance and self-interaction are used.
    largest_cell : Tensor, shape (3, 3), in Å
        Rows are the longest lattice vectors that will be evaluated. Allow for the
        fluctuations of a simulation at constant pressure.
    order : int
        Highest order of the sources: 1 with dipoles.

    Raises
    ------
    InputError
        If the cell is malformed.
    SizeError
        If its mesh fits into no memory.

    References
    ----------
    Ji, Liang, Xu, arXiv:2502.04668.
    """

    largest_lengths: Tensor
    modes: Tensor
    factors: Tensor

    def __init__(self, energy: LongRangeEnergy, largest_cell: Tensor, order: int = 0) -> None:
        super().__init__()
        check_shape("largest_cell", largest_cell, (3, 3), "(3, 3)")
        check_finite("largest_cell", largest_cell)
        if order not in (0, 1):
            raise ConfigError(explain("order", "0 for charges or 1 for dipoles", str(order)))
        if energy.process_group is not None:
            raise ConfigError(explain("energy", "without a process group", "one with"))
        self.kernel = energy.kernel
        self.tolerance = energy.tolerance
        self.remove_self = energy.remove_self
        self.order = order
        resolution = energy.interaction().resolution(order)
        self.taper_start = resolution.taper_start
        lengths = torch.linalg.vector_norm(largest_cell.double(), dim=-1)
        self.grids = choose_grids([lengths.tolist()], resolution.cutoff, resolution.window)
        self.register_buffer("largest_lengths", lengths, persistent=False)
        axes = grid_axes(self.grids, 0)
        modes, factors = (np.concatenate(values) for values in zip(*axes, strict=True))
        self.register_buffer("modes", torch.from_numpy(modes).to(lengths), persistent=False)
        self.register_buffer("factors", torch.from_numpy(factors).to(lengths), persistent=False)

    def forward(
        self, charges: Tensor, positions: Tensor, cell: Tensor, dipoles: Tensor | None = None
    ) -> LongRangeOutput:
        """Evaluate one structure.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        positions : Tensor, shape (n_atoms, 3), in Å
        cell : Tensor, shape (3, 3), in Å
        dipoles : Tensor, shape (n_atoms, 3, n_channels), in e Å, optional
            Only where `order` is 1.

        Returns
        -------
        LongRangeOutput
            Differentiable to any order in charges, dipoles and positions.

        Raises
        ------
        ConfigError
            If there are dipoles and the grid is that of charges.
        """
        check_channels(self.kernel, charges)
        if dipoles is not None:
            check_dipoles(dipoles, charges)
        sources = Multipoles(charges, dipoles)
        if sources.order > self.order:
            raise ConfigError(explain("dipoles", "None on a grid of order 0", "a tensor"))
        out = self._sum(sources, positions, cell[None])
        lengths = torch.linalg.vector_norm(cell.detach().to(self.largest_lengths), dim=-1)
        fits = (lengths <= _MARGIN * self.largest_lengths).all()
        energy, potential = (_where(fits, x) for x in (out.energy, out.potential))
        field = None if out.field is None else _where(fits, out.field)
        return LongRangeOutput(energy.to(charges), potential, charges, field, dipoles)

    def _sum(self, sources: Multipoles, positions: Tensor, cell: Tensor) -> Potentials:
        kernel = self.kernel.snapshot()
        how = (self.tolerance, self.remove_self, "mesh", "none", None)
        interaction = Interaction(kernel, *how)
        reciprocal, volume = reciprocal_cell(cell), cell_volume(cell)
        batch = torch.zeros_like(positions[:, 0], dtype=torch.int64)
        phases = wrapped_phases(positions, reciprocal, batch)
        if not _is_captured():
            check_no_overflow("positions", phases)  # of no graph
        backend = MeshBackend(self.grids, batch, _TRACED)
        table = self._table(reciprocal) / volume
        geometry = [(backend, lambda: table)], sources, phases, reciprocal
        out = sum_over_modes(*geometry, interaction, field=False)
        pbc = torch.ones_like(cell[:, 0], dtype=torch.bool)
        structures = Structures(positions, cell, pbc, batch, 1)
        return with_self_term(interaction, sources, structures, [True], out)

    @property
    def traced(self) -> bool:
        """Always: no number is looked at, as in a graph."""
        return True

    def evaluate(
        self, charges: Tensor, structures: Structures, dipoles: Tensor | None = None
    ) -> LongRangeOutput:
        """Evaluate like :meth:`LongRangeEnergy.evaluate`, whose place this can take.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        structures : Structures
            One structure, taken as periodic along all axes.
        dipoles : Tensor, shape (n_atoms, 3, n_channels), in e Å, optional

        Returns
        -------
        LongRangeOutput

        Raises
        ------
        InputError
            If there is more than one structure.
        """
        check_shape("cell", structures.cell, (1, 3, 3), "(1, 3, 3), of one structure")
        out: LongRangeOutput = self(charges, structures.positions, structures.cell[0], dipoles)
        return out

    def _table(self, reciprocal: Tensor) -> Tensor:
        """Kernel on the modes of the grid, times what undoes the window."""
        sizes = list(self.grids.half_shapes[0])
        x, y, z = self.modes.to(reciprocal).split(sizes)
        a, b, c = self.factors.to(reciprocal).split(sizes)
        k2 = box_wave_numbers(x, y, z, reciprocal[0])
        factors = a[:, None, None] * b[:, None] * c
        table: Tensor = tapered_fourier(self.kernel, k2, self.taper_start) * factors
        return table.flatten(1)

    def extra_repr(self) -> str:
        """Summary shown by ``print(module)``."""
        lengths = ", ".join(f"{length:.4g}" for length in self.largest_lengths.tolist())
        return f"grid={self.grids.shapes[0]}, largest_lengths=({lengths}) Å"


def _where(fits: Tensor, values: Tensor) -> Tensor:
    # A factor, so that derivatives are NaN too, and not those of the rest of a model.
    return values * torch.where(fits, 1.0, math.nan).to(values)


class _TracedSpreader(TorchSpreader):
    """Sums over all atoms at once, whose number a graph does not know."""

    def _chunks(self) -> Iterator[slice]:
        yield slice(None)


def _is_captured() -> bool:
    """Tell whether a CUDA graph records what runs now, so that nothing can be read."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


_TRACED = Engine("traced", _TracedSpreader, TorchSampler, TorchDirect)
