"""How far charges of atoms are from the whole charges of the fragments that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sog_longrange.validation import WHOLE, check_shape

from .data_summary import formula
from .fragments import Composition, find_fragments


class _Found(NamedTuple):
    """Atoms of fragments whose charges are known, the fragment of each, and the charges.

    The total charge is None where some fragment has no known charge.
    """

    atoms: list[int]
    owners: list[int]
    charges: list[int]
    total: int | None


class FragmentCharges:
    """Whole charges of fragments that a set of data tells, as an aim of a training.

    A readout of each atom's features can give every molecule any charge. Where the data tell those
    of all fragments, but no charges of elements sum to them, a loss holds the charges of atoms to
    them. Fragments of each structure are found once.

    Parameters
    ----------
    charges : mapping of tuple to int, in e
        Charge of each composition, as of
        :class:`~sog_longrange.ase_support.data_summary.DataSummary`.
    """

    def __init__(self, charges: Mapping[Composition, int]) -> None:
        self.charges = dict(charges)
        self._found: dict[tuple[bytes, ...], _Found] = {}

    def describe(self) -> str:
        """Name the fragments that have a charge, such as "C2H3O2 -1, CH6N +1"."""
        return ", ".join(f"{formula(kind)} {own:+d}" for kind, own in self.charges.items() if own)

    def mean_square_error(
        self,
        structures: Sequence[Any],
        charges: Tensor,
        total_charges: Sequence[float] | None = None,
    ) -> Tensor:
        """Mean square error of the charges of all fragments whose composition is known.

        Parameters
        ----------
        structures : sequence of ase.Atoms
        charges : Tensor, shape (n_atoms,), in e
            Of the atoms of all structures, one after another.
        total_charges : sequence of float, in e, optional
            Of each structure. One whose fragments sum to another charge, such as a metal or an atom
            alone among data of ions, is left out; without them none is.

        Returns
        -------
        Tensor, shape (), in e²
            Zero where there are no such fragments. Networks without an end have no whole charge
            and are left out.

        Raises
        ------
        InputError
            If the charges are not those of all atoms.
        """
        check_shape(
            "charges", charges, (sum(map(len, structures)),), "(n_atoms,), a charge of each atom"
        )
        atoms: list[int] = []
        owners: list[int] = []
        aims: list[int] = []
        first = 0
        for number, structure in enumerate(structures):
            found = self._look_up(structure)
            if total_charges is not None and not _sums_to(found, total_charges[number]):
                first += len(structure)
                continue
            atoms += [first + index for index in found.atoms]
            owners += [len(aims) + index for index in found.owners]
            aims += found.charges
            first += len(structure)
        if not aims:
            return charges.sum() * 0.0
        targets = charges.new_tensor(aims)
        rows = torch.tensor(owners, device=charges.device)
        own = charges[torch.tensor(atoms, device=charges.device)]
        return (torch.zeros_like(targets).index_add(0, rows, own) - targets).square().mean()

    def _look_up(self, structure: Any) -> _Found:  # noqa: ANN401
        arrays = (structure.numbers, structure.positions, structure.cell.array, structure.pbc)
        key = tuple(np.asarray(own).tobytes() for own in arrays)
        if key not in self._found:
            self._found[key] = self._find(structure)
        return self._found[key]

    def _find(self, structure: Any) -> _Found:  # noqa: ANN401
        atoms: list[int] = []
        owners: list[int] = []
        charges: list[int] = []
        is_known = True
        for fragment in find_fragments(structure):
            charge = self.charges.get(fragment.composition)
            if charge is None or fragment.is_network:
                is_known = False
                continue
            atoms.extend(fragment.atoms)
            owners.extend([len(charges)] * len(fragment.atoms))
            charges.append(charge)
        return _Found(atoms, owners, charges, sum(charges) if is_known else None)


def _sums_to(found: _Found, total: float) -> bool:
    """Tell whether the charges of fragments do not contradict the total charge."""
    return found.total is None or abs(found.total - total) <= WHOLE
