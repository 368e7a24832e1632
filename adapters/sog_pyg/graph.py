"""Edges within a cutoff, through periodic boundaries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
import vesin
from torch import Tensor, nn
from torch_geometric.nn import SchNet, ViSNet

from sog_longrange import ConfigError, HostError, InputError
from sog_longrange.errors import explain
from sog_longrange.validation import Structures, check_structures, layout_of

from .batching import Boundary, fit_boundary


@torch.compiler.disable  # The number of edges depends on values, and another library finds them.
def periodic_edges(
    pos: Tensor,
    cutoff: float,
    cell: Tensor | None = None,
    pbc: Tensor | None = None,
    batch: Tensor | None = None,
    batch_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Find all pairs of nodes closer than a cutoff, through periodic boundaries.

    A node has one edge to each periodic image of another (or of itself) within the cutoff, and
    none is left out.

    Parameters
    ----------
    pos : Tensor, shape [num_nodes, 3], in Å
        Any periodic image of each node.
    cutoff : float
        Length of the longest edge, in Å.
    cell, pbc, batch, batch_size
        As in :meth:`LongRangeLayer.forward`.

    Returns
    -------
    edge_index : Tensor, shape [2, num_edges]
        Source and target of each edge; both directions are there.
    edge_vec : Tensor, shape [num_edges, 3], in Å
        From target to source, differentiable in `pos` and `cell`.

    Raises
    ------
    ConfigError
        If the cutoff is not positive.
    InputError, InputTypeError
        If an argument is malformed or not finite.
    """
    _check_cutoff(cutoff)
    boundary = fit_boundary(cell, pbc, batch, batch_size)
    structures = check_structures(pos, boundary.cell, boundary.pbc, batch, boundary.batch_size)
    # Rows of free axes may hold anything, and 0 * anything may not be 0.
    rows = torch.where(structures.pbc[..., None], structures.cell, pos.new_zeros(()))
    edge_index, images = _neighbours(structures, cutoff)
    source, target = edge_index
    shifts = torch.einsum("ea,eac->ec", images, rows[structures.batch[target]])
    return edge_index, pos[source] - pos[target] + shifts


def _neighbours(structures: Structures, cutoff: float) -> tuple[Tensor, Tensor]:
    """Edges, and how many lattice vectors the source of each has moved."""
    positions = structures.positions.detach().double().cpu().numpy()
    layout = layout_of(structures)
    flags = np.array(layout.flags, dtype=bool).reshape(-1, 3)
    # Rows of free axes may hold anything.
    cells = np.where(flags[:, :, None], layout.cells, 0.0)
    edges, images, start = [], [np.zeros((0, 3))], 0
    finder = vesin.NeighborList(cutoff=cutoff, full_list=True)
    for own_cell, own_flags, count in zip(cells, flags, layout.counts, strict=True):
        points = positions[start : start + count]
        found = finder.compute(
            points=points, box=own_cell, periodic=own_flags, quantities="ijS", copy=True
        )
        target, source, shift = found
        edges.append(np.stack([source, target]).astype(np.int64) + start)
        images.append(shift)
        start += count
    index = np.concatenate([np.zeros((2, 0), np.int64), *edges], 1)
    place = structures.positions.device
    moved = torch.from_numpy(np.concatenate(images))
    return torch.from_numpy(index).to(place), moved.to(structures.positions)


