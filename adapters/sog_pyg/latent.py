"""Running PyG's models and reading the node features that their output is made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.nn import DimeNetPlusPlus, SchNet, SumAggregation, ViSNet
from torch_geometric.nn.models.schnet import RadiusInteractionGraph
from torch_geometric.nn.models.visnet import Distance

from sog_longrange import HostError
from sog_longrange.errors import explain

from .graph import PeriodicGraph


class Seen(NamedTuple):
    """What was read from a model that ran.

    Attributes
    ----------
    energy : Tensor, shape [batch_size, 1]
    features : Tensor, shape [num_nodes, F]
    edge_index : Tensor, shape [2, num_edges], or None
        Edges of the model's own graph, in the order source and target.
    edge_weight : Tensor, shape [num_edges], in Å, or None
        Their lengths.
    """

    energy: Tensor
    features: Tensor
    edge_index: Tensor | None = None
    edge_weight: Tensor | None = None


Latent = Callable[
    [nn.Module, Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor] | Seen,
]
"""(model, z, pos, batch, cell, pbc) -> energies [batch_size, 1], features [num_nodes, F]; with
edges that charges flow along also edge_index [2, num_edges] and edge_weight [num_edges]."""


def find_latent(model: nn.Module) -> Latent:
    """Return the function that runs a model and reads its node features.

    Parameters
    ----------
    model : SchNet, DimeNetPlusPlus or ViSNet

    Returns
    -------
    callable

    Raises
    ------
    HostError
        If the model is another, or would not give an energy whose derivative are the forces.
    """
    for known, (check, latent) in _KNOWN.items():
        if isinstance(model, known):
            check(model)
            return latent
    remedy = (
        "Pass `latent`, a function (model, z, pos, batch, cell, pbc) that runs the model and "
        "returns its energies [batch_size, 1] and its node features [num_nodes, F]."
    )
    expected = "a SchNet, DimeNetPlusPlus or ViSNet where no `latent` is given"
    raise HostError(explain("model", expected, type(model).__name__, remedy))


def find_cutoff(model: nn.Module) -> float | None:
    """Return the cutoff of the graph of a model; None for models that are not known.

    Parameters
    ----------
    model : Module

    Returns
    -------
    float, in Å, or None
    """
    part: Any = model.representation_model if isinstance(model, ViSNet) else model
    return float(part.cutoff) if isinstance(model, tuple(_KNOWN)) else None


def _check_schnet(model: Any) -> None:
    if model.dipole or not isinstance(model.readout, SumAggregation):
        expected = 'built with dipole=False and readout="add", so that its output is an energy'
        got = f"dipole={model.dipole} and {model.readout}"
        raise HostError(explain("model", expected, got))
    graph = model.interaction_graph
    if isinstance(graph, PeriodicGraph) and graph.cutoff != model.cutoff:
        expected = f"of the model's cutoff, {model.cutoff} Å: with another, energies jump"
        raise HostError(explain("interaction_graph", expected, f"{graph.cutoff} Å"))


def _check_visnet(model: Any) -> None:
    if model.derivative:
        expected = "built with derivative=False: its own forces would miss the long range"
        remedy = "Take forces of the sum, by sog_pyg.energy_forces_stress."
        raise HostError(explain("model", expected, "derivative=True", remedy))
    if model.reduce_op != "sum":
        expected = 'built with reduce_op="sum", so that its output is an energy'
        raise HostError(explain("model", expected, repr(model.reduce_op)))


def _check_dimenet(model: Any) -> None:
    size = int(model.output_blocks[0].lin.out_features)
    if size != 1:
        raise HostError(explain("model", "built with out_channels=1, its energy", str(size)))


def _schnet(
    model: Any,
    z: Tensor,
    pos: Tensor,
    batch: Tensor,
    cell: Tensor | None,
    pbc: Tensor | None,
) -> Seen:
    graph = model.interaction_graph
    _check_seen(pbc, isinstance(graph, RadiusInteractionGraph), "SchNet")
    layers = [*model.interactions[:1], model.lin1]
    with _handed_over(graph, cell, pbc, batch), _inputs_of(layers) as found:
        energy = model(z, pos, batch)
    *first, (features,) = found
    edges = first[0][1:3] if first else ()
    return Seen(energy, features, *edges)


def _visnet(
    model: Any,
    z: Tensor,
    pos: Tensor,
    batch: Tensor,
    cell: Tensor | None,
    pbc: Tensor | None,
) -> Seen:
    graph = model.representation_model.distance
    _check_seen(pbc, isinstance(graph, Distance), "ViSNet")
    layers = [graph, model.representation_model.out_norm]
    with _handed_over(graph, cell, pbc, batch), _outputs_of(layers) as found:
        energy, _ = model(z, pos, batch)
    (edge_index, edge_weight, _), features = found
    return Seen(energy, features, edge_index, edge_weight)


def _dimenet(
    model: Any,
    z: Tensor,
    pos: Tensor,
    batch: Tensor,
    cell: Tensor | None,
    pbc: Tensor | None,
) -> Seen:
    _check_seen(pbc, True, "DimeNet++")
    layers = [model.emb, *(block.lin for block in model.output_blocks)]
    with _inputs_of(layers) as found:
        energy = model(z, pos, batch)
    (_, _, target, source), *features = found
    edge_weight = torch.linalg.vector_norm(pos[source] - pos[target], dim=-1)
    edge_index = torch.stack([source, target])
    return Seen(energy, torch.cat([own for (own,) in features], -1), edge_index, edge_weight)


_Check = Callable[[nn.Module], None]
_KNOWN: dict[Any, tuple[_Check, Latent]] = {
    SchNet: (_check_schnet, _schnet),
    ViSNet: (_check_visnet, _visnet),
    DimeNetPlusPlus: (_check_dimenet, _dimenet),
}


def _check_seen(pbc: Tensor | None, blind: bool, name: str) -> None:
    """Refuse periodic structures for a model that would leave out edges across boundaries."""
    if blind and pbc is not None and bool(pbc.any()):
        remedy = (
            "Use open structures, or SchNet or ViSNet."
            if name == "DimeNet++"
            else "Call sog_pyg.make_periodic(model) first."
        )
        expected = f"false for {name} with PyG's own graph, which ends at the cell"
        raise HostError(explain("pbc", expected, "true", remedy))


def _handed_over(graph: object, cell: Tensor | None, pbc: Tensor | None, batch: Tensor) -> Any:
    """Context in which a `PeriodicGraph` has the cells; an empty one for other graphs."""
    return graph.at(cell, pbc, batch) if isinstance(graph, PeriodicGraph) else nullcontext()


@contextmanager
def _inputs_of(modules: Iterable[nn.Module]) -> Iterator[list[tuple[Tensor, ...]]]:
    """Collect the arguments of each module that is called inside the block."""
    found: list[tuple[Tensor, ...]] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs)

    handles = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _outputs_of(modules: Iterable[nn.Module]) -> Iterator[list[Any]]:
    """Collect what each module that is called inside the block returns."""
    found: list[Any] = []

    def keep(_: nn.Module, __: tuple[Tensor, ...], output: object) -> None:
        found.append(output)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
