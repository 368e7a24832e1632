"""ASE calculator that passes the boundary on and reports what the long-range part adds."""

from __future__ import annotations

from typing import Any

import torch
from ase import Atoms
from nequip.data import AtomicDataDict
from nequip.integrations.ase import NequIPCalculator
from nequip.scripts._compile_utils import COMPILE_TARGET_DICT

from sog_longrange import HostError
from sog_longrange.atoms import (
    dipole_of_atoms,
    external_field,
    is_info_changed,
    total_charge_key,
)
from sog_longrange.errors import explain

from .keys import (
    EXTERNAL_FIELD_KEY,
    FIELD_ENERGY_KEY,
    LATENT_CHARGES_KEY,
    LATENT_DIPOLES_KEY,
    LONG_RANGE_ATOMIC_ENERGY_KEY,
    LONG_RANGE_ENERGY_KEY,
)
from .registry import ASE_TARGET


class SOGNequIPCalculator(NequIPCalculator):
    """`NequIPCalculator` for models with a long-range part.

    Adds to ``results``: `long_range_energy` and `short_range_energy` in eV,
    `long_range_energies` (n_atoms,) in eV, `latent_charges` (n_atoms, n_channels) in e,
    `charges` (n_atoms,), the first channel, and their `dipole` (3,) in e Å, of periodic
    structures on the branch of :func:`sog_longrange.dipole`. The sign of all charges together
    is free, and with it that of the dipole. Models with latent dipoles also report
    `latent_dipoles` (n_atoms, 3, n_channels) in e Å; those of the first channel are part of the
    `dipole`.

    Models that are not compiled read the total charge of a structure from ``info["charge"]`` or
    ``info["total_charge"]``.

    Open it by `from_compiled_model` with a model that was compiled by
    ``nequip-compile --target sog_ase``, in which periodic and open structures may come in
    turn, or by `from_saved_model` with a checkpoint or package.

    Models that are not compiled read a uniform external electric field, of 3 floats in V/Å,
    from ``info["external_field"]``. Its energy is in all results, and `field_energy` in eV.
    With charges whose sign no training data fixed, the field may act the wrong way round.
    The field must be perpendicular to the periodic lattice vectors, as that on a slab is; along
    them take the forces Z^T E of :func:`sog_longrange.born_charges`.
    """

    implemented_properties = [  # noqa: RUF012
        *NequIPCalculator.implemented_properties,
        "charges",
        "dipole",
    ]

    @classmethod
    def _get_aoti_compile_target(cls) -> dict[str, Any]:
        target: dict[str, Any] = COMPILE_TARGET_DICT[ASE_TARGET]
        return target

    @classmethod
    def from_saved_model(cls, *args: Any, **kwargs: Any) -> SOGNequIPCalculator:
        """Open a checkpoint or package, not compiled.

        Parameters
        ----------
        *args, **kwargs
            As for `NequIPCalculator._from_saved_model`: the path, `device` and others.

        Returns
        -------
        SOGNequIPCalculator
        """
        calculator: SOGNequIPCalculator = cls._from_saved_model(*args, **kwargs)
        return calculator

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Tell what changed since the last calculation, field and total charge included."""
        changes: list[str] = super().check_state(atoms, tol)
        if not changes and is_info_changed(self.atoms, atoms):
            changes.append("info")
        return changes

    def atoms_to_data(self, atoms: Atoms) -> dict[str, torch.Tensor]:
        """Make the input of the model from a structure.

        Parameters
        ----------
        atoms : ase.Atoms
            With the total charge in e and an external field in ``info``, if there are any.

        Returns
        -------
        dict

        Raises
        ------
        HostError
            If there is an external field and the model takes none.
        InputError
            If the external field is not 3 finite numbers.
        """
        field = external_field(atoms)
        data: dict[str, torch.Tensor] = super().atoms_to_data(atoms)
        key = total_charge_key(atoms)
        if key is not None:
            charge = torch.tensor([[atoms.info[key]]], device=self.device)
            data[AtomicDataDict.TOTAL_CHARGE_KEY] = charge
        if field is None:
            return data
        is_compiled = getattr(self.model, "is_compile_graph_model", False)
        if is_compiled or EXTERNAL_FIELD_KEY not in getattr(self.model, "model_input_fields", ()):
            raise HostError(
                "Compiled models, and models packaged by older versions, take no external "
                "field. Open a checkpoint or package by SOGNequIPCalculator.from_saved_model, "
                f'or remove atoms.info["{EXTERNAL_FIELD_KEY}"].'
            )
        return data | {EXTERNAL_FIELD_KEY: field[None].to(self.device)}

    def save_extra_outputs(self, out: dict[str, torch.Tensor]) -> None:
        """Store the long-range results of an evaluation.

        Parameters
        ----------
        out : dict
            Fields that the model returned.

        Raises
        ------
        HostError
            If the model has no long-range part.
        """
        if LATENT_CHARGES_KEY not in out:
            remedy = "Use NequIP's own calculator for models without a long-range part."
            raise HostError(explain("model", "with a long-range part", "none", remedy))
        found = {
            key: out[key].detach().cpu().numpy()
            for key in (LATENT_CHARGES_KEY, LONG_RANGE_ENERGY_KEY, LONG_RANGE_ATOMIC_ENERGY_KEY)
        }
        unit = self.energy_units_to_eV
        total = float(out[AtomicDataDict.TOTAL_ENERGY_KEY].detach().sum())
        long_range, of_field = float(found[LONG_RANGE_ENERGY_KEY].sum()), 0.0
        if FIELD_ENERGY_KEY in out:
            of_field = float(out[FIELD_ENERGY_KEY].detach().sum())
            self.results["field_energy"] = unit * of_field
        self.results["long_range_energy"] = unit * long_range
        self.results["short_range_energy"] = unit * (total - long_range - of_field)
        self.results["long_range_energies"] = unit * found[LONG_RANGE_ATOMIC_ENERGY_KEY][:, 0]
        self.results["latent_charges"] = found[LATENT_CHARGES_KEY]
        charges = self.results["charges"] = found[LATENT_CHARGES_KEY][:, 0].copy()
        own = None
        if LATENT_DIPOLES_KEY in out:
            flat = out[LATENT_DIPOLES_KEY].detach().cpu().numpy()
            dipoles = flat.reshape(len(flat), -1, 3).transpose(0, 2, 1)
            self.results["latent_dipoles"], own = dipoles, dipoles[:, :, 0]
        self.results["dipole"] = dipole_of_atoms(charges, self.atoms, own)
