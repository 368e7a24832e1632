"""What the long-range part of a model gives, in one form for all hosts."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from torch import Tensor

from .charges.charge_states import ChargeStateOutput
from .charges.electric import electric
from .energy import LongRangeOutput
from .observables.external_field import FieldOutput


class Energies(NamedTuple):
    """An energy of structures and its atoms.

    Attributes
    ----------
    energy : Tensor, shape (n_graphs,), in eV
    atomic_energies : Tensor, shape (n_atoms,), in eV
        Sum to `energy`.
    """

    energy: Tensor
    atomic_energies: Tensor


class EnergyParts(NamedTuple):
    """Parts of the energy of a :class:`ModelOutput`, each with `energy` and `atomic_energies`.

    Attributes
    ----------
    long_range : Energies
        Interaction of the latent charges and dipoles, times the gate.
    charge_state : ChargeStateOutput or None
        What the total charges cost, without a gate; None without `charge_embedding`.
    external_field : FieldOutput or None
        Electric charges and dipoles in the external field, with the `dipole` of each structure;
        None without a field.
    """

    long_range: Energies
    charge_state: ChargeStateOutput | None = None
    external_field: FieldOutput | None = None


class ModelOutput(NamedTuple):
    """Result of :class:`~sog_longrange.SOGLongRange`, which adapters add to that of their host.

    While the gate is below 1, charges, dipoles, potential and field are scaled by its square
    root, so that they give the gated energy.

    Attributes
    ----------
    energy : Tensor, shape (n_graphs,), in eV
        Sum of all parts: what is added to the energy of the host model.
    atomic_energies : Tensor, shape (n_atoms,), in eV
        Sum to `energy`.
    potential : Tensor, shape (n_atoms, n_channels), in eV/e
        Of the latent charges, without any external field.
    charges : Tensor, shape (n_atoms, n_channels), in e
    field : Tensor, shape (n_atoms, 3, n_channels), in eV/(e Å), or None
        Of the latent charges and dipoles at the atoms; None without latent dipoles.
    dipoles : Tensor, shape (n_atoms, 3, n_channels), in e Å, or None
        None without latent dipoles.
    parts : EnergyParts
    """

    energy: Tensor
    atomic_energies: Tensor
    potential: Tensor
    charges: Tensor
    field: Tensor | None
    dipoles: Tensor | None
    parts: EnergyParts

    @classmethod
    def add_up(
        cls,
        long_range: LongRangeOutput,
        charge_state: ChargeStateOutput | None = None,
        external_field: FieldOutput | None = None,
    ) -> ModelOutput:
        """Sum the parts that there are.

        Parameters
        ----------
        long_range : LongRangeOutput
            With charges and dipoles.
        charge_state : ChargeStateOutput, optional
        external_field : FieldOutput, optional

        Returns
        -------
        ModelOutput
        """
        energy, atomic_energies = long_range.energy, long_range.atomic_energies
        parts = EnergyParts(Energies(energy, atomic_energies), charge_state, external_field)
        for part in (charge_state, external_field):
            if part is not None:
                energy = energy + part.energy
                atomic_energies = atomic_energies + part.atomic_energies
        return cls(energy, atomic_energies, *long_range[1:], parts)

    @property
    def electric_charges(self) -> Tensor:
        """Charges of the first channel, (n_atoms,) in e."""
        return electric(self.charges)

    @property
    def electric_dipoles(self) -> Tensor | None:
        """Dipoles of the first channel, (n_atoms, 3) in e Å; None without latent dipoles."""
        return None if self.dipoles is None else electric(self.dipoles)

    def reorder(self, order: Tensor) -> ModelOutput:
        """Return the same with the atoms in another order.

        Parameters
        ----------
        order : Tensor, shape (n_atoms,), int64
            Place that each atom of the result has here.

        Returns
        -------
        ModelOutput
        """
        long_range, charge_state, external_field = self.parts
        parts = EnergyParts(
            Energies(long_range.energy, long_range.atomic_energies[order]),
            None if charge_state is None else _reorder(charge_state, order),
            None if external_field is None else _reorder(external_field, order),
        )
        atomic_energies, potential, charges = (
            x[order] for x in (self.atomic_energies, self.potential, self.charges)
        )
        field, dipoles = (None if x is None else x[order] for x in (self.field, self.dipoles))
        return ModelOutput(self.energy, atomic_energies, potential, charges, field, dipoles, parts)


Part = TypeVar("Part", ChargeStateOutput, FieldOutput)


def _reorder(part: Part, order: Tensor) -> Part:
    return part._replace(atomic_energies=part.atomic_energies[order])
