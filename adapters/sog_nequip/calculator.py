"""ASE calculator that passes the boundary on and reports what the long-range part adds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from nequip.data import AtomicDataDict
from nequip.integrations.ase import NequIPCalculator
from nequip.nn.compile import DictInputOutputWrapper

from sog_longrange import HostError, InputError
from sog_longrange.ase_support import (
    EXTERNAL_FIELD,
    RESULTS,
    ChargesInASE,
    charge_results,
    external_field,
    given_charge,
    has_volume,
    periodic_field,
    total_charge,
)
from sog_longrange.charges.electric import electric
from sog_longrange.errors import explain
from sog_longrange.hosts import explain_old_models
from sog_longrange.kernels.kernel import Kernel
from sog_longrange.source_checks import check_whole

from .keys import (
    CHARGE_STATE_ENERGY_KEY,
    EXTERNAL_FIELD_KEY,
    FIELD_ENERGY_KEY,
    LATENT_CHARGES_KEY,
    LONG_RANGE_ATOMIC_ENERGY_KEY,
    LONG_RANGE_ENERGY_KEY,
)
from .outputs import check_long_range, dipoles_of
from .parts import long_range_parts
from .registry import ASE_TARGET, is_charge_whole, opening, target_of

_COMPILED = (
    " A compiled model also gives NaN for a boundary, cell or field that it was not compiled for."
)


class SOGNequIPCalculator(ChargesInASE, NequIPCalculator):
    """`NequIPCalculator` for models with a long-range part.

    What it adds to ``results``, and the charges and fields that it reads from ``info``, are
    described at :class:`~sog_longrange.ase_support.ChargesInASE`; here there are also
    `long_range_energies` (n_atoms,) in eV.

    Open it by `from_compiled_model` with a model that was compiled by
    ``nequip-compile --target sog_ase``, in which periodic and non-periodic structures may come in
    turn, or by `from_saved_model` with a checkpoint or package.

    Compiled models take what they were compiled for: the target `sog_ase_charge` for the total
    charge, `sog_ase_field` for fields perpendicular to the periodic lattice vectors, as that on
    a slab is, and `sog_ase_charge_field` for both. They give neither Born charges nor forces in
    a field along periodic axes.
    """

    implemented_properties = [  # noqa: RUF012
        *NequIPCalculator.implemented_properties,
        *RESULTS,
    ]
    _not_implemented = PropertyNotImplementedError

    _is_charge_whole = False  # Models that are not compiled check it themselves.

    @classmethod
    def _get_aoti_compile_target(cls) -> dict[str, Any]:
        return target_of(ASE_TARGET)

    @classmethod
    def from_compiled_model(
        cls, compile_path: str | Path, *args: Any, **kwargs: Any
    ) -> SOGNequIPCalculator:
        """Open a model that was compiled for `sog_ase` or a target that begins with it.

        Parameters
        ----------
        compile_path : str or Path
        *args, **kwargs
            As for `NequIPCalculator.from_compiled_model`: `device` and others.

        Returns
        -------
        SOGNequIPCalculator
        """
        with opening(compile_path, ASE_TARGET):
            calculator = super().from_compiled_model(compile_path, *args, **kwargs)
        calculator._is_charge_whole = is_charge_whole(calculator.model)
        return cast(SOGNequIPCalculator, calculator)

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

        Raises
        ------
        InputError
            If an older version of this package wrote the file.
        """
        with explain_old_models("a checkpoint or package"):
            calculator: SOGNequIPCalculator = cls._from_saved_model(*args, **kwargs)
        return calculator

    def known_elements(self) -> list[int]:
        """Atomic numbers that the model knows.

        Returns
        -------
        list of int
            All, if nothing maps them to types.
        """
        tables = [t.lookup_table for t in self.transforms if hasattr(t, "lookup_table")]
        return torch.nonzero(tables[0] >= 0).flatten().tolist() if tables else list(range(1, 119))

    def _prepare(self, atoms: Atoms) -> None:
        """Refuse cells that NequIP cannot invert."""
        _check_rows(atoms)

    def _explain_not_finite(self) -> str:
        """Name another cause of results that are not finite, of compiled models."""
        return _COMPILED if isinstance(self.model, DictInputOutputWrapper) else ""

    def _linked_charges(
        self, atoms: Atoms
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Charges and dipoles of the atoms in the graph of their positions."""
        network = self._network()
        given = self.atoms_to_data(atoms)
        data = {key: given[key] for key in self.model.model_input_fields if key in given}
        positions = data[AtomicDataDict.POSITIONS_KEY].detach().clone().requires_grad_()
        out = network(data | {AtomicDataDict.POSITIONS_KEY: positions})
        check_long_range(out)
        own = dipoles_of(out)
        dipoles = None if own is None else electric(own)
        return electric(out[LATENT_CHARGES_KEY]), dipoles, positions

    def _network(self) -> Any:
        """Return the network, whose charges can be differentiated."""
        # Behind the network stands what takes forces, and with them the graph.
        network = getattr(getattr(self.model, "model", None), "func", None)
        if network is None or getattr(self.model, "is_compile_graph_model", False):
            raise HostError(
                "Compiled models give no Born charges, and with them no forces in a field along "
                "periodic axes: their charges cannot be differentiated. Open a checkpoint or "
                "package by SOGNequIPCalculator.from_saved_model."
            )
        return network

    def _kernel(self) -> Kernel:
        """Kernel of the charges."""
        kernel: Kernel = long_range_parts(self._network())[0].long_range.energy.kernel
        return kernel

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
            If the external field is not 3 finite numbers, or a compiled model lacks the total
            charge or gets a fractional one that it was not trained for.
        """
        data: dict[str, torch.Tensor] = super().atoms_to_data(atoms)
        needed = self.model.input_keys if isinstance(self.model, DictInputOutputWrapper) else ()
        return data | self._total_charge(atoms, needed) | self._field(atoms, needed)

    def _total_charge(self, atoms: Atoms, needed: Sequence[str]) -> dict[str, torch.Tensor]:
        """Total charge as an input, which a model that is not compiled checks itself."""
        taken = needed or getattr(self.model, "model_input_fields", ())
        parts = [m for m in self.model.modules() if hasattr(m, "is_sog_long_range")]
        configs = [part.long_range.config for part in parts]
        is_ignored = bool(configs) and not any(config.needs_total_charge for config in configs)
        if is_ignored or AtomicDataDict.TOTAL_CHARGE_KEY not in taken:
            self._ignore_charge(atoms, [config.charge_constraint for config in configs])
            return {}
        number = given_charge(atoms) if needed else total_charge(atoms)
        if number is None:
            return {}
        charge = torch.tensor([[number]], dtype=torch.float64)
        if needed and self._is_charge_whole:
            check_whole(charge[0])
        return {AtomicDataDict.TOTAL_CHARGE_KEY: charge.to(self.device)}

    def _field(self, atoms: Atoms, needed: Sequence[str]) -> dict[str, torch.Tensor]:
        """External field as an input, without those along periodic axes."""
        field = external_field(atoms) if periodic_field(atoms) is None else None
        if field is None:
            if EXTERNAL_FIELD_KEY not in needed:
                return {}
            field = torch.zeros(3, dtype=torch.float64)
        taken = needed or getattr(self.model, "model_input_fields", ())
        if EXTERNAL_FIELD_KEY not in taken:
            raise HostError(
                "This model takes no external field: it was not compiled by `nequip-compile "
                "--target sog_ase_field`, or was packaged by an older version. Do that, open a "
                "checkpoint by SOGNequIPCalculator.from_saved_model, or remove "
                f'atoms.info["{EXTERNAL_FIELD}"].'
            )
        return {EXTERNAL_FIELD_KEY: field[None].to(self.device)}

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
        check_long_range(out)
        found = {
            key: out[key].detach().cpu().numpy()
            for key in (LATENT_CHARGES_KEY, LONG_RANGE_ENERGY_KEY, LONG_RANGE_ATOMIC_ENERGY_KEY)
        }
        unit = self.energy_units_to_eV
        total = float(out[AtomicDataDict.TOTAL_ENERGY_KEY].detach().sum())
        long_range = float(found[LONG_RANGE_ENERGY_KEY].sum())
        short_range = total - long_range
        for key in (FIELD_ENERGY_KEY, CHARGE_STATE_ENERGY_KEY):
            if key in out:
                energy = float(out[key].detach().sum())
                self.results[key] = unit * energy
                short_range -= energy
        self.results["long_range_energy"] = unit * long_range
        self.results["short_range_energy"] = unit * short_range
        self.results["long_range_energies"] = unit * found[LONG_RANGE_ATOMIC_ENERGY_KEY].ravel()
        own = dipoles_of(out)
        dipoles = None if own is None else own.detach().cpu().numpy()
        self.results |= charge_results(found[LATENT_CHARGES_KEY], self.atoms, dipoles)


def open_calculator(paths: Sequence[Path], device: str) -> SOGNequIPCalculator:
    """Open a compiled model, a package or a checkpoint.

    Parameters
    ----------
    paths : sequence of Path
        Of one model.
    device : str

    Returns
    -------
    SOGNequIPCalculator

    Raises
    ------
    HostError
        If there are several: NequIP has no committees.
    InputError
        If an older version of this package wrote the file.
    """
    if len(paths) != 1:
        got = ", ".join(map(str, paths))
        raise HostError(explain("paths", "one file of a NequIP model", got, "Run them in turn."))
    if paths[0].suffix == ".pt2":
        return SOGNequIPCalculator.from_compiled_model(paths[0], device=device)
    return SOGNequIPCalculator.from_saved_model(paths[0], device=device)


def _check_rows(atoms: Atoms) -> None:
    """Refuse three lattice vectors in one plane, also if some are of open axes: NequIP inverts."""
    if atoms.cell.array.any(axis=1).all() and not has_volume(atoms):
        expected = "of rows that span a volume, or zero along open axes"
        remedy = "Set the rows of open axes to zero, or across the others."
        raise InputError(explain("atoms.cell", expected, f"{atoms.cell.array.tolist()}", remedy))
