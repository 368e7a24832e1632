"""Potential and field at the atoms, for use inside a model whose forces are trained.

The energy of :class:`~sog_longrange.LongRangeEnergy` is differentiable twice, which is what a
force loss needs of an energy. A model that computes with the potential itself, as one of
its layers, needs two derivatives of the potential and of the field. Here both are parts of
the autograd graph: sums over pairs for open structures, and for all others meshes whose
stencils autograd differentiates to any order. The cost stays near-linear.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .channels import apply_laws
from .energy import LongRangeEnergy
from .errors import ConfigError, explain
from .geometry import (
    TAPER,
    cell_volume,
    pair_indices,
    reciprocal_cell,
    reduced_cell,
    wave_number_onset,
    wrapped_phases,
)
from .interaction import MOST_PAIRED, select
from .kernels import Ewald, Kernel
from .kspace.accelerators import find_accelerator
from .kspace.jets import JetStencil
from .kspace.mesh import Accelerator, MeshBackend, Meshes, choose_meshes, mode_boxes
from .kspace.padded import pad
from .kspace.radial import kernel_on_modes
from .kspace.windows import window_width
from .validation import Structures, check_charges, check_structures


class PotentialOutput(NamedTuple):
    """What the charges of a structure make each of its atoms feel.

    Attributes
    ----------
    potential : Tensor, shape (n_atoms, n_channels), in eV/e
        phi_i = sum_j K(r_ij) q_j, over all periodic images.
    field : Tensor, shape (n_atoms, 3, n_channels), in eV/(e Å)
        -d phi / d r at the atom, all charges held where they are.
    """

    potential: Tensor
    field: Tensor


Sum = Callable[[LongRangeEnergy, Kernel, Tensor, Structures], PotentialOutput]


def potential_and_field(
    energy: LongRangeEnergy,
    charges: Tensor,
    positions: Tensor,
    cell: Tensor | None = None,
    pbc: Tensor | None = None,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
) -> PotentialOutput:
    """Potential and field of charges, both twice differentiable.

    Parameters
    ----------
    energy : LongRangeEnergy
        Its kernel, tolerance, accelerator and self-interaction are used. The sum is the
        mesh's for every periodic structure, so its `backend` must be "auto" or "mesh".
    charges : Tensor, shape (n_atoms, n_channels), in e
    positions, cell, pbc, batch, num_graphs
        As in :meth:`LongRangeEnergy.forward`.

    Returns
    -------
    PotentialOutput
        Twice differentiable in charges, positions, cell and the kernel's parameters.

    Raises
    ------
    InputError, InputTypeError, BoundaryError, SizeError
        As :meth:`LongRangeEnergy.forward`.
    ConfigError
        If the energy is told to use another backend, or a process group.

    References
    ----------
    Ji, Liang, Xu, arXiv:2502.04668 (the sum); Kosmala et al., arXiv:2303.04791 (long-range
    sums as layers of a network).

    Examples
    --------
    >>> import torch
    >>> from sog_longrange import Ewald, LongRangeEnergy, potential_and_field
    >>> positions = torch.tensor([[0.0, 0.0, 0.0], [8.0, 0.0, 0.0]], dtype=torch.float64)
    >>> charges = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    >>> out = potential_and_field(LongRangeEnergy(Ewald(smearing=1.0)), charges, positions)
    >>> round(float(out.potential[0]), 6), round(float(out.field[0, 0]), 6)
    (-1.799956, 0.224994)
    """
    _check_energy(energy)
    structures = check_structures(positions, cell, pbc, batch, num_graphs)
    check_charges(charges, structures)
    energy.check_channels(charges)
    whole = structures.pbc.all(-1).tolist()
    structures = structures._replace(cell=reduced_cell(structures.cell, whole))
    kernel = energy.kernel.snapshot()
    potential = torch.zeros_like(charges)
    field = torch.zeros_like(charges)[:, None].expand(-1, 3, -1)
    for summed, mask in _kinds(energy, structures).items():
        if not bool(mask[structures.batch].any()):
            continue
        _, atoms, part = select(structures, mask)
        own = summed(energy, kernel, charges[atoms], part)
        potential = potential.index_copy(0, atoms, own.potential)
        field = field.index_copy(0, atoms, own.field)
    return PotentialOutput(potential, field)


def _check_energy(energy: LongRangeEnergy) -> None:
    if energy.backend not in ("auto", "mesh"):
        expected = '"auto" or "mesh" where potentials are computed with'
        raise ConfigError(explain("backend", expected, repr(energy.backend)))
    if energy.process_group is not None:
        raise ConfigError(explain("energy", "without a process group", "one with"))


def _kinds(energy: LongRangeEnergy, structures: Structures) -> dict[Sum, Tensor]:
    """Structures that each sum is meant for, as masks (n_graphs,)."""
    whole, none = structures.pbc.all(-1), ~structures.pbc.any(-1)
    counts = torch.bincount(structures.batch, minlength=structures.num_graphs)
    # Padded meshes need the Gaussians of the kernel one by one, which Ewald's has not.
    paired = none & ((counts <= MOST_PAIRED) | isinstance(energy.kernel, Ewald))
    return {_on_mesh: whole, _over_pairs: paired, _on_padded_mesh: ~whole & ~paired}


def _on_mesh(
    energy: LongRangeEnergy, kernel: Kernel, charges: Tensor, part: Structures
) -> PotentialOutput:
    """Sum over periodic images, in reciprocal space."""
    onset = wave_number_onset(kernel.min_width, energy.tolerance)
    lengths = torch.linalg.vector_norm(part.cell.detach().double(), dim=-1).tolist()
    meshes = choose_meshes(lengths, TAPER * onset, window_width(energy.tolerance))
    reciprocal = reciprocal_cell(part.cell)
    accelerator = find_accelerator(energy.accelerator, charges.device)
    table = kernel_on_modes(
        *(kernel, mode_boxes(meshes, part.cell), reciprocal, onset),
        *(max(map(max, lengths)), accelerator.sampler),
    )
    phases = wrapped_phases(part.positions, reciprocal, part.batch)
    out = _convolve(meshes, accelerator, charges, phases, table, reciprocal, part.batch)
    volume = cell_volume(part.cell)[part.batch]
    potential = out.potential / volume[:, None] + _own(energy, kernel, charges, -1.0)
    return PotentialOutput(potential, out.field / volume[:, None, None])


def _on_padded_mesh(
    energy: LongRangeEnergy, kernel: Kernel, charges: Tensor, part: Structures
) -> PotentialOutput:
    """Sum over the images along the periodic axes, in boxes padded along the free ones."""
    boxes = pad(kernel, part.positions, part.cell, part.pbc, part.batch, energy.tolerance)
    accelerator = find_accelerator(energy.accelerator, charges.device)
    geometry = boxes.phases, boxes.table, boxes.reciprocal
    out = _convolve(boxes.meshes, accelerator, charges, *geometry, part.batch)
    total = charges.new_zeros(part.num_graphs, charges.shape[1])
    mean = apply_laws(boxes.means, total.index_add(0, part.batch, charges), 1)[part.batch]
    return out._replace(potential=out.potential + mean + _own(energy, kernel, charges, -1.0))


def _convolve(
    meshes: Meshes,
    accelerator: Accelerator,
    charges: Tensor,
    phases: Tensor,
    table: Tensor,
    reciprocal: Tensor,
    batch: Tensor,
) -> PotentialOutput:
    """Potential and field of a table of modes."""
    backend = MeshBackend(meshes, batch, accelerator._replace(stencil=JetStencil))
    backend.set_phases(phases)
    nodes = backend.field(backend.convolve(table, backend.spread(charges)))
    potential, slope = backend.gather(nodes)
    return PotentialOutput(potential, -torch.einsum("nkp,nkc->ncp", slope, reciprocal[batch]))


def _over_pairs(
    energy: LongRangeEnergy, kernel: Kernel, charges: Tensor, part: Structures
) -> PotentialOutput:
    """Exact sum over all pairs of open structures."""
    first, second = pair_indices(torch.bincount(part.batch, minlength=part.num_graphs))
    vectors = part.positions[first] - part.positions[second]
    r2 = vectors.square().sum(-1)
    # Forward mode: reverse mode would need the graph also where nothing is differentiated.
    value, slope, *_ = torch.func.jvp(kernel.radial, (r2,), (torch.ones_like(r2),))
    value, slope = value.T, -2.0 * slope.T[:, None] * vectors[..., None]
    at_first, at_second = charges[first], charges[second]
    potential = torch.zeros_like(charges).index_add(0, first, apply_laws(value, at_second, 1))
    potential = potential.index_add(0, second, apply_laws(value, at_first, 1))
    field = charges.new_zeros(len(charges), 3, charges.shape[1])
    field = field.index_add(0, first, apply_laws(slope, at_second[:, None], 2))
    field = field.index_add(0, second, -apply_laws(slope, at_first[:, None], 2))
    return PotentialOutput(potential + _own(energy, kernel, charges, 0.0), field)


def _own(energy: LongRangeEnergy, kernel: Kernel, charges: Tensor, sign: float) -> Tensor:
    """Potential of each charge at itself, -1 times where a sum holds it and should not."""
    factor = sign if energy.remove_self else sign + 1.0
    return factor * apply_laws(kernel.radial(charges.new_zeros(1)).T, charges, 1)
