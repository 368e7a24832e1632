"""Reciprocal cells, wrapped phases and the choice of modes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import SizeError

TAPER: float = math.sqrt(32.0 / 29.0)
"""Ratio of the k cutoff to the wave number from which the kernel is tapered, about 1.05.

In units of the cutoff the taper of k^2 begins and ends at numbers of five bits, where the
intervals of the kernel's table meet.
"""

SINGULAR_CELL: float = 1e-8
"""Smallest |det(cell)| / (|a| |b| |c|) of a cell that has a volume and is not called singular.

Where 16 rounding errors of the cell's dtype exceed it, as in float32, they take its place.
"""

MAX_ELEMENTS: int = 2**26
"""Largest number of modes or pairs that is attempted; some arrays are a dozen times larger."""

_MAX_REDUCTIONS = 64
_LARGEST_OVERLAP = 0.5 + 1e-3
"""Of a vector with another, over its square; lattices at the border stay as they are."""

MAX_NODES: int = 8 * MAX_ELEMENTS
"""Largest number of modes or points of all grids that is attempted."""


def fade(x: Tensor) -> Tensor:
    """Smooth step from 1 at 0 and below to 0 at 1 and above.

    Parameters
    ----------
    x : Tensor

    Returns
    -------
    Tensor, shape of `x`
        Twice differentiable in it.
    """
    x = x.clamp(0.0, 1.0)
    factor: Tensor = 1.0 - x**3 * (10.0 - 15.0 * x + 6.0 * x**2)
    return factor


def taper(k2: Tensor, start: float) -> Tensor:
    """Twice differentiable taper from 1 at k = start to 0 at k = TAPER * start.

    With it the energy is a smooth function of the cell although modes enter and
    leave the sum, and the set of modes does not depend on the cell basis.

    Parameters
    ----------
    k2 : Tensor
        Squared wave numbers, in 1/Å^2.
    start : float
        Wave number at which the taper begins, in 1/Å.

    Returns
    -------
    Tensor, shape of `k2`
    """
    return fade((k2 / start**2 - 1.0) / (TAPER**2 - 1.0))


def reciprocal_cell(cell: Tensor) -> Tensor:
    """Reciprocal lattice vectors.

    Parameters
    ----------
    cell : Tensor, shape (n_graphs, 3, 3), in Å
        Rows are lattice vectors.

    Returns
    -------
    Tensor, shape (n_graphs, 3, 3), in 1/Å
        Rows b_i with a_i . b_j = 2 pi delta_ij.
    """
    # Closed form: libraries for general matrices take longer to call than to compute.
    products = torch.linalg.cross(cell[:, [1, 2, 0]], cell[:, [2, 0, 1]])
    volume = (cell[:, 0] * products[:, 0]).sum(-1)
    reciprocal: Tensor = 2.0 * math.pi * products / volume[:, None, None]
    return reciprocal


def lattice_lengths(cell: Tensor) -> list[list[float]]:
    """Lengths of the lattice vectors, as numbers of Python.

    Parameters
    ----------
    cell : Tensor, shape (n_graphs, 3, 3), in Å

    Returns
    -------
    list of 3 floats for each structure, in Å
    """
    lengths: list[list[float]] = torch.linalg.vector_norm(cell.detach().double(), dim=-1).tolist()
    return lengths


def reduced_cell(cell: Tensor, periodic: list[bool]) -> Tensor:
    """Shortest lattice vectors that pairwise steps find, for each periodic structure.

    Grids of a sheared cell are large and their windows stretched; those of a compact
    cell of the same lattice are neither.

    Parameters
    ----------
    cell : Tensor, shape (n_graphs, 3, 3), in Å
    periodic : list of bool
        Which structures are periodic along all axes; the others stay as they are.

    Returns
    -------
    Tensor, shape (n_graphs, 3, 3), in Å
        An integer combination of the rows of `cell`, of either handedness.
    """
    change = cell_reduction(np.array(cell.tolist()).reshape(-1, 3, 3), periodic)
    return cell if change is None else to_device(change, cell) @ cell


def cell_reduction(
    cells: NDArray[np.float64], periodic: Sequence[bool]
) -> NDArray[np.float64] | None:
    """Integer matrices that make lattice vectors those of :func:`reduced_cell`.

    Parameters
    ----------
    cells : ndarray, shape (n_graphs, 3, 3), in Å
    periodic : sequence of bool

    Returns
    -------
    ndarray, shape (n_graphs, 3, 3), or None
        From the left; None if all are short already.
    """
    with np.errstate(all="ignore"):
        overlaps = cells @ cells.swapaxes(-1, -2)
        squares = np.einsum("gii->gi", overlaps)[:, None]
        # Compared without a division: open structures may have rows of zeros.
        long = np.abs(overlaps) > _LARGEST_OVERLAP * squares
    long[:, range(3), range(3)] = False
    graphs = np.flatnonzero(long.any((1, 2)) & np.array(periodic, dtype=bool))
    if len(graphs) == 0:
        return None
    changes = np.tile(np.eye(3), (len(cells), 1, 1))
    for graph in graphs:
        changes[graph] = shorten(cells[graph].tolist())
    return changes


def shorten(
    rows: list[list[float]], largest: float = _LARGEST_OVERLAP, most: int = _MAX_REDUCTIONS
) -> list[list[float]]:
    """Integer matrix that shortens three vectors, in Python or in TorchScript.

    Parameters
    ----------
    rows : list of 3 lists of 3 floats, in Å
        Changed in place.
    largest : float
        Overlap of a vector with another, over its square, that is left as it is.
    most : int
        Rounds at most.

    Returns
    -------
    list of 3 lists of 3 floats
        What the vectors are multiplied by from the left.
    """
    steps = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    for _ in range(most):
        shorter = False
        for i, j in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]:
            u, v, step, other = rows[i], rows[j], steps[i], steps[j]
            square = v[0] * v[0] + v[1] * v[1] + v[2] * v[2]
            ratio = (u[0] * v[0] + u[1] * v[1] + u[2] * v[2]) / square
            if math.isfinite(ratio) and abs(ratio) > largest:
                n = float(round(ratio))
                rows[i] = [u[k] - n * v[k] for k in range(3)]
                steps[i] = [step[k] - n * other[k] for k in range(3)]
                shorter = True
        if not shorter:
            break
    return steps


def to_device(
    values: NDArray[Any] | Sequence[Any], like: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """Numbers of Python as a tensor, without waiting for the device.

    Parameters
    ----------
    values : ndarray or sequence
    like : Tensor
        Its device is used, and its dtype.
    dtype : torch.dtype, optional
        Instead of that.

    Returns
    -------
    Tensor
    """
    # Such a copy is out of the memory of Python before the call returns.
    return torch.from_numpy(np.asarray(values)).to(
        like.device, dtype or like.dtype, non_blocking=True
    )


def cell_volume(cell: Tensor) -> Tensor:
    """Volumes of cells of either handedness.

    Parameters
    ----------
    cell : Tensor, shape (n_graphs, 3, 3), in Å

    Returns
    -------
    Tensor, shape (n_graphs,), in Å^3
    """
    a, b, c = cell.unbind(1)
    volume: Tensor = (a * torch.linalg.cross(b, c)).sum(-1).abs()
    return volume


def own_volume(cell: Tensor) -> Tensor:
    """Volumes that stresses of structures of any boundary refer to.

    Parameters
    ----------
    cell : Tensor, shape (n_graphs, 3, 3), in Å
        As it came with the data, rows of axes that are not periodic included.

    Returns
    -------
    Tensor, shape (n_graphs,), in Å^3
        |det(cell)|, and NaN where the rows span no volume, as where one of them is zero.
    """
    exact = cell.double()
    lengths = torch.linalg.vector_norm(exact, dim=-1).prod(-1)
    volume = cell_volume(exact)
    limits = torch.finfo(cell.dtype)
    # Rows in one plane have a volume of rounding errors.
    least = (max(SINGULAR_CELL, 16.0 * limits.eps) * lengths).clamp(min=limits.tiny)
    return torch.where(volume > least, volume, torch.nan).to(cell.dtype)


def virial_to_stress(virial: Tensor, cell: Tensor) -> Tensor:
    """Stress of structures of any boundary.

    Parameters
    ----------
    virial : Tensor, shape (n_graphs, 3, 3), in eV
        Derivative of the energies in the strain, positive under tension.
    cell : Tensor, shape (n_graphs, 3, 3), in Å
        As it came with the data, not strained.

    Returns
    -------
    Tensor, shape (n_graphs, 3, 3), in eV/Å^3
        Virial over :func:`own_volume`, and NaN where there is no volume. A loss that leaves these
        entries out has finite gradients.
    """
    volume = own_volume(cell).to(virial)[:, None, None]
    missing = volume.isnan()
    # A division by NaN would have a derivative of NaN, also where nothing is asked of it.
    return torch.where(missing, torch.nan, virial / torch.where(missing, 1.0, volume))


def at_atoms(per_graph: Tensor, batch: Tensor) -> Tensor:
    """Values of structures at their atoms; of a single one, in a shape that broadcasts.

    Parameters
    ----------
    per_graph : Tensor, shape (n_graphs, ...)
    batch : Tensor, shape (n_atoms,)

    Returns
    -------
    Tensor, shape (n_atoms or 1, ...)
    """
    return per_graph if per_graph.shape[0] == 1 else per_graph[batch]


def sum_over_atoms(per_atom: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    """Sum over the atoms of each structure.

    Parameters
    ----------
    per_atom : Tensor, shape (n_atoms, ...)
    batch : Tensor, shape (n_atoms,)
    num_graphs : int

    Returns
    -------
    Tensor, shape (n_graphs, ...)
    """
    if num_graphs == 1:
        # With several threads, Inductor cannot add to a place that it knows.
        return per_atom.sum(0, keepdim=True)
    zeros = per_atom.new_zeros(num_graphs, *per_atom.shape[1:])
    return zeros.index_add(0, batch, per_atom)


def wrapped_phases(positions: Tensor, reciprocal: Tensor, batch: Tensor) -> Tensor:
    """Phases k.r of the three reciprocal lattice vectors, wrapped into [0, 2 pi].

    Parameters
    ----------
    positions : Tensor, shape (n_atoms, 3), in Å
    reciprocal : Tensor, shape (n_graphs, 3, 3), in 1/Å
    batch : Tensor, shape (n_atoms,)

    Returns
    -------
    Tensor, shape (n_atoms, 3)
    """
    if reciprocal.shape[0] == 1:
        phases = positions @ reciprocal[0].T
    else:
        # Not a matrix product for each atom, which is slow on GPUs.
        phases = (positions[:, None] * reciprocal[batch]).sum(-1)
    # Rounding may end at the upper bound, and nowhere outside.
    return torch.remainder(phases, 2.0 * math.pi)


def apply_strain(
    positions: Tensor, cell: Tensor, strain: Tensor, batch: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Strain structures; the derivative of their energy in the strain is the virial.

    Parameters
    ----------
    positions : Tensor, shape (n_atoms, 3), in Å
    cell : Tensor, shape (n_graphs, 3, 3), in Å
        Rows of non-periodic directions are strained too, which no sum reads.
    strain : Tensor, shape (n_graphs, 3, 3)
        Only its symmetric part acts: the rest is a rotation.
    batch : Tensor, shape (n_atoms,), optional

    Returns
    -------
    positions : Tensor, shape (n_atoms, 3), in Å
    cell : Tensor, shape (n_graphs, 3, 3), in Å
    """
    change = 0.5 * (strain + strain.transpose(-1, -2))
    own = change[0].expand(len(positions), 3, 3) if batch is None else change[batch]
    return positions + torch.einsum("na,nab->nb", positions, own), cell + cell @ change


