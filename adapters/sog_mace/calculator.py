"""ASE calculator that also reports what the long-range part adds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import all_changes
from mace.calculators import MACECalculator

from sog_longrange import HostError, InputError
from sog_longrange.atoms import (
    EXTERNAL_FIELD,
    dipole_of_atoms,
    external_field,
    is_info_changed,
    total_charge_key,
)
from sog_longrange.errors import explain

from .model import SOGMACE


class SOGMACECalculator(MACECalculator):
    """`MACECalculator` for SOGMACE models, with long-range results.

    Everything that `MACECalculator` returns is right for SOGMACE models too; this
    class adds to ``results``: `long_range_energy` and `short_range_energy` in eV,
    `latent_charges` (n_atoms, n_channels) in e, `charges` (n_atoms,), the first
    channel, and their `dipole` (3,) in e Å, of periodic structures on the branch of
    :func:`sog_longrange.dipole`. Models with latent dipoles also report `latent_dipoles`
    (n_atoms, 3, n_channels) in e Å; those of the first channel are part of the `dipole`. The
    sign of all charges together is free, so that a committee has no mean charge or dipole: it
    reports `latent_charges_comm` (n_models, n_atoms, n_channels) and `dipole_comm` (n_models, 3)
    instead (also `latent_dipoles_comm` where all models have them), and refuses fields.

    The total charge of a structure is read from ``info["charge"]`` or
    ``info["total_charge"]``, and a uniform external electric field, of 3 floats in V/Å,
    from ``info["external_field"]``. Its energy is in all results, and `field_energy` in eV.
    With charges whose sign no training data fixed, the field may act the wrong way round.
    The field must be perpendicular to the periodic lattice vectors, as that on a slab is; along
    them take the forces Z^T E of :func:`sog_longrange.born_charges`.

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

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Tell what changed since the last calculation, field and total charge included."""
        changes: list[str] = super().check_state(atoms, tol)
        if not changes and is_info_changed(self.atoms, atoms):
            changes.append("info")
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Calculate all properties of a structure; see `ase.calculators.calculator`."""
        given = self.atoms if atoms is None else atoms
        self._choose_charge_key(given)
        self._read_field(given)
        outputs: list[dict[str, Any]] = []

        def keep(_module: SOGMACE, _inputs: object, output: dict[str, Any]) -> None:
            outputs.append(output)

        hooks = [model.register_forward_hook(keep) for model in self.models]
        try:
            super().calculate(atoms, properties, system_changes)
        finally:
            for hook in hooks:
                hook.remove()
        self._add_results(outputs)

    def _choose_charge_key(self, atoms: Atoms) -> None:
        """Read the total charge under either key, and refuse to guess one that matters."""
        key = total_charge_key(atoms)
        if key is not None:
            self.info_keys["total_charge"] = key
        elif any(m.long_range.config.charge_constraint == "total" for m in self.models):
            raise InputError(
                explain("atoms.info", "with 'charge', the total charge in e", str(atoms.info))
            )

    def _read_field(self, atoms: Atoms) -> None:
        """Have MACE pass an external field on, if it is well-formed and has a meaning."""
        field = external_field(atoms)
        self.info_keys[EXTERNAL_FIELD] = EXTERNAL_FIELD
        if self.num_models > 1 and field is not None and bool(field.any()):
            raise HostError(
                "A committee cannot be in an external field: the sign of the charges of each "
                "model is free, so that energies in the field have no mean. Run its models one "
                f'by one, or remove atoms.info["{EXTERNAL_FIELD}"].'
            )

    def _add_results(self, outputs: list[dict[str, Any]]) -> None:
        n_atoms = len(self.atoms)
        for key in ("long_range_energy", "short_range_energy"):
            self.results[key] = float(torch.stack([out[key][0] for out in outputs]).detach().mean())
        charges = [out["latent_charges"][:n_atoms].detach().cpu().numpy() for out in outputs]
        own = [_latent_dipoles(out, n_atoms) for out in outputs]
        dipoles = [
            dipole_of_atoms(q[:, 0], self.atoms, None if mu is None else mu[:, :, 0])
            for q, mu in zip(charges, own, strict=True)
        ]
        present = [mu for mu in own if mu is not None]
        if self.num_models > 1:
            self.results["latent_charges_comm"] = np.stack(charges)
            self.results["dipole_comm"] = np.stack(dipoles)
            if len(present) == self.num_models:
                self.results["latent_dipoles_comm"] = np.stack(present)
            return
        if present:
            self.results["latent_dipoles"] = present[0]
        self.results["latent_charges"] = charges[0]
        self.results["charges"] = charges[0][:, 0].copy()
        self.results["dipole"] = dipoles[0]
        if EXTERNAL_FIELD in self.atoms.info:
            energy = outputs[0].get("field_energy")
            self.results["field_energy"] = 0.0 if energy is None else float(energy[0].detach())


def _latent_dipoles(out: dict[str, Any], n_atoms: int) -> np.ndarray | None:
    dipoles = out.get("latent_dipoles")
    return None if dipoles is None else dipoles[:n_atoms].detach().cpu().numpy()
