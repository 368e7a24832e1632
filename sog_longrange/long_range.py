"""The whole long-range part of a model: readouts, kernel, energy and gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._version import __version__
from .charges.build import Readout, build_readout
from .charges.charge_states import ChargeStates
from .charges.readout import LatentDipoles
from .charges.sites import Sites
from .coincidence import explain_not_finite
from .config import HOW, SOGConfig
from .energy import LongRangeEnergy, LongRangeOutput
from .errors import ConfigError, InputError, NotFiniteError, explain
from .fixed_mesh import FixedMeshEnergy
from .hosts import wrong_format
from .latent import (
    Latent,
    Look,
    check_numbers,
    check_one_rank,
    constrain,
    gated,
    group_of,
    is_zero,
    look_again,
    wanted_charge,
)
from .model_output import ModelOutput
from .near_pairs import near_pairs
from .observables.external_field import field_term
from .observables.images import vector_by_graph
from .saved import FORMAT, cutoff_difference, read_config
from .validation import Shapes, Structures, check_shape, check_shapes, check_tensor


class SOGLongRange(nn.Module):
    """Long-range energy from the invariant features of a short-range model.

    The charges start random and small, never zero: the energy is quadratic in them,
    so zero would be a saddle. To start a training exactly at a given short-range
    model, call :meth:`warm_up`: the energy is then multiplied by a gate that rises
    from 0 to 1 over the first steps. The energy of charge states starts at zero and has no gate.

    Parameters
    ----------
    layer_sizes : sequence of int
        Number of invariant features of each layer of the host model.
    config : SOGConfig, optional
        Options; the defaults if left out.
    readout : LatentCharges or FlowingCharges, optional
        Instead of a new one of these sizes.
    num_vectors : int
        Number of vectors of each atom that the host model has; at least 1 for
        ``latent_dipoles=True`` and without use otherwise.
    cutoff : float, in Å, optional
        Of the edges of the host, where charges flow along them.
    atomic_numbers : sequence of int
        Elements that the model is made for, where they have charges of their own.

    Raises
    ------
    ConfigError
        If latent dipoles are wanted and there are no vectors, or a size is out of range.

    References
    ----------
    Ji, Liang, Xu, arXiv:2502.04668; Cheng, arXiv:2408.15165.
    """

    gate: Tensor
    states: ChargeStates | None
    cutoff: float | None = None

    def __init__(
        self,
        layer_sizes: Sequence[int],
        config: SOGConfig | None = None,
        readout: Readout | None = None,
        num_vectors: int = 0,
        *,
        cutoff: float | None = None,
        atomic_numbers: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.config = SOGConfig() if config is None else config
        c = self.config
        if readout is None:
            readout = build_readout(c, layer_sizes, cutoff, atomic_numbers)
        self.readout = readout
        if c.latent_dipoles:
            if num_vectors < 1:
                expected = "False for a model without vectors (features of l = 1)"
                raise ConfigError(explain("latent_dipoles", expected, "True"))
            sizes = (num_vectors, c.num_channels, readout.layer_sizes[-1], c.hidden_size)
            self.dipole_readout = LatentDipoles(*sizes, c.signed_channels)
        self.energy: LongRangeEnergy | FixedMeshEnergy = c.build_energy()
        size = c.charge_embedding
        states = ChargeStates(sum(layer_sizes), size) if size > 0 else None
        self.register_module("states", states)
        self.near = near_pairs(c.far_channels, cutoff)
        if cutoff is not None and (c.has_flows or c.far_channels):
            self.cutoff = float(cutoff)
        self.register_buffer("gate", torch.ones(()))
        self.format = FORMAT

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state.get("format") != FORMAT:
            raise wrong_format(state.get("format", FORMAT - 1), FORMAT)
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def fix_mesh(self, largest_cell: Tensor) -> None:
        """Evaluate single periodic structures on a mesh of fixed shape from now on.

        For export to C++, where nothing can depend on the cell; not for training.

        Parameters
        ----------
        largest_cell : Tensor, shape (3, 3), in Å
            See :class:`FixedMeshEnergy`.

        Raises
        ------
        ConfigError
            If the mesh is fixed already.
        InputError, SizeError
            As :class:`FixedMeshEnergy`.
        """
        if isinstance(self.energy, FixedMeshEnergy):
            raise ConfigError(explain("energy", "without a fixed mesh", repr(self.energy)))
        order = 1 if self.config.latent_dipoles else 0
        self.energy = FixedMeshEnergy(self.energy, largest_cell, order)

    def warm_up(self, optimizer: Optimizer, steps: int = 100) -> None:
        """Begin without the long-range energy and add it step by step of the optimizer.

        The gate is part of the state dict, so a restarted training goes on where it
        stopped: call this first, then load the state. The gate is not learned: a
        learned factor would fall to either sign, and a negative one turns attraction of
        opposite charges into repulsion for good.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            Optimizer whose steps count.
        steps : int
            Number of steps until the gate is fully open, at least 1.

        Raises
        ------
        ConfigError
            If `steps` is not positive.
        """
        self.fade_in(optimizer, steps)
        self.gate.zero_()

    def fade_in(self, optimizer: Optimizer, steps: int) -> None:
        """Open the gate further with each step of the optimizer, from where it stands.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            Optimizer whose steps count.
        steps : int
            Number of steps from a closed to an open gate, at least 1.

        Raises
        ------
        ConfigError
            If `steps` is not positive.
        """
        if steps < 1:
            raise ConfigError(explain("steps", "at least 1", str(steps)))

        def open_gate(*_: object) -> None:
            # Counted in whole steps: a running sum of 1 / steps would miss 1.
            done = (self.gate * steps).round()
            self.gate.copy_((done + 1.0) / steps).clamp_(max=1.0)

        optimizer.register_step_post_hook(open_gate)

    def explain_gate(self, remedy: str) -> str:
        """Say that the long-range energy is not there in full, where that is so.

        Parameters
        ----------
        remedy : str
            What to do about it.

        Returns
        -------
        str
            Empty if the gate is open.
        """
        gate = float(self.gate)
        if gate >= 1.0:
            return ""
        return f"The long-range energy of the model is scaled by {gate:.0%} only. {remedy}"

    def get_extra_state(self) -> dict[str, Any]:
        """Return the options, which the state dict keeps beside the weights."""
        config = {k: v for k, v in self.config.to_dict().items() if k not in HOW}
        own = {"config": config, "cutoff": self.cutoff}
        return {"format": FORMAT, "version": __version__, **own}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Refuse weights that were trained with other options.

        Parameters
        ----------
        state : dict
            From :meth:`get_extra_state`.

        Raises
        ------
        ConfigError
            If the options differ, or the cutoff where charges flow or pairs are left to the host.
        InputError
            If another version wrote the state, in a format that is not read here.
        """
        theirs = read_config(state)
        ours = self.config
        if ours.charge_constraint == "auto":
            # The data of that training have decided.
            ours = ours.with_constraint(theirs.charge_constraint, theirs.fractional_charge)
        differences = ours.differences(theirs) or cutoff_difference(state, self.cutoff)
        if differences:
            raise ConfigError(f"The state was trained with other options: {differences}.")
        self.config = ours

    def forward(
        self,
        features: Tensor,
        positions: Tensor,
        cell: Tensor | None = None,
        pbc: Tensor | None = None,
        batch: Tensor | None = None,
        num_graphs: int | None = None,
        total_charge: Tensor | None = None,
        vectors: Tensor | None = None,
        external_field: Tensor | None = None,
        *,
        sites: Sites | None = None,
        skips_zero_field: bool = False,
    ) -> ModelOutput:
        """Evaluate what is added to the energy of the host model.

        Parameters
        ----------
        features : Tensor, shape (n_atoms, sum(layer_sizes))
            Invariant features, layer after layer, in the dtype of the readout.
        positions, cell, pbc, batch, num_graphs
            As in :meth:`LongRangeEnergy.forward`, in the dtype of the kernel.
        total_charge : Tensor, shape (n_graphs,), in e, optional
            Required if, and used only if, `charge_constraint` is "total" or `charge_embedding`
            is on. Whole numbers, unless `fractional_charge` is set. With "auto" only zeros may
            be given.
        vectors : Tensor, shape (n_atoms, 3, num_vectors), optional
            Cartesian equivariant vectors, layer after layer, in the dtype of the readout.
            Required if, and used only if, `latent_dipoles` is set.
        external_field : Tensor, shape (3,) or (n_graphs, 3), in V/Å, optional
            Uniform electric field that acts on the electric charges and dipoles, those of the
            first channel; see :func:`~sog_longrange.field_energy`. Where a tracer records this,
            energies are NaN in fields along periodic axes.
        sites : Sites, optional
            Edges of the host's graph and species of the atoms; required by the readouts "flows"
            (edges) and "ions" (both).
        skips_zero_field : bool
            Whether a field that is zero throughout stands for none, as where a host fills it in.

        Returns
        -------
        ModelOutput

        Raises
        ------
        InputError, InputTypeError, BoundaryError, SizeError
            As :meth:`LongRangeEnergy.forward`; also if a total charge or vectors are missing.
        NotFiniteError
            If features or vectors, or what is made of them, are not finite. It names two atoms
            at one place, if there are any.
        """
        values = not self.energy.traced
        shapes = check_shapes(positions, cell, pbc, batch, num_graphs, values=values)
        given = self._read_out(features, shapes.structures, total_charge, vectors, sites)
        given = given._replace(field=external_field, sites=sites)
        return self._interact(given, shapes.structures, shapes.look, skips_zero_field)

    def evaluate(
        self,
        features: Tensor,
        structures: Structures,
        total_charge: Tensor | None = None,
        vectors: Tensor | None = None,
        external_field: Tensor | None = None,
        sites: Sites | None = None,
    ) -> ModelOutput:
        """Evaluate structures that are validated already.

        Parameters
        ----------
        features, total_charge, vectors, external_field, sites
            As in :meth:`forward`.
        structures : Structures
            From :func:`~sog_longrange.validation.check_structures`.

        Returns
        -------
        ModelOutput

        Raises
        ------
        InputError, InputTypeError, BoundaryError, SizeError, NotFiniteError
            As :meth:`forward`.
        """
        given = self._read_out(features, structures, total_charge, vectors, sites)
        given = given._replace(field=external_field, sites=sites)
        return self._interact(given, structures, look_again(structures))

    def _interact(
        self, latent: Latent, structures: Structures, look: Look, skips_zero_field: bool = False
    ) -> ModelOutput:
        """Evaluate what was made of features, after one look at all numbers."""
        charges, structures = self._constrain(latent, structures, look, sources=True)
        try:
            out: LongRangeOutput = self.energy.evaluate(charges, structures, latent.dipoles)
        except NotFiniteError as error:
            raise explain_not_finite(error, structures) from error
        total, batch = latent.total_charge, structures.batch
        layout, group = structures.layout, group_of(self.energy)
        if self.near is not None:
            out = self.near.leave_out(out, self.energy.kernel, latent.sites, batch, group)
        state = None if self.states is None else self.states(latent.embedded, total, batch, group)
        # A factor of one changes no gradient either.
        if layout is None or layout.numbers.get("gate", 0.0) != 1.0:
            out = gated(out, self.gate)
        output = ModelOutput.add_up(out, state)
        if latent.field is None or (skips_zero_field and is_zero(latent.field, layout)):
            return output
        check_one_rank(latent.field, group)
        fields = vector_by_graph("external_field", latent.field, structures)
        charges, dipoles = output.electric_charges, output.electric_dipoles
        in_field = field_term(charges, structures, fields, dipoles=dipoles)
        return ModelOutput.add_up(out, state, in_field)

    def latent_charges(
        self,
        features: Tensor,
        structures: Structures,
        total_charge: Tensor | None = None,
        sites: Sites | None = None,
    ) -> Tensor:
        """Latent charges of structures that are validated already, without the gate.

        Parameters
        ----------
        features : Tensor, shape (n_atoms, sum(layer_sizes))
        structures : Structures
            From :func:`~sog_longrange.validation.check_structures`.
        total_charge, sites
            As in :meth:`forward`.

        Returns
        -------
        Tensor, shape (n_atoms, num_channels), in e

        Raises
        ------
        InputError, InputTypeError
            If the features do not fit, or a total charge, edges or species are missing.
        """
        given = self._read_out(features, structures, total_charge, None, sites, dipoles=False)
        return self._constrain(given, structures, look_again(structures), sources=False)[0]

    def look_at_charges(
        self,
        features: Tensor,
        shapes: Shapes,
        total_charge: Tensor | None = None,
        sites: Sites | None = None,
    ) -> tuple[Tensor, Structures]:
        """Latent charges as :meth:`latent_charges`, and structures, after one look at both.

        Parameters
        ----------
        features, total_charge, sites
            As in :meth:`latent_charges`.
        shapes : Shapes
            From :func:`~sog_longrange.validation.check_shapes`.

        Returns
        -------
        charges : Tensor, shape (n_atoms, num_channels), in e
        structures : Structures

        Raises
        ------
        InputError, InputTypeError
            As :meth:`latent_charges`; also if the structures are malformed.
        """
        structures = shapes.structures
        given = self._read_out(features, structures, total_charge, None, sites, dipoles=False)
        return self._constrain(given, structures, shapes.look, sources=False)

    def _read_out(
        self,
        features: Tensor,
        structures: Structures,
        total_charge: Tensor | None,
        vectors: Tensor | None,
        sites: Sites | None,
        *,
        dipoles: bool = True,
    ) -> Latent:
        """Charges and dipoles of features, of numbers that nobody has looked at."""
        total = wanted_charge(total_charge, structures, self.config)
        # Of a tensor in a graph, len() would fix the number of atoms.
        n_atoms, width = structures.positions.shape[0], sum(self.readout.layer_sizes)
        check_tensor("features", features)
        check_shape("features", features, (n_atoms, width), f"(n_atoms={n_atoms}, {width})")
        embedded, dtype = features, structures.positions.dtype
        if self.states is not None:
            # Indices of structures may be wrong still.
            batch = structures.batch.clamp(0, structures.num_graphs - 1)
            embedded = self.states.embedding(features, total, batch, group_of(self.energy))
        charges: Tensor = self.readout(embedded, sites).to(dtype)
        if not (self.config.latent_dipoles and dipoles):
            return Latent(features, embedded, charges, total, None, None)
        if vectors is None:
            raise InputError(explain("vectors", "given for latent_dipoles=True", "None"))
        made: Tensor = self.dipole_readout(vectors, embedded).to(dtype)
        return Latent(features, embedded, charges, total, vectors, made)

    def _constrain(
        self, latent: Latent, structures: Structures, look: Look, *, sources: bool
    ) -> tuple[Tensor, Structures]:
        """Charges as the constraint wants them, and structures after a look."""
        if self.energy.traced:
            check_numbers(latent, structures, self.config)
        else:
            structures = latent.look(look, self.config, self.gate, sources=sources)
        return constrain(latent, structures, self.config, group_of(self.energy))
