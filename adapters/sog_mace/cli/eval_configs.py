"""``sog_mace_eval_configs``: ``mace_eval_configs`` for models with a long-range part.

It reads the total charge of each structure and its external field, and also writes what only such
models give: charges, dipole and the parts of the energy.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from mace import data
from mace.tools import AtomicNumberTable, torch_geometric
from mace.tools.torch_tools import default_dtype
from tqdm import tqdm

from sog_longrange import InputError, SOGError
from sog_longrange.ase_support import (
    CHARGES_SUM_TO_ZERO,
    TOTAL_CHARGE,
    add_periodic_field,
    born_charges_of_atoms,
    check_atoms,
    external_field,
    has_volume,
    ignored_charge,
    periodic_field,
    total_charge,
)
from sog_longrange.errors import explain
from sog_mace.cells import keep_input_cells
from sog_mace.charges import mark_given
from sog_mace.model import SOGMACE
from sog_mace.results import as_array, linked_charges, long_range_results

from .arguments import check_output, load_model, run_command

PROGRAM = "sog_mace_eval_configs"


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
        known = {int(z) for z in self.model.atomic_numbers}
        lacking = sorted(set(atoms.symbols[[z not in known for z in atoms.numbers]]))
        if len(atoms) == 0 or lacking:
            expected = "one or more, of elements that the model was trained on"
            raise InputError(explain("atoms", expected, ", ".join(lacking) or "none"))
        check_atoms(atoms)
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
        embedded = "total_charge" in (getattr(self.model, "embedding_specs", None) or {})
        return self.model.long_range.config.needs_total_charge or embedded

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


def write_results(atoms: Atoms, results: dict[str, Any], prefix: str) -> None:
    """Put results into a structure, as they are written to a file.

    Parameters
    ----------
    atoms : ase.Atoms
        Changed. Labels that ASE read into a calculator are dropped, as `mace_eval_configs` does.
    results : dict
        Numbers and vectors go to `info`, and what has a row for each atom to `arrays`:
        `latent_dipoles` with 3 n_channels columns, those of the x axis first, and `born_charges`
        with 9, the rows of each matrix one after another.
    prefix : str
        Of all keys.
    """
    atoms.calc = None
    per_atom = ("forces", "node_energy", "charges", "latent_charges", "latent_dipoles")
    for key, value in results.items():
        if key in (*per_atom, "born_charges"):
            flat = value.reshape(len(atoms), -1) if value.ndim > 2 else value
            atoms.arrays[prefix + key] = flat
        else:
            atoms.info[prefix + key] = value


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, whose options are those of ``mace_eval_configs``."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Evaluate structures of a file by a SOGMACE model. Total charges are read from "
        "charge or total_charge of each frame, in e, and uniform external fields from "
        "external_field, of 3 numbers in V/Å. Charges, dipole and the parts of the energy are "
        "written, too.",
    )
    parser.add_argument("--configs", required=True, help="file of the structures")
    parser.add_argument("--model", required=True, help="file of the model")
    parser.add_argument("--output", required=True, help="extxyz file of the results")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    types = ["float32", "float64"]
    text = "precision (default: float64)"
    parser.add_argument("--default_dtype", choices=types, default="float64", help=text)
    text = "frames evaluated together (default: 64)"
    parser.add_argument("--batch_size", type=int, default=64, help=text)
    flags = {
        "compute_stress": "write stress, of frames that have a volume",
        "no_forces": "write no forces, which takes less time",
        "compute_born": "write Born effective charges, 9 numbers for each atom; a backward pass "
        "for each atom",
        "return_node_energies": "write the energy of each atom",
    }
    for name, text in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    text = "prefix of all keys that are written (default: MACE_)"
    parser.add_argument("--info_prefix", default="MACE_", help=text)
    parser.add_argument("--head", help="head of the model, if it has several")
    parser.add_argument("--total_charge_key", help="key of total charges, instead of the two above")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate a file.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.
    """
    run_command(PROGRAM, build_parser(), run, argv)


def run(args: argparse.Namespace) -> None:
    """Do what the command line says.

    Parameters
    ----------
    args : Namespace
        Of `build_parser`.

    Raises
    ------
    InputError, HostError
        If a file, an option or a structure is at fault.
    """
    if args.batch_size < 1:
        raise InputError(explain("batch_size", "at least 1", str(args.batch_size)))
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError(explain("device", "one that PyTorch finds", repr(args.device)))
    check_output(args.output)
    frames = read_frames(args.configs)
    evaluator = _evaluator(args)
    with default_dtype(args.default_dtype):
        results = evaluate_file(evaluator, frames, args.configs, args.batch_size)
    for atoms, found in zip(frames, results, strict=True):
        write_results(atoms, found, args.info_prefix)
    ase.io.write(args.output, frames, format="extxyz")
    ignored = sum(evaluator.ignores_charge(atoms) for atoms in frames)
    if ignored:
        print(f"The total charges of {ignored} frames are ignored: {CHARGES_SUM_TO_ZERO}")
    without = sum("stress" not in found for found in results) if args.compute_stress else 0
    if without:
        reason = "no volume, or are in a field along periodic axes"
        print(f"No stress was written for {without} frames, which have {reason}.")
    print(f"{len(frames)} frames of {args.configs} evaluated, written to {args.output}")


def _evaluator(args: argparse.Namespace) -> Evaluator:
    model = load_model(args.model, args.device).to(getattr(torch, args.default_dtype))
    for parameter in model.parameters():
        parameter.requires_grad = False
    keys = TOTAL_CHARGE if args.total_charge_key is None else (args.total_charge_key,)
    return Evaluator(
        model=model,
        head=choose_head(model, args.head),
        charge_keys=keys,
        forces=not args.no_forces,
        stress=args.compute_stress,
        born=args.compute_born,
        node_energies=args.return_node_energies,
    )


def choose_head(model: SOGMACE, head: str | None) -> str:
    """Find the head to evaluate, without guessing among several.

    Parameters
    ----------
    model : SOGMACE
    head : str or None
        What was asked for.

    Returns
    -------
    str

    Raises
    ------
    InputError
        If there is no such head, or none was asked for of several.
    """
    heads = list(model.heads)
    if head is None and len(heads) == 1:
        return str(heads[0])
    if head is None or head not in heads:
        got = "none of them" if head is None else repr(head)
        raise InputError(explain("head", f"one of {', '.join(heads)}", got, "Name it by --head."))
    return head


def read_frames(path: str) -> list[Atoms]:
    """Read all structures of a file.

    Parameters
    ----------
    path : str

    Returns
    -------
    list of ase.Atoms

    Raises
    ------
    InputError
        If there is no such file, or ASE cannot read it, or it is empty.
    """
    if not Path(path).is_file():
        raise InputError(explain("configs", "a file that exists", repr(path)))
    try:
        frames: list[Atoms] = ase.io.read(path, ":")
    except Exception as error:  # The readers of ASE raise errors of any kind.
        raise InputError(explain("configs", "readable by ASE", f"{path!r}: {error!r}")) from error
    if not frames:
        raise InputError(explain("configs", "one frame or more", f"none in {path!r}"))
    return frames


if __name__ == "__main__":
    main()