class PeriodicGraph(nn.Module):
    """Edges for models that ask for a graph with nothing but positions.

    For ``SchNet(interaction_graph=PeriodicGraph(cutoff))``: SchNet has no argument for cells, so
    they are handed to the graph itself, by :class:`~sog_pyg.WithLongRange` or, for a
    model without it, by :meth:`at`. Neither pyg-lib nor torch-cluster is needed.

    Parameters
    ----------
    cutoff : float
        Length of the longest edge, in Å; the model's own cutoff must be the same.

    Raises
    ------
    ConfigError
        If the cutoff is not positive.
    """

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        _check_cutoff(cutoff)
        self.cutoff = float(cutoff)
        self.boundary: Boundary | None = None

    @contextmanager
    def at(
        self,
        cell: Tensor | None,
        pbc: Tensor | None,
        batch: Tensor | None = None,
        batch_size: int | None = None,
    ) -> Iterator[None]:
        """Use cells for all graphs that are built inside the ``with`` block.

        Parameters
        ----------
        cell, pbc, batch, batch_size
            As in :meth:`LongRangeLayer.forward`.

        Yields
        ------
        None
        """
        before, self.boundary = self.boundary, fit_boundary(cell, pbc, batch, batch_size)
        try:
            yield
        finally:
            self.boundary = before

    def forward(self, pos: Tensor, batch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Find edges and their lengths.

        Parameters
        ----------
        pos : Tensor, shape [num_nodes, 3], in Å
        batch : Tensor, shape [num_nodes], optional

        Returns
        -------
        edge_index : Tensor, shape [2, num_edges]
        edge_weight : Tensor, shape [num_edges], in Å
            Lengths, differentiable in `pos` and the cells.

        Raises
        ------
        InputError
            If no cells were handed over.
        """
        edge_index, edge_vec = self.edges(pos, batch)
        return edge_index, torch.linalg.vector_norm(edge_vec, dim=-1)

    def edges(self, pos: Tensor, batch: Tensor | None) -> tuple[Tensor, Tensor]:
        """Find edges and their vectors, in the cells that were handed over.

        Parameters
        ----------
        pos : Tensor, shape [num_nodes, 3], in Å
        batch : Tensor, shape [num_nodes], optional

        Returns
        -------
        tuple of 2 Tensors
            As :func:`periodic_edges`.

        Raises
        ------
        InputError
            If no cells were handed over.
        """
        if self.boundary is None:
            remedy = "Use sog_pyg.WithLongRange or `with graph.at(cell, pbc, batch):`."
            raise InputError(explain("graph", "given its cells", "none", remedy))
        cell, pbc, batch_size = self.boundary
        return periodic_edges(pos, self.cutoff, cell, pbc, batch, batch_size)

    def extra_repr(self) -> str:
        """Summary shown by ``print(module)``."""
        return f"cutoff={self.cutoff}"


class PeriodicDistance(PeriodicGraph):
    """The same for ViSNet, which wants vectors and an edge from each node to itself."""

    def forward(  # type: ignore[override]
        self, pos: Tensor, batch: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find edges, their lengths and their vectors.

        Parameters
        ----------
        pos : Tensor, shape [num_nodes, 3], in Å
        batch : Tensor, shape [num_nodes], optional

        Returns
        -------
        edge_index : Tensor, shape [2, num_edges + num_nodes]
        edge_weight : Tensor, shape [num_edges + num_nodes], in Å
        edge_vec : Tensor, shape [num_edges + num_nodes, 3], in Å

        Raises
        ------
        HostError
            If a node has an edge to an image of its own, which ViSNet would take for a loop.
        InputError
            If no cells were handed over.
        """
        edge_index, edge_vec = self.edges(pos, batch)
        if bool((edge_index[0] == edge_index[1]).any()):
            raise HostError(
                "ViSNet takes an edge from a node to its own periodic image for a loop, which "
                f"gives wrong forces. Use cells that are wider than its cutoff of {self.cutoff} Å."
            )
        length = torch.linalg.vector_norm(edge_vec, dim=-1)
        loops = torch.arange(len(pos), device=pos.device).expand(2, -1)
        return (
            torch.cat([edge_index, loops], 1),
            torch.cat([length, length.new_zeros(len(pos))]),
            torch.cat([edge_vec, torch.zeros_like(pos)]),
        )


def make_periodic(model: nn.Module) -> nn.Module:
    """Let a SchNet or ViSNet see its neighbours through periodic boundaries.

    Parameters
    ----------
    model : SchNet or ViSNet
        Changed in place: the module that builds its graph is replaced by one with the
        same cutoff, which takes all neighbours (PyG's takes 32 at most by default).

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    HostError
        If the model is another: DimeNet++ has no module that could be replaced.
    """
    if isinstance(model, SchNet):
        model.interaction_graph = PeriodicGraph(model.cutoff)
    elif isinstance(model, ViSNet):
        block = model.representation_model
        block.distance = PeriodicDistance(block.cutoff)
    else:
        raise HostError(explain("model", "a SchNet or ViSNet", type(model).__name__))
    return cast(nn.Module, model)


def _check_cutoff(cutoff: float) -> None:
    if not 0.0 < cutoff < np.inf:
        raise ConfigError(explain("cutoff", "positive and finite", str(cutoff)))
