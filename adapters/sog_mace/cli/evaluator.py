"""Evaluation of structures in batches, for the command that evaluates files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from mace import data
from mace.tools import AtomicNumberTable, torch_geometric
from tqdm import tqdm

from sog_longrange import InputError, SOGError
from sog_longrange.ase_support import (
    TOTAL_CHARGE,
    add_periodic_field,
    born_charges_of_atoms,
    check_atoms,
    check_elements,
    external_field,
    has_volume,
    ignored_charge,
    periodic_field,
    total_charge,
)
from sog_longrange.errors import explain
from sog_mace.calculator import embeds_charge
from sog_mace.cells import keep_input_cells
from sog_mace.charges import mark_given
from sog_mace.model import SOGMACE
from sog_mace.results import as_array, linked_charges, long_range_results


@dataclass(frozen=True)
class Evaluator:
    """Evaluates structures in batches.

    Attributes
    ----------
    model : SOGMACE
    head : str
        One of the model's.
    charge_keys : tuple of str
        Keys of the total charge in `atoms.info`, which must not disagree.
    forces, stress, born, node_energies : bool
        What to give besides the energy.
    """

    model: SOGMACE
    head: str
    charge_keys: tuple[str, ...] = TOTAL_CHARGE
    forces: bool = True
    stress: bool = False
    born: bool = False
    node_energies: bool = False

    def check(self, atoms: Atoms) -> None:
        """Raise `InputError` if a structure cannot be evaluated, before it takes any time."""
        check_atoms(atoms)
        check_elements(atoms, {int(z) for z in self.model.atomic_numbers})
        external_field(atoms)
        if self._total_charge(atoms) is None and self.model.long_range.config.needs_total_charge:
            raise InputError(
                explain(
                    "total_charge",
                    f"in every frame for this model, under {' or '.join(self.charge_keys)}",
                    f"none among the keys {sorted(atoms.info)}",
                    "Add it to the file, in e, or name its key by --total_charge_key.",
                )
            )

    def __call__(self, frames: list[Atoms]) -> list[dict[str, Any]]:
        """Evaluate structures together.

        Parameters
        ----------
        frames : list of ase.Atoms

        Returns
        -------
        list of dict
            Results of each structure, in eV, Å and e, keyed by the names of the calculator.

        Raises
        ------
        SOGError
            If one of the structures is malformed, or its energy is not finite.
        """
        batch = self.make_batch(frames)
        stress = self.stress and any(has_stress(atoms) for atoms in frames)
        out = self.model(batch.to_dict(), compute_force=self.forces, compute_stress=stress)
        firsts = batch.ptr.tolist()
        return [self._results(out, atoms, i, firsts[i]) for i, atoms in enumerate(frames)]

    def make_batch(self, frames: list[Atoms]) -> Any:
        """Make the input of the model. Every batch of this command is made here."""
        table = AtomicNumberTable([int(z) for z in self.model.atomic_numbers])
        items, charges = [], [self._total_charge(atoms) for atoms in frames]
        keys = data.KeySpecification(info_keys={"total_spin": "spin"}, arrays_keys={})
        cutoff, heads = float(self.model.r_max), list(self.model.heads)
        for atoms, charge in zip(frames, charges, strict=True):
            config = data.config_from_atoms(atoms, key_specification=keys, head_name=self.head)
            if charge is not None:
                config.properties["total_charge"] = charge
            with keep_input_cells():
                items.append(data.AtomicData.from_config(config, table, cutoff, heads))
        loader = torch_geometric.dataloader.DataLoader(items, batch_size=len(items), shuffle=False)
        batch = next(iter(loader))
        fields = np.stack([_inner_field(atoms) for atoms in frames])
        batch["external_field"] = torch.tensor(fields).to(batch["positions"])
        if None not in charges:
            mark_given(batch)
        return batch.to(next(self.model.parameters()).device)

    @property
    def _reads_charge(self) -> bool:
        return self.model.long_range.config.needs_total_charge or embeds_charge(self.model.mace)

    def _total_charge(self, atoms: Atoms) -> float | None:
        """Total charge, which models that read none are not given."""
        if not self._reads_charge:
            return None
        return total_charge(atoms, self.charge_keys)

    def ignores_charge(self, atoms: Atoms) -> bool:
        """Tell whether a structure has a total charge that its latent charges will not have."""
        if self._reads_charge:
            return False
        constraints = [self.model.long_range.config.charge_constraint]
        return ignored_charge(atoms, constraints, self.charge_keys) is not None

    def _results(self, out: dict[str, Any], atoms: Atoms, graph: int, first: int) -> dict[str, Any]:
        """Collect the results of one structure of a batch."""
        rows = slice(first, first + len(atoms))
        results: dict[str, Any] = {"energy": float(out["energy"][graph].detach())}
        results |= long_range_results(out, atoms, graph, first)
        if self.forces:
            results["forces"] = as_array(out["forces"][rows])
        if self.stress and has_stress(atoms):
            results["stress"] = as_array(out["stress"][graph])
        if self.node_energies:
            results["node_energy"] = as_array(out["node_energy"][rows])
        field = periodic_field(atoms)
        if field is not None:
            add_periodic_field(results, self._born_charges(atoms, True), atoms, field)
            del results["born_charges"]
        if self.born:
            results["born_charges"] = self._born_charges(atoms, False)
        for name, value in results.items():
            if not np.isfinite(value).all():
                remedy = "Two atoms may be at one place, or the training of the model diverged."
                raise InputError(explain(name, "finite", "NaN or infinity", remedy))
        return results

    def _born_charges(self, atoms: Atoms, enforce_sum_rule: bool) -> np.ndarray:
        batch = self.make_batch([atoms]).to_dict()
        charges, dipoles, positions = linked_charges(self.model, batch, len(atoms))
        return born_charges_of_atoms(
            charges, positions, atoms, enforce_sum_rule=enforce_sum_rule, dipoles=dipoles
        ).values


def has_stress(atoms: Atoms) -> bool:
    """Tell whether a structure has a stress: a volume, and no field along its periodic axes.

    Parameters
    ----------
    atoms : ase.Atoms

    Returns
    -------
    bool
    """
    return has_volume(atoms) and periodic_field(atoms) is None


def _inner_field(atoms: Atoms) -> np.ndarray:
    """Field that the model itself takes: one along periodic axes acts by Born charges."""
    field = external_field(atoms)
    if field is None or periodic_field(atoms) is not None:
        return np.zeros(3)
    vector: np.ndarray = field.numpy()
    return vector


def evaluate_file(
    evaluator: Evaluator, frames: list[Atoms], name: str, batch_size: int = 64
) -> list[dict[str, Any]]:
    """Evaluate the structures of a file, all of which are checked first.

    Parameters
    ----------
    evaluator : Evaluator
    frames : list of ase.Atoms
    name : str
        Of the file, for messages.
    batch_size : int
        Structures to be evaluated together.

    Returns
    -------
    list of dict
        Results of each structure.

    Raises
    ------
    InputError
        Naming the file and the frame.
    """
    for index, atoms in enumerate(frames):
        with _named(f"frame {index} of {name}"):
            evaluator.check(atoms)
    results: list[dict[str, Any]] = []
    with tqdm(total=len(frames), unit="frame", disable=None) as progress:
        for first in range(0, len(frames), batch_size):
            results += _evaluate(evaluator, frames[first : first + batch_size], name, first)
            progress.update(len(results) - first)
    return results


def _evaluate(
    evaluator: Evaluator, frames: list[Atoms], name: str, first: int
) -> list[dict[str, Any]]:
    """Evaluate a batch, or its structures one by one where it fails, to name the one at fault."""
    if len(frames) == 1:
        with _named(f"frame {first} of {name}"):
            return evaluator(frames)
    try:
        return evaluator(frames)
    except (SOGError, torch.cuda.OutOfMemoryError):
        singles = enumerate(frames, start=first)
        return [_evaluate(evaluator, [atoms], name, index)[0] for index, atoms in singles]


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Let errors say which frame they are about."""
    try:
        yield
    except SOGError as error:
        raise InputError(f"{where}: {error}") from error
    except torch.cuda.OutOfMemoryError as error:
        raise InputError(f"{where}: too large for the memory of the device") from error
