"""Long-range energy of a batch of periodic and open structures."""

from __future__ import annotations

import json
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from .errors import ConfigError, InputError, explain
from .kernels.ewald import Ewald
from .kernels.gaussians import FixedGaussians
from .kernels.kernel import Kernel, check_channels, zero_modes
from .summation.cost_model import Choice, check_backend
from .summation.dispatch import Interaction
from .summation.engines.select import check_engine
from .summation.operators import Inputs, define_operators
from .summation.potential import PotentialOutput, Sources, sum_sources
from .validation import (
    Structures,
    check_charges,
    check_dipoles,
    check_structures,
    is_traced,
)


class LongRangeOutput(NamedTuple):
    """Result of a long-range evaluation.

    Attributes
    ----------
    energy : Tensor, shape (n_graphs,), in eV
        Twice differentiable.
    atomic_energies : Tensor, shape (n_atoms,), in eV
        1/2 (q_i phi_i - mu_i.F_i); sums to `energy`. Once differentiable.
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
    atomic_energies: Tensor
    potential: Tensor
    charges: Tensor
    field: Tensor | None = None
    dipoles: Tensor | None = None


class LongRangeEnergy(nn.Module):
    """Energy of charges that interact through a kernel, in any boundary.

    Structures that are periodic along all three axes are summed in reciprocal space, open
    ones of up to 500 atoms over all pairs. Larger and dense ones, slabs and wires are summed on a
    padded mesh, by the same law K(r) between all atoms and all images along the periodic
    axes; the Ewald kernel has open structures only as pairs, and no slabs. One batch may
    hold all of these. Several backends do the reciprocal sum, to the same tolerance:

    ========= ====================================================== ====================
    dense     exact sum over all modes, by matrix products           small structures
    mesh      real FFT of charges spread to a mesh; forces are the   all others
              exact gradient of the energy as computed
    finufft   the FINUFFT library, accurate to 1e-12 in float64      tight tolerances
    ========= ====================================================== ====================

    Parameters
    ----------
    kernel : SumOfGaussians, CoupledGaussians or Ewald, or of :func:`~sog_longrange.kernel_matrix`
        Law of interaction.
    tolerance : float
        Relative size of the kernel's Gaussian factor at which the reciprocal sum ends. The
        relative l2 error of forces is below 5 times this for kernels as they start, and
        below 35 times where training drove all widths to `min_width`; float32 adds about
        1e-5. :func:`~sog_longrange.report_grid` measures it.
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
        if not 1e-15 <= tolerance <= 0.1:
            raise ConfigError(explain("tolerance", "between 1e-15 and 0.1", str(tolerance)))
        check_backend(backend)
        check_engine(engine)
        if process_group is not None and backend not in ("auto", "mesh"):
            expected = '"auto" or "mesh" with a process group'
            raise ConfigError(explain("backend", expected, repr(backend)))
        self.kernel = kernel
        self.tolerance = float(tolerance)
        self.remove_self = remove_self
        self.backend = backend
        self.engine = engine
        self.process_group = process_group
        if opaque and process_group is not None:
            raise ConfigError(explain("opaque", "False with a process group", "True"))
        self.opaque = opaque

    # Models that were pickled before there was a choice have none of these.
    backend: str = "auto"
    engine: str = "auto"
    process_group: ProcessGroup | None = None
    opaque: bool = False

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
            All derivatives are autograd's then, on a mesh in PyTorch or over pairs.

        Returns
        -------
        LongRangeOutput

        Raises
        ------
        InputError, InputTypeError
            If an argument is malformed, not finite, or a periodic cell is singular.
        ConfigError
            If there are dipoles, and a process group, another backend than "auto" or "mesh", or
            a tracer.
        BoundaryError
            If a structure is periodic along one or two axes and the kernel is `Ewald`.
        SizeError
            If the evaluation fits into no memory.
        """
        structures = check_structures(
            positions, cell, pbc, batch, num_graphs, values=not self.traced
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
        if dipoles is not None:
            return self._evaluate_dipoles(charges, dipoles, structures)
        check_charges(charges, structures, values=not self.traced)
        check_channels(self.kernel, charges)
        if self.traced:
            energy, potential = self._operate(charges, structures)
        else:
            energy, potential = self.interaction().evaluate(charges, structures)
            _check_result("energy", energy, self.kernel)
        atomic_energies = 0.5 * (charges * potential).sum(-1)
        return LongRangeOutput(energy, atomic_energies, potential, charges)

    def _evaluate_dipoles(
        self, charges: Tensor, dipoles: Tensor, structures: Structures
    ) -> LongRangeOutput:
        if self.traced:
            expected = "None where the energy is opaque or traced"
            remedy = "Dipoles are evaluated in plain PyTorch only."
            raise ConfigError(explain("dipoles", expected, "a tensor", remedy))
        check_charges(charges, structures)
        check_channels(self.kernel, charges)
        check_dipoles(dipoles, charges)
        sources = Sources(charges, dipoles)
        potential, field, energy = sum_sources(self.interaction(), sources, structures)
        energy = energy.to(charges)
        _check_result("energy", energy, self.kernel)
        energies = 0.5 * sources.work(potential, field)
        return LongRangeOutput(energy, energies, potential, charges, field, dipoles)

    def _operate(self, charges: Tensor, structures: Structures) -> tuple[Tensor, Tensor]:
        """Evaluate as one node of a graph; numbers are checked when it runs."""
        kernel = self.kernel.snapshot()
        if isinstance(kernel, FixedGaussians):
            amplitudes, widths = kernel.amplitudes, kernel.widths
        else:
            amplitudes = widths = charges.new_empty(1, 0)
        positions, cell, pbc, batch, _ = structures
        energy, potential, _ = _OPERATOR(
            charges, positions, cell, amplitudes, widths, pbc, batch, self._options
        )
        return energy, potential

    @property
    def _options(self) -> str:
        """Everything but tensors, as JSON, written so that tracers can follow."""
        kernel = self.kernel
        if isinstance(kernel, Ewald):
            law = f'{{"smearing": {kernel.smearing}}}'
        else:
            zero = ", ".join(["true" if keep else "false" for keep in zero_modes(kernel)])
            law = f'"min_width": {kernel.min_width}, "zero_mode": [{zero}]'
            law = f'{{{law}, "num_channels": {kernel.num_channels}}}'
        remove = "true" if self.remove_self else "false"
        how = f'"backend": "{self.backend}", "engine": "{self.engine}"'
        how = f'{{"tolerance": {self.tolerance}, "remove_self": {remove}, {how}}}'
        return f'{{"kernel": {law}, "energy": {how}}}'

    def choices(self, charges: Tensor, structures: Structures) -> dict[int, Choice]:
        """Tell which backend each periodic structure gets, and the predicted cost of all.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        structures : Structures
            From :func:`~sog_longrange.validation.check_structures`.

        Returns
        -------
        dict of int to Choice
            One for each structure that is periodic.
        """
        return self.interaction().choices(charges.shape[1], structures)

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
        Its kernel, tolerance, engine and self-interaction are used. The sum is the
        mesh's for every periodic structure, so its `backend` must be "auto" or "mesh".
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
    ConfigError
        If the energy is told to use another backend, or a process group.

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
    structures = check_structures(positions, cell, pbc, batch, num_graphs)
    check_charges(charges, structures)
    check_channels(energy.kernel, charges)
    if dipoles is not None:
        check_dipoles(dipoles, charges)
    felt = sum_sources(energy.interaction(), Sources(charges, dipoles), structures)
    _check_result("potential", felt.potential, energy.kernel)
    return PotentialOutput(felt.potential, felt.field)


def _check_result(name: str, values: Tensor, kernel: Kernel) -> None:
    """Raise `InputError` if what was computed from finite input has overflowed.

    Where training has made the kernel NaN or infinite, energies are NaN, as losses are.
    """
    if bool(torch.isfinite(values.detach()).all()):
        return
    if bool(kernel.radial(values.new_zeros(1)).isfinite().all()):
        expected = f"so small that no {name} overflows"
        raise InputError(explain("charges", expected, "an overflow"))


def _evaluate(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Evaluate what an operator was called with."""
    options = json.loads(inputs.options)
    if "smearing" in options["kernel"]:
        kernel: Kernel = Ewald(**options["kernel"])
    else:
        kernel = FixedGaussians(inputs.amplitudes, inputs.widths, **options["kernel"])
    energy = LongRangeEnergy(kernel, **options["energy"])
    tensors = (inputs.positions, inputs.cell, inputs.pbc, inputs.batch)
    out = energy.evaluate(inputs.charges, check_structures(*tensors, len(inputs.cell)))
    return out.energy, out.potential


_OPERATOR = define_operators(_evaluate)
