"""Long-range energy of a batch of periodic and open structures."""

from __future__ import annotations

import json
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from .errors import ConfigError, InputError, explain
from .kernels.kernel import Kernel, check_channels, check_zero_mode
from .kernels.spec import kernel_from
from .options import as_number
from .source_checks import check_charges, check_dipoles, look_at_sources, sources_are_small
from .summation.cost_model import Choice, check_backend
from .summation.dispatch import choices, evaluate
from .summation.engines.select import check_engine
from .summation.interaction import Interaction, Potentials
from .summation.multipoles import Multipoles
from .summation.operators import FIELD, Inputs, define_operators, has_field
from .validation import Structures, check_structures, is_traced


class LongRangeOutput(NamedTuple):
    """Result of a long-range evaluation.

    Attributes
    ----------
    energy : Tensor, shape (n_graphs,), in eV
        Twice differentiable.
    potential : Tensor, shape (n_atoms, n_channels), in eV/e
        dE/dq. Once differentiable.
    charges : Tensor, shape (n_atoms, n_channels), in e
        The charges that were evaluated.
    field : Tensor, shape (n_atoms, 3, n_channels), in eV/(e Å), or None
        -dE/dmu, where there are dipoles.
    dipoles : Tensor, shape (n_atoms, 3, n_channels), in e Å, or None
        The dipoles that were evaluated.
    """

    energy: Tensor
    potential: Tensor
    charges: Tensor
    field: Tensor | None = None
    dipoles: Tensor | None = None

    @property
    def atomic_energies(self) -> Tensor:
        """Half the work on the sources of each atom; (n_atoms,), in eV, the energy in sum."""
        return 0.5 * Multipoles(self.charges, self.dipoles).work(self.potential, self.field)


class PotentialOutput(NamedTuple):
    """Potential and field of charges and dipoles at the atoms.

    Attributes
    ----------
    potential : Tensor, shape (n_atoms, n_channels), in eV/e
        phi_i = sum_j K(r_ij) q_j, over all periodic images; of dipoles mu_j too, which are the
        limit of charges Q and -Q at r_j + mu_j / 2Q and r_j - mu_j / 2Q.
    field : Tensor, shape (n_atoms, 3, n_channels), in eV/(e Å)
        -d phi / d r at the atom, all charges and dipoles held where they are.
    """

    potential: Tensor
    field: Tensor


