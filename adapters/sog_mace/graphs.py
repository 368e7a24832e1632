"""Graphs of structures in a simulation, of which only the geometry changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from mace.data.neighborhood import get_neighborhood
from torch import Tensor

from sog_longrange.charges.sites import Edges

from .charges import GIVEN

_GRAPH = ("edge_index", "batch", "ptr")


def edges_of_graph(data: Mapping[str, Tensor]) -> tuple[Edges, Tensor]:
    """Edges of a batch, and their vectors from centres to neighbours.

    Parameters
    ----------
    data : mapping
        MACE's, with `edge_index`, `positions` and `shifts`.

    Returns
    -------
    edges : Edges
    vectors : Tensor, shape (n_edges, 3), in Å
    """
    centres, neighbours = data["edge_index"][1], data["edge_index"][0]
    positions = data["positions"]
    vectors = positions[neighbours] - positions[centres] - data["shifts"]
    return Edges(centres, neighbours, torch.linalg.vector_norm(vectors, dim=1)), vectors


class KeptGraph(NamedTuple):
    """A batch of one structure, and what of the structure is in it besides the geometry.

    Attributes
    ----------
    origin : dict
        From :func:`origin_of`.
    batch : mace.tools.torch_geometric.Batch
    """

    origin: dict[str, Any]
    batch: Any

    def fits(self, origin: Mapping[str, Any]) -> bool:
        """Tell whether a batch of another structure differs in the geometry at most."""
        same = self.origin.keys() == origin.keys()
        return same and all(np.array_equal(self.origin[key], origin[key]) for key in origin)


def origin_of(atoms: Atoms, keys: Sequence[Mapping[str, str]], **more: object) -> dict[str, Any]:
    """Collect what the batch of a structure depends on besides positions and cell.

    Parameters
    ----------
    atoms : ase.Atoms
    keys : sequence of 2 dict
        Where MACE looks in `info` and in `arrays`, by its own names.
    **more : object
        What else it depends on.

    Returns
    -------
    dict
        Independent of the structure.
    """
    origin: dict[str, Any] = {"numbers": atoms.numbers.copy(), "pbc": atoms.pbc.copy(), **more}
    for where, names in zip((atoms.info, atoms.arrays), keys, strict=True):
        for name, key in names.items():
            origin[f"{name} by {key}"] = copy.deepcopy(where.get(key))
    return origin


def with_geometry(batch: Any, atoms: Atoms, cutoff: float) -> Any:
    """Replace the geometry in a batch of one structure.

    Parameters
    ----------
    batch : mace.tools.torch_geometric.Batch
        As MACE makes it. Is not changed, and shares with the result what is not geometry.
    atoms : ase.Atoms
        Of the same atoms and boundary.
    cutoff : float
        In Å.

    Returns
    -------
    mace.tools.torch_geometric.Batch
    """
    pbc = tuple(bool(flag) for flag in atoms.pbc)
    edges, shifts, unit_shifts, cell = get_neighborhood(
        atoms.positions.copy(), cutoff, pbc, atoms.cell.array.copy()
    )
    moved = copy.copy(batch)
    moved["edge_index"] = torch.as_tensor(edges).to(batch["edge_index"])
    values = {"positions": atoms.positions, "shifts": shifts, "unit_shifts": unit_shifts}
    for key, value in (values | {"cell": cell}).items():
        moved[key] = torch.tensor(value).to(batch[key])
    if getattr(batch, "rcell", None) is not None:
        matrix = moved["cell"]
        moved["volume"] = torch.linalg.det(matrix).view_as(batch["volume"])
        has_inverse = bool(moved["volume"] != 0)
        inverse = torch.linalg.inv(matrix.mT) if has_inverse else torch.zeros_like(matrix)
        moved["rcell"] = 2 * torch.pi * inverse
    return moved


def join(graphs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Join the batches of single structures to one.

    Parameters
    ----------
    graphs : sequence of dict
        Batches without padding.

    Returns
    -------
    dict or None
        None if they do not have the same keys.
    """
    keys = set.intersection(*(set(graph) for graph in graphs))
    if any(set(graph) - keys - {GIVEN} for graph in graphs):
        return None
    if len(graphs) == 1:
        return graphs[0]
    sizes = [graph["positions"].shape[0] for graph in graphs]
    ends = torch.tensor(np.cumsum([0, *sizes])).to(graphs[0]["ptr"])
    data: dict[str, Any] = {
        key: torch.cat([graph[key] for graph in graphs])
        for key in keys.difference(_GRAPH)
        if isinstance(graphs[0][key], Tensor)
    }
    firsts = zip(graphs, ends, strict=False)  # One end more than there are graphs.
    data["edge_index"] = torch.cat([graph["edge_index"] + first for graph, first in firsts], 1)
    data["batch"] = torch.arange(len(graphs)).to(ends).repeat_interleave(ends.diff())
    return data | {"ptr": ends}
