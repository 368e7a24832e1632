"""Edges and elements of PyG's graphs, along which charges flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sog_longrange import ConfigError, InputError, InputTypeError
from sog_longrange.charges.elements import SYMBOLS
from sog_longrange.charges.sites import Edges, Sites
from sog_longrange.errors import explain
from sog_longrange.validation import check_finite, check_shape, check_tensor, is_traced


class Graph(NamedTuple):
    """What a layer is told of the graph besides places and cells.

    Attributes
    ----------
    edge_index : Tensor, shape [2, num_edges], or None
    edge_weight : Tensor, shape [num_edges], in Å, or None
    z : Tensor, shape [num_nodes], or None
        Atomic numbers.
    """

    edge_index: Tensor | None = None
    edge_weight: Tensor | None = None
    z: Tensor | None = None


def places_of(elements: Sequence[int]) -> Tensor:
    """Place of each atomic number among the elements of a model.

    Parameters
    ----------
    elements : sequence of int
        Atomic numbers, each once.

    Returns
    -------
    Tensor, shape (119,), int64
        Their number for those that the model does not have, 0 among them.

    Raises
    ------
    ConfigError
        If they are no atomic numbers, or one is there twice.
    """
    numbers = [int(z) for z in elements]
    if len(set(numbers)) < len(numbers) or not all(0 < z < len(SYMBOLS) for z in numbers):
        raise ConfigError(explain("elements", "atomic numbers, each once", str(list(elements))))
    places = torch.full((len(SYMBOLS),), len(numbers))
    places[numbers] = torch.arange(len(numbers))
    return places


def find_sites(
    graph: Graph,
    pos: Tensor,
    batch: Tensor | None,
    cell: Tensor | None,
    cutoff: float | None,
    places: Tensor | None,
) -> Sites:
    """Read edges and elements off a graph.

    Parameters
    ----------
    graph : Graph
    pos : Tensor, shape [num_nodes, 3], in Å
    batch : Tensor, shape [num_nodes], or None
    cell : Tensor or None
        With one, edges may cross the walls of the cell.
    cutoff : float, in Å, or None
        Of the edges; None where they are not asked for.
    places : Tensor, shape (119,), int64, or None
        From :func:`places_of`; None where elements are not asked for.

    Returns
    -------
    Sites

    Raises
    ------
    InputError, InputTypeError
        If something is missing or malformed, or edges do not have both directions.
    """
    species = None if places is None else _read_species(graph.z, pos, places)
    if cutoff is None:
        return Sites(species=species)
    edges = _read_edges(graph, pos, cell, cutoff)
    if not is_traced():
        _check_edges(edges, pos, batch, cutoff)
    return Sites(edges, species)


def _read_edges(graph: Graph, pos: Tensor, cell: Tensor | None, cutoff: float) -> Edges:
    """Edges, of which loops end beyond the cutoff: a node is no neighbour of itself."""
    edge_index, edge_weight = graph.edge_index, graph.edge_weight
    if edge_index is None:
        remedy = "Pass the edges of your graph, or choose readout='atoms'."
        raise InputError(explain("edge_index", "given where charges flow", "None", remedy))
    check_tensor("edge_index", edge_index)
    check_shape("edge_index", edge_index, (2, None), "[2, num_edges]")
    if edge_index.dtype != torch.int64:
        raise InputTypeError(explain("edge_index", "int64", str(edge_index.dtype)))
    source, target = edge_index.unbind(0)
    if edge_weight is not None:
        check_tensor("edge_weight", edge_weight)
        check_shape("edge_weight", edge_weight, (edge_index.shape[1],), "[num_edges]")
        loops = (source == target) & (edge_weight == 0.0)  # others lead to images of a node
        return Edges(target, source, torch.where(loops, 2.0 * cutoff, edge_weight))
    if cell is not None:
        remedy = "Pass the lengths of the vectors that sog_pyg.periodic_edges returns."
        raise InputError(explain("edge_weight", "given with `cell`", "None", remedy))
    vectors = pos[source] - pos[target]
    # Lengths of zero have no second derivative.
    beyond = torch.full_like(vectors, 2.0 * cutoff)
    vectors = torch.where((source == target)[:, None], beyond, vectors)
    return Edges(target, source, torch.linalg.vector_norm(vectors, dim=-1))


def _check_edges(edges: Edges, pos: Tensor, batch: Tensor | None, cutoff: float) -> None:
    """Refuse edges that charges would get lost along, and forces that would be wrong."""
    source, target, n_nodes = edges.neighbours, edges.centres, pos.shape[0]
    if source.shape[0] == 0:
        return
    ends = torch.stack([source, target])
    if bool(((ends < 0) | (ends >= n_nodes)).any()):
        got = f"{int(ends.min())} to {int(ends.max())}"
        raise InputError(explain("edge_index", f"of {n_nodes} nodes", got))
    if batch is not None and not torch.equal(batch[source], batch[target]):
        raise InputError(explain("edge_index", "within graphs", "an edge from one to another"))
    if pos.requires_grad and torch.is_grad_enabled() and not edges.distances.requires_grad:
        expected = "made of `pos`, without which forces are wrong"
        raise InputError(explain("edge_weight", expected, "one that does not depend on it"))
    check_finite("edge_weight", edges.distances)
    if not _has_both_directions(edges, n_nodes, cutoff):
        remedy = "PyG's own graphs leave out neighbours beyond a number of them: use "
        remedy += "sog_pyg.periodic_edges, PeriodicGraph or make_periodic, which take all."
        expected = "with both directions of every edge"
        raise InputError(explain("edge_index", expected, "one without the other", remedy))


def _has_both_directions(edges: Edges, n_nodes: int, cutoff: float) -> bool:
    """Compare what comes in at each node with what goes out, of numbers without a pattern."""
    lengths = edges.distances.detach().double()
    numbers = torch.arange(n_nodes, dtype=torch.float64, device=lengths.device)
    numbers = 2.0 + numbers.square().sin()
    # An edge of the length of the cutoff carries nothing, and rounding may leave out one of two.
    weights = (1.0 - (lengths / cutoff).square()).clamp_min(0.0)
    both = edges.centres, edges.neighbours
    comes, goes = (
        torch.zeros_like(numbers).index_add(0, here, weights * numbers[there])
        for here, there in (both, both[::-1])
    )
    return torch.allclose(comes, goes, rtol=0.0, atol=1e-4)


def _read_species(z: Tensor | None, pos: Tensor, places: Tensor) -> Tensor:
    if z is None:
        raise InputError(explain("z", "given where elements have charges", "None"))
    check_tensor("z", z)
    check_shape("z", z, (pos.shape[0],), "[num_nodes]")
    if z.dtype != torch.int64:
        raise InputTypeError(explain("z", "int64", str(z.dtype)))
    if not is_traced():
        last = places.shape[0] - 1
        others = z[(z < 0) | (z > last) | (places[z.clamp(0, last)] == places[0])]
        if others.numel() > 0:
            got = ", ".join(map(str, others.unique().tolist()))
            raise InputError(explain("z", "of the `elements` of the layer", got))
    return places[z]
