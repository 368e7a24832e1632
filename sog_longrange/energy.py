"""Long-range energy of a batch of periodic and open structures."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .errors import BoundaryError, ConfigError, InputError, explain
from .kernels import Kernel
from .kspace.direct import direct_energy
from .kspace.pairs import pairs_energy
from .validation import Structures, check_charges, check_structures


class LongRangeOutput(NamedTuple):
    """Result of a long-range evaluation.

    Attributes
    ----------
    energy : Tensor, shape (n_graphs,), in eV
        Twice differentiable.
    atomic_energies : Tensor, shape (n_atoms,), in eV
        1/2 q_i phi_i; sums to `energy`. Once differentiable.
    potential : Tensor, shape (n_atoms, n_channels), in eV/e
        dE/dq. Once differentiable.
    charges : Tensor, shape (n_atoms, n_channels), in e
        The charges that were evaluated.
    """

    energy: Tensor
    atomic_energies: Tensor
    potential: Tensor
    charges: Tensor


class LongRangeEnergy(nn.Module):
    """Energy of charges that interact through a kernel, in any boundary.

    Structures that are periodic along all three axes are summed in reciprocal
    space, open ones over all pairs; one batch may hold both.

    Parameters
    ----------
    kernel : SumOfGaussians or Ewald
        Law of interaction.
    tolerance : float
        Relative size of the kernel's Gaussian factor at which the reciprocal sum
        ends. The relative l2 error of forces is below 3 times this for kernels as they
        start, and below 20 times where training drove all widths to `min_width`, save
        for a few atoms in a tiny cell.
    remove_self : bool
        Whether the interaction of each charge with itself, 1/2 K(0) q^2, is removed.

    Raises
    ------
    ConfigError
        If the tolerance is not between 1e-15 and 0.1.

    References
    ----------
    Ji, Liang, Xu, arXiv:2502.04668; Cheng, arXiv:2408.15165.

    Examples
    --------
    >>> import torch
    >>> from sog_longrange import Ewald, LongRangeEnergy
    >>> energy = LongRangeEnergy(Ewald(smearing=1.0))
    >>> positions = torch.tensor([[0.0, 0.0, 0.0], [8.0, 0.0, 0.0]], dtype=torch.float64)
    >>> charges = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    >>> round(float(energy(charges, positions).energy), 6)
    -1.799956
    """

    def __init__(
        self, kernel: Kernel, *, tolerance: float = 1e-5, remove_self: bool = True
    ) -> None:
        super().__init__()
        if not 1e-15 <= tolerance <= 0.1:
            raise ConfigError(explain("tolerance", "between 1e-15 and 0.1", str(tolerance)))
        self.kernel = kernel
        self.tolerance = float(tolerance)
        self.remove_self = remove_self

    def forward(
        self,
        charges: Tensor,
        positions: Tensor,
        cell: Tensor | None = None,
        pbc: Tensor | None = None,
        batch: Tensor | None = None,
        num_graphs: int | None = None,
    ) -> LongRangeOutput:
        """Evaluate the energy of each structure.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        positions : Tensor, shape (n_atoms, 3), in Å
            Any periodic image of each atom.
        cell : Tensor, shape (n_graphs, 3, 3), in Å, optional
            Rows are lattice vectors, of either handedness.
        pbc : Tensor, shape (n_graphs, 3), bool, optional
            Required with `cell`. All true or all false for each structure.
        batch : Tensor, shape (n_atoms,), int64, sorted, optional
        num_graphs : int, optional
            Needed only if structures may be empty.

        Returns
        -------
        LongRangeOutput

        Raises
        ------
        InputError, InputTypeError
            If an argument is malformed, not finite, or a periodic cell is singular.
        BoundaryError
            If a structure is periodic along one or two axes.
        SizeError
            If the evaluation fits into no memory.
        """
        return self.evaluate(charges, check_structures(positions, cell, pbc, batch, num_graphs))

    def evaluate(self, charges: Tensor, structures: Structures) -> LongRangeOutput:
        """Evaluate the energy of structures that are validated already.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        structures : Structures
            From :func:`~sog_longrange.validation.check_structures`.

        Returns
        -------
        LongRangeOutput

        Raises
        ------
        InputError, InputTypeError, BoundaryError, SizeError
            As :meth:`forward`.
        """
        check_charges(charges, structures)
        self._check_channels(charges)
        periodic = _periodic_graphs(structures.pbc)
        energy, potential = self._interaction(charges, structures, periodic)
        energy, potential = self._self_interaction(charges, structures, periodic, energy, potential)
        atomic_energies = 0.5 * (charges * potential).sum(-1)
        return LongRangeOutput(energy, atomic_energies, potential, charges)

    def _check_channels(self, charges: Tensor) -> None:
        own = self.kernel.num_channels
        if own not in (1, charges.shape[1]):
            expected = f"of {own} channels, as many as the kernel has"
            raise InputError(explain("charges", expected, str(charges.shape[1])))

    def _interaction(
        self, charges: Tensor, structures: Structures, periodic: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Energy and potential by the backend of each boundary."""
        energy = charges.new_zeros(structures.num_graphs)
        potential = torch.zeros_like(charges)
        for mask, evaluate in ((periodic, self._direct), (~periodic, self._pairs)):
            graphs, atoms, part = _select(structures, mask)
            if len(atoms) == 0:
                continue
            part_energy, part_potential = evaluate(charges[atoms], part)
            energy = energy.index_copy(0, graphs, part_energy)
            potential = potential.index_copy(0, atoms, part_potential)
        return energy, potential

    def _direct(self, charges: Tensor, part: Structures) -> tuple[Tensor, Tensor]:
        return direct_energy(
            self.kernel, charges, part.positions, part.cell, part.batch, self.tolerance
        )

    def _pairs(self, charges: Tensor, part: Structures) -> tuple[Tensor, Tensor]:
        return pairs_energy(self.kernel, charges, part.positions, part.batch, part.num_graphs)

    def _self_interaction(
        self,
        charges: Tensor,
        structures: Structures,
        periodic: Tensor,
        energy: Tensor,
        potential: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Remove the self term where a backend holds it, or add it where it does not."""
        sign = torch.where(periodic, -1.0, 0.0) if self.remove_self else (~periodic).double()
        own = self.kernel.radial(charges.new_zeros(1)).T * charges
        own = own * sign.to(charges)[structures.batch][:, None]
        per_atom = 0.5 * (charges * own).sum(-1)
        return energy.index_add(0, structures.batch, per_atom), potential + own

    def extra_repr(self) -> str:
        """Summary shown by ``print(module)``."""
        return f"tolerance={self.tolerance}, remove_self={self.remove_self}"


def _periodic_graphs(pbc: Tensor) -> Tensor:
    mixed = pbc.any(-1) & ~pbc.all(-1)
    if bool(mixed.any()):
        index = int(mixed.nonzero()[0])
        raise BoundaryError(
            explain(
                "pbc",
                "all true or all false for each structure",
                f"{pbc[index].tolist()} for structure {index}",
                "Slabs and wires are not supported yet: pad the free axes with vacuum and "
                "make the structure periodic, or make it open.",
            )
        )
    return pbc.all(-1)


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
