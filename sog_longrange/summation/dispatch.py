"""Each structure of a batch by the solver for its boundary and its size.

Energies of charges and dipoles and potentials inside a model all ask :func:`plan_sums` which sum
a structure gets, so that they agree in that and in what they refuse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sog_longrange.errors import BoundaryError, explain
from sog_longrange.geometry import MAX_NODES, cell_reduction, to_device
from sog_longrange.layout import Flags, Layout, read_together
from sog_longrange.validation import Structures, layout_of

from .cost_model import (
    WORTH_A_LOOK,
    Choice,
    check_cost,
    choose_backend,
    fastest_backends,
    pairs_are_faster,
    predict_memory,
    predict_time,
)
from .cost_terms import OTHER, Size
from .dense import dense_sum
from .finufft import finufft_sum
from .interaction import Interaction, Potentials
from .mesh import mesh_sum
from .multipoles import Multipoles
from .padded import padded_sum
from .pairs import pairs_sum
from .parts import no_potentials, put, select
from .self_term import with_self_term

MOST_PAIRED: int = 500
"""Non-periodic structures with more atoms are summed on a padded grid where that is faster."""

_MOST_NUMBERS = 50.0


class Sum(Protocol):
    """A sum over the sources of structures that it is meant for."""

    def __call__(
        self, interaction: Interaction, sources: Multipoles, part: Structures, *, field: bool
    ) -> Potentials:
        """Energy, potential and, where there are dipoles or it is wanted, field."""
        ...


SUMS: dict[str, Sum] = {
    "dense": dense_sum,
    "mesh": mesh_sum,
    "finufft": finufft_sum,
    "pairs": pairs_sum,
    "padded": padded_sum,
}


class Plan(NamedTuple):
    """Which sum each structure of a batch gets.

    Attributes
    ----------
    structures : Structures
        With reduced cells.
    kinds : list of str
        A key of `SUMS` for each structure.
    """

    structures: Structures
    kinds: list[str]

    @property
    def counts(self) -> list[int]:
        """Number of atoms of each structure."""
        return layout_of(self.structures).counts

    def parts(self) -> list[tuple[str, list[int]]]:
        """List the sums of structures that have atoms, and all structures that they get."""
        present = {k for k, n in zip(self.kinds, self.counts, strict=True) if n > 0}
        return [
            (kind, [graph for graph, own in enumerate(self.kinds) if own == kind])
            for kind in sorted(present)
        ]


def evaluate(
    interaction: Interaction, sources: Multipoles, structures: Structures, *, field: bool = False
) -> Potentials:
    """Evaluate energies, potentials and fields.

    Parameters
    ----------
    interaction : Interaction
    sources : Multipoles
    structures : Structures
    field : bool
        Whether the field of charges is wanted, too.

    Returns
    -------
    Potentials

    Raises
    ------
    InputError
        If positions are so large that they overflow.
    BoundaryError
        If the kernel or the process group does not allow a structure's boundary.
    SizeError
        If the evaluation fits into no memory.
    """
    plan = plan_sums(interaction, sources, structures, sources.memory_factor(field))
    out = _sum(interaction, sources, plan, field=field)
    holds = [kind != "pairs" for kind in plan.kinds]
    return with_self_term(interaction, sources, plan.structures, holds, out)


def _sum(interaction: Interaction, sources: Multipoles, plan: Plan, *, field: bool) -> Potentials:
    structures, kinds = plan
    # A rank without atoms still takes part in the sums over ranks.
    if len(set(kinds)) == 1 and (any(plan.counts) or interaction.process_group is not None):
        return SUMS[kinds[0]](interaction, sources, structures, field=field)
    out = no_potentials(structures, sources.charges, field=field or sources.order > 0)
    for kind, own_graphs in plan.parts():
        graphs, atoms, part = select(structures, own_graphs)
        own = SUMS[kind](interaction, sources.at(atoms), part, field=field)
        out = put(out, graphs, atoms, own)
    return out


def plan_sums(
    interaction: Interaction, sources: Multipoles, structures: Structures, fields: int = 1
) -> Plan:
    """Choose the sum of each structure.

    Parameters
    ----------
    interaction : Interaction
    sources : Multipoles
    structures : Structures
    fields : int
        How many times the memory and the time of an energy of charges are predicted.

    Returns
    -------
    Plan

    Raises
    ------
    BoundaryError
        If the kernel or the process group does not allow a structure's boundary.
    SizeError
        If more memory is predicted than there is.
    """
    structures, layout = _reduced(structures)
    _check_boundaries(interaction, layout.flags)
    size = _sizes(interaction, sources, structures.positions)
    small = all(map(any, layout.flags)) or max(layout.counts, default=0) <= MOST_PAIRED
    if not small:
        # It depends on positions, too.
        kinds = _kinds(interaction, structures, layout, size)
    else:
        how = (_backend(interaction), size(1, (1.0, 1.0, 1.0)))
        kinds = layout.memory.once(
            ("kinds", *how), lambda: _kinds(interaction, structures, layout, size)
        )
    _check_cost(layout, kinds, size, fields, structures.positions.device)
    return Plan(structures, kinds)


def choices(
    interaction: Interaction, sources: Multipoles, structures: Structures
) -> dict[int, Choice]:
    """Choose the backend of each periodic structure.

    Parameters
    ----------
    interaction : Interaction
    sources : Multipoles
    structures : Structures

    Returns
    -------
    dict of int to Choice
    """
    structures, layout = _reduced(structures)
    found = _choices(layout, _sizes(interaction, sources, structures.positions))
    name = _backend(interaction)
    if name == "auto":
        return found
    return {graph: choice._replace(backend=name) for graph, choice in found.items()}


_Sizes = Callable[[int | NDArray[np.int64], Sequence[float] | NDArray[np.float64]], Size]


def _backend(interaction: Interaction) -> str:
    return interaction.backend if interaction.process_group is None else "mesh"


def _sizes(interaction: Interaction, sources: Multipoles, positions: Tensor) -> _Sizes:
    """Complete what the cost of a structure depends on."""
    device, n_channels = positions.device, sources.charges.shape[1]
    resolution = interaction.resolution(sources.order)
    compiled = interaction.engine_on(device).name != "torch"
    kernel, gaussians = interaction.kernel, interaction.kernel.gaussians
    count = OTHER * kernel.num_channels if gaussians is None else gaussians[0].numel()
    how = (resolution, positions.dtype, compiled, device.type, count)
    return lambda n_atoms, lengths: Size(n_atoms, n_channels, lengths, *how)


def _choices(layout: Layout, size: _Sizes) -> dict[int, Choice]:
    """Find the fastest backend of each periodic structure, and the cost of all."""
    rows = zip(layout.periodic, layout.counts, layout.lengths, strict=True)
    return {
        graph: choose_backend(size(count, lengths))
        for graph, (periodic, count, lengths) in enumerate(rows)
        if periodic
    }


def _kinds(
    interaction: Interaction, structures: Structures, layout: Layout, size: _Sizes
) -> list[str]:
    """Name the sum of each structure."""
    flags, name = layout.flags, _backend(interaction)
    fastest = [name] * len(flags)
    if name == "auto" and any(layout.periodic):
        fastest = fastest_backends(size(np.array(layout.counts), np.array(layout.lengths)))
    large = _worth_padding(interaction, structures, layout, size)
    kinds = []
    for graph, own in enumerate(flags):
        if all(own):
            kinds.append(fastest[graph])
        elif any(own) or graph in large:
            kinds.append("padded")
        else:
            kinds.append("pairs")
    return kinds


def _worth_padding(
    interaction: Interaction, structures: Structures, layout: Layout, size: _Sizes
) -> set[int]:
    """Find non-periodic structures that are large and dense enough for a padded grid."""
    counts, starts = layout.counts, layout.starts
    large = [g for g, own in enumerate(layout.flags) if not any(own) and counts[g] > MOST_PAIRED]
    if not large or interaction.kernel.gaussians is None:
        return set()
    points = [structures.positions.detach()[starts[g] : starts[g + 1]] for g in large]
    ends = iter(read_together([end for x in points for end in (x.amin(0), x.amax(0))]))
    padding = interaction.resolution(0).padding
    boxes = [2.0 * (high - low + padding) for low, high in zip(ends, ends, strict=True)]
    sizes = [size(counts[g], box.tolist()) for g, box in zip(large, boxes, strict=True)]
    return {g for g, own in zip(large, sizes, strict=True) if not pairs_are_faster(own)}


def _check_boundaries(interaction: Interaction, flags: list[Flags]) -> None:
    if interaction.process_group is not None and not all(all(own) for own in flags):
        expected = "all true for structures that are spread over a process group"
        raise BoundaryError(explain("pbc", expected, str([list(own) for own in flags])))
    if interaction.kernel.gaussians is not None:
        return
    for graph, own in enumerate(flags):
        if any(own) and not all(own):
            kernel = type(interaction.kernel).__name__
            expected = f"all true or all false for each structure with the {kernel} kernel"
            got = f"{list(own)} for structure {graph}"
            remedy = "Slabs and structures periodic along one direction need a sum of Gaussians."
            raise BoundaryError(explain("pbc", expected, got, remedy))


def _check_cost(
    layout: Layout, kinds: list[str], size: _Sizes, fields: int, device: torch.device
) -> None:
    """Refuse what fits into no memory; padded grids are known, and checked, later."""
    like = size(1, (1.0, 1.0, 1.0))
    most = layout.memory.once(("most", *kinds, like), lambda: _most_memory(layout, kinds, size))
    if fields * most < WORTH_A_LOOK:
        return
    cost = layout.memory.once(("cost", *kinds, like), lambda: _predict(layout, kinds, size))
    # What a sum cannot do at all, it refuses itself.
    if cost is not None:
        check_cost(fields * cost[0], fields * cost[1], device)


def _predict(layout: Layout, kinds: list[str], size: _Sizes) -> tuple[float, float] | None:
    """Memory of a batch, in bytes, and time spent in empty boxes, in ms; None if impossible."""
    counts, lengths = np.array(layout.counts), np.array(layout.lengths)
    memory = wasted = 0.0
    for kind in sorted(set(kinds) - {"padded"}):
        graphs = np.array([own == kind for own in kinds])
        own_size = size(counts[graphs], lengths[graphs])
        time = predict_time(kind, own_size)
        is_too_much = kind == "dense" and float(np.sum(own_size.modes)) > MAX_NODES
        if is_too_much or not np.isfinite(time).all():
            return None
        memory += float(np.sum(predict_memory(kind, own_size)))
        if kind != "pairs":
            wasted += float(np.sum(np.where(own_size.is_empty, time, 0.0)))
    return memory, wasted


def _most_memory(layout: Layout, kinds: list[str], size: _Sizes) -> float:
    """Bound the memory of a batch, in bytes, at a fraction of the cost of predicting it."""
    counts = np.array(layout.counts, np.float64)
    like = size(1, (1.0, 1.0, 1.0))
    with np.errstate(over="ignore"):
        edges = np.maximum(
            np.array(layout.lengths) * (like.resolution.cutoff / math.pi) + 2.0, like.window + 2.0
        )
        points = edges.prod(-1)
        sums = points + counts * points / edges.min(-1, initial=math.inf)
    bound = _MOST_NUMBERS * like.number * (1 + like.n_channels) * sums
    pairs = predict_memory("pairs", like._replace(n_atoms=np.array(layout.counts)))
    known = {"pairs": pairs, "padded": np.zeros_like(counts)}
    return sum(float(known.get(kind, bound)[graph]) for graph, kind in enumerate(kinds))


def _reduced(structures: Structures) -> tuple[Structures, Layout]:
    """Structures with reduced cells, and what is known of these."""
    layout = layout_of(structures)
    change = layout.memory.once("reduction", lambda: cell_reduction(layout.cells, layout.periodic))
    if change is None:
        return structures._replace(layout=layout), layout
    layout = layout.change(cells=change @ layout.cells)
    cell = to_device(change, structures.cell) @ structures.cell
    return structures._replace(cell=cell, layout=layout), layout
