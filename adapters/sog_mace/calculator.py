"""ASE calculator that also reports what the long-range part adds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import all_changes
from mace.calculators import MACECalculator

from sog_longrange import HostError, InputError
from sog_longrange.errors import explain

from .model import SOGMACE


class SOGMACECalculator(MACECalculator):
    """`MACECalculator` for SOGMACE models, with long-range results.

    Everything that `MACECalculator` returns is right for SOGMACE models too; this
    class adds to ``results``: `long_range_energy` and `short_range_energy` in eV,
    `latent_charges` (n_atoms, n_channels) in e, and `charges` (n_atoms,), the first
    channel. The sign of all charges together is free, so that a committee has no mean
    charge: it reports `latent_charges_comm` (n_models, n_atoms, n_channels) instead.

    The total charge of a structure is read from ``info["charge"]`` or
    ``info["total_charge"]``.

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
            self.implemented_properties: list[str] = [*self.implemented_properties, "charges"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Calculate all properties of a structure; see `ase.calculators.calculator`."""
        self._choose_charge_key(self.atoms if atoms is None else atoms)
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
        key = next((key for key in ("charge", "total_charge") if key in atoms.info), None)
        if key is not None:
            self.info_keys["total_charge"] = key
        elif any(m.long_range.config.charge_constraint == "total" for m in self.models):
            raise InputError(
                explain("atoms.info", "with 'charge', the total charge in e", str(atoms.info))
            )

    def _add_results(self, outputs: list[dict[str, Any]]) -> None:
        n_atoms = len(self.atoms)
        for key in ("long_range_energy", "short_range_energy"):
            self.results[key] = float(torch.stack([out[key][0] for out in outputs]).detach().mean())
        charges = [out["latent_charges"][:n_atoms].detach().cpu().numpy() for out in outputs]
        if self.num_models > 1:
            self.results["latent_charges_comm"] = np.stack(charges)
        else:
            self.results["latent_charges"] = charges[0]
            self.results["charges"] = charges[0][:, 0].copy()
