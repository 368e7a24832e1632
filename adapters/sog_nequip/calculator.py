"""ASE calculator that passes the boundary on and reports what the long-range part adds."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from nequip.data import AtomicDataDict
from nequip.integrations.ase import NequIPCalculator
from nequip.nn.compile import DictInputOutputWrapper
from nequip.scripts._compile_utils import COMPILE_TARGET_DICT

from sog_longrange import HostError, InputError
from sog_longrange.ase_support import (
    EXTERNAL_FIELD,
    ChargesInASE,
    add_periodic_field,
    check_atoms,
    check_results,
    dipole_of_atoms,
    explain_no_stress,
    explain_no_volume,
    external_field,
    has_volume,
    keep_info,
    periodic_field,
    total_charge,
)
from sog_longrange.errors import explain
from sog_longrange.validation import check_whole

from .keys import (
    CHARGE_STATE_ENERGY_KEY,
    EXTERNAL_FIELD_KEY,
    FIELD_ENERGY_KEY,
    LATENT_CHARGES_KEY,
    LATENT_DIPOLES_KEY,
    LONG_RANGE_ATOMIC_ENERGY_KEY,
    LONG_RANGE_ENERGY_KEY,
    WHOLE_CHARGE,
)
from .registry import ASE_TARGET, find_target

_TARGET: ContextVar[dict[str, Any] | None] = ContextVar("target", default=None)
"""Target of the file that is being opened, which NequIP asks of the class."""


_COMPILED = (
    " A compiled model also gives NaN for a boundary, cell or field that it was not compiled for."
)


class SOGNequIPCalculator(ChargesInASE, NequIPCalculator):
    """`NequIPCalculator` for models with a long-range part.

    Adds to ``results``: `long_range_energy` and `short_range_energy` in eV,
    `long_range_energies` (n_atoms,) in eV, `latent_charges` (n_atoms, n_channels) in e,
    `charges` (n_atoms,), the first channel, and their `dipole` (3,) in e Å, of periodic
    structures on the branch of :func:`sog_longrange.dipole`. The sign of all charges together
    is free, and with it that of the dipole. Models with a charge embedding also give
    `charge_state_energy` in eV, which is in neither of the two energies. Models with latent
    dipoles also report `latent_dipoles` (n_atoms, 3, n_channels) in e Å; those of the first
    channel are part of the `dipole`.

    Stress is that of the structure's own cell, whatever axes are periodic. A structure whose cell
    has no volume has none: `stress` is not among the results, and asking for it raises
    `PropertyNotImplementedError`.

    Open it by `from_compiled_model` with a model that was compiled by
    ``nequip-compile --target sog_ase``, in which periodic and open structures may come in
    turn, or by `from_saved_model` with a checkpoint or package.

    The total charge of a structure is read from ``info["charge"]`` or ``info["total_charge"]``, as
    whatever means one finite number, by models that take one; others do not look at it. A uniform
    external electric field, of 3 floats in V/Å, is read from ``info["external_field"]``.
    Its energy is in all results, and `field_energy` in eV.
    With charges whose sign no training data fixed, the field may act the wrong way round.
    Charges that are screened by electrons feel sqrt(eps_inf) times the field: give it so.
    Compiled models take what they were compiled for: the target `sog_ase_charge` for the total
    charge, `sog_ase_field` for fields perpendicular to the periodic lattice vectors, as that on
    a slab is, and `sog_ase_charge_field` for both.

    In a field along periodic axes, the macroscopic one, forces have Z^T E added, with
    `born_charges` Z (n_atoms, 3, 3) among the results: those of :meth:`get_born_charges` that
    obey the sum rule, so that the field moves no neutral cell as a whole. The energy is that of
    charges where the atoms are, also outside the cell: let no atom be wrapped during a
    simulation. Where charge flows across the cell it is not the potential of these forces, and
    energies in a simulation are not conserved. There is no stress. It takes a backward pass
    through the model for each atom: for 192 atoms of water thirty times as long as energy and
    forces without it.

    Compiled models give neither Born charges nor these forces.
    """

    implemented_properties = [  # noqa: RUF012
        *NequIPCalculator.implemented_properties,
        "charges",
        "dipole",
    ]

    _is_charge_whole = False  # Models that are not compiled tell themselves.

    @classmethod
    def _get_aoti_compile_target(cls) -> dict[str, Any]:
        return _TARGET.get() or COMPILE_TARGET_DICT[ASE_TARGET]

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
        token = _TARGET.set(find_target(compile_path, ASE_TARGET))
        try:
            calculator = super().from_compiled_model(compile_path, *args, **kwargs)
        finally:
            _TARGET.reset(token)
        metadata = calculator.model.model.get_metadata()
        calculator._is_charge_whole = metadata.get(WHOLE_CHARGE) == str(True)
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
        """
        calculator: SOGNequIPCalculator = cls._from_saved_model(*args, **kwargs)
        return calculator

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Calculate all properties of a structure; see `ase.calculators.calculator`.

        Energies and forces that are not finite are refused, naming two atoms at one place if
        there are any.
        """
        given = self.atoms if atoms is None else atoms
        self.results: dict[str, Any] = {}  # Those of another structure, if what follows fails.
        check_atoms(given)
        _check_rows(given)
        field = periodic_field(given)
        if field is not None and "stress" in properties:
            raise PropertyNotImplementedError(explain_no_stress())
        if "stress" in properties and not has_volume(given):
            raise PropertyNotImplementedError(explain_no_volume(given))
        born = None if field is None else self.get_born_charges(given, enforce_sum_rule=True)
        super().calculate(given, properties, system_changes)
        keep_info(self.atoms)
        compiled = isinstance(self.model, DictInputOutputWrapper)
        check_results(self.results, given, _COMPILED if compiled else "")
        if not has_volume(given):
            self.results.pop("stress", None)
        if field is not None and born is not None:
            units = (self.energy_units_to_eV, self.length_units_to_A)
            add_periodic_field(self.results, born.values, given, field, *units)

    def _linked_charges(
        self, atoms: Atoms
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Charges and dipoles of the atoms in the graph of their positions."""
        # Behind the network stands what takes forces, and with them the graph.
        network = getattr(getattr(self.model, "model", None), "func", None)
        if network is None or getattr(self.model, "is_compile_graph_model", False):
            raise HostError(
                "Compiled models give no Born charges, and with them no forces in a field along "
                "periodic axes: their charges cannot be differentiated. Open a checkpoint or "
                "package by SOGNequIPCalculator.from_saved_model."
            )
        given = self.atoms_to_data(atoms)
        data = {key: given[key] for key in self.model.model_input_fields if key in given}
        positions = data[AtomicDataDict.POSITIONS_KEY].detach().clone().requires_grad_()
        out = network(data | {AtomicDataDict.POSITIONS_KEY: positions})
        _check_long_range(out)
        # Channel after channel, each x, y, z.
        dipoles = out[LATENT_DIPOLES_KEY][:, :3] if LATENT_DIPOLES_KEY in out else None
        return out[LATENT_CHARGES_KEY][:, 0], dipoles, positions

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
        number = total_charge(atoms)
        if number is None and needed:
            expected = "with 'charge', the total charge in e"
            raise InputError(explain("atoms.info", expected, str(atoms.info)))
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
        _check_long_range(out)
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
        self.results["long_range_energies"] = unit * found[LONG_RANGE_ATOMIC_ENERGY_KEY][:, 0]
        self.results["latent_charges"] = found[LATENT_CHARGES_KEY]
        charges = self.results["charges"] = found[LATENT_CHARGES_KEY][:, 0].copy()
        own = None
        if LATENT_DIPOLES_KEY in out:
            flat = out[LATENT_DIPOLES_KEY].detach().cpu().numpy()
            dipoles = flat.reshape(len(flat), -1, 3).transpose(0, 2, 1)
            self.results["latent_dipoles"], own = dipoles, dipoles[:, :, 0]
        self.results["dipole"] = dipole_of_atoms(charges, self.atoms, own)


def _check_long_range(out: dict[str, torch.Tensor]) -> None:
    if LATENT_CHARGES_KEY not in out:
        remedy = "Use NequIP's own calculator for models without a long-range part."
        raise HostError(explain("model", "with a long-range part", "none", remedy))


def _check_rows(atoms: Atoms) -> None:
    """Refuse three lattice vectors in one plane, also if some are of open axes: NequIP inverts."""
    if atoms.cell.array.any(axis=1).all() and not has_volume(atoms):
        expected = "of rows that span a volume, or zero along open axes"
        remedy = "Set the rows of open axes to zero, or across the others."
        raise InputError(explain("atoms.cell", expected, f"{atoms.cell.array.tolist()}", remedy))
