"""What grid a tolerance leads to, and what error it really makes on given structures."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from .energy import LongRangeEnergy
from .errors import ConfigError, InputError, explain
from .geometry import lattice_lengths, reduced_cell
from .summation.cost_model import Choice
from .summation.grids import choose_grids
from .summation.multipoles import Multipoles
from .validation import check_structures

_TIGHTER = 1e-3
_FLOOR = 1e-13
_NO_FORCE = 1e-6
_STEP = 10.0**-0.25


class GridReport(NamedTuple):
    """Grid and measured error of an energy on a batch of structures.

    Attributes
    ----------
    tolerance : float
    cutoff : float
        Largest wave number of the reciprocal sum, in 1/Å.
    window : int
        Number of grid points along each axis that an atom touches.
    grids : dict of int to 3-tuple of int
        Nodes that each periodic structure's mesh has, or would have.
    choices : dict of int to Choice
        Backend of each periodic structure, with predicted costs.
    force_error : float
        Relative l2 error of all forces against the same sum at a tolerance a thousand
        times tighter, in float64.
    energy_error : float
        Largest error of an energy per atom, in eV.
    """

    tolerance: float
    cutoff: float
    window: int
    grids: dict[int, tuple[int, int, int]]
    choices: dict[int, Choice]
    force_error: float
    energy_error: float

    def __str__(self) -> str:
        lines = [
            f"tolerance {self.tolerance:.3g}: k cutoff {self.cutoff:.4g} 1/Å, "
            f"window of {self.window} points",
            f"measured: relative force error {self.force_error:.2g}, "
            f"energy error {self.energy_error:.2g} eV/atom",
        ]
        for graph, choice in self.choices.items():
            shape = " x ".join(str(n) for n in self.grids[graph])
            lines.append(f"structure {graph}: mesh {shape}; {choice}")
        return "\n".join(lines)


def report_grid(
    energy: LongRangeEnergy,
    charges: Tensor,
    positions: Tensor,
    cell: Tensor | None = None,
    pbc: Tensor | None = None,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    *,
    dipoles: Tensor | None = None,
) -> GridReport:
    """Report the grid that the tolerance of an energy leads to, and the error it makes.

    Parameters
    ----------
    energy : LongRangeEnergy
    charges, positions, cell, pbc, batch, num_graphs, dipoles
        As in :meth:`~sog_longrange.LongRangeEnergy.forward`.

    Returns
    -------
    GridReport

    Raises
    ------
    InputError, InputTypeError, BoundaryError, SizeError
        As :meth:`~sog_longrange.LongRangeEnergy.forward`.
    """
    if energy.process_group is not None:
        raise ConfigError(explain("energy", "without a process group", "one with"))
    structures = check_structures(positions, cell, pbc, batch, num_graphs)
    inputs = (structures.positions, structures.cell, structures.pbc, structures.batch)
    reference = _tighter(energy)
    sources = Multipoles(charges, dipoles)
    exact = _energy_and_forces(reference, sources, inputs, structures.num_graphs, torch.float64)
    found = _energy_and_forces(energy, sources, inputs, structures.num_graphs, charges.dtype)
    counts = torch.bincount(structures.batch, minlength=structures.num_graphs).clamp(min=1)
    energy_error = ((found[0] - exact[0]).abs() / counts).max()
    # Forces that vanish by symmetry have no relative error.
    force_error = (found[1] - exact[1]).norm() / exact[1].norm().clamp(min=_NO_FORCE)
    resolution = energy.interaction().resolution(sources.order)
    choices = energy.choices(charges, structures, dipoles)
    compact = reduced_cell(structures.cell.double(), structures.pbc.all(-1).tolist())
    lengths = lattice_lengths(compact)
    grid = (resolution.cutoff, resolution.window)
    return GridReport(
        energy.tolerance,
        *grid,
        {graph: choose_grids([lengths[graph]], *grid).shapes[0] for graph in choices},
        choices,
        float(force_error),
        float(energy_error),
    )


def find_tolerance(
    energy: LongRangeEnergy,
    target: float,
    charges: Tensor,
    positions: Tensor,
    cell: Tensor | None = None,
    pbc: Tensor | None = None,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    *,
    dipoles: Tensor | None = None,
) -> GridReport:
    """Find the loosest tolerance whose measured force error stays below a target.

    Parameters
    ----------
    energy : LongRangeEnergy
    target : float
        Relative l2 error of forces, between 1e-12 and 0.1.
    charges, positions, cell, pbc, batch, num_graphs, dipoles
        As in :meth:`~sog_longrange.LongRangeEnergy.forward`.

    Returns
    -------
    GridReport
        With the tolerance to be used. Kernels change in training: leave a margin.

    Raises
    ------
    InputError
        If no tolerance reaches the target in the dtype of the charges, or the target is
        out of range.
    """
    if not 1e-12 <= target <= 0.1:
        raise InputError(explain("target", "between 1e-12 and 0.1", str(target)))
    structures = (positions, cell, pbc, batch, num_graphs)
    trial = min(0.1, 10.0 * target)
    while trial > _FLOOR:
        trial_energy = _with_tolerance(energy, trial)
        report = report_grid(trial_energy, charges, *structures[:5], dipoles=dipoles)
        if report.force_error <= target:
            return report
        trial *= _STEP
        if trial < 1e-3 * target:
            break
    got = f"{report.force_error:.2g} in {charges.dtype}"
    raise InputError(explain("target", "an error that can be reached", got, "Use float64."))


def _with_tolerance(energy: LongRangeEnergy, tolerance: float) -> LongRangeEnergy:
    other = copy.copy(energy)
    other.tolerance = tolerance
    return other


def _tighter(energy: LongRangeEnergy) -> LongRangeEnergy:
    reference = _with_tolerance(energy, max(_FLOOR, _TIGHTER * energy.tolerance))
    # Copied as a part of the energy, a kernel computed from other tensors could not be.
    return copy.deepcopy(reference, {id(energy.kernel): energy.kernel.in_double()}).double()


def _energy_and_forces(
    energy: LongRangeEnergy,
    sources: Multipoles,
    inputs: tuple[Tensor, ...],
    num_graphs: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    positions, cell, pbc, batch = inputs
    moved = positions.detach().to(dtype).requires_grad_()
    charges, dipoles = (None if x is None else x.detach().to(dtype) for x in sources)
    geometry = (moved, cell.detach().to(dtype), pbc, batch, num_graphs)
    out = energy(charges, *geometry, dipoles=dipoles)
    (gradient,) = torch.autograd.grad(out.energy.sum(), moved)
    return out.energy.detach().double(), gradient.double()
