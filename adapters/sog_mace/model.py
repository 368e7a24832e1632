"""MACE with a long-range energy, by composition."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from mace.modules.utils import get_outputs
from torch import Tensor, nn

from sog_longrange import (
    HostError,
    InputError,
    ModelOutput,
    SOGConfig,
    SOGLongRange,
)
from sog_longrange.charges.sites import Sites
from sog_longrange.errors import explain
from sog_longrange.geometry import apply_strain, virial_to_stress
from sog_longrange.hosts import count_columns

from .cells import INPUT_CELL, own_cells
from .charges import check_given
from .graphs import edges_of_graph
from .host import check_model, refuse_caller, refuse_program
from .readout import (
    has_component_order,
    invariant_features,
    invariant_slices,
    layer_sizes,
    vector_features,
    vector_slices,
)

Output = dict[str, Tensor | None]


class _Geometry(NamedTuple):
    """Strained copy of a batch, differentiable in positions and displacement."""

    data: dict[str, Tensor]
    positions: Tensor
    displacement: Tensor
    cell: Tensor
    pbc: Tensor
    num_graphs: int


class SOGMACE(nn.Module):
    """A MACE model plus the long-range energy of latent charges.

    The MACE model is held, not copied or subclassed: its forward pass runs as it is,
    the latent charges are read from the invariant features of all its layers, and latent
    dipoles, with the option `latent_dipoles`, from the vectors. Forces and stress are derivatives
    of the sum of both energies. Attributes that are not found here are those of the MACE
    model, so that MACE's own tools work.

    Parameters
    ----------
    mace : MACE or ScaleShiftMACE
        Any number of layers, heads and irreps. Used in place, not copied.
    config : SOGConfig, optional
        Options of the long-range part.

    Raises
    ------
    HostError
        If the model cannot take a long-range part.

    Notes
    -----
    With ``long_range.gate`` at zero the model equals `mace` exactly; training can begin
    there, see :meth:`sog_longrange.SOGLongRange.warm_up`.
    """

    def __init__(self, mace: nn.Module, config: SOGConfig | None = None) -> None:
        super().__init__()
        check_model(mace)
        self.mace = mace
        self.invariants = invariant_slices(mace)
        self.vectors = vector_slices(mace) if config is not None and config.latent_dipoles else []
        if config is not None and config.latent_dipoles and not self.vectors:
            raise HostError(
                "Latent dipoles are made from vectors, and no layer of this MACE model has any. "
                "Use hidden irreps with 1o, such as 64x0e + 64x1o, and more than one layer, or "
                "leave latent_dipoles out."
            )
        num_vectors = count_columns(self.vectors) // 3
        sizes = layer_sizes(self.invariants)
        inner: Any = mace
        self.long_range = SOGLongRange(
            sizes,
            config,
            num_vectors=num_vectors,
            cutoff=float(inner.r_max),
            atomic_numbers=[int(z) for z in inner.atomic_numbers],
        )
        self.long_range.to(next(mace.parameters()))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Names with an underscore are hooks of torch and e3nn that must not be inherited.
            if name.startswith("_") or name == "mace":
                raise
            return getattr(self.mace, name)

    def __setstate__(self, state: dict[str, Any]) -> None:
        refuse_program()
        super().__setstate__(state)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Return all parameters, but refuse converters of MACE's, which rebuild models by class.

        Parameters
        ----------
        recurse : bool
            With those of the modules inside.

        Returns
        -------
        iterator of Parameter

        Raises
        ------
        HostError
            If a converter asks, which would fail later or lose the long-range energy.
        """
        refuse_caller(sys._getframe(1))
        return super().parameters(recurse)

    def save(self, *_: object, **__: object) -> None:
        """Refuse to be saved as TorchScript.

        Without this, MACE's export at the end of a training would find the `save` of the
        inner model and write a file that lacks the long-range energy.

        Raises
        ------
        HostError
            Always.
        """
        raise HostError(
            "A model with a long-range part cannot be saved as TorchScript in this way. "
            "Save it with torch.save(model, path), and export the file by sog_mace_export."
        )

    save_to_buffer = save

    def forward(
        self,
        data: dict[str, Tensor],
        training: bool = False,
        compute_force: bool = True,
        compute_virials: bool = False,
        compute_stress: bool = False,
        compute_displacement: bool = False,
        compute_hessian: bool = False,
        compute_edge_forces: bool = False,
        compute_atomic_stresses: bool = False,
        lammps_mliap: bool = False,
    ) -> Output:
        """Evaluate a batch; arguments and output keys are those of MACE.

        Parameters
        ----------
        data : dict
            A MACE batch. Structures may be periodic along any axes. `external_field`
            (n_graphs, 3) in V/Å is a uniform electric field, and none where it is zero
            throughout, which MACE fills in. For models that need a `total_charge` (n_graphs,) in e
            it must be marked as given; see :func:`sog_mace.charges.check_given`. `input_cell`
            (3 n_graphs, 3) in Å are the cells before MACE changed their rows of open axes, see
            :func:`sog_mace.cells.keep_input_cells`; the stress of structures that are not
            periodic along all axes needs them.
        training : bool
            Keep the graph of forces and stress for the derivative of a loss.
        compute_force, compute_virials, compute_stress, compute_displacement, compute_hessian
            As in MACE.
        compute_edge_forces, compute_atomic_stresses, lammps_mliap : bool
            Refused: a long-range energy does not split over edges.

        Returns
        -------
        dict
            MACE's output, with `stress` over the volumes of the cells that the structures came
            with, NaN where there is none; with the long-range energy in `energy`,
            `interaction_energy`, `node_energy` and all derivatives, and also
            `long_range_energy` and `short_range_energy` (n_graphs,) in eV, `latent_charges` and
            `latent_potential` (n_atoms, n_channels) in e and eV/e; with latent dipoles also
            `latent_dipoles` and `latent_field` (n_atoms, 3, n_channels) in e Å and eV/(e Å). With
            the option `charge_embedding` also `charge_state_energy` (n_graphs,) in eV, in a field
            its energy `field_energy` (n_graphs,) in eV, both in the former energies and
            derivatives but not in `long_range_energy`; and in a field the `dipole` (n_graphs, 3)
            in e Å, of the charges (and dipoles) of the first channel, about the origin that
            :func:`sog_longrange.field_energy` describes.

        Raises
        ------
        HostError
            If something is asked that a long-range model cannot give, or MACE may have filled in a
            total charge that is needed.
        InputError, BoundaryError
            If a structure is malformed, or periodic along one or two axes only and the
            kernel is Ewald's.
        """
        _refuse(compute_edge_forces or compute_atomic_stresses, lammps_mliap)
        if self.long_range.config.needs_total_charge:
            check_given(data)
        strained = compute_virials or compute_stress or compute_displacement
        geometry = _prepare(data, strained)
        out = self._energies(geometry)
        forces, virials, stress, hessian, _ = get_outputs(
            energy=out["interaction_energy"],
            positions=geometry.positions,
            displacement=geometry.displacement,
            cell=data["cell"],
            training=training,
            compute_force=compute_force,
            compute_virials=compute_virials or compute_stress,
            compute_stress=False,
            compute_hessian=compute_hessian,
        )
        if compute_stress:
            stress = virial_to_stress(-virials, own_cells(data, geometry.pbc))
        out.update(forces=forces, virials=virials, stress=stress, hessian=hessian)
        return out

    def _energies(self, geometry: _Geometry) -> Output:
        """Energies of the inner model and of the long-range part."""
        out: dict[str, Any] = dict(
            self.mace(
                geometry.data,
                training=True,
                compute_force=False,
                compute_virials=False,
                compute_stress=False,
                compute_displacement=False,
            )
        )
        added = self.long_range(
            invariant_features(out["node_feats"], self.invariants),
            geometry.data["positions"],
            geometry.cell,
            geometry.pbc,
            geometry.data["batch"],
            geometry.num_graphs,
            geometry.data.get("total_charge"),
            self._vectors(out["node_feats"]),
            _external_field(geometry.data),
            sites=self._sites(geometry.data),
            skips_zero_field=True,
        )
        energy = out["energy"]
        # Plain MACE differentiates the total energy and returns no interaction energy.
        interaction = out.get("interaction_energy", energy)
        out.update(
            energy=energy + added.energy,
            interaction_energy=interaction + added.energy,
            node_energy=out["node_energy"] + added.atomic_energies,
            short_range_energy=energy,
            displacement=geometry.displacement,
        )
        return out | _names(added)

    def _sites(self, data: dict[str, Tensor]) -> Sites | None:
        """Edges and species, for readouts that look at them."""
        if not self.long_range.config.needs_sites:
            return None
        return Sites(edges_of_graph(data)[0], data["node_attrs"].argmax(-1))

    def _vectors(self, node_feats: Tensor) -> Tensor | None:
        """Vectors that latent dipoles are made from; None without latent dipoles."""
        if not self.long_range.config.latent_dipoles:
            return None
        return vector_features(node_feats, self.vectors, has_component_order(self.mace))


