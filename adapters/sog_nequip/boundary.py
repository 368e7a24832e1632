"""What NequIP's data say of the boundary of structures, and what a model says of it."""

from __future__ import annotations

from typing import Any, Final

import torch
from nequip.data import AtomicDataDict
from torch import Tensor

from sog_longrange import ConfigError, HostError, InputError
from sog_longrange.errors import explain
from sog_longrange.validation import is_traced

BOUNDARIES: Final = ("data", "periodic", "open")
Data = dict[str, Tensor]


def take_periodicity(
    data: Data, boundary: str, n_graphs: int
) -> tuple[Tensor | None, Tensor | None]:
    """Tell which axes are periodic, and in a graph which structures contradict that.

    Parameters
    ----------
    data : dict
        Fields of a batch. The field `pbc` is taken out, as NequIP's own models do.
    boundary : {"data", "periodic", "open"}
        Of the model.
    n_graphs : int

    Returns
    -------
    pbc : Tensor, shape (n_graphs, 3), bool, or None
        None where all structures are non-periodic.
    contradicted : Tensor, shape (n_graphs,), bool, or None
        None outside of graphs.

    Raises
    ------
    HostError
        If the host does not pass the boundary.
    InputError
        If the data contradict the boundary of the model.
    """
    given = data.pop(AtomicDataDict.PBC_KEY, None)
    if boundary == "data":
        if given is None and AtomicDataDict.CELL_KEY in data:
            raise HostError(
                "The boundary of the structures is not known: NequIP passes cells without "
                f"`{AtomicDataDict.PBC_KEY}` here. In `nequip-compile` use --target sog_ase "
                "or sog_batch; for pair_nequip --modifiers sog_use_mesh; or, to run in Python, "
                "say what all structures are by --modifiers sog_periodic or sog_open."
            )
        return given, None
    shape = (n_graphs, 3)
    device = data[AtomicDataDict.POSITIONS_KEY].device
    pbc = torch.full(shape, boundary == "periodic", dtype=torch.bool, device=device)
    if given is None:
        return pbc, None
    if is_traced():
        return pbc, (given != pbc).any(-1)
    if not torch.equal(given, pbc):
        got = f"a structure with pbc {given.tolist()}"
        raise InputError(explain("pbc", f"as boundary={boundary!r} says", got))
    return pbc, None


def check_host(data: Data) -> None:
    """Refuse data that do not suffice for the long-range energy.

    Parameters
    ----------
    data : dict
        Fields of a batch.

    Raises
    ------
    HostError
        If positions, or in a graph both cell and boundary, are missing.
    """
    if AtomicDataDict.POSITIONS_KEY not in data:
        raise HostError(
            "LAMMPS ML-IAP passes edge vectors but neither positions nor cell, so the long-range "
            "energy cannot be computed there. Compile for pair_nequip with --modifiers "
            "sog_use_mesh, or run the model through ASE."
        )
    unknown = not {AtomicDataDict.CELL_KEY, AtomicDataDict.PBC_KEY} & data.keys()
    if unknown and is_traced():
        raise HostError(
            "The compile target passes neither cell nor boundary. pair_allegro replaces periodic "
            "images by ghost atoms, whose charges would count twice. Compile for pair_nequip with "
            "--modifiers sog_use_mesh, which runs Allegro models too. Data of your own need `pbc`."
        )


def check_boundary(boundary: str) -> None:
    """Raise `ConfigError` unless there is such a boundary.

    Parameters
    ----------
    boundary : str
    """
    if boundary not in BOUNDARIES:
        raise ConfigError(explain("boundary", "one of " + ", ".join(BOUNDARIES), repr(boundary)))


def lattice_rows(largest_cell: list[Any]) -> list[list[float]]:
    """Lattice vectors of the largest cell, from three lengths or from three rows.

    Parameters
    ----------
    largest_cell : list of 3 floats or of 3 rows, in Å

    Returns
    -------
    list of 3 rows

    Raises
    ------
    ConfigError
        If it is neither.
    """
    expected = "three positive lengths or three lattice vectors, in Å"
    wrong = ConfigError(explain("largest_cell", expected, str(largest_cell)))
    try:
        cell = torch.tensor([list(x) if hasattr(x, "__len__") else x for x in largest_cell])
    except (TypeError, ValueError) as error:
        raise wrong from error
    if cell.shape == (3,) and bool((cell > 0).all()):
        cell = torch.diag(cell)
    if cell.shape != (3, 3) or not bool((cell.double().norm(dim=-1) > 0).all()):
        raise wrong
    rows: list[list[float]] = cell.double().tolist()
    return rows
