"""How far charges of atoms are from the whole charges of the fragments that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sog_longrange.validation import WHOLE, check_shape

from .data_summary import formula
from .fragments import Composition, find_fragments


class _Found(NamedTuple):
    """Atoms of fragments whose charges are known, the fragment of each, and the charges.

    The total charge is None where some fragment has no known charge.
    """

    atoms: NDArray[np.int32]
    owners: NDArray[np.int32]
    charges: NDArray[np.int32]
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
        self._found: dict[bytes, _Found] = {}

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
        atoms, owners, aims, first, count = [], [], [], 0, 0
        for number, structure in enumerate(structures):
            found = self._look_up(structure)
            if total_charges is None or _sums_to(found, total_charges[number]):
                atoms.append(first + found.atoms)
                owners.append(count + found.owners)
                aims.append(found.charges)
                count += len(found.charges)
            first += len(structure)
        if count == 0:
            return charges.sum() * 0.0
        rows, own, targets = (_joined(parts, charges.device) for parts in (owners, atoms, aims))
        sums = charges.new_zeros(count).index_add(0, rows, charges[own])
        return (sums - targets).square().mean()

    def _look_up(self, structure: Any) -> _Found:  # noqa: ANN401
        arrays = (structure.numbers, structure.positions, structure.cell.array, structure.pbc)
        key = blake2b(b"".join(np.asarray(own).tobytes() for own in arrays)).digest()
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
        total = sum(charges) if is_known else None
        return _Found(_compact(atoms), _compact(owners), _compact(charges), total)


def _compact(numbers: list[int]) -> NDArray[np.int32]:
    return np.array(numbers, dtype=np.int32)


def _joined(parts: list[NDArray[np.int32]], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(device, torch.int64)


def _sums_to(found: _Found, total: float) -> bool:
    """Tell whether the charges of fragments do not contradict the total charge."""
    return found.total is None or abs(found.total - total) <= WHOLE
