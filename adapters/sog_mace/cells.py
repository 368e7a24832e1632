"""The cells that structures came with: MACE replaces their rows of open axes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from mace.data import AtomicData
from torch import Tensor

from sog_longrange.errors import InputError, explain
from sog_longrange.geometry import own_volume

from .host import check_names

INPUT_CELL: Final = "input_cell"
"""Key of a batch with the cells of the structures themselves, (3 n_graphs, 3) in Å."""


@contextmanager
def keep_input_cells(*, training: bool = False) -> Iterator[None]:
    """Let all data that MACE makes in the meantime carry the cell that they came with.

    What `mace.data.AtomicData.from_config` returns has `input_cell` (3, 3), which collates as
    `cell` does. Processes that are forked in the meantime do so too, and longer than that.

    Parameters
    ----------
    training : bool
        Give structures without a volume a cell of 1 Å^3 and a stress weight of zero, since NaN
        spoils a loss in which its weight is zero; and refuse stress labels of them.

    Raises
    ------
    HostError
        If the installed MACE makes its data otherwise.
    InputError
        In training, where data are made of a structure with a stress label and without a volume.
    """
    check_names(AtomicData, ["from_config"])
    original = AtomicData.__dict__["from_config"]

    def from_config(cls: type, config: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        cell = _cell_of(config.cell)
        data = original.__get__(None, cls)(config, *args, **kwargs)
        if training and bool(own_volume(cell[None]).isnan()):
            where = f"a frame of the elements {np.asarray(config.atomic_numbers).tolist()}"
            check_stress_label(where, config.pbc, config.cell, stress_label(config))
            cell = torch.eye(3)
            data.stress_weight = torch.zeros_like(data.stress_weight)
        data[INPUT_CELL] = cell.to(data.cell)
        return data

    AtomicData.from_config = classmethod(from_config)
    try:
        yield
    finally:
        AtomicData.from_config = original


def own_cells(data: dict[str, Tensor], pbc: Tensor) -> Tensor:
    """Cells that the structures of a batch came with.

    What MACE puts into `cell` for open axes depends on its version and on where the atoms are.

    Parameters
    ----------
    data : dict
        A MACE batch, with `input_cell` if it is known.
    pbc : Tensor, shape (n_graphs, 3), bool

    Returns
    -------
    Tensor, shape (n_graphs, 3, 3), in Å
        NaN for structures with open axes if their cells are not known, with a warning if some
        axes are periodic: molecules have no cell as a rule.
    """
    cell, whole = data["cell"].view(-1, 3, 3), pbc.all(-1)[:, None, None]
    own = data.get(INPUT_CELL)
    if own is not None:
        return torch.where(whole, cell, own.view(-1, 3, 3).to(cell))
    if bool((pbc.any(-1) & ~pbc.all(-1)).any()):
        warnings.warn(
            "The stress of structures that are not periodic along all axes is NaN: MACE replaced "
            "rows of their cells, and with them the volume. Use sog_mace.SOGMACECalculator "
            "instead of MACECalculator, sog_mace_eval_configs instead of mace_eval_configs, and "
            "sog_mace.cells.keep_input_cells in programs of your own.",
            stacklevel=3,
        )
    return torch.where(whole, cell, torch.nan)


def stress_label(config: Any) -> Any:  # noqa: ANN401
    """Read the stress that a frame is trained on.

    Parameters
    ----------
    config : mace.data.Configuration

    Returns
    -------
    array or None
        None if there is none, or if its weight is zero.
    """
    weight = (config.property_weights or {}).get("stress")
    return None if weight == 0 else config.properties.get("stress")


def check_stress_label(
    where: str,
    pbc: Any,  # noqa: ANN401
    cell: Any,  # noqa: ANN401
    stress: Any,  # noqa: ANN401
    key: str = "stress",
) -> None:
    """Refuse to train on the stress of a frame without a volume.

    Parameters
    ----------
    where : str
        Name of the frame.
    pbc : sequence of 3 bool
    cell : array, shape (3, 3), in Å, or None
    stress : array or None
        Label, if there is one.
    key : str
        Name of the label in the data, for the message.

    Raises
    ------
    InputError
        If there is a label and no volume.
    """
    if stress is None or not bool(own_volume(_cell_of(cell)[None]).isnan()):
        return
    rows = _cell_of(cell).tolist()
    raise InputError(
        explain(
            key,
            "absent where the cell has no volume",
            f"one in {where}, with pbc {[bool(x) for x in pbc]} and the cell {rows}",
            "Remove that label, or give the frame its cell. Virials need no volume.",
        )
    )


def _cell_of(cell: Any) -> Tensor:  # noqa: ANN401
    """Cell of a configuration, which may have none."""
    if cell is None:
        return torch.zeros(3, 3, dtype=torch.float64)
    return torch.tensor(np.asarray(cell, dtype=np.float64)).view(3, 3)
