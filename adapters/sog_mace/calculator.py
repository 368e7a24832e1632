"""ASE calculator that also reports what the long-range part adds."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.stress import full_3x3_to_voigt_6_stress
from mace.calculators import MACECalculator
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from sog_longrange import ConfigError, HostError
from sog_longrange.ase_support import (
    EXTERNAL_FIELD,
    RESULTS,
    TOTAL_CHARGE,
    ChargesInASE,
    check_atoms,
    check_results,
    external_field,
    given_charge,
    periodic_field,
    total_charge,
)
from sog_longrange.errors import explain
from sog_longrange.hosts import explain_old_models
from sog_longrange.kernels.kernel import Kernel

from .backbone import accelerated, compiled, name_backend
from .cells import INPUT_CELL
from .charges import mark_given
from .domain import SOGMACEDomainModel, refuse_calculator
from .graphs import KeptGraph, join, origin_of, with_geometry
from .model import SOGMACE
from .results import (
    PARTS,
    as_array,
    dipoles_of_batch,
    in_dtype,
    linked_charges,
    long_range_results,
)

CHARGES = ("charges", "dipole", "latent_charges", "latent_dipoles")
ENERGIES = (*PARTS, "field_energy")


class SOGMACECalculator(ChargesInASE, MACECalculator):
    """`MACECalculator` for SOGMACE models, with long-range results.

    What it adds to ``results``, and the charges and fields that it reads from ``info``, are
    described at :class:`~sog_longrange.ase_support.ChargesInASE`.

    Everything that `MACECalculator` returns is right for SOGMACE models too, but for the stress of
    structures with non-periodic directions, which is NaN there; and models that need a total
    charge raise an error there. The sign of all charges together is free, so that a committee has
    no mean charge or dipole: it reports `latent_charges_comm` (n_models, n_atoms, n_channels) and
    `dipole_comm` (n_models, 3) instead (also `latent_dipoles_comm` where all models have them),
    and raises `HostError` in fields.

    Parameters
    ----------
    *args, **kwargs
        As for `MACECalculator`. Total charge and external field have their own keys in
        `atoms.info`, and models that are given lose their gradients in parameters.
    compile_mode : str, optional
        Mode of `torch.compile`, as "default": compile the inner model, once for all structures
        unless padding fixes their sizes. Second derivatives are taken of the model as it was.
    fullgraph : bool
        Compile it as one graph, unless it is converted.
    enable_cueq, enable_oeq : bool
        Evaluate the inner model by cuEquivariance or OpenEquivariance, or parts by each of them.
        The models given are not converted themselves.

    Raises
    ------
    ConfigError
        If `info_keys` has another key for the total charge or the external field.
    HostError
        If a model is no SOGMACE, or MACE cannot convert or compile it.
    MissingLibraryError
        If the library of a backend is not installed.
    InputError
        If an older version of this package wrote the file of a model.
    """

    _not_implemented = PropertyNotImplementedError
    models: list[SOGMACE]

    def __init__(
        self,
        *args: Any,
        compile_mode: str | None = None,
        fullgraph: bool = True,
        enable_cueq: bool = False,
        enable_oeq: bool = False,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("info_keys") is not None:
            kwargs["info_keys"] = _own_keys(kwargs["info_keys"])
        with explain_old_models("a model file"):
            super().__init__(*args, **kwargs)
        for model in self.models:
            if not isinstance(model, SOGMACE):
                raise HostError(
                    f"`models` must be SOGMACE models, got {type(model).__name__}. "
                    "Use mace.calculators.MACECalculator for models without a long-range part."
                )
        self._accelerate(name_backend(enable_cueq, enable_oeq), compile_mode, fullgraph)
        if self.num_models == 1:
            self.implemented_properties: list[str] = [*self.implemented_properties, *RESULTS]
        self._outputs: list[dict[str, Any]] = []
        self._kept: KeptGraph | None = None

    def _accelerate(self, backend: str | None, compile_mode: str | None, fullgraph: bool) -> None:
        """Convert and compile the inner models."""
        if backend is not None:
            self.models = [accelerated(model, backend, self.device) for model in self.models]
        self._eager: list[SOGMACE] = self.models
        if compile_mode is not None:
            dynamic = None if getattr(self, "pad_num_edges", 0) > 0 else True
            self.models = [
                compiled(model, compile_mode, fullgraph=fullgraph, dynamic=dynamic)
                for model in self.models
            ]
        for model in (*self._eager, *self.models):
            model.requires_grad_(False)

    def get_hessian(self, atoms: Atoms | None = None) -> Any:
        """Second derivatives of the energy, by models as they are before compilation.

        Parameters
        ----------
        atoms : ase.Atoms, optional
            By default those of the last calculation.

        Returns
        -------
        ndarray, shape (3 n_atoms, n_atoms, 3), in eV/Å^2, or a list of those of a committee

        Raises
        ------
        PropertyNotImplementedError
            If there is an external field along a periodic axis.
        """
        own = self.atoms if atoms is None else atoms
        if own is not None:
            check_atoms(own)
            self.check_species(own)
            if periodic_field(own) is not None:
                expected = "only along axes that are not periodic for second derivatives"
                got = str(own.info[EXTERNAL_FIELD])
                raise PropertyNotImplementedError(explain(EXTERNAL_FIELD, expected, got))
            self._prepare(own)
        models, self.models = self.models, self._eager
        try:
            return super().get_hessian(atoms)
        finally:
            self.models = models

    def domain_model(self, group: ProcessGroup | None = None) -> SOGMACEDomainModel:
        """Return the model for engines that decompose space.

        Parameters
        ----------
        group : ProcessGroup, optional
            Of the ranks of the engine, in which tensors on the device of the model are exchanged;
            None for a single rank.

        Returns
        -------
        SOGMACEDomainModel
            See :class:`sog_longrange.domains.DomainModel`.

        Raises
        ------
        HostError
            If this is a committee, compiled or converted, or otherwise cannot be evaluated so.
        """
        units = (self.energy_units_to_eV, self.length_units_to_A)
        refuse_calculator(self.models, self._eager, units)
        return SOGMACEDomainModel(self.models[0], self.available_heads.index(self.head), group)

    def _prepare(self, atoms: Atoms) -> None:
        """Check the total charge and hand an external field on."""
        self._total_charge(atoms)
        self._read_field(atoms)

    def _evaluate(self, atoms: Atoms, properties: list[str], **changes: Sequence[str]) -> None:
        """Evaluate the models and keep what they return."""
        self._outputs = []

        def keep(_module: SOGMACE, _inputs: object, output: dict[str, Any]) -> None:
            self._outputs.append(output)

        hooks = [model.register_forward_hook(keep) for model in self.models]
        try:
            super()._evaluate(atoms, properties, **changes)
        finally:
            for hook in hooks:
                hook.remove()

    def _linked_charges(self, atoms: Atoms) -> tuple[Tensor, Tensor | None, Tensor]:
        """Charges and dipoles of the atoms in the graph of their positions, without any padding."""
        return linked_charges(self._only_model(), self._atoms_to_batch(atoms).to_dict(), len(atoms))

    def _kernel(self) -> Kernel:
        """Kernel of the charges of the one model."""
        return self._only_model().long_range.energy.kernel

    def _only_model(self) -> SOGMACE:
        """Return the one model, before compilation."""
        if self.num_models > 1:
            raise HostError(
                "A committee has no mean Born charges: the sign of the charges of each model "
                "is free. Run its models one by one."
            )
        return self._eager[0]

    def _atoms_to_batch(self, atoms: Atoms) -> Any:
        """Make MACE's batch, with the cell of the structure and the charge that models take."""
        self.info_keys.pop("total_charge", None)
        charge = self._total_charge(atoms)
        if charge is not None:
            self.info_keys["total_charge"] = TOTAL_CHARGE[0]
            atoms = atoms.copy()
            atoms.info[TOTAL_CHARGE[0]] = charge
        batch = self._graph(atoms)
        cell = batch["cell"].clone()  # Behind its rows are those of padding, if there is any.
        cell[:3] = torch.from_numpy(atoms.cell.array).to(cell)
        batch[INPUT_CELL] = cell
        if charge is not None:
            mark_given(batch)
        if getattr(batch, EXTERNAL_FIELD, None) is not None:
            # MACE 0.3.15 turns a row of an unknown field into a column.
            batch[EXTERNAL_FIELD] = batch[EXTERNAL_FIELD].view(-1, 3)
        return batch

    def _graph(self, atoms: Atoms) -> Any:
        """Make MACE's batch, and keep what does not change in a simulation."""
        if self._is_padded:
            return super()._atoms_to_batch(atoms)
        more = {"head": self.head, "cutoff": self.r_max, "dtype": torch.get_default_dtype()}
        origin = origin_of(atoms, (self.info_keys, self.arrays_keys), **more)
        if self._kept is not None and self._kept.fits(origin):
            return with_geometry(self._kept.batch, atoms, self.r_max)
        batch = super()._atoms_to_batch(atoms)
        self._kept = KeptGraph(origin, copy.copy(batch))
        return batch

    @property
    def _is_padded(self) -> bool:
        sizes = [getattr(self, f"pad_num_{kind}", 0) for kind in ("atoms", "edges")]
        return bool(self.use_compile) or max(sizes) > 0

    def known_elements(self) -> list[int]:
        """Atomic numbers that the models know.

        Returns
        -------
        list of int
        """
        return sorted(int(z) for z in self.z_table.zs)

    def calculate_batch(
        self, frames: Sequence[Atoms], properties: Sequence[str] = ("energy", "forces")
    ) -> list[dict[str, Any]]:
        """Calculate properties of several structures in one evaluation of the model.

        Committees, compiled models and fields along periodic axes are evaluated one by one.

        Parameters
        ----------
        frames : sequence of ase.Atoms
        properties : sequence of str
            Names of results. One model that is not compiled also has `interaction_energy`, the
            energy less that of isolated atoms, in eV, and calculates stress and what
            charges say only where they are asked for.

        Returns
        -------
        list of dict

        Raises
        ------
        PropertyNotImplementedError, SOGError
            As the class that this one extends.
        """
        is_one = self.num_models == 1 and not self._is_padded and len(frames) > 0
        data = self._join(frames) if is_one else None
        if data is None:
            return super().calculate_batch(frames, properties)
        for atoms in frames if "stress" in properties else ():
            self._check_stress(atoms, in_field=False)
        out = self.models[0](data, compute_stress="stress" in properties)
        results = self._split(out, frames, properties, data["ptr"].tolist())
        if set(properties) & {*CHARGES, *ENERGIES}:
            self._add_charges(results, out, frames, data["ptr"].tolist())
        for one, atoms in zip(results, frames, strict=True):
            check_results(one, atoms)
            for name in properties:
                if name not in one:
                    expected = f"among {', '.join(sorted(one))}"
                    raise PropertyNotImplementedError(explain("properties", expected, name))
        return results

    def _join(self, frames: Sequence[Atoms]) -> dict[str, Any] | None:
        """Input of several structures, unless some have to be evaluated in another way."""
        graphs = []
        for atoms in frames:
            check_atoms(atoms)
            self.check_species(atoms)
            if periodic_field(atoms) is not None:
                return None
            graphs.append(self._atoms_to_batch(atoms).to_dict())
        data = join(graphs)
        dtype = next(self.models[0].parameters()).dtype
        return None if data is None else in_dtype(data, dtype)

    def _split(
        self,
        out: dict[str, Any],
        frames: Sequence[Atoms],
        properties: Sequence[str],
        firsts: Sequence[int],
    ) -> list[dict[str, Any]]:
        """Energies, forces and stress of each structure of a batch."""
        unit, length = self.energy_units_to_eV, self.length_units_to_A
        names = ("energy", "interaction_energy", "forces", "stress", "node_energy")
        arrays = {name: as_array(out[name]) for name in names if out.get(name) is not None}
        results = []
        for graph, atoms in enumerate(frames):
            rows = slice(firsts[graph], firsts[graph] + len(atoms))
            one: dict[str, Any] = {key: unit * float(arrays[key][graph]) for key in names[:2]}
            one["free_energy"] = one["energy"]
            one["forces"] = unit / length * arrays["forces"][rows]
            if "stress" in properties:
                stress = full_3x3_to_voigt_6_stress(arrays["stress"][graph])
                one["stress"] = unit / length**3 * stress
            if "energies" in properties:
                one["energies"] = unit * arrays["node_energy"][rows]
            results.append(one)
        return results

    def _add_charges(
        self,
        results: list[dict[str, Any]],
        out: dict[str, Any],
        frames: Sequence[Atoms],
        firsts: Sequence[int],
    ) -> None:
        """Add what charges say of each structure of a batch."""
        moments = dipoles_of_batch(out, frames)
        for graph, atoms in enumerate(frames):
            own = long_range_results(out, atoms, graph, firsts[graph], moments[graph])
            unit = self.energy_units_to_eV
            results[graph] |= {key: unit * own[key] if key in ENERGIES else own[key] for key in own}

    def _total_charge(self, atoms: Atoms) -> float | None:
        """Total charge for models that take one, which is not guessed where it matters."""
        configs = [model.long_range.config for model in self.models]
        is_needed = any(config.needs_total_charge for config in configs)
        if not (is_needed or any(embeds_charge(model.mace) for model in self.models)):
            self._ignore_charge(atoms, [config.charge_constraint for config in configs])
            return None
        return given_charge(atoms) if is_needed else total_charge(atoms)

    def _read_field(self, atoms: Atoms) -> None:
        """Have MACE pass an external field on, if it is well-formed and has a meaning."""
        field = external_field(atoms)
        self.info_keys[EXTERNAL_FIELD] = EXTERNAL_FIELD
        if periodic_field(atoms) is not None:
            del self.info_keys[EXTERNAL_FIELD]
        if self.num_models > 1 and field is not None and bool(field.any()):
            raise HostError(
                "A committee cannot be in an external field: the sign of the charges of each "
                "model is free, so that energies in the field have no mean. Run its models one "
                f'by one, or remove atoms.info["{EXTERNAL_FIELD}"].'
            )

    def _add_results(self) -> None:
        """Add the results of the long-range parts: means of energies, charges of one model."""
        parts = [long_range_results(out, self.atoms) for out in self._outputs]
        self._outputs = []
        for key in (key for key in ENERGIES if any(key in part for part in parts)):
            mean = sum(part.get(key, 0.0) for part in parts) / self.num_models
            self.results[key] = self.energy_units_to_eV * mean
        if self.num_models == 1:
            own = {key: value for key, value in parts[0].items() if key not in ENERGIES}
            self.results.update(own)
            return
        for key in ("latent_charges", "dipole", "latent_dipoles"):
            if all(key in part for part in parts):
                self.results[f"{key}_comm"] = np.stack([part[key] for part in parts])


