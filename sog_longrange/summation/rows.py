"""Rows of integer modes along the third reciprocal vector: the shape of every flat spectrum."""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import cached_property, lru_cache
from itertools import pairwise
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sog_longrange.errors import SizeError
from sog_longrange.geometry import MAX_NODES
from sog_longrange.memory import Memory

from .blocks import running_sum
from .grids import Grids
from .windows import influence

Integers = NDArray[np.int64]
Numbers = NDArray[np.float64]

_MOST_MODES = {"cpu": 2**19, "cuda": 2**24}

_KEPT = 64
_MOST_KEPT = 2**17
_ROUNDING = 1e-6


class RowTensors(NamedTuple):
    """Rows as tensors; see :class:`ModeRows`."""

    graphs: Tensor
    first: Tensor
    starts: Tensor
    factors: Tensor
    along: Tensor
    places: Tensor


class ModeRows:
    """Rows of consecutive modes, those of each structure one after another.

    Parameters
    ----------
    num_graphs : int
    graphs : array of int, shape (n_rows,)
        Number of the structure of each row, ascending.
    first : array of int, shape (n_rows, 3)
        Mode numbers where each row begins; the third rises by one along it.
    counts : array of int, shape (n_rows,)
        Number of modes of each row.
    factors : array, shape (n_rows,)
        What the values at all modes of a row are multiplied by.
    along : array
        Factors along rows, for all that rows share.
    places : array of int, shape (n_rows,)
        Where the factors of each row begin in `along`.

    Attributes
    ----------
    starts : array of int, shape (n_rows + 1,)
        Where each row begins in a flat table, and where the last one ends.
    row_starts : array of int, shape (num_graphs + 1,)
        Where the rows of each structure begin.
    memory : Memory
        What is made for these rows.
    """

    def __init__(
        self,
        num_graphs: int,
        graphs: Integers,
        first: Integers,
        counts: Integers,
        factors: Numbers,
        along: Numbers,
        places: Integers,
    ) -> None:
        self.graphs = graphs
        self.first = first
        self.starts = running_sum(counts)
        self.factors = factors
        self.along = along
        self.places = places
        self.row_starts = np.searchsorted(graphs, np.arange(num_graphs + 1))
        self.memory = Memory()

    @property
    def total(self) -> int:
        """Number of modes."""
        return int(self.starts[-1])

    @cached_property
    def mode_starts(self) -> list[int]:
        """Where the modes of each structure begin, and where the last ones end."""
        starts: list[int] = self.starts[self.row_starts].tolist()
        return starts

    @cached_property
    def reach(self) -> Integers:
        """Largest mode number of each structure along each axis; (n_graphs, 3)."""
        last = self.first[:, 2] + np.diff(self.starts) - 1
        ends = np.abs(np.c_[self.first, last])
        ends[:, 2] = np.maximum(ends[:, 2], ends[:, 3])
        reach = np.zeros((len(self.row_starts) - 1, 3), np.int64)
        present = self.row_starts[:-1] < self.row_starts[1:]
        reach[present] = np.maximum.reduceat(ends[:, :3], self.row_starts[:-1][present])
        return reach

    def parts(self, most: int) -> list[ModeRows]:
        """Cut the rows into parts, which are kept with them.

        Parameters
        ----------
        most : int
            Number of modes that a part has at most, if it has more than one row.

        Returns
        -------
        list of ModeRows
        """
        if self.total <= most:
            return [self]
        return self.memory.once(("parts", most), lambda: self._cut(most))

    def _cut(self, most: int) -> list[ModeRows]:
        cuts = [0]
        while cuts[-1] < len(self.graphs):
            end = np.searchsorted(self.starts, self.starts[cuts[-1]] + most, side="right")
            cuts.append(max(int(end) - 1, cuts[-1] + 1))
        return [self._part(slice(*ends)) for ends in pairwise(cuts)]

    def _part(self, own: slice) -> ModeRows:
        counts = np.diff(self.starts)[own]
        num_graphs = len(self.row_starts) - 1
        rows = self.graphs[own], self.first[own], counts, self.factors[own]
        return ModeRows(num_graphs, *rows, self.along, self.places[own])

    def tensors(self, dtype: torch.dtype, device: torch.device) -> RowTensors:
        """Return the rows for a device, where they are kept.

        Parameters
        ----------
        dtype : torch.dtype
            Of the factors.
        device : torch.device

        Returns
        -------
        RowTensors
        """
        return self.memory.once((dtype, device), lambda: self._copy_to(dtype, device))

    def _copy_to(self, dtype: torch.dtype, device: torch.device) -> RowTensors:
        arrays = (self.graphs, self.first, self.starts, self.factors, self.along, self.places)
        # Kept for later calls, which may be for training, whatever mode this one is in.
        with torch.inference_mode(False):
            own = [torch.from_numpy(array) for array in arrays]
            own = [x.to(dtype) if x.is_floating_point() else x for x in own]
            return RowTensors(*(x.to(device, non_blocking=True) for x in own))

    def modes(self, dtype: torch.dtype, device: torch.device, place: slice = slice(None)) -> Tensor:
        """Numbers of modes along the three axes.

        Parameters
        ----------
        dtype : torch.dtype
        device : torch.device
        place : slice
            Which modes, of their flat order.

        Returns
        -------
        Tensor, shape (n_modes, 3)
        """
        own = self.tensors(dtype, device)
        numbers = torch.arange(*place.indices(self.total), device=device)
        row = torch.searchsorted(own.starts, numbers, right=True) - 1
        modes = own.first[row]
        modes[:, 2] += numbers - own.starts[row]
        return modes.to(dtype)