def _names(added: ModelOutput) -> Output:
    """Give the results of the long-range part the keys of this model's output."""
    out: Output = {
        "long_range_energy": added.parts.long_range.energy,
        "latent_charges": added.charges,
        "latent_potential": added.potential,
    }
    if added.dipoles is not None:
        out |= {"latent_dipoles": added.dipoles, "latent_field": added.field}
    if added.parts.charge_state is not None:
        out["charge_state_energy"] = added.parts.charge_state.energy
    if added.parts.external_field is not None:
        out["field_energy"] = added.parts.external_field.energy
        out["dipole"] = added.parts.external_field.dipole
    return out


def _external_field(data: dict[str, Tensor]) -> Tensor | None:
    """External field of a batch, in which MACE fills in zero where there is none."""
    field = data.get("external_field")
    return None if field is None else field.to(data["positions"])


def _refuse(edges: bool, lammps_mliap: bool) -> None:
    if edges:
        raise HostError(
            "Edge forces and atomic stresses are not defined for a long-range energy, which does "
            "not split over edges. Ask for forces, virials and stress of the whole structure."
        )
    if lammps_mliap:
        raise HostError(
            "LAMMPS ML-IAP passes edge vectors but neither positions nor cell, so the long-range "
            "energy cannot be computed there. Run `sog_lammps -in FILE` instead, with "
            "`pair_style sog` and `pair_coeff * * my.model H O` in the input."
        )


