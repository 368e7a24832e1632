"""What Python knows of a batch of structures, read in one transfer.

Every number that Python reads stops a GPU. So all numbers that checks and the choice of sums
depend on travel together, and what follows from them is computed in Python.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .geometry import SINGULAR_CELL

Flags = tuple[bool, bool, bool]


class Layout(NamedTuple):
    """Numbers of a batch of structures.

    Attributes
    ----------
    counts : list of int
        Number of atoms of each structure.
    flags : list of 3-tuples of bool
        Along which axes each structure is periodic.
    cells : ndarray, shape (n_graphs, 3, 3), float64, in Å
        Rows are lattice vectors; never to be read for open structures.
    largest : dict of str to float
        Largest absolute value of "positions" in Å and of other tensors by their names, NaN where
        they hold NaN. "charges" and "dipoles" are those that the structures are evaluated with,
        and missing before these are looked at.
    numbers : dict of str to ndarray
        All numbers of small tensors, by their names.
    """

    counts: list[int]
    flags: list[Flags]
    cells: NDArray[np.float64]
    largest: dict[str, float]
    numbers: dict[str, NDArray[np.float64]]

    @property
    def largest_position(self) -> float:
        """Largest absolute value of a coordinate, in Å."""
        return self.largest["positions"]

    @property
    def lengths(self) -> list[list[float]]:
        """Lengths of the lattice vectors of each structure, in Å."""
        lengths: list[list[float]] = np.hypot.reduce(self.cells, axis=-1).tolist()
        return lengths

    @property
    def starts(self) -> list[int]:
        """Where the atoms of each structure begin, and where the last ones end."""
        return [0, *accumulate(self.counts)]

    @property
    def periodic(self) -> list[bool]:
        """Whether each structure is periodic along all axes."""
        return [all(own) for own in self.flags]

    def select(self, graphs: Sequence[int]) -> Layout:
        """Return what is known of some of the structures.

        Parameters
        ----------
        graphs : sequence of int
            Their places in the batch.
        """
        counts, flags = [self.counts[g] for g in graphs], [self.flags[g] for g in graphs]
        cells = self.cells[list(graphs)]
        return self._replace(counts=counts, flags=flags, cells=cells)

    def phases_fit(self, dtype: torch.dtype) -> bool:
        """Tell whether no phase k.r of an atom in a periodic structure can overflow.

        Parameters
        ----------
        dtype : torch.dtype
            In which the phases and the reciprocal cells are computed.
        """
        cells = self.cells[self.periodic]
        limit = torch.finfo(dtype).max
        with np.errstate(all="ignore"):
            longest = np.hypot.reduce(cells, axis=-1).max(initial=1.0)
            # No reciprocal lattice vector is longer.
            reciprocal = (
                2.0 * math.pi * longest**2 / np.abs(np.linalg.det(cells)).min(initial=math.inf)
            )
            # With a margin for sums, and for what rounding does to flat cells.
            turns = 1e3 * reciprocal * max(1.0, self.largest_position)
            return bool(1e3 * longest**3 < limit and turns < limit)


def read_together(tensors: Sequence[Tensor]) -> list[NDArray[np.float64]]:
    """Read the numbers of tensors on one device in one transfer.

    Parameters
    ----------
    tensors : sequence of Tensor
        Integers below 2^53.

    Returns
    -------
    list of ndarray, float64
        In the shapes of the tensors.
    """
    flat = [x.detach().reshape(-1) for x in tensors]
    # Next to float32 alone, large integers would be rounded.
    packed = torch.cat([x.double() if x.dtype == torch.int64 else x for x in flat])
    numbers = np.array(packed.tolist(), dtype=np.float64)
    parts = np.split(numbers, list(accumulate(x.numel() for x in tensors))[:-1])
    return [part.reshape(tuple(x.shape)) for part, x in zip(parts, tensors, strict=True)]


def _extremes(values: Tensor) -> tuple[Tensor, ...]:
    """Smallest and largest number of a tensor, NaN if it holds NaN; nothing if it is empty."""
    return tuple(torch.aminmax(values.detach())) if values.numel() else ()


def atom_starts(batch: Tensor, num_graphs: int) -> Tensor:
    """Where the atoms of each structure begin, and where the last ones end.

    Parameters
    ----------
    batch : Tensor, shape (n_atoms,), int64, sorted
    num_graphs : int

    Returns
    -------
    Tensor, shape (n_graphs + 1,), int64
    """
    graphs = torch.arange(num_graphs + 1, device=batch.device)
    return torch.searchsorted(batch.contiguous(), graphs)


class Look(NamedTuple):
    """What was read of a batch, before it is known to be valid.

    Attributes
    ----------
    layout : Layout
    is_sorted : bool
        Whether the atoms are sorted by structure, and their indices in range.
    """

    layout: Layout
    is_sorted: bool


def look_at(
    cell: Tensor,
    pbc: Tensor,
    batch: Tensor | None,
    n_atoms: int,
    others: Mapping[str, Tensor],
    numbers: Mapping[str, Tensor],
) -> Look:
    """Read what there is to know of a batch, in one transfer.

    Parameters
    ----------
    cell : Tensor, shape (n_graphs, 3, 3), in Å
    pbc : Tensor, shape (n_graphs, 3), bool
    batch : Tensor, shape (n_atoms,), int64, or None
        None where all atoms are those of one structure.
    n_atoms : int
    others : dict of str to Tensor
        Of which the largest absolute value is wanted.
    numbers : dict of str to Tensor
        Of which all numbers are wanted.

    Returns
    -------
    Look
    """
    ends = map(_extremes, others.values())
    cells, flags, order, own, *found = _read(
        [[cell], [pbc], _order(batch, cell.shape[0]), numbers.values(), *ends]
    )
    starts, is_sorted = [0, n_atoms], True
    if order:
        starts = [int(x) for x in order[0]]
        is_sorted = not order[1] and starts[0] == 0 and starts[-1] == n_atoms
    counts = [stop - start for start, stop in zip(starts, starts[1:], strict=False)]
    own_flags: list[Flags] = [tuple(row) for row in (flags[0] != 0.0).tolist()]
    largest = dict(zip(others, map(_largest, found), strict=True))
    layout = Layout(counts, own_flags, cells[0], largest, dict(zip(numbers, own, strict=True)))
    return Look(layout, is_sorted)


def _read(groups: Sequence[Iterable[Tensor]]) -> list[list[NDArray[np.float64]]]:
    """Read groups of tensors in one transfer, if there are any."""
    own = [list(group) for group in groups]
    tensors = [x for group in own for x in group]
    found = iter(read_together(tensors) if tensors else ())
    return [[next(found) for _ in group] for group in own]


def _order(batch: Tensor | None, num_graphs: int) -> list[Tensor]:
    """Find the starts of the structures, and whether any two atoms are in the wrong order."""
    if batch is None:
        return []
    return [atom_starts(batch, num_graphs), (batch[1:] < batch[:-1]).any()]


def look_further(
    layout: Layout, others: Mapping[str, Tensor], numbers: Mapping[str, Tensor] | None = None
) -> Layout:
    """Read more, in one transfer.

    Parameters
    ----------
    layout : Layout
    others : dict of str to Tensor
        Of which the largest absolute value is wanted. What is known already is not read again.
    numbers : dict of str to Tensor, optional
        Of which all numbers are wanted.

    Returns
    -------
    Layout
    """
    unknown = {name: x for name, x in others.items() if name not in layout.largest}
    numbers = numbers or {}
    own, *found = _read([numbers.values(), *map(_extremes, unknown.values())])
    largest = layout.largest | dict(zip(unknown, map(_largest, found), strict=True))
    return layout._replace(largest=largest, numbers=dict(zip(numbers, own, strict=True)))


def _largest(ends: Sequence[NDArray[np.float64]]) -> float:
    """Largest absolute value by the smallest and the largest value."""
    return float(np.abs(ends).max()) if len(ends) else 0.0


def singular_cell(layout: Layout, dtype: torch.dtype) -> int | None:
    """First structure whose lattice vectors along periodic axes span no volume.

    Parameters
    ----------
    layout : Layout
    dtype : torch.dtype
        Of the cells, whose rounding errors have volumes.

    Returns
    -------
    int or None
    """
    limits = torch.finfo(dtype)
    least = max(SINGULAR_CELL, 16.0 * limits.eps)
    flags = np.array(layout.flags, dtype=bool).reshape(-1, 3)
    with np.errstate(all="ignore"):
        volumes = np.abs(np.linalg.det(layout.cells))
        lengths = np.hypot.reduce(layout.cells, axis=-1).prod(-1)
        for graph in np.flatnonzero(flags.any(-1) & ~flags.all(-1)):
            # Where some directions are periodic, their rows of the cell count.
            rows = layout.cells[graph, flags[graph]]
            area = rows[0] if len(rows) == 1 else np.cross(rows[0], rows[1])
            volumes[graph] = math.hypot(*area)
            lengths[graph] = np.hypot.reduce(rows, axis=-1).prod()
        flat = (volumes < least * lengths) | (volumes < limits.tiny)
    singular = np.flatnonzero(flags.any(-1) & flat)
    return int(singular[0]) if len(singular) else None