class Axis(NamedTuple):
    """Modes along one axis of a box, and the factors of each."""

    modes: Integers
    factors: Numbers


def box_rows(boxes: list[tuple[Axis, Axis, Axis]]) -> ModeRows:
    """Rows of boxes of modes.

    Parameters
    ----------
    boxes : list of 3 Axis for each structure
        The modes of the last axis rise by one.

    Returns
    -------
    ModeRows
    """
    shapes = np.array([[len(axis.modes) for axis in box] for box in boxes], np.int64)
    counts = shapes[:, 0] * shapes[:, 1]
    first = [
        np.stack([m.ravel() for m in np.meshgrid(x.modes, y.modes, z.modes[:1], indexing="ij")], 1)
        for x, y, z in boxes
    ]
    return ModeRows(
        len(boxes),
        np.repeat(np.arange(len(boxes)), counts),
        np.concatenate(first),
        np.repeat(shapes[:, 2], counts),
        np.concatenate([np.outer(x.factors, y.factors).ravel() for x, y, _ in boxes]),
        np.concatenate([z.factors for *_, z in boxes]),
        np.repeat(running_sum(shapes[:, 2])[:-1], counts),
    )


@lru_cache(maxsize=16)
def grid_rows(grids: Grids) -> ModeRows:
    """Modes of the grids' spectra, with the factors that undo the window.

    Parameters
    ----------
    grids : Grids

    Returns
    -------
    ModeRows
    """
    return box_rows([grid_axes(grids, place) for place in range(len(grids.shapes))])


def grid_axes(grids: Grids, place: int) -> tuple[Axis, Axis, Axis]:
    """Modes along the axes of the spectrum of one grid, and the factors that undo the window.

    Parameters
    ----------
    grids : Grids
    place : int
        Number of the grid.

    Returns
    -------
    tuple of 3 Axis
    """
    *across, last = grids.shapes[place]
    axes = [
        Axis(np.fft.fftfreq(n, 1.0 / n).round().astype(np.int64), influence(grids.width, n))
        for n in across
    ]
    half = last // 2 + 1
    return axes[0], axes[1], Axis(np.arange(half), influence(grids.width, last)[:half])