def _prepare(data: dict[str, Tensor], strained: bool) -> _Geometry:
    """Copy a batch and strain it ourselves: MACE does not hand out what it strains."""
    if "pbc" not in data:
        raise InputError(explain("data", "a MACE batch with the key 'pbc'", str(sorted(data))))
    data = dict(data)
    positions, batch = data["positions"], data["batch"]
    positions.requires_grad_(True)
    num_graphs = int(data["ptr"].numel() - 1)
    cell = data["cell"].view(-1, 3, 3)
    pbc = data["pbc"].view(-1, 3).expand(num_graphs, 3)
    if INPUT_CELL not in data:
        _check_no_stand_in(cell, pbc)
    displacement = data.get("displacement")
    if displacement is None:
        displacement = positions.new_zeros(num_graphs, 3, 3)
    if strained:
        displacement.requires_grad_(True)
        senders = batch[data["edge_index"][0]]
        data["positions"], cell = apply_strain(positions, cell, displacement, batch)
        data["shifts"] = torch.einsum("ea,eab->eb", data["unit_shifts"], cell[senders])
        data["cell"] = cell.reshape(-1, 3)
    return _Geometry(data, positions, displacement, cell, pbc, num_graphs)


def _check_no_stand_in(cell: Tensor, pbc: Tensor) -> None:
    """Refuse the box of 1 Å that MACE puts in the place of a cell that is missing."""
    boxes = (cell == torch.eye(3).to(cell)).all(-1).all(-1)
    if bool((boxes & pbc.all(-1)).any()):
        got = "the box of 1 Å that MACE makes of a missing one"
        raise InputError(explain("cell", "given for periodic structures", got, "Set pbc to False."))
