"""What the ASE calculators of models with latent charges share."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from sog_longrange.errors import InputError, explain
from sog_longrange.kernels.kernel import Kernel
from sog_longrange.kernels.long_waves import coulomb_strength

from .results import (
    AtomicBornCharges,
    add_periodic_field,
    born_charges_of_atoms,
    check_results,
)
from .structures import (
    CHARGES_SUM_TO_ZERO,
    EXTERNAL_FIELD,
    AtomsLike,
    check_atoms,
    check_elements,
    has_volume,
    ignored_charge,
    is_info_changed,
    keep_info,
    periodic_field,
)

RESULTS = ("charges", "dipole")
"""Results with names of ASE's that such calculators add to those of their host."""

STRESSES = ("stress", "stress_comm", "stress_var")


class ChargesInASE:
    """ASE calculator of models with latent charges, to stand before the class of the host.

    Adds to ``results``:
    `long_range_energy` and `short_range_energy` in eV,
    `latent_charges` (n_atoms, n_channels) in e, `charges` (n_atoms,), the first
    channel, and their `dipole` (3,) in e Å, of periodic structures on the branch of
    :func:`sog_longrange.dipole`. The sign of all charges together is free, and with it that of
    the dipole. Models with a charge embedding also give `charge_state_energy` in eV, which is in
    neither of the two energies. Models with latent dipoles also report `latent_dipoles`
    (n_atoms, 3, n_channels) in e Å; those of the first channel are part of the `dipole`.

    Stress is that of the structure's own cell, whatever axes are periodic. A structure whose cell
    has no volume has none: `stress` is not among the results, and asking for it raises
    `PropertyNotImplementedError`.

    The total charge of a structure is read from ``info["charge"]`` or ``info["total_charge"]``, as
    whatever means one finite number, by models that take one; others do not look at it. A uniform
    external electric field, of 3 floats in V/Å, is read from ``info["external_field"]``.
    Its energy is in all results, and `field_energy` in eV.
    With charges whose sign no training data fixed, the field may act the wrong way round.
    On charges that are screened by electrons sqrt(eps_inf) times the field acts: give it so.

    In a field along periodic axes, the macroscopic one, forces have Z^T E added, with
    `born_charges` Z (n_atoms, 3, 3) among the results: those of :meth:`get_born_charges` that
    obey the sum rule, so that the field moves no neutral cell as a whole. The energy is that of
    charges where the atoms are, also outside the cell: let no atom be wrapped during a
    simulation. Where charge flows across the cell it is not the potential of these forces, and
    energies in a simulation are not conserved. There is no stress. It takes a backward pass
    through the model for each atom: for 192 atoms of water thirty times as long as energy and
    forces without it.

    Notes
    -----
    A class of an adapter sets `_not_implemented` and defines `known_elements`, `_kernel` and
    `_linked_charges`; it may extend `_prepare`, `_evaluate`, `_add_results`,
    `_explain_not_finite` and `calculate_batch`. The class of its host has `energy_units_to_eV`
    and `length_units_to_A`.
    """

    atoms: Any  # None before the first calculation
    energy_units_to_eV: float  # noqa: N815
    length_units_to_A: float  # noqa: N815
    _not_implemented: type[Exception] = NotImplementedError  # That of ASE.
    _has_warned_of_charge = False

    def calculate(
        self,
        atoms: AtomsLike | None = None,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] | None = None,
    ) -> None:
        """Calculate all properties of a structure; see `ase.calculators.calculator`.

        Parameters
        ----------
        atoms : ase.Atoms, optional
            By default the structure that the calculator belongs to.
        properties : sequence of str, optional
            What must be among the results, by the names of ASE.
        system_changes : sequence of str, optional
            What ASE found to have changed.

        Raises
        ------
        NotFiniteError
            If energies or forces are not finite; it names two atoms at one place, if there are
            any.
        """
        given = self.atoms if atoms is None else atoms
        self.results: dict[str, Any] = {}  # Those of another structure, if what follows fails.
        check_atoms(given)
        self.check_species(given)
        field = periodic_field(given)
        if "stress" in (properties or ()):
            self._check_stress(given, field is not None)
        born = None if field is None else self.get_born_charges(given, enforce_sum_rule=True)
        changes = {} if system_changes is None else {"system_changes": system_changes}
        self._evaluate(given, list(properties or ["energy"]), **changes)
        keep_info(self.atoms)
        check_results(self.results, given, self._explain_not_finite())
        self._add_results()
        if not has_volume(given):
            for key in STRESSES:
                self.results.pop(key, None)
        if field is not None and born is not None:
            units = (self.energy_units_to_eV, self.length_units_to_A)
            add_periodic_field(self.results, born.values, given, field, *units)

    def known_elements(self) -> list[int]:
        """Atomic numbers that the model knows.

        Returns
        -------
        list of int
            In rising order.
        """
        raise NotImplementedError

    def check_species(self, atoms: AtomsLike) -> None:
        """Refuse atoms that the model cannot take, wherever they are.

        Parameters
        ----------
        atoms : ase.Atoms

        Raises
        ------
        InputError
            If the model does not know an element, or what it needs besides, as the total charge,
            is missing or malformed.
        HostError
            If the model cannot take an external field that there is.
        """
        check_elements(atoms, self.known_elements())
        self._prepare(atoms)

    def calculate_batch(
        self, frames: Sequence[AtomsLike], properties: Sequence[str] = ("energy", "forces")
    ) -> list[dict[str, Any]]:
        """Calculate properties of several structures, in one evaluation where that is possible.

        For programs that ask for what they need and no more, as engines of molecular dynamics.
        Here structures are evaluated in turn; :attr:`atoms` and :attr:`results` may change.

        Parameters
        ----------
        frames : sequence of ase.Atoms
        properties : sequence of str
            Names of results.

        Returns
        -------
        list of dict
            Results of each structure, as :meth:`calculate` has them: `properties`, and any others.

        Raises
        ------
        PropertyNotImplementedError
            If one of the properties is not among the results.
        SOGError
            As :meth:`calculate`.
        """
        batch = []
        for atoms in frames:
            self.calculate(atoms, list(properties))
            for name in properties:
                if name not in self.results:
                    expected = f"among {', '.join(sorted(self.results))}"
                    raise self._not_implemented(explain("properties", expected, name))
            batch.append(dict(self.results))
        return batch

    def _prepare(self, atoms: AtomsLike) -> None:
        """Check what only models of this host take of a structure."""

    def _evaluate(self, atoms: AtomsLike, properties: list[str], **changes: Sequence[str]) -> None:
        """Evaluate the model without a field along periodic axes, all results included."""
        super().calculate(atoms, properties, **changes)  # type: ignore[misc]

    def _add_results(self) -> None:
        """Add to results that are finite."""

    def _explain_not_finite(self) -> str:
        """Say what else, besides the structure, could make results not finite."""
        return ""

    def _check_stress(self, atoms: AtomsLike, in_field: bool) -> None:
        if in_field:
            raise self._not_implemented(explain_no_stress())
        if not has_volume(atoms):
            raise self._not_implemented(explain_no_volume(atoms))

    def _ignore_charge(self, atoms: AtomsLike, constraints: Iterable[str]) -> None:
        """Warn once of a total charge that models take no notice of and contradict."""
        charge = ignored_charge(atoms, constraints)
        if charge is not None and not self._has_warned_of_charge:
            self._has_warned_of_charge = True
            text = f"The total charge {charge:g} e in atoms.info is ignored: {CHARGES_SUM_TO_ZERO}"
            warnings.warn(text, stacklevel=2)

    def check_state(self, atoms: AtomsLike, tol: float = 1e-15) -> list[str]:
        """Tell what changed since the last calculation, field and total charge included.

        Parameters
        ----------
        atoms : ase.Atoms
        tol : float
            Largest difference of numbers that counts as none.

        Returns
        -------
        list of str
            Names of ASE, and "info" for field and total charge.
        """
        changes: list[str] = super().check_state(atoms, tol)  # type: ignore[misc]
        if not changes and is_info_changed(self.atoms, atoms):
            changes.append("info")
        return changes

    def get_born_charges(
        self,
        atoms: AtomsLike | None = None,
        *,
        eps_inf: float = 1.0,
        reach: float | None = None,
        enforce_sum_rule: bool = False,
    ) -> AtomicBornCharges:
        """Born effective charges of the charges of the first channel, with their response.

        Parameters
        ----------
        atoms : ase.Atoms, optional
            By default those of the last calculation.
        eps_inf, reach, enforce_sum_rule
            As for :func:`sog_longrange.born_charges`. The reach of a model without a charge
            constraint is its number of layers times its cutoff.

        Returns
        -------
        AtomicBornCharges
            `values` (n_atoms, 3, 3) in e, Z_jab = sqrt(eps_inf) dP_a / dr_jb, and `sum_rule`
            (3, 3), what is left of the acoustic sum rule. Their common sign is free.

        Raises
        ------
        HostError
            If the charges cannot be differentiated, as those of a compiled model, or have no
            mean, as those of a committee, whose signs are free one by one.
        InputError
            If an option is malformed or there are no atoms.
        """
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise InputError(explain("atoms", "given before any calculation", "None"))
        charges, dipoles, positions = self._linked_charges(atoms)
        return born_charges_of_atoms(
            charges,
            positions,
            atoms,
            eps_inf=eps_inf,
            reach=reach,
            enforce_sum_rule=enforce_sum_rule,
            dipoles=dipoles,
        )

    def get_coulomb_strength(self) -> float:
        """Strength of the interaction of charges far apart, relative to that in vacuum.

        Returns
        -------
        float
            1 where their kernel is 1/r, also one that training left so. Another value means
            that charges are not in e: forces of long waves are those of charges that are scaled
            by its square root.

        Raises
        ------
        HostError
            For committees.
        """
        return coulomb_strength(self._kernel())

    def _kernel(self) -> Kernel:
        """Kernel of the charges of the one model."""
        raise NotImplementedError

    def _linked_charges(self, atoms: AtomsLike) -> tuple[Tensor, Tensor | None, Tensor]:
        """Charges (n_atoms,) and dipoles (n_atoms, 3) of atoms in the graph of the positions."""
        raise NotImplementedError


def explain_no_volume(atoms: AtomsLike) -> str:
    """Say why there is no stress of a structure without a volume.

    Parameters
    ----------
    atoms : ase.Atoms

    Returns
    -------
    str
    """
    return explain(
        "properties",
        "without 'stress' for a structure whose cell has no volume",
        f"one with it, and the cell {atoms.cell.array.tolist()}",
        "Stress is the derivative of the energy in strain over the volume of the cell. Set three "
        "rows that span a volume, along open axes with vacuum, or ask for energy and forces only.",
    )


def explain_no_stress() -> str:
    """Say why there is no stress in a field along periodic axes.

    Returns
    -------
    str
    """
    return explain(
        "properties",
        "without 'stress' in a field along periodic axes",
        "one with it",
        "The dipole of a strained cell depends on the images of its atoms. Keep the cell fixed, "
        f'or remove atoms.info["{EXTERNAL_FIELD}"].',
    )