@lru_cache(maxsize=16)
def centred_rows(shapes: tuple[tuple[int, int, int], ...]) -> ModeRows:
    """All modes of boxes of odd lengths around k = 0.

    Parameters
    ----------
    shapes : tuple of 3-tuples of int

    Returns
    -------
    ModeRows
    """
    boxes = [[Axis(np.arange(-(n // 2), n // 2 + 1), np.ones(n)) for n in own] for own in shapes]
    return box_rows([(x, y, z) for x, y, z in boxes])


def most_modes(device: str) -> int:
    """Modes that are summed at a time, so that spectra stay in a cache, or fit into memory.

    Parameters
    ----------
    device : str
        Type of the device.

    Returns
    -------
    int
    """
    return _MOST_MODES.get(device, _MOST_MODES["cuda"])


def sphere_rows(cells: Numbers, cutoff: float) -> ModeRows:
    """Half of the modes with |k| <= cutoff; the other half are their mirror images.

    Parameters
    ----------
    cells : array, shape (n_graphs, 3, 3), in Å
        Rows are lattice vectors.
    cutoff : float
        Largest wave number, in 1/Å.

    Returns
    -------
    ModeRows
        A row holds 1 or both of each mode and its mirror image, and its factor is 1 or 2.

    Raises
    ------
    SizeError
        If there are more modes than any memory holds.
    """
    key = (cells.tobytes(), cutoff)
    with _LOCK:
        if key in _SPHERES:
            _SPHERES.move_to_end(key)
            return _SPHERES[key]
    found = _sphere_rows(cells, cutoff * (1.0 + _ROUNDING))
    with _LOCK:
        _SPHERES[key] = found
        while len(_SPHERES) > _KEPT or (
            len(_SPHERES) > 1 and sum(len(own.graphs) for own in _SPHERES.values()) > _MOST_KEPT
        ):
            _SPHERES.popitem(last=False)
    return found


_SPHERES: OrderedDict[tuple[bytes, float], ModeRows] = OrderedDict()
_LOCK = Lock()


def _sphere_rows(cells: Numbers, cutoff: float) -> ModeRows:
    lengths = np.hypot.reduce(cells, axis=-1)
    reach = np.floor(lengths * (cutoff / (2.0 * math.pi)))
    _check_size(reach, lengths, cutoff)
    reach = reach.astype(np.int64)
    n_x, n_y = reach[:, 0] + 1, 2 * reach[:, 1] + 1
    graphs = np.repeat(np.arange(len(cells)), n_x * n_y)
    place = np.arange(len(graphs)) - running_sum(n_x * n_y)[graphs]
    x, y = place // n_y[graphs], place % n_y[graphs] - reach[graphs, 1]
    middle, half = _row_extent(cells, graphs, x, y, cutoff)
    # Of the rows with x = 0 one half mirrors the other; the row through k = 0 mirrors itself.
    kept = ((x > 0) | (y >= 0)) & (half >= 0.0)
    graphs, x, y, middle, half = (values[kept] for values in (graphs, x, y, middle, half))
    first = np.ceil(middle - half).astype(np.int64)
    counts = np.floor(middle + half).astype(np.int64) - first + 1
    kept = counts > 0
    counts = counts[kept]
    return ModeRows(
        len(cells),
        graphs[kept],
        np.stack((x, y, first), 1)[kept],
        counts,
        np.where((x == 0) & (y == 0), 1.0, 2.0)[kept],
        np.ones(counts.max(initial=1)),
        np.zeros_like(counts),
    )


def _row_extent(
    cells: Numbers, graphs: Integers, x: Integers, y: Integers, cutoff: float
) -> tuple[Numbers, Numbers]:
    """Middle and half the length of the rows inside the sphere; negative where one misses it."""
    reciprocal = 2.0 * math.pi * np.linalg.inv(cells).transpose(0, 2, 1)
    metric = reciprocal @ reciprocal.transpose(0, 2, 1)
    # |k|^2 = xx + 2 z xz + z^2 zz along a row.
    (m_xx, m_xy, m_xz), (_, m_yy, m_yz), (*_, m_zz) = metric.transpose(1, 2, 0)[..., graphs]
    constant = x * x * m_xx + 2.0 * x * y * m_xy + y * y * m_yy
    middle = -(x * m_xz + y * m_yz) / m_zz
    square = (cutoff**2 - constant) / m_zz + middle**2
    return middle, np.where(square >= 0.0, np.sqrt(np.abs(square)), -1.0)


def _check_size(reach: Numbers, lengths: Numbers, cutoff: float) -> None:
    with np.errstate(over="ignore"):
        sizes = (reach[:, 0] + 1.0) * (2.0 * reach[:, 1:] + 1.0).prod(-1)
    if sizes.sum() > MAX_NODES:
        edges = ", ".join(f"{a:.3g}" for a in lengths[sizes.argmax()])
        raise SizeError(
            f"A cell with edges of {edges} Å needs {sizes.max():.3g} modes at a k cutoff of "
            f"{cutoff:.3g} 1/Å, and {len(sizes)} structures {sizes.sum():.3g} modes, more than "
            f"{MAX_NODES:.3g}. Use a larger `min_width` or `tolerance`, a smaller cell or a "
            "smaller batch."
        )
