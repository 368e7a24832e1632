"""Each structure of a batch by the sum that is meant for its boundary and its size."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from .errors import BoundaryError, explain
from .geometry import reduced_cell
from .kernels import Ewald, Kernel
from .kspace.accelerators import find_accelerator
from .kspace.auto import Choice, Size, choose_backend
from .kspace.direct import direct_energy
from .kspace.distributed import accumulate, replicate
from .kspace.finufft import finufft_energy
from .kspace.mesh import mesh_energy
from .kspace.padded import padded_energy
from .kspace.pairs import pairs_energy
from .validation import Structures

MOST_PAIRED: int = 500
"""Open structures with more atoms are summed on a padded mesh, which is faster there."""

Evaluate = Callable[[Tensor, Structures], tuple[Tensor, Tensor]]


class Interaction(NamedTuple):
    """A kernel and how its sums are done.

    Attributes
    ----------
    kernel : Kernel
    tolerance, backend, accelerator, process_group
        As in :class:`~sog_longrange.LongRangeEnergy`.
    """

    kernel: Kernel
    tolerance: float
    backend: str
    accelerator: str
    process_group: ProcessGroup | None

    def evaluate(
        self, charges: Tensor, structures: Structures, remove_self: bool
    ) -> tuple[Tensor, Tensor]:
        """Evaluate energies and potentials.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        structures : Structures
        remove_self : bool

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
        self._check_boundaries(structures)
        periodic = structures.pbc.all(-1)
        cell = reduced_cell(structures.cell, periodic.tolist())
        structures = structures._replace(cell=cell)
        paired = self._paired(structures)
        energy, potential = self._sum(charges, structures, periodic, paired)
        sign = torch.where(paired, 0.0, -1.0) if remove_self else paired.double()
        return self._add_self(charges, structures, sign, energy, potential)

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
        positions = structures.positions
        name = find_accelerator(self.accelerator, positions.device).name
        counts = torch.bincount(structures.batch, minlength=structures.num_graphs).tolist()
        lengths = torch.linalg.vector_norm(structures.cell.detach(), dim=-1).tolist()
        common = (self.kernel.min_width, self.tolerance, positions.dtype, name != "torch")
        return {
            graph: choose_backend(Size(counts[graph], n_channels, lengths[graph], *common))
            for graph in structures.pbc.all(-1).nonzero().flatten().tolist()
        }

    def _check_boundaries(self, structures: Structures) -> None:
        periodic, open_ = structures.pbc.all(-1), ~structures.pbc.any(-1)
        if self.process_group is not None and not bool(periodic.all()):
            expected = "all true for structures that are spread over a process group"
            raise BoundaryError(explain("pbc", expected, str(structures.pbc.tolist())))
        mixed = ~(periodic | open_)
        if isinstance(self.kernel, Ewald) and bool(mixed.any()):
            index = int(mixed.nonzero()[0])
            raise BoundaryError(
                explain(
                    "pbc",
                    "all true or all false for each structure with the Ewald kernel",
                    f"{structures.pbc[index].tolist()} for structure {index}",
                    "Slabs and wires need a sum of Gaussians.",
                )
            )

    def _paired(self, structures: Structures) -> Tensor:
        """Tell which structures are summed over pairs, which hold no self-interaction."""
        open_ = ~structures.pbc.any(-1)
        if isinstance(self.kernel, Ewald):
            return open_
        counts = torch.bincount(structures.batch, minlength=structures.num_graphs)
        return open_ & (counts <= MOST_PAIRED)

    def _sum(
        self, charges: Tensor, structures: Structures, periodic: Tensor, paired: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Energy and potential, each structure by the sum that is meant for it."""
        parts = [
            *self._periodic_parts(charges, structures, periodic),
            (paired, self._pairs),
            (~periodic & ~paired, self._padded),
        ]
        if self.process_group is None:
            counts = torch.bincount(structures.batch, minlength=structures.num_graphs)
            parts = [part for part in parts if bool(counts[part[0]].any())]
        for mask, evaluate in parts:
            if bool(mask.all()):
                return evaluate(charges, structures)
        energy = charges.new_zeros(structures.num_graphs)
        potential = torch.zeros_like(charges)
        for mask, evaluate in parts:
            graphs, atoms, part = _select(structures, mask)
            part_energy, part_potential = evaluate(charges[atoms], part)
            energy = energy.index_copy(0, graphs, part_energy)
            potential = potential.index_copy(0, atoms, part_potential)
        return energy, potential

    def _periodic_parts(
        self, charges: Tensor, structures: Structures, periodic: Tensor
    ) -> list[tuple[Tensor, Evaluate]]:
        """Masks of periodic structures, with what evaluates them."""
        backends: dict[str, Evaluate] = {
            "direct": self._direct,
            "mesh": self._mesh,
            "finufft": self._finufft,
        }
        name = self.backend if self.process_group is None else "mesh"
        if name != "auto":
            return [(periodic, backends[name])]
        choices = self.choices(charges.shape[1], structures)
        parts: list[tuple[Tensor, Evaluate]] = []
        for own, evaluate in backends.items():
            mask = torch.zeros_like(periodic)
            mask[[graph for graph, choice in choices.items() if choice.backend == own]] = True
            parts.append((mask, evaluate))
        return parts

    def _direct(self, charges: Tensor, part: Structures) -> tuple[Tensor, Tensor]:
        return direct_energy(
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
            find_accelerator(self.accelerator, charges.device),
            group=self.process_group,
        )

    def _finufft(self, charges: Tensor, part: Structures) -> tuple[Tensor, Tensor]:
        sampler = find_accelerator(self.accelerator, charges.device).sampler
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
            find_accelerator(self.accelerator, charges.device),
        )

    def _add_self(
        self,
        charges: Tensor,
        structures: Structures,
        sign: Tensor,
        energy: Tensor,
        potential: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Remove the self term where a sum holds it (-1), or add it where it does not (1)."""
        if not bool(sign.any()):
            return energy, potential
        origin = self.kernel.radial(charges.new_zeros(1))
        own = replicate(origin, self.process_group).T * charges
        own = own * sign.to(charges)[structures.batch][:, None]
        per_atom = 0.5 * (charges * own).sum(-1)
        zeros = energy.new_zeros(structures.num_graphs)
        own_energy = accumulate(zeros.index_add(0, structures.batch, per_atom), self.process_group)
        return energy + own_energy, potential + own


def _select(structures: Structures, graphs: Tensor) -> tuple[Tensor, Tensor, Structures]:
    """Make the structures of a mask a batch of their own, and say where they came from."""
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
