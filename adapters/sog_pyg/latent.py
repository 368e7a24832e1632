"""Running PyG's models and reading the node features that their output is made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import DimeNetPlusPlus, SchNet, SumAggregation, ViSNet
from torch_geometric.nn.models.schnet import RadiusInteractionGraph
from torch_geometric.nn.models.visnet import Distance

from sog_longrange import HostError
from sog_longrange.errors import explain

from .graph import PeriodicGraph

Latent = Callable[
    [nn.Module, Tensor, Tensor, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor]
]
"""(model, z, pos, batch, cell, pbc) -> energies [batch_size, 1], features [num_nodes, F]."""


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
) -> tuple[Tensor, Tensor]:
    graph = model.interaction_graph
    _check_seen(pbc, isinstance(graph, RadiusInteractionGraph), "SchNet")
    with _handed_over(graph, cell, pbc, batch), _inputs_of([model.lin1]) as found:
        energy = model(z, pos, batch)
    return energy, found[0]


def _visnet(
    model: Any,
    z: Tensor,
    pos: Tensor,
    batch: Tensor,
    cell: Tensor | None,
    pbc: Tensor | None,
) -> tuple[Tensor, Tensor]:
    graph = model.representation_model.distance
    _check_seen(pbc, isinstance(graph, Distance), "ViSNet")
    layer = model.representation_model.out_norm
    with _handed_over(graph, cell, pbc, batch), _outputs_of(layer) as found:
        energy, _ = model(z, pos, batch)
    return energy, found[0]


def _dimenet(
    model: Any,
    z: Tensor,
    pos: Tensor,
    batch: Tensor,
    cell: Tensor | None,
    pbc: Tensor | None,
) -> tuple[Tensor, Tensor]:
    _check_seen(pbc, True, "DimeNet++")
    with _inputs_of([block.lin for block in model.output_blocks]) as found:
        energy = model(z, pos, batch)
    return energy, torch.cat(found, -1)


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
def _inputs_of(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the first argument of each module that is called inside the block."""
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])

    handles = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a module returns inside the block."""
    found: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(output)

    handle = module.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()