class LongRangeEnergy(nn.Module):
    """Energy of charges that interact through a kernel, in any boundary.

    Structures that are periodic along all three axes are summed in reciprocal space, non-periodic
    ones of up to 500 atoms over all pairs. Larger and dense ones, slabs and structures that are
    periodic along one direction are summed on a padded grid, by the same kernel K(r) between all
    atoms and all images along the periodic directions; a kernel that is no sum of Gaussians has
    non-periodic structures only as pairs, and no slabs. One batch may hold all of these. Several
    backends do the reciprocal sum, to the same tolerance:

    ========= ====================================================== ====================
    dense     exact sum over all modes, by matrix products           small structures
    mesh      real FFT of charges spread to a mesh; forces are the   all others
              exact gradient of the energy as computed
    finufft   the FINUFFT library, accurate to 1e-12 in float64      tight tolerances
    ========= ====================================================== ====================

    Parameters
    ----------
    kernel : SumOfGaussians, CoupledGaussians or Ewald, or of :func:`~sog_longrange.kernel_matrix`
        Of the interaction.
    tolerance : float
        Sets the largest wave number, and with it the grids, of the reciprocal sum. The
        relative l2 error of forces is below 5 times this, for charges and for dipoles and
        whatever widths training leads to; float32 adds about 1e-5.
        :func:`~sog_longrange.report_grid` measures it.
    remove_self : bool
        Whether the interaction of each charge with itself, 1/2 K(0) q^2, is removed.
    backend : {"auto", "dense", "mesh", "finufft"}
        What does the reciprocal sum. "auto" predicts the fastest for each structure by
        itself; :meth:`choices` tells what it takes and why.
    engine : {"auto", "none", "numba", "triton"}
        Compiled code for the mesh. "auto" takes numba on CPUs and triton on CUDA and
        warns where they are missing; "none" is pure PyTorch.
    process_group : torch.distributed.ProcessGroup, optional
        Ranks over which the atoms of each batch are spread. Every rank passes its own
        atoms, sorted by structure, and the same cells and `num_graphs`; energies come out
        equal on all ranks, potentials for a rank's own atoms. Structures are periodic and
        the mesh sums them. See :mod:`~sog_longrange.summation.distributed` for the loss.
    opaque : bool
        Evaluate through the operators of :mod:`~sog_longrange.summation.operators`, which tracers
        do not look into. Under `torch.compile` and `make_fx` this is so anyway.

    Raises
    ------
    ConfigError
        If the tolerance is not between 1e-15 and 0.1, or an option has an unknown value
        or needs a library that is not installed.

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
        self,
        kernel: Kernel,
        *,
        tolerance: float = 1e-5,
        remove_self: bool = True,
        backend: str = "auto",
        engine: str = "auto",
        process_group: ProcessGroup | None = None,
        opaque: bool = False,
    ) -> None:
        super().__init__()
        number = as_number(tolerance)
        if number is None or not 1e-15 <= number <= 0.1:
            raise ConfigError(explain("tolerance", "between 1e-15 and 0.1", repr(tolerance)))
        check_zero_mode(kernel)
        check_backend(backend)
        check_engine(engine)
        if process_group is not None and backend not in ("auto", "mesh"):
            expected = '"auto" or "mesh" with a process group'
            raise ConfigError(explain("backend", expected, repr(backend)))
        self.kernel = kernel
        self.tolerance = number
        self.remove_self = remove_self
        self.backend = backend
        self.engine = engine
        self.process_group = process_group
        if opaque and process_group is not None:
            raise ConfigError(explain("opaque", "False with a process group", "True"))
        self.opaque = opaque

    @property
    def traced(self) -> bool:
        """Whether evaluations go through an operator, in which nothing is looked at yet."""
        return self.opaque or is_traced()

    def forward(
        self,
        charges: Tensor,
        positions: Tensor,
        cell: Tensor | None = None,
        pbc: Tensor | None = None,
        batch: Tensor | None = None,
        num_graphs: int | None = None,
        *,
        dipoles: Tensor | None = None,
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
            Required with `cell`. Cell vectors of axes that are not periodic are never read.
        batch : Tensor, shape (n_atoms,), int64, sorted, optional
        num_graphs : int, optional
            Needed only if structures may be empty.
        dipoles : Tensor, shape (n_atoms, 3, n_channels), in e Å, optional
            Point dipoles at the atoms, which interact with charges and with each other
            through the same kernel: the structure factor is sum_j (q_j - i k.mu_j) e^(-ik.r_j).

        Returns
        -------
        LongRangeOutput

        Raises
        ------
        InputError, InputTypeError
            If an argument is malformed, not finite, or a periodic cell is singular.
        BoundaryError
            If a structure is periodic along one or two axes and the kernel is no sum of Gaussians.
        SizeError
            If the evaluation fits into no memory.
        """
        sources = {"charges": charges, "dipoles": dipoles}
        structures = check_structures(
            positions, cell, pbc, batch, num_graphs, values=not self.traced, others=sources
        )
        return self.evaluate(charges, structures, dipoles)

    def evaluate(
        self, charges: Tensor, structures: Structures, dipoles: Tensor | None = None
    ) -> LongRangeOutput:
        """Evaluate the energy of structures that are validated already.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        structures : Structures
            From :func:`~sog_longrange.validation.check_structures`.
        dipoles : Tensor, shape (n_atoms, 3, n_channels), in e Å, optional

        Returns
        -------
        LongRangeOutput

        Raises
        ------
        InputError, InputTypeError, ConfigError, BoundaryError, SizeError
            As :meth:`forward`.
        """
        energy, potential, field = self.potentials(charges, structures, dipoles)
        return LongRangeOutput(energy, potential, charges, field, dipoles)

    def potentials(
        self,
        charges: Tensor,
        structures: Structures,
        dipoles: Tensor | None = None,
        *,
        field: bool = False,
    ) -> Potentials:
        """Evaluate energy, potential and field in structures that are validated already.

        Parameters
        ----------
        charges, structures, dipoles
            As in :meth:`evaluate`.
        field : bool
            Whether the field of charges is wanted, too; that of dipoles is always there.

        Returns
        -------
        Potentials

        Raises
        ------
        InputError, InputTypeError, ConfigError, BoundaryError, SizeError
            As :meth:`forward`.
        """
        check_charges(charges, structures)
        check_channels(self.kernel, charges)
        if dipoles is not None:
            check_dipoles(dipoles, charges)
        sources = Multipoles(charges, dipoles)
        if self.traced:
            return Potentials(*self._operate(sources, structures, field=field))
        structures = look_at_sources(structures, charges, dipoles)
        out = evaluate(self.interaction(), sources, structures, field=field)
        out = out._replace(energy=out.energy.to(charges))
        if not sources_are_small(structures, charges.dtype):
            name = "potential" if field else "energy"
            _check_result(name, getattr(out, name), self.kernel)
        return out

    def _operate(
        self, sources: Multipoles, structures: Structures, *, field: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Evaluate as one node of a graph; numbers are checked when it runs."""
        charges, dipoles = sources
        given = charges.new_empty(charges.shape[0], 0, charges.shape[1])
        given = given if dipoles is None else dipoles
        gaussians = self.kernel.gaussians or (charges.new_empty(1, 0), charges.new_empty(1, 0))
        positions, cell, pbc, batch = structures[:4]
        options = self._options + (FIELD if field else "")
        energy, potential, found, _ = _OPERATOR(
            charges, given, positions, cell, *gaussians, pbc, batch, options
        )
        return energy, potential, None if dipoles is None and not field else found

    @property
    def _options(self) -> str:
        """Everything but tensors, as JSON, written so that tracers can follow."""
        kernel = self.kernel.to_options()
        remove = "true" if self.remove_self else "false"
        how = f'"backend": "{self.backend}", "engine": "{self.engine}"'
        how = f'{{"tolerance": {self.tolerance}, "remove_self": {remove}, {how}}}'
        return f'{{"kernel": {kernel}, "energy": {how}}}'

    def choices(
        self, charges: Tensor, structures: Structures, dipoles: Tensor | None = None
    ) -> dict[int, Choice]:
        """Tell which backend each periodic structure gets, and the predicted cost of all.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        structures : Structures
            From :func:`~sog_longrange.validation.check_structures`.
        dipoles : Tensor, shape (n_atoms, 3, n_channels), in e Å, optional

        Returns
        -------
        dict of int to Choice
            One for each structure that is periodic.
        """
        return choices(self.interaction(), Multipoles(charges, dipoles), structures)

    def interaction(self) -> Interaction:
        """Return what the sums need: a snapshot of the kernel, and how they are done."""
        how = (self.backend, self.engine, self.process_group)
        return Interaction(self.kernel.snapshot(), self.tolerance, self.remove_self, *how)

    def extra_repr(self) -> str:
        """Summary shown by ``print(module)``."""
        return (
            f"tolerance={self.tolerance}, remove_self={self.remove_self}, "
            f"backend={self.backend!r}, engine={self.engine!r}, opaque={self.opaque}"
        )


def potential_and_field(
    energy: LongRangeEnergy,
    charges: Tensor,
    positions: Tensor,
    cell: Tensor | None = None,
    pbc: Tensor | None = None,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    *,
    dipoles: Tensor | None = None,
) -> PotentialOutput:
    """Potential and field of charges, and of dipoles if there are any, twice differentiable.

    Parameters
    ----------
    energy : LongRangeEnergy
        Its kernel and all else that it was built with are used.
    charges : Tensor, shape (n_atoms, n_channels), in e
    positions, cell, pbc, batch, num_graphs
        As in :meth:`LongRangeEnergy.forward`.
    dipoles : Tensor, shape (n_atoms, 3, n_channels), in e Å, optional

    Returns
    -------
    PotentialOutput
        Twice differentiable in charges, dipoles, positions, cell and the kernel's parameters.

    Raises
    ------
    InputError, InputTypeError, BoundaryError, SizeError
        As :meth:`LongRangeEnergy.forward`.

    References
    ----------
    Ji, Liang, Xu, arXiv:2502.04668 (the sum); Kosmala et al., arXiv:2303.04791 (long-range
    sums as layers of a network); Toukmaji, Sagui, Board, Darden, J. Chem. Phys. 113, 10913
    (2000) (dipoles on meshes).

    Examples
    --------
    >>> import torch
    >>> from sog_longrange import Ewald, LongRangeEnergy, potential_and_field
    >>> positions = torch.tensor([[0.0, 0.0, 0.0], [8.0, 0.0, 0.0]], dtype=torch.float64)
    >>> charges = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    >>> out = potential_and_field(LongRangeEnergy(Ewald(smearing=1.0)), charges, positions)
    >>> round(float(out.potential[0]), 6), round(float(out.field[0, 0]), 6)
    (-1.799956, 0.224994)
    """
    values, sources = not energy.traced, {"charges": charges, "dipoles": dipoles}
    structures = check_structures(
        positions, cell, pbc, batch, num_graphs, values=values, others=sources
    )
    _, potential, field = energy.potentials(charges, structures, dipoles, field=True)
    return PotentialOutput(potential, cast(Tensor, field))


def _check_result(name: str, values: Tensor, kernel: Kernel) -> None:
    """Raise `InputError` if what was computed from finite input has overflowed.

    Where training has made the kernel NaN or infinite, energies are NaN, as losses are.
    """
    if bool(torch.isfinite(values.detach()).all()):
        return
    if bool(kernel.radial(values.new_zeros(1)).isfinite().all()):
        expected = f"so small that no {name} overflows"
        raise InputError(explain("charges and dipoles", expected, "an overflow"))


def _evaluate(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Evaluate what an operator was called with."""
    field = has_field(inputs.options)
    options = json.loads(inputs.options.removesuffix(FIELD))
    kernel = kernel_from(options["kernel"], inputs.amplitudes, inputs.widths)
    energy = LongRangeEnergy(kernel, **options["energy"])
    tensors = (inputs.positions, inputs.cell, inputs.pbc, inputs.batch)
    dipoles = inputs.dipoles if inputs.dipoles.shape[1] else None
    sources = {"charges": inputs.charges, "dipoles": dipoles}
    structures = check_structures(*tensors, len(inputs.cell), others=sources)
    out = energy.potentials(inputs.charges, structures, dipoles, field=field)
    found = inputs.dipoles if out.field is None else out.field
    return out.energy.to(inputs.charges), out.potential, found


_OPERATOR = define_operators(_evaluate)
