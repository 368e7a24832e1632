"""What Python knows of a batch of structures, read in one transfer.

Every number that Python reads stops a GPU. So all numbers that checks and the choice of sums
depend on travel together, and what follows from them is computed in Python.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .geometry import SINGULAR_CELL
from .memory import Memory

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
    memory : Memory
        Of what depends on counts, boundaries and cells alone.
    seen : dict of str to (Tensor, int)
        "positions", "cell" and the other tensors that were looked at, with their versions.
    """

    counts: list[int]
    flags: list[Flags]
    cells: NDArray[np.float64]
    largest: dict[str, float]
    numbers: dict[str, NDArray[np.float64]]
    memory: Memory
    seen: dict[str, tuple[Tensor, int]] = {}

    def has_seen(self, name: str, tensor: Tensor) -> bool:
        """Tell whether a tensor is the one that was looked at, and has not been changed since.

        Parameters
        ----------
        name : str
        tensor : Tensor

        Returns
        -------
        bool
            True where nothing was noted under that name, as in parts of a batch.
        """
        known = self.seen.get(name)
        return known is None or (known[0] is tensor and known[1] == _version(tensor))

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
        return self.change(counts, flags, cells)

    def phases_fit(self, dtype: torch.dtype) -> bool:
        """Tell whether no phase k.r of an atom in a periodic structure can overflow.

        Parameters
        ----------
        dtype : torch.dtype
            In which the phases and the reciprocal cells are computed.
        """
        return self.largest_position < self.memory.once(dtype, lambda: self._most_that_fits(dtype))

    def _most_that_fits(self, dtype: torch.dtype) -> float:
        """Largest coordinate, in Å, of which no phase overflows; 0 if any may."""
        cells, limit = self.cells[self.periodic], torch.finfo(dtype).max
        if len(cells) == 0:
            return math.inf
        with np.errstate(all="ignore"):
            # No entry of the reciprocal cell is larger than that of two rows over the volume.
            longest = np.abs(cells).max(axis=(1, 2))
            reciprocal = 6.0 * longest**2 / np.abs(np.linalg.det(cells))
            # With a margin for the sums, and for what rounding does to flat cells.
            fits = (1e3 * np.maximum(1.0, longest) ** 3 < limit) & (1e3 * reciprocal < limit)
            largest = limit / (1e3 * np.maximum(reciprocal, 1e-300))
            return float(largest.min()) if fits.all() else 0.0

    def change(
        self,
        counts: list[int] | None = None,
        flags: list[Flags] | None = None,
        cells: NDArray[np.float64] | None = None,
    ) -> Layout:
        """Return the layout of other structures, which has other things made before.

        Parameters
        ----------
        counts, flags, cells
            As the attributes; by default those of this layout.
        """
        counts = self.counts if counts is None else counts
        flags = self.flags if flags is None else flags
        cells = self.cells if cells is None else cells
        memory = _memory_of(tuple(counts), tuple(flags), cells.tobytes())
        return self._replace(counts=counts, flags=flags, cells=cells, memory=memory, seen={})


@lru_cache(maxsize=128)
def _memory_of(counts: tuple[int, ...], flags: tuple[Flags, ...], cells: bytes) -> Memory:
    """Find what was made for structures, as in a simulation at constant volume for each step."""
    return Memory()


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
    ends = list(accumulate(x.numel() for x in flat))
    places = zip(tensors, [0, *ends], ends, strict=False)
    return [numbers[first:last].reshape(x.shape) for x, first, last in places]


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
    ends = [_extremes(x) for x in others.values()]
    tensors = [cell, pbc, *_order(batch, cell.shape[0]), *numbers.values()]
    found = iter(read_together([*tensors, *(x for pair in ends for x in pair)]))
    cells = next(found)
    flags: list[Flags] = [tuple(row) for row in (next(found) != 0.0).tolist()]
    starts, is_sorted = [0, n_atoms], True
    if batch is not None:
        starts = [int(x) for x in next(found).tolist()]
        is_sorted = not next(found) and starts[0] == 0 and starts[-1] == n_atoms
    counts = [stop - start for start, stop in pairwise(starts)]
    known = {name: next(found) for name in numbers}
    largest = {
        name: _largest([float(next(found)) for _ in pair])
        for name, pair in zip(others, ends, strict=True)
    }
    memory = _memory_of(tuple(counts), tuple(flags), cells.tobytes())
    seen = {name: (x, _version(x)) for name, x in {"cell": cell, **others}.items()}
    return Look(Layout(counts, flags, cells, largest, known, memory, seen), is_sorted)


def _version(tensor: Tensor) -> int:
    """Count changes in place, which tensors of inference mode do not."""
    return 0 if tensor.is_inference() else tensor._version


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
    unknown = {
        name: _extremes(x)
        for name, x in others.items()
        if name not in layout.largest or not layout.has_seen(name, x)
    }
    own = numbers or {}
    tensors = [*own.values(), *(x for pair in unknown.values() for x in pair)]
    found = iter(read_together(tensors) if tensors else ())
    known = {name: next(found) for name in own}
    largest = {name: _largest([float(next(found)) for _ in pair]) for name, pair in unknown.items()}
    seen = layout.seen | {name: (others[name], _version(others[name])) for name in unknown}
    return layout._replace(largest=layout.largest | largest, numbers=known, seen=seen)


def _largest(ends: Sequence[float]) -> float:
    """Largest absolute value by the smallest and the largest value."""
    return sum(ends) if any(map(math.isnan, ends)) else max(map(abs, ends), default=0.0)


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