def box_wave_numbers(x: Tensor, y: Tensor, z: Tensor, reciprocal: Tensor) -> Tensor:
    """Squared wave numbers of all modes of a box, in Python or in TorchScript.

    Parameters
    ----------
    x, y, z : Tensor, shape (n_x,), (n_y,) and (n_z,)
        Mode numbers along the three axes.
    reciprocal : Tensor, shape (3, 3), in 1/Å

    Returns
    -------
    Tensor, shape (n_x, n_y, n_z), in 1/Å^2
    """
    b_1, b_2, b_3 = reciprocal[:, :, None, None, None].unbind(0)
    # Components first: the metric's cross terms cancel badly in skewed cells.
    k = x[:, None, None] * b_1 + y[:, None] * b_2 + z * b_3
    return k.square().sum(0)


def largest_mode(length: float, cutoff: float) -> int:
    """Largest mode number along an axis with |k| <= cutoff.

    Parameters
    ----------
    length : float
        Of the lattice vector, in Å.
    cutoff : float
        Largest wave number, in 1/Å.

    Returns
    -------
    int
        Also in TorchScript, which knows no numbers of modules.
    """
    return math.floor(min(length * cutoff / (2.0 * math.pi), 1e15))


def box_shapes(lengths: list[list[float]], cutoff: float) -> list[tuple[int, int, int]]:
    """Numbers of modes along each axis that hold every |k| <= cutoff, all odd.

    Parameters
    ----------
    lengths : list of 3 floats for each structure
        Lengths of the lattice vectors, in Å.
    cutoff : float
        Largest wave number, in 1/Å.

    Returns
    -------
    list of 3-tuples of int

    Raises
    ------
    SizeError
        If there are more than any memory holds.
    """
    shapes = [tuple(2 * largest_mode(a, cutoff) + 1 for a in row) for row in lengths]
    total = sum(math.prod(shape) for shape in shapes)
    if total > MAX_NODES:
        edges = ", ".join(f"{a:.3g}" for a in max(lengths, key=math.prod))
        raise SizeError(
            f"{len(lengths)} structures in boxes with edges of up to {edges} Å need "
            f"{total:.3g} modes at a k cutoff of {cutoff:.3g} 1/Å, more than {MAX_NODES:.3g}. "
            "Use a larger `min_width` or `tolerance`, a smaller box or a smaller batch."
        )
    return shapes  # type: ignore[return-value]
