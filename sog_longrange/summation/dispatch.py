"""Each structure of a batch by the sum that is meant for its boundary and its size.

Energies of charges, sums over dipoles and the potential inside a model ask :meth:`Interaction.plan`
which sum a structure gets, so that all of them agree in that and in what they refuse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from sog_longrange.errors import BoundaryError, explain
from sog_longrange.geometry import reduced_cell
from sog_longrange.kernels.channels import apply_kernels
from sog_longrange.kernels.ewald import Ewald
from sog_longrange.kernels.kernel import Kernel
from sog_longrange.validation import Structures

from .cost_model import (
    Choice,
    Size,
    check_cost,
    choose_backend,
    pairs_are_faster,
    predict_memory,
    predict_time,
)
from .dense import dense_energy
from .distributed import accumulate, replicate
from .engines.select import find_engine
from .finufft import finufft_energy
from .mesh import mesh_energy
from .padded import Resolution, padded_energy
from .pairs import pairs_energy

MOST_PAIRED: int = 500
"""Open structures with more atoms are summed on a padded mesh where that is faster."""

_WASTE = 4.0

Evaluate = Callable[[Tensor, Structures], tuple[Tensor, Tensor]]
_Seen = tuple[Structures, list[tuple[bool, ...]], list[int]]


class Plan(NamedTuple):
    """Which sum each structure of a batch gets.

    Attributes
    ----------
    structures : Structures
        With reduced cells.
    kinds : list of str
        "dense", "mesh", "finufft", "pairs" or "padded" for each structure.
    counts : list of int
        Number of atoms of each structure.
    """

    structures: Structures
    kinds: list[str]
    counts: list[int]

    def parts(self) -> list[tuple[str, Tensor]]:
        """List the sums of structures that have atoms, and masks (n_graphs,) of all they get."""
        device = self.structures.positions.device
        present = {k for k, n in zip(self.kinds, self.counts, strict=True) if n > 0}
        return [
            (kind, torch.tensor([own == kind for own in self.kinds], device=device))
            for kind in sorted(present)
        ]


class Interaction(NamedTuple):
    """A kernel and how its sums are done.

    Attributes
    ----------
    kernel : Kernel
    tolerance, remove_self, backend, engine, process_group
        As in :class:`~sog_longrange.LongRangeEnergy`.
    """

    kernel: Kernel
    tolerance: float
    remove_self: bool
    backend: str
    engine: str
    process_group: ProcessGroup | None

    def evaluate(self, charges: Tensor, structures: Structures) -> tuple[Tensor, Tensor]:
        """Evaluate energies and potentials.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        structures : Structures

        Returns
        -------
        energy : Tensor, shape (n_graphs,), in eV
        potential : Tensor, shape (n_atoms, n_channels), in eV/e

        Raises
        ------
        BoundaryError
            If the kernel or the process group does not allow a structure's boundary.
        SizeError
            If the evaluation fits into no memory.
        """
        plan = self.plan(charges.shape[1], structures)
        energy, potential = self._sum(charges, plan)
        if self.remove_self:
            signs = [0.0 if kind == "pairs" else -1.0 for kind in plan.kinds]
        else:
            signs = [1.0 if kind == "pairs" else 0.0 for kind in plan.kinds]
        energy, potential = self._add_self(charges, plan.structures, signs, energy, potential)
        return energy.to(charges.dtype), potential

    def plan(self, n_channels: int, structures: Structures, fields: int = 1) -> Plan:
        """Choose the sum of each structure.

        Parameters
        ----------
        n_channels : int
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
        seen = _look_at(structures)
        structures, flags, counts = seen
        self._check_boundaries(flags)
        kinds = self._kinds(n_channels, seen)
        self._check_cost(n_channels, seen, kinds, fields)
        return Plan(structures, kinds, counts)

    def _check_cost(self, n_channels: int, seen: _Seen, kinds: list[str], fields: int) -> None:
        """Refuse what fits into no memory; padded meshes are known, and checked, later."""
        structures, _, counts = seen
        lengths = torch.linalg.vector_norm(structures.cell.detach(), dim=-1).tolist()
        size = self._sizes(n_channels, structures.positions)
        sizes = [
            (kind, size(count, own))
            for kind, count, own in zip(kinds, counts, lengths, strict=True)
            if kind != "padded"
        ]
        memory = fields * sum(predict_memory(*own) for own in sizes)
        times = [predict_time(*own) for own in sizes]
        wasted = fields * sum(
            time
            for time, (kind, own) in zip(times, sizes, strict=True)
            if kind != "pairs" and own.is_empty
        )
        # What a sum cannot do at all, it refuses itself.
        if math.isfinite(sum(times)):
            check_cost(memory, wasted, structures.positions.device)

    def choices(self, n_channels: int, structures: Structures) -> dict[int, Choice]:
        """Choose the backend of each periodic structure.

        Parameters
        ----------
        n_channels : int
        structures : Structures

        Returns
        -------
        dict of int to Choice
        """
        choices = self._choices(n_channels, _look_at(structures))
        name = self._backend
        if name == "auto":
            return choices
        return {graph: choice._replace(backend=name) for graph, choice in choices.items()}

    @property
    def _backend(self) -> str:
        return self.backend if self.process_group is None else "mesh"

    def _choices(self, n_channels: int, seen: _Seen) -> dict[int, Choice]:
        """Find the fastest backend of each periodic structure."""
        structures, flags, counts = seen
        lengths = torch.linalg.vector_norm(structures.cell.detach(), dim=-1).tolist()
        size = self._sizes(n_channels, structures.positions)
        return {
            graph: choose_backend(size(counts[graph], lengths[graph]))
            for graph, own in enumerate(flags)
            if all(own)
        }

    def _sizes(self, n_channels: int, positions: Tensor) -> Callable[[int, Sequence[float]], Size]:
        """Complete what the cost of a structure depends on."""
        device = positions.device
        compiled = find_engine(self.engine, device).name != "torch"
        how = (self.kernel.min_width, self.tolerance, positions.dtype, compiled, device.type)
        return lambda n_atoms, lengths: Size(n_atoms, n_channels, lengths, *how)

    def _check_boundaries(self, flags: list[tuple[bool, ...]]) -> None:
        if self.process_group is not None and not all(all(own) for own in flags):
            expected = "all true for structures that are spread over a process group"
            raise BoundaryError(explain("pbc", expected, str([list(own) for own in flags])))
        for graph, own in enumerate(flags):
            if isinstance(self.kernel, Ewald) and any(own) and not all(own):
                raise BoundaryError(
                    explain(
                        "pbc",
                        "all true or all false for each structure with the Ewald kernel",
                        f"{list(own)} for structure {graph}",
                        "Slabs and wires need a sum of Gaussians.",
                    )
                )

    def _kinds(self, n_channels: int, seen: _Seen) -> list[str]:
        """Name the sum of each structure."""
        structures, flags, counts = seen
        name = self._backend
        choices = {}
        if name == "auto" and any(all(own) for own in flags):
            choices = self._choices(n_channels, seen)
        kinds = []
        for graph, (own, count) in enumerate(zip(flags, counts, strict=True)):
            if all(own):
                kinds.append(choices[graph].backend if name == "auto" else name)
            elif any(own) or self._is_worth_padding(n_channels, structures, graph, count):
                kinds.append("padded")
            else:
                kinds.append("pairs")
        return kinds

    def _is_worth_padding(
        self, n_channels: int, structures: Structures, graph: int, count: int
    ) -> bool:
        """Tell whether an open structure is large and dense enough for a padded mesh."""
        if count <= MOST_PAIRED or isinstance(self.kernel, Ewald):
            return False
        positions = structures.positions.detach()[structures.batch == graph]
        padding = Resolution.of(self.kernel, self.tolerance).padding
        lengths = (2.0 * (positions.amax(0) - positions.amin(0) + padding)).tolist()
        return not pairs_are_faster(self._sizes(n_channels, positions)(count, lengths))

    def _sum(self, charges: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        """Energy and potential, each structure by the sum that is meant for it."""
        sums: dict[str, Evaluate] = {
            "dense": self._dense,
            "mesh": self._mesh,
            "finufft": self._finufft,
            "pairs": self._pairs,
            "padded": self._padded,
        }
        structures, kinds, counts = plan
        # A rank without atoms still takes part in the sums over ranks.
        if len(set(kinds)) == 1 and (any(counts) or self.process_group is not None):
            return sums[kinds[0]](charges, structures)
        energy = no_energy(structures)
        potential = torch.zeros_like(charges)
        for kind, mask in plan.parts():
            graphs, atoms, part = select(structures, mask)
            part_energy, part_potential = sums[kind](charges[atoms], part)
            energy = energy.index_copy(0, graphs, part_energy)
            potential = potential.index_copy(0, atoms, part_potential)
        return energy, potential

    def _dense(self, charges: Tensor, part: Structures) -> tuple[Tensor, Tensor]:
        if _waste_of_padding(part) > _WASTE:
            singles = torch.eye(part.num_graphs, dtype=torch.bool, device=charges.device)
            results = []
            for mask in singles:
                _, atoms, single = select(part, mask)
                results.append(self._dense(charges[atoms], single))
            energies, potentials = zip(*results, strict=True)
            return torch.cat(energies), torch.cat(potentials)
        return dense_energy(
            self.kernel, charges, part.positions, part.cell, part.batch, self.tolerance
        )

    def _mesh(self, charges: Tensor, part: Structures) -> tuple[Tensor, Tensor]:
        return mesh_energy(
            self.kernel,
            charges,
            part.positions,
            part.cell,
            part.batch,
            self.tolerance,
            find_engine(self.engine, charges.device),
            group=self.process_group,
        )

    def _finufft(self, charges: Tensor, part: Structures) -> tuple[Tensor, Tensor]:
        sampler = find_engine(self.engine, charges.device).sampler
        return finufft_energy(
            self.kernel, charges, part.positions, part.cell, part.batch, self.tolerance, sampler
        )

    def _pairs(self, charges: Tensor, part: Structures) -> tuple[Tensor, Tensor]:
        return pairs_energy(self.kernel, charges, part.positions, part.batch, part.num_graphs)

    def _padded(self, charges: Tensor, part: Structures) -> tuple[Tensor, Tensor]:
        return padded_energy(
            self.kernel,
            charges,
            part.positions,
            part.cell,
            part.pbc,
            part.batch,
            self.tolerance,
            find_engine(self.engine, charges.device),
        )

    def _add_self(
        self,
        charges: Tensor,
        structures: Structures,
        signs: list[float],
        energy: Tensor,
        potential: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Remove the self term where a sum holds it (-1), or add it where it does not (1)."""
        if not any(signs):
            return energy, potential
        origin = self.kernel.radial(charges.new_zeros(1))
        own = apply_kernels(replicate(origin, self.process_group).T, charges, 1)
        if len(set(signs)) == 1:
            own = signs[0] * own
        else:
            own = own * charges.new_tensor(signs)[structures.batch][:, None]
        per_atom = 0.5 * (charges * own).sum(-1)
        zeros = energy.new_zeros(structures.num_graphs)
        own_energy = zeros.index_add(0, structures.batch, per_atom.to(zeros))
        return energy + accumulate(own_energy, self.process_group), potential + own


def _look_at(structures: Structures) -> _Seen:
    """Reduce the cells, and list the boundary and the number of atoms of each structure."""
    # Decided in Python: a tensor operation takes longer than the whole loop.
    flags = [tuple(row) for row in structures.pbc.tolist()]
    cell = reduced_cell(structures.cell, [all(own) for own in flags])
    counts = torch.bincount(structures.batch, minlength=structures.num_graphs).tolist()
    return structures._replace(cell=cell), flags, counts


def no_energy(structures: Structures) -> Tensor:
    """Energies of zero that can be differentiated in the positions.

    Parameters
    ----------
    structures : Structures

    Returns
    -------
    Tensor, shape (n_graphs,), float64, in eV
    """
    zeros = structures.positions.new_zeros(structures.num_graphs, dtype=torch.float64)
    # The sum of no positions cannot overflow.
    return zeros + structures.positions[:0].sum()


def _waste_of_padding(structures: Structures) -> float:
    """Work of a dense batch, padded to its largest atom count and cell, over that of its parts."""
    lengths = torch.linalg.vector_norm(structures.cell.detach().double(), dim=-1) + 1.0
    counts = torch.bincount(structures.batch, minlength=structures.num_graphs).clamp(min=1)
    own = (counts * lengths.prod(-1)).sum()
    padded = structures.num_graphs * counts.max() * lengths.amax(0).prod()
    return float(padded / own)


def select(structures: Structures, graphs: Tensor) -> tuple[Tensor, Tensor, Structures]:
    """Make the structures of a mask a batch of their own, and say where they came from.

    Parameters
    ----------
    structures : Structures
    graphs : Tensor, shape (n_graphs,), bool

    Returns
    -------
    index : Tensor
        Numbers of the structures in the batch they came from.
    atoms : Tensor
        Numbers of their atoms.
    part : Structures
    """
    atoms = graphs[structures.batch].nonzero().squeeze(-1)
    index = graphs.nonzero().squeeze(-1)
    renumbered = (graphs.cumsum(0) - 1)[structures.batch[atoms]]
    part = Structures(
        structures.positions[atoms],
        structures.cell[index],
        structures.pbc[index],
        renumbered,
        len(index),
    )
    return index, atoms, part
