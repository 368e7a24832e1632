"""A transform that stores cells so that they collate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from sog_longrange import InputError, InputTypeError
from sog_longrange.errors import explain
from sog_longrange.validation import check_structures

from .batching import take


@functional_transform("store_boundary")
class StoreBoundary(BaseTransform):
    """Store `cell` as [1, 3, 3] and `pbc` as [1, 3], so that a batch of graphs has one of each.

    PyG joins tensors along their first axis: a cell of shape [3, 3] would become one of shape
    [3 * batch_size, 3]. Graphs without a cell get one of zeros that is nowhere periodic,
    so that molecules and crystals may share a batch.

    Parameters
    ----------
    cell : array or Tensor, shape [3, 3], in Å, optional
        For all graphs; left out, each has its own in ``data.cell``, or none.
    pbc : bool or 3 bools, optional
        Likewise, in ``data.pbc``.

    Examples
    --------
    >>> import torch
    >>> from torch_geometric.data import Batch, Data
    >>> from sog_pyg import StoreBoundary
    >>> molecule = Data(pos=torch.rand(5, 3))
    >>> crystal = Data(pos=torch.rand(2, 3), cell=4.0 * torch.eye(3), pbc=True)
    >>> batch = Batch.from_data_list([StoreBoundary()(data) for data in (molecule, crystal)])
    >>> batch.cell.shape, batch.pbc.tolist()
    (torch.Size([2, 3, 3]), [[False, False, False], [True, True, True]])
    """

    def __init__(self, cell: Any = None, pbc: Any = None) -> None:
        self.cell = cell
        self.pbc = pbc

    def forward(self, data: Data) -> Data:
        """Store the cell and what is periodic.

        Parameters
        ----------
        data : Data
            With `pos`.

        Returns
        -------
        Data

        Raises
        ------
        InputError, InputTypeError
            If one is given without the other, or is malformed, or the cell is singular.
        """
        cell = self.cell if self.cell is not None else data.get("cell")
        pbc = self.pbc if self.pbc is not None else data.get("pbc")
        if cell is None and pbc is None:
            cell, pbc = np.zeros((3, 3)), False
        if cell is None or pbc is None:
            name, other = ("cell", "pbc") if cell is None else ("pbc", "cell")
            raise InputError(explain(name, f"given with `{other}`", "None"))
        pos = take(data, "pos")
        stored = _tensor("cell", cell).to(pos), _tensor("pbc", pbc).to(pos.device)
        data.cell = _one("cell", stored[0], (3, 3))
        flags = stored[1].expand(3) if stored[1].dim() == 0 else stored[1]
        data.pbc = _one("pbc", flags, (3,))
        check_structures(pos, data.cell, data.pbc)
        return data

    def __repr__(self) -> str:
        """Name, and what is the same for all graphs."""
        return f"{type(self).__name__}(cell={self.cell}, pbc={self.pbc})"


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    array = np.array(value)
    if array.dtype.kind not in "fiub":
        raise InputTypeError(explain(name, "numbers", repr(value)))
    return torch.from_numpy(array)


def _one(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    if value.shape not in (shape, (1, *shape)):
        inner = ", ".join(map(str, shape))
        expected = f"of shape [{inner}] or [1, {inner}]"
        raise InputError(explain(name, expected, f"shape {list(value.shape)}"))
    return value.reshape(1, *shape)
