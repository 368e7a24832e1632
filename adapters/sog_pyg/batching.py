"""From the shapes that PyG users pass to those of the core."""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import Tensor
from torch_geometric.data import Data

from sog_longrange.errors import InputError, explain
from sog_longrange.validation import check_tensor, is_traced


class Boundary(NamedTuple):
    """Cells and periodicity of a batch, as the core takes them.

    Attributes
    ----------
    cell : Tensor, shape (batch_size, 3, 3), or None
    pbc : Tensor, shape (batch_size, 3), or None
    batch_size : int
    """

    cell: Tensor | None
    pbc: Tensor | None
    batch_size: int


def fit_boundary(
    cell: Tensor | None,
    pbc: Tensor | None,
    batch: Tensor | None = None,
    batch_size: int | None = None,
) -> Boundary:
    """Give every graph of a batch its cell and its periodicity.

    Parameters
    ----------
    cell : Tensor, shape [3, 3], [1, 3, 3] or [batch_size, 3, 3], in Å, optional
        One for all graphs, or one for each.
    pbc : Tensor, shape [3], [1, 3] or [batch_size, 3], bool, optional
        Likewise.
    batch : Tensor, shape [num_nodes], optional
    batch_size : int, optional
        Found from the others if left out.

    Returns
    -------
    Boundary

    Raises
    ------
    InputError, InputTypeError
        If a shape does not fit.
    """
    flat = None
    if cell is not None:
        check_tensor("cell", cell)
        cell = cell[None] if cell.dim() == 2 and len(cell) == 3 else cell
    if pbc is not None:
        check_tensor("pbc", pbc)
        flat = pbc if pbc.dim() == 1 else None
        pbc = pbc[None] if flat is not None else pbc
    if batch_size is None:
        batch_size = _count_graphs(cell, pbc, batch)
    if flat is not None and batch_size == 3:
        _check_unambiguous(flat)
    cell = _expand("cell", cell, (3, 3), batch_size)
    return Boundary(cell, _expand("pbc", pbc, (3,), batch_size), batch_size)


def _check_unambiguous(pbc: Tensor) -> None:
    """Refuse three flags for three graphs, which PyG also makes of one flag for each graph."""
    if not is_traced() and bool(pbc.any()) and not bool(pbc.all()):
        remedy = "Say [1, 3] if all graphs have these flags; use sog_pyg.StoreBoundary otherwise."
        raise InputError(explain("pbc", "of shape [1, 3] or [3, 3] for 3 graphs", "[3]", remedy))


def take(data: Data, name: str) -> Tensor:
    """Read a tensor that every graph must have.

    Parameters
    ----------
    data : Data
    name : str

    Returns
    -------
    Tensor

    Raises
    ------
    InputTypeError
        If there is none.
    """
    value = data.get(name)
    check_tensor(f"data.{name}", value)
    return cast(Tensor, value)


def _count_graphs(cell: Tensor | None, pbc: Tensor | None, batch: Tensor | None) -> int:
    """Read the number of graphs off a shape where that is possible, without a look at values."""
    if batch is None:
        return 1
    check_tensor("batch", batch)
    for own in (cell, pbc):
        if own is not None and len(own) > 1:
            return len(own)
    return int(batch.max()) + 1 if len(batch) else len(cell) if cell is not None else 0


def _expand(
    name: str, value: Tensor | None, shape: tuple[int, ...], batch_size: int
) -> Tensor | None:
    if value is None:
        return None
    if tuple(value.shape[1:]) != shape or len(value) not in (1, batch_size):
        inner = ", ".join(map(str, shape))
        expected = f"of shape [{inner}], [1, {inner}] or [batch_size={batch_size}, {inner}]"
        remedy = "Graphs that go through sog_pyg.StoreBoundary collate to that."
        raise InputError(explain(name, expected, f"shape {list(value.shape)}", remedy))
    return value.expand(batch_size, *shape)
