"""ASE calculator that also reports what the long-range part adds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from mace.calculators import MACECalculator
from torch import Tensor, nn

from sog_longrange import HostError, InputError
from sog_longrange.ase_support import (
    EXTERNAL_FIELD,
    TOTAL_CHARGE,
    ChargesInASE,
    add_periodic_field,
    check_atoms,
    check_results,
    explain_no_stress,
    explain_no_volume,
    external_field,
    has_volume,
    keep_info,
    periodic_field,
    total_charge,
)
from sog_longrange.errors import explain

from .cells import INPUT_CELL
from .charges import mark_given
from .model import SOGMACE
from .results import linked_charges, long_range_results

ENERGIES = ("long_range_energy", "short_range_energy", "charge_state_energy", "field_energy")


class SOGMACECalculator(ChargesInASE, MACECalculator):
    """`MACECalculator` for SOGMACE models, with long-range results.

    Everything that `MACECalculator` returns is right for SOGMACE models too, but for the stress of
    structures with open axes, which is NaN there; models that need a total charge are refused
    there. This class adds to ``results``:
    `long_range_energy` and `short_range_energy` in eV,
    `latent_charges` (n_atoms, n_channels) in e, `charges` (n_atoms,), the first
    channel, and their `dipole` (3,) in e Å, of periodic structures on the branch of
    :func:`sog_longrange.dipole`. Models with a charge embedding also give `charge_state_energy` in
    eV, which is in neither of the two energies. Models with latent dipoles also report
    `latent_dipoles` (n_atoms, 3, n_channels) in e Å; those of the first channel are part of the
    `dipole`. The sign of all charges together is free, so that a committee has no mean charge or
    dipole: it reports `latent_charges_comm` (n_models, n_atoms, n_channels) and `dipole_comm`
    (n_models, 3) instead (also `latent_dipoles_comm` where all models have them), and refuses
    fields.

    Stress is that of the structure's own cell, whatever axes are periodic. A structure whose cell
    has no volume has none: `stress` is not among the results, and asking for it raises
    `PropertyNotImplementedError`.

    The total charge of a structure is read from ``info["charge"]`` or ``info["total_charge"]``, as
    whatever means one finite number, by models that take one; others do not look at it. A uniform
    external electric field, of 3 floats in V/Å, is read from ``info["external_field"]``.
    Its energy is in all results, and `field_energy` in eV.
    With charges whose sign no training data fixed, the field may act the wrong way round.
    Charges that are screened by electrons feel sqrt(eps_inf) times the field: give it so.

    In a field along periodic axes, the macroscopic one, forces have Z^T E added, with
    `born_charges` Z (n_atoms, 3, 3) among the results: those of :meth:`get_born_charges` that
    obey the sum rule, so that the field moves no neutral cell as a whole. The energy is that of
    charges where the atoms are, also outside the cell: let no atom be wrapped during a
    simulation. Where charge flows across the cell it is not the potential of these forces, and
    energies in a simulation are not conserved. There is no stress. It takes a backward pass
    through the model for each atom: for 192 atoms of water thirty times as long as energy and
    forces without it.

    Parameters
    ----------
    *args, **kwargs
        As for `MACECalculator`.

    Raises
    ------
    HostError
        If a model is no SOGMACE, or compilation or an accelerated backend is asked for.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refused = [key for key in ("compile_mode", "enable_cueq", "enable_oeq") if kwargs.get(key)]
        if refused:
            raise HostError(
                f"SOGMACECalculator does not support {', '.join(refused)} yet: "
                "they rebuild the model by class. Leave them out."
            )
        super().__init__(*args, **kwargs)
        for model in self.models:
            if not isinstance(model, SOGMACE):
                raise HostError(
                    f"`models` must be SOGMACE models, got {type(model).__name__}. "
                    "Use mace.calculators.MACECalculator for models without a long-range part."
                )
        if self.num_models == 1:
            own = ["charges", "dipole"]
            self.implemented_properties: list[str] = [*self.implemented_properties, *own]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Calculate all properties of a structure; see `ase.calculators.calculator`.

        Energies and forces that are not finite are refused, naming two atoms at one place if
        there are any.
        """
        given = self.atoms if atoms is None else atoms
        self.results: dict[str, Any] = {}  # Those of another structure, if what follows fails.
        check_atoms(given)
        self._total_charge(given)
        self._read_field(given)
        field = periodic_field(given)
        if field is not None and "stress" in (properties or []):
            raise PropertyNotImplementedError(explain_no_stress())
        if "stress" in (properties or []) and not has_volume(given):
            raise PropertyNotImplementedError(explain_no_volume(given))
        outputs: list[dict[str, Any]] = []

        def keep(_module: SOGMACE, _inputs: object, output: dict[str, Any]) -> None:
            outputs.append(output)

        hooks = [model.register_forward_hook(keep) for model in self.models]
        try:
            super().calculate(atoms, properties, system_changes)
        finally:
            for hook in hooks:
                hook.remove()
        keep_info(self.atoms)
        check_results(self.results, given)
        if not has_volume(given):
            for key in ("stress", "stress_comm", "stress_var"):
                self.results.pop(key, None)
        self._add_results(outputs)
        if field is not None:
            born = self.get_born_charges(given, enforce_sum_rule=True).values
            units = (self.energy_units_to_eV, self.length_units_to_A)
            add_periodic_field(self.results, born, given, field, *units)

    def _linked_charges(self, atoms: Atoms) -> tuple[Tensor, Tensor | None, Tensor]:
        """Charges and dipoles of the atoms in the graph of their positions, without any padding."""
        if self.num_models > 1:
            raise HostError(
                "A committee has no mean Born charges: the sign of the charges of each model "
                "is free. Run its models one by one."
            )
        return linked_charges(self.models[0], self._atoms_to_batch(atoms).to_dict(), len(atoms))

    def _atoms_to_batch(self, atoms: Atoms) -> Any:
        """Make MACE's batch, with the cell of the structure and the charge that models take."""
        self.info_keys.pop("total_charge", None)
        charge = self._total_charge(atoms)
        if charge is not None:
            self.info_keys["total_charge"] = TOTAL_CHARGE[0]
            atoms = atoms.copy()
            atoms.info[TOTAL_CHARGE[0]] = charge
        batch = super()._atoms_to_batch(atoms)
        cell = batch["cell"].clone()  # Behind its rows are those of padding, if there is any.
        cell[:3] = torch.from_numpy(atoms.cell.array).to(cell)
        batch[INPUT_CELL] = cell
        if charge is not None:
            mark_given(batch)
        if EXTERNAL_FIELD in batch.keys:
            # MACE 0.3.15 turns a row of a field that it does not know into a column.
            batch[EXTERNAL_FIELD] = batch[EXTERNAL_FIELD].view(-1, 3)
        return batch

    def _total_charge(self, atoms: Atoms) -> float | None:
        """Total charge for models that take one, which is not guessed where it matters."""
        configs = [model.long_range.config for model in self.models]
        is_needed = any(config.needs_total_charge for config in configs)
        if not (is_needed or any(_embeds_charge(model.mace) for model in self.models)):
            self._ignore_charge(atoms, [config.charge_constraint for config in configs])
            return None
        charge = total_charge(atoms)
        if charge is None and is_needed:
            expected = f"with {TOTAL_CHARGE[0]!r}, the total charge in e"
            raise InputError(explain("atoms.info", expected, str(atoms.info)))
        return charge

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

    def _add_results(self, outputs: list[dict[str, Any]]) -> None:
        parts = [long_range_results(out, self.atoms) for out in outputs]
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


def _embeds_charge(mace: nn.Module) -> bool:
    """Whether a MACE model takes the total charge by itself."""
    return "total_charge" in (getattr(mace, "embedding_specs", None) or {})