def _own_keys(info_keys: Mapping[str, str]) -> dict[str, str]:
    """Copy of the keys of `atoms.info`, of which those that this package reads are fixed."""
    for name, known in (("total_charge", TOTAL_CHARGE), (EXTERNAL_FIELD, (EXTERNAL_FIELD,))):
        if info_keys.get(name, known[0]) not in known:
            expected = f"{' or '.join(map(repr, known))} for {name}"
            got = repr(info_keys[name])
            raise ConfigError(explain("info_keys", expected, got, "Rename it in atoms.info."))
    return dict(info_keys)


def open_calculator(paths: Sequence[Path], device: str) -> SOGMACECalculator:
    """Open files of SOGMACE models.

    Parameters
    ----------
    paths : sequence of Path
        Several are a committee.
    device : str

    Returns
    -------
    SOGMACECalculator
        In the dtype of the models.

    Raises
    ------
    HostError, InputError
        As `SOGMACECalculator`.
    """
    return SOGMACECalculator(model_paths=[str(path) for path in paths], device=device)


def embeds_charge(mace: nn.Module) -> bool:
    """Tell whether a MACE model takes the total charge by itself.

    Parameters
    ----------
    mace : Module

    Returns
    -------
    bool
    """
    return "total_charge" in (getattr(mace, "embedding_specs", None) or {})
