"""ASE calculator that passes the boundary on and reports what the long-range part adds."""

from __future__ import annotations

from typing import Any

import torch
from ase import Atoms
from nequip.data import AtomicDataDict
from nequip.integrations.ase import NequIPCalculator
from nequip.scripts._compile_utils import COMPILE_TARGET_DICT

from sog_longrange import HostError
from sog_longrange.errors import explain

from .keys import LATENT_CHARGES_KEY, LONG_RANGE_ATOMIC_ENERGY_KEY, LONG_RANGE_ENERGY_KEY
from .registry import ASE_TARGET


class SOGNequIPCalculator(NequIPCalculator):
    """`NequIPCalculator` for models with a long-range part.

    Adds to ``results``: `long_range_energy` and `short_range_energy` in eV,
    `long_range_energies` (n_atoms,) in eV, `latent_charges` (n_atoms, n_channels) in e and
    `charges` (n_atoms,), the first channel. The sign of all charges together is free. The total
    charge of a structure is read from ``info["charge"]`` or ``info["total_charge"]``; compiled
    models have no such input.

    Open it by `from_compiled_model` with a model that was compiled by
    ``nequip-compile --target sog_ase``, in which periodic and open structures may come in
    turn, or by `from_saved_model` with a checkpoint or package.
    """

    implemented_properties = [*NequIPCalculator.implemented_properties, "charges"]  # noqa: RUF012

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

    def atoms_to_data(self, atoms: Atoms) -> dict[str, torch.Tensor]:
        """Read a structure, with its total charge if ``info`` holds one.

        Parameters
        ----------
        atoms : Atoms
            Total charge in e under `charge` or `total_charge`.

        Returns
        -------
        dict
        """
        data: dict[str, torch.Tensor] = super().atoms_to_data(atoms)
        charge = atoms.info.get("charge", atoms.info.get("total_charge"))
        if charge is not None:
            data[AtomicDataDict.TOTAL_CHARGE_KEY] = torch.tensor([[charge]], device=self.device)
        return data

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
        long_range = float(found[LONG_RANGE_ENERGY_KEY].sum())
        self.results["long_range_energy"] = unit * long_range
        self.results["short_range_energy"] = unit * (total - long_range)
        self.results["long_range_energies"] = unit * found[LONG_RANGE_ATOMIC_ENERGY_KEY][:, 0]
        self.results["latent_charges"] = found[LATENT_CHARGES_KEY]
        self.results["charges"] = found[LATENT_CHARGES_KEY][:, 0].copy()
