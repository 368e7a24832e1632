"""The long-range energy on a mesh of fixed shape, in plain tensor operations.

Exporters that run without Python (AOTInductor, `torch.export`) can neither call an opaque
operator nor follow a mesh that depends on the cell. Here the mesh is sized once, from the
largest cell that will come, and everything else is what autograd differentiates by itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .energy import LongRangeEnergy, LongRangeOutput
from .errors import ConfigError, explain
from .geometry import (
    TAPER,
    Modes,
    cell_volume,
    reciprocal_cell,
    squared_wave_numbers,
    wave_number_onset,
    wrapped_phases,
)
from .kernels.channels import apply_kernels
from .kernels.kernel import check_channels
from .summation.dense import faded_fourier
from .summation.engines.torch_engine import TorchStencil
from .summation.mesh import Meshes, choose_meshes, mode_boxes
from .summation.windows import window_width
from .validation import Structures, check_finite, check_no_overflow, check_shape

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

    def __init__(self, energy: LongRangeEnergy, largest_cell: Tensor) -> None:
        super().__init__()
        check_shape("largest_cell", largest_cell, (3, 3), "(3, 3)")
        check_finite("largest_cell", largest_cell)
        if energy.process_group is not None:
            raise ConfigError(explain("energy", "without a process group", "one with"))
        self.kernel = energy.kernel
        self.remove_self = energy.remove_self
        self.onset = wave_number_onset(self.kernel.min_width, energy.tolerance)
        lengths = torch.linalg.vector_norm(largest_cell.double(), dim=-1)
        width = window_width(energy.tolerance)
        self.meshes = choose_meshes([lengths.tolist()], TAPER * self.onset, width)
        self.register_buffer("largest_lengths", lengths, persistent=False)
        boxes = mode_boxes(self.meshes, lengths)
        self.register_buffer("modes", boxes.modes, persistent=False)
        self.register_buffer("factors", boxes.factors, persistent=False)

    def forward(self, charges: Tensor, positions: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate one structure.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        positions : Tensor, shape (n_atoms, 3), in Å
        cell : Tensor, shape (3, 3), in Å

        Returns
        -------
        atomic_energies : Tensor, shape (n_atoms,), in eV
            1/2 q_i phi_i; their sum is the energy and differentiable to any order.
        potential : Tensor, shape (n_atoms, n_channels), in eV/e
        """
        check_channels(self.kernel, charges)
        reciprocal = reciprocal_cell(cell[None])
        batch = torch.zeros_like(positions[:, 0], dtype=torch.int64)
        phases = wrapped_phases(positions, reciprocal, batch)
        check_no_overflow("positions", phases)  # of no graph
        stencil = _Stencil(self.meshes, phases, batch)
        shape = self.meshes.shapes[0]
        density = stencil.scatter(charges).view(-1, *shape)
        spectrum = torch.fft.rfftn(density, dim=(1, 2, 3))
        spectrum = apply_kernels(self._table(reciprocal), spectrum, 0)
        nodes = torch.fft.irfftn(spectrum, s=shape, dim=(1, 2, 3), norm="forward")
        potential = stencil.collect(nodes.flatten(1)) / cell_volume(cell[None])
        if self.remove_self:
            origin = self.kernel.radial(charges.new_zeros(1))
            potential = potential - apply_kernels(origin.T, charges, 1)
        lengths = torch.linalg.vector_norm(cell.detach().to(self.largest_lengths), dim=-1)
        fits = (lengths <= _MARGIN * self.largest_lengths).all()
        potential = torch.where(fits, potential, torch.full_like(potential, math.nan))
        return 0.5 * (charges * potential).sum(-1), potential

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
        dipoles : None
            There are none on a fixed mesh yet.

        Returns
        -------
        LongRangeOutput

        Raises
        ------
        InputError
            If there is more than one structure.
        """
        if dipoles is not None:
            raise ConfigError(explain("dipoles", "None on a fixed mesh", "a tensor"))
        check_shape("cell", structures.cell, (1, 3, 3), "(1, 3, 3), of one structure")
        atomic_energies, potential = self(charges, structures.positions, structures.cell[0])
        energy = atomic_energies.sum()[None]
        return LongRangeOutput(energy, atomic_energies, potential, charges)

    def _table(self, reciprocal: Tensor) -> Tensor:
        """Kernel on the modes of the mesh, times what undoes the window."""
        sizes = list(self.meshes.half_shapes[0])
        x, y, z = self.modes.to(reciprocal).split(sizes)
        a, b, c = self.factors.to(reciprocal).split(sizes)
        k2 = squared_wave_numbers(Modes((x, y, z), torch.ones_like(x)), reciprocal)[0]
        factors = a[:, None, None] * b[:, None] * c
        table: Tensor = faded_fourier(self.kernel, k2, self.onset) * factors
        return table

    def extra_repr(self) -> str:
        """Summary shown by ``print(module)``."""
        lengths = ", ".join(f"{length:.4g}" for length in self.largest_lengths.tolist())
        return f"mesh={self.meshes.shapes[0]}, largest_lengths=({lengths}) Å"


class _Stencil(TorchStencil):
    """Stencil of all atoms at once, differentiated by autograd."""

    def __init__(self, meshes: Meshes, phases: Tensor, batch: Tensor) -> None:
        super().__init__(meshes, phases, batch)
        first, t = self._first_nodes(slice(None))
        x, y, z = self._weights(slice(None), t, 0)[0].unbind(1)
        self.weights = x[:, :, None, None] * (y[:, :, None] * z[:, None])[:, None]
        self.place = self._nodes(slice(None), first)

    def scatter(self, charges: Tensor) -> Tensor:
        nodes = charges.new_zeros(charges.shape[1], self.meshes.starts[-1])
        values = (charges.T[:, :, None, None, None] * self.weights).flatten(1)
        return nodes.scatter_add(1, self.place.flatten().expand_as(values), values)

    def collect(self, nodes: Tensor) -> Tensor:
        values = nodes[:, self.place.flatten()].view(len(nodes), *self.place.shape)
        return (values * self.weights).sum((2, 3, 4)).T
