"""ASE calculator that also reports what the long-range part adds."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from ase import Atoms
from ase.calculators.calculator import all_changes
from mace.calculators import MACECalculator

from sog_longrange import HostError

from .model import SOGMACE


class SOGMACECalculator(MACECalculator):
    """`MACECalculator` for SOGMACE models, with long-range results.

    Everything that `MACECalculator` returns is right for SOGMACE models too; this
    class adds to ``results``: `long_range_energy` and `short_range_energy` in eV,
    `latent_charges` (n_atoms, n_channels) in e, and `charges` (n_atoms,), the first
    channel. A committee reports the mean. The sign of all charges together is free.

    Parameters
    ----------
    *args, **kwargs
        As for `MACECalculator`.

    Raises
    ------
    HostError
        If a model is no SOGMACE, or compilation or an accelerated backend is asked for.
    """

    extra_results: ClassVar[tuple[str, ...]] = (
        "long_range_energy",
        "short_range_energy",
        "latent_charges",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        refused = [key for key in ("compile_mode", "enable_cueq", "enable_oeq") if kwargs.get(key)]
        if refused:
            raise HostError(
                f"SOGMACECalculator does not support {', '.join(refused)} yet: "
                "they rebuild the model by class. Leave them out."
            )
        super().__init__(*args, **kwargs)
        self.implemented_properties: list[str] = [*MACECalculator.implemented_properties, "charges"]
        self._outputs: list[dict[str, Any]] = []
        for model in self.models:
            if not isinstance(model, SOGMACE):
                raise HostError(
                    f"`models` must be SOGMACE models, got {type(model).__name__}. "
                    "Use mace.calculators.MACECalculator for models without a long-range part."
                )
            model.register_forward_hook(self._keep)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Calculate all properties of a structure; see `ase.calculators.calculator`."""
        self._outputs.clear()
        super().calculate(atoms, properties, system_changes)
        n_atoms = len(self.atoms)
        for key in self.extra_results:
            mean = torch.stack([out[key] for out in self._outputs]).mean(0).cpu().numpy()
            self.results[key] = mean[:n_atoms] if key == "latent_charges" else float(mean[0])
        self.results["charges"] = self.results["latent_charges"][:, 0].copy()

    def _keep(self, _module: SOGMACE, _inputs: object, output: dict[str, Any]) -> None:
        self._outputs.append({key: output[key].detach() for key in self.extra_results})
