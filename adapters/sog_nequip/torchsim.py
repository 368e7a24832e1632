"""TorchSim calculator that passes boundary, charge and field on, and reports what is long-range."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from nequip.data import AtomicDataDict
from nequip.integrations.torchsim import NequIPTorchSimCalc
from nequip.nn.compile import DictInputOutputWrapper
from torch import Tensor

from sog_longrange import HostError
from sog_longrange.ase_support import CHARGES_SUM_TO_ZERO
from sog_longrange.errors import explain
from sog_longrange.hosts import explain_old_models
from sog_longrange.source_checks import check_whole
from sog_longrange.torchsim_support import (
    TORCHSIM,
    charge_results,
    missing_charges,
    read_charges,
    read_fields,
)
from sog_longrange.validation import WHOLE

from .keys import (
    CHARGE_STATE_ENERGY_KEY,
    EXTERNAL_FIELD_KEY,
    FIELD_ENERGY_KEY,
    LATENT_CHARGES_KEY,
    LONG_RANGE_ATOMIC_ENERGY_KEY,
    LONG_RANGE_ENERGY_KEY,
)
from .outputs import check_long_range, dipoles_of
from .registry import BATCH_TARGET, is_charge_whole, opening, target_of


class SOGNequIPTorchSimCalc(NequIPTorchSimCalc):
    """`NequIPTorchSimCalc` for models with a long-range part: charge and field in, charges out.

    Open it by `from_compiled_model` with a model that was compiled by ``nequip-compile --target
    sog_batch``, or by `from_saved_model` with a checkpoint or package. Compiled models take what
    they were compiled for: the target `sog_batch_charge` for total charges, `sog_batch_field`
    for external fields, and `sog_batch_charge_field` for both.

    Total charges are read from the extra `charge` or `total_charge` of the state, uniform
    electric fields across periodic axes from `external_E_field` or `external_field`. Results have
    `long_range_energy` and `short_range_energy`, with a charge embedding also
    `charge_state_energy` and in fields `field_energy` (n_systems,), the `dipole` (n_systems, 3) in
    e Å; and of each atom `long_range_energies` (n_atoms,), `latent_charges` (n_atoms, n_channels),
    `charges` (n_atoms,) in e and, where the model has them, `latent_dipoles`
    (n_atoms, 3, n_channels). TorchSim keeps them among the extras of its states.

    Systems of a batch may differ in size, but not in what axes are periodic, which TorchSim
    refuses.

    Parameters
    ----------
    *args, **kwargs
        As for `NequIPTorchSimCalc`.

    Raises
    ------
    HostError
        If TorchSim is too old.
    """

    _is_charge_whole = False  # Models that are not compiled check it themselves.
    _has_warned_of_charge = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        TORCHSIM.check(version(TORCHSIM.package))
        super().__init__(*args, **kwargs)
        self._given: dict[str, Tensor] = {}

    @classmethod
    def _get_aoti_compile_target(cls) -> dict[str, Any]:
        return target_of(BATCH_TARGET)

    @classmethod
    def from_compiled_model(
        cls, compile_path: str | Path, *args: Any, **kwargs: Any
    ) -> SOGNequIPTorchSimCalc:
        """Open a model that was compiled for `sog_batch` or a target that begins with it.

        Parameters
        ----------
        compile_path : str or Path
        *args, **kwargs
            As for `NequIPTorchSimCalc.from_compiled_model`: `device` and others.

        Returns
        -------
        SOGNequIPTorchSimCalc
        """
        with opening(compile_path, BATCH_TARGET):
            opened = super().from_compiled_model(compile_path, *args, **kwargs)
        opened._is_charge_whole = is_charge_whole(opened.model)
        return cast(SOGNequIPTorchSimCalc, opened)

    @classmethod
    def from_saved_model(cls, *args: Any, **kwargs: Any) -> SOGNequIPTorchSimCalc:
        """Open a checkpoint or package, not compiled.

        Parameters
        ----------
        *args, **kwargs
            As for `NequIPTorchSimCalc._from_saved_model`: the path, `device` and others.

        Returns
        -------
        SOGNequIPTorchSimCalc

        Raises
        ------
        InputError
            If an older version of this package wrote the file.
        """
        with explain_old_models("a checkpoint or package"):
            opened: SOGNequIPTorchSimCalc = cls._from_saved_model(*args, **kwargs)
        return opened

    def forward(self, state: Any) -> dict[str, Tensor]:
        """Evaluate all systems of a state.

        Parameters
        ----------
        state : torch_sim.SimState

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
        HostError
            If there is a field and the model takes none.
        """
        inputs = self._total_charges(state) | self._fields(state)

        def complete(_model: object, given: tuple[Any, ...]) -> tuple[Any, ...]:
            data = given[0] | {key: x.to(self.device) for key, x in inputs.items()}
            # The network takes the boundary out of the data that it gets.
            self._given = dict(data)
            return (data, *given[1:])

        hook = self.model.register_forward_pre_hook(complete)
        try:
            results: dict[str, Tensor] = super().forward(state)
        finally:
            hook.remove()
            self._given = {}
        return results

    def save_extra_outputs(self, out: dict[str, Tensor], results: dict[str, Tensor]) -> None:
        """Store the long-range results of an evaluation.

        Parameters
        ----------
        out : dict
            Fields that the model returned.
        results : dict
            Those of TorchSim, which is changed.

        Raises
        ------
        HostError
            If the model has no long-range part.
        """
        check_long_range(out)
        short_range = results["energy"]
        keys = (LONG_RANGE_ENERGY_KEY, CHARGE_STATE_ENERGY_KEY, FIELD_ENERGY_KEY)
        for key in (key for key in keys if key in out):
            results[key] = out[key].detach().view(-1)
            short_range = short_range - results[key]
        results["short_range_energy"] = short_range
        results["long_range_energies"] = out[LONG_RANGE_ATOMIC_ENERGY_KEY].detach().view(-1)
        given = self._given
        positions = given[AtomicDataDict.POSITIONS_KEY]
        results |= charge_results(
            out[LATENT_CHARGES_KEY].to(positions),
            positions,
            given[AtomicDataDict.CELL_KEY],
            given[AtomicDataDict.PBC_KEY],
            given[AtomicDataDict.BATCH_KEY],
            dipoles_of(out),
        )

    def _needed(self) -> tuple[str, ...]:
        """Return the inputs that a compiled model must get, none for one that is not compiled."""
        compiled = isinstance(self.model, DictInputOutputWrapper)
        return tuple(self.model.input_keys) if compiled else ()

    def _takes(self, key: str) -> bool:
        return key in (self._needed() or getattr(self.model, "model_input_fields", ()))

    def _total_charges(self, state: Any) -> dict[str, Tensor]:
        """Total charges as an input, for models that take them."""
        key, charges = AtomicDataDict.TOTAL_CHARGE_KEY, read_charges(state)
        parts = [m for m in self.model.modules() if hasattr(m, "is_sog_long_range")]
        configs = [part.long_range.config for part in parts]
        is_ignored = bool(configs) and not any(config.needs_total_charge for config in configs)
        if is_ignored or not self._takes(key):
            if charges is not None and bool((charges.abs() > WHOLE).any()):
                self._warn_of_charges(any(x.charge_constraint == "none" for x in configs))
            return {}
        if charges is None:
            raise missing_charges()
        if self._is_charge_whole:
            check_whole(charges)
        return {key: charges.to(torch.float64)[:, None]}

    def _warn_of_charges(self, are_free: bool) -> None:
        """Warn once of total charges that the model takes no notice of and contradicts."""
        if not (are_free or self._has_warned_of_charge):
            self._has_warned_of_charge = True
            text = f"The total charges of the state are ignored: {CHARGES_SUM_TO_ZERO}"
            warnings.warn(text, stacklevel=4)

    def _fields(self, state: Any) -> dict[str, Tensor]:
        """External fields as an input, zero where a compiled model needs them and got none."""
        fields = read_fields(state)
        if fields is not None and not self._takes(EXTERNAL_FIELD_KEY):
            expected = "compiled by `nequip-compile --target sog_batch_field` for an external field"
            remedy = "Do that, or open a checkpoint by SOGNequIPTorchSimCalc.from_saved_model."
            raise HostError(explain("model", expected, "one that takes no field", remedy))
        if fields is None and EXTERNAL_FIELD_KEY not in self._needed():
            return {}
        zero = torch.zeros(state.cell.shape[0], 3)
        return {EXTERNAL_FIELD_KEY: (zero if fields is None else fields).to(torch.float64)}
