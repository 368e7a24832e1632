"""TorchSim model that takes total charges and fields, and reports what the long range adds."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mace
import torch
from torch import Tensor

from sog_longrange import HostError
from sog_longrange.ase_support import CHARGES_SUM_TO_ZERO
from sog_longrange.errors import explain
from sog_longrange.hosts import explain_old_models, load_library
from sog_longrange.torchsim_support import (
    TORCHSIM,
    charge_results,
    missing_charges,
    read_charges,
    read_fields,
)
from sog_longrange.validation import WHOLE

from .backbone import accelerated, compiled, name_backend
from .calculator import embeds_charge
from .cells import INPUT_CELL
from .host import SUPPORTED
from .model import SOGMACE
from .results import PARTS

try:
    from mace.calculators.mace_torchsim import MaceTorchSimModel
except ModuleNotFoundError as error:
    raise HostError(
        explain(SUPPORTED.package, "0.3.16 or newer for TorchSim", mace.__version__, "Update it.")
    ) from error


class SOGMACETorchSimModel(MaceTorchSimModel):
    """`MaceTorchSimModel` for SOGMACE models: charge and field in, charges and dipole out.

    The total charge of each system is read from the extra `charge` or `total_charge` of the
    state, a uniform external electric field from `external_E_field` or `external_field`, such as
    ``torch_sim.io.atoms_to_state(frames, device, dtype, system_extras_map={"charge": "charge",
    "external_E_field": "external_field"})`` reads them from `atoms.info`. Models that need no
    total charge take no notice of it, and warn where it contradicts them.

    Adds to the results of each system `long_range_energy` and `short_range_energy`, with a
    charge embedding also `charge_state_energy` and in fields `field_energy` (n_systems,) in eV, and
    the `dipole` (n_systems, 3) in e Å; of each atom `latent_charges` (n_atoms, n_channels) and
    `charges` (n_atoms,) in e, those of the first channel, and with latent dipoles
    `latent_dipoles` (n_atoms, 3, n_channels) in e Å. TorchSim keeps them among the extras of
    its states. They mean what :class:`~sog_longrange.ase_support.ChargesInASE` says.

    Systems of a batch may differ in size, but not in what axes are periodic, which TorchSim
    refuses. The stress of systems whose cell has no volume is NaN.

    Parameters
    ----------
    model : SOGMACE, str or Path
        Or the file of one. Changed in place, as by `MaceTorchSimModel`: no parameter requires a
        gradient afterwards.
    device : torch.device, optional
        By default a GPU if there is one.
    dtype : torch.dtype
        Of the state and the model.
    enable_cueq, enable_oeq : bool
        Evaluate the inner model by cuEquivariance or OpenEquivariance, or parts by each of them.
    compile_mode : str, optional
        Mode of `torch.compile` for the inner model, which is compiled once for all sizes.
    fullgraph : bool
        Compile it as one graph, unless it is converted.
    **options
        As for `MaceTorchSimModel`: `head`, `compute_stress`, `neighbor_list_fn` and others.

    Raises
    ------
    MissingLibraryError
        If TorchSim, or the library of a backend, is not installed.
    HostError
        If TorchSim is too old, the model is no SOGMACE, or MACE cannot convert or compile it.
    InputError
        If an older version of this package wrote the file of a model.
    """

    model: Any

    def __init__(
        self,
        model: SOGMACE | str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
        *,
        enable_cueq: bool = False,
        enable_oeq: bool = False,
        compile_mode: str | None = None,
        fullgraph: bool = True,
        **options: Any,
    ) -> None:
        load_library("torch_sim", "torchsim")
        TORCHSIM.check(version(TORCHSIM.package))
        where = None if device is None else torch.device(device)
        with explain_old_models("a model file"):
            super().__init__(model, where, dtype, **options)
        if not isinstance(self.model, SOGMACE):
            remedy = "Use mace.calculators.mace_torchsim for models without a long-range part."
            got = type(self.model).__name__
            raise HostError(explain("model", "a SOGMACE model", got, remedy))
        backend = name_backend(enable_cueq, enable_oeq)
        if backend is not None:
            self.model = accelerated(self.model, backend, self.device)
        if compile_mode is not None:
            self.model = compiled(self.model, compile_mode, fullgraph=fullgraph, dynamic=True)
        self.model.requires_grad_(False)
        self._has_warned_of_charge = False

    def forward(self, state: Any) -> dict[str, Tensor]:
        """Evaluate all systems of a state.

        Parameters
        ----------
        state : torch_sim.SimState or dict

        Returns
        -------
        dict of str to Tensor
            `energy`, `forces` and `stress`, and what the class adds.

        Raises
        ------
        InputError
            If total charges are missing that the model needs, or extras are malformed.
        BoundaryError
            If a field has a component along a periodic lattice vector.
        """
        charges, fields = self._total_charges(state), read_fields(state)
        kept: list[dict[str, Any]] = []

        def complete(_model: SOGMACE, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            data = dict(inputs[0])
            data[INPUT_CELL] = data["cell"].reshape(-1, 3)
            data.pop("total_charge", None)
            given = {"total_charge": charges, "external_field": fields}
            data |= {k: x.to(data["positions"]) for k, x in given.items() if x is not None}
            kept.append(data)
            return (data, *inputs[1:])

        def keep(_model: SOGMACE, _inputs: object, output: dict[str, Any]) -> None:
            kept.append(output)

        hooks = [
            self.model.register_forward_pre_hook(complete),
            self.model.register_forward_hook(keep),
        ]
        try:
            results: dict[str, Tensor] = super().forward(state)
        finally:
            for hook in hooks:
                hook.remove()
        return results | _long_range_results(*kept)

    def _total_charges(self, state: Any) -> Tensor | None:
        """Total charges for models that take them, which are not guessed where they matter."""
        charges, config = read_charges(state), self.model.long_range.config
        if config.needs_total_charge and charges is None:
            raise missing_charges()
        if charges is None or config.needs_total_charge or embeds_charge(self.model.mace):
            return charges
        is_charged = bool((charges.abs() > WHOLE).any())
        if is_charged and config.charge_constraint != "none" and not self._has_warned_of_charge:
            self._has_warned_of_charge = True
            text = f"The total charges of the state are ignored: {CHARGES_SUM_TO_ZERO}"
            warnings.warn(text, stacklevel=3)
        return None


def _long_range_results(data: dict[str, Any], out: dict[str, Any]) -> dict[str, Tensor]:
    """Collect what only models with a long-range part say of each system."""
    results: dict[str, Tensor] = {key: out[key].detach() for key in PARTS if key in out}
    if "external_field" in data:
        # There is none in fields that are zero throughout.
        energy = out.get("field_energy")
        found = torch.zeros_like(results["long_range_energy"]) if energy is None else energy
        results["field_energy"] = found.detach()
    return results | charge_results(
        out["latent_charges"],
        data["positions"],
        data["cell"].view(-1, 3, 3),
        data["pbc"],
        data["batch"],
        out.get("latent_dipoles"),
    )
