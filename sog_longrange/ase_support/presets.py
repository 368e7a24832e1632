"""The preset that fits structures, and a command that prints it: ``sog_preset train.xyz``."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sog_longrange.errors import InputError, SOGError, explain
from sog_longrange.hosts import load_library
from sog_longrange.presets import (
    AUTO,
    CHARGE_STATES,
    COMMAND,
    FAST,
    NONE,
    PRESETS,
    SINGLE,
    WITH_DISPERSION,
    Preset,
    apply_preset,
    find_preset,
)

from .data_summary import DataSummary
from .decay import Decay, measure_decay
from .formal_charges import formal_charges, spread
from .fragment_charges import FragmentCharges
from .fragments import is_atom
from .structures import TOTAL_CHARGE, total_charge

FORCES: Final = "REF_forces"
"""Key of forces that is looked at where none is told, as MACE does."""

CAREFUL: Final = "atoms"
"""Readout where charges of fragments are not known: of each atom's features."""

IONS: Final = "ions"
"""Readout where charges of elements sum to those of fragments."""


@dataclass(frozen=True)
class Choice:
    """A preset that was chosen by the data.

    Attributes
    ----------
    name : str
    preset : Preset
        The one of this name, with what the data add to it.
    why : str
    fragments : FragmentCharges or None
        Whole charges of fragments that a loss can hold charges of atoms to: where the data tell
        them, but nothing that the readout is made of gives them.
    """

    name: str
    preset: Preset
    why: str
    fragments: FragmentCharges | None = None


def choose_preset(summary: DataSummary, name: str = AUTO, decay: Decay | None = None) -> Choice:
    """Choose a preset by what structures consist of, and the charges that elements begin with.

    Parameters
    ----------
    summary : DataSummary
        From :func:`~sog_longrange.ase_support.formal_charges.formal_charges`.
    name : str
        "auto", or the preset that was chosen already and gets what the data add to it.
    decay : Decay, optional
        From :func:`~sog_longrange.ase_support.decay.measure_decay`, which decides for "auto" where
        charges are not known.

    Returns
    -------
    Choice

    Raises
    ------
    ConfigError
        If there is no preset of this name.
    """
    if name != AUTO:
        return _complete(name, find_preset(name), summary)
    if decay and summary.charges is None and decay.of_dispersion:
        return _of_dispersion(decay)
    choice = _of_data(summary)
    if decay and summary.charges is None and decay.of_screening:
        choice = _screened(choice, decay)
    return _of_states(choice) if summary.has_charge_states else choice


def _of_states(choice: Choice) -> Choice:
    """Make the total charge an input."""
    preset = choice.preset.joined(CHARGE_STATES)
    if preset.options.get("readout") == CAREFUL:
        preset = preset.joined(FAST)
    why = f"{choice.why}; there are several total charges"
    return dataclasses.replace(choice, preset=preset, why=why)


def _of_data(summary: DataSummary) -> Choice:
    """Choose a preset by what structures consist of."""
    if not summary.has_several and not summary.has_metals and summary.charges is not None:
        return _of_single(summary)
    if not summary.has_ions and not (summary.has_metals and summary.has_slabs):
        name = "molecular" if summary.has_molecules else "dispersive"
        return Choice(name, PRESETS[name], "no fragment has a charge of its own")
    name = "interface" if summary.has_slabs and _has_solid(summary) else "ionic"
    preset = PRESETS[name]
    if summary.charges is None and summary.element_charges is None:
        return _complete(name, _reads(CAREFUL, preset), summary)
    if summary.has_molecules:
        preset = preset.joined(PRESETS["molecular"])
    elif summary.has_neutral_atoms:
        preset = preset.joined(WITH_DISPERSION)
    if summary.element_charges is None:
        preset = _reads(CAREFUL, preset)
    return _complete(name, preset, summary)


def _of_single(summary: DataSummary) -> Choice:
    """Choose for structures of one fragment; with charged ones among them what flows is learned."""
    if summary.open_axes == (3,) and not summary.has_ions:
        return Choice(NONE, SINGLE, "each structure is one neutral molecule")
    why = "each structure is one molecule, whose charge is the total charge"
    return Choice("molecular", PRESETS["molecular"], why)


def _of_dispersion(decay: Decay) -> Choice:
    """Let a law of dispersion decide, which asks for nothing that is chosen for charges."""
    options = {"kernel": f"dispersion(exponent={decay.of_dispersion})"}
    preset = Preset(PRESETS["dispersive"].purpose, options)
    return Choice("dispersive", preset, f"{decay.describe()}, however they are turned")


def _screened(choice: Choice, decay: Decay) -> Choice:
    """Let charges begin with a screening."""
    options = {**choice.preset.options, "kernel": f"yukawa(kappa={decay.of_screening:.2g})"}
    why = f"{choice.why}, but {decay.describe()}, however they are turned"
    preset = dataclasses.replace(choice.preset, options=options)
    return dataclasses.replace(choice, preset=preset, why=why)


def _reads(readout: str, preset: Preset) -> Preset:
    """Return a preset with another readout; a careful one leaves to the network what it sees."""
    options, by_cutoff = {**preset.options, "readout": readout}, preset.by_cutoff
    return dataclasses.replace(preset, options=options, by_cutoff=by_cutoff or readout == CAREFUL)


def _complete(name: str, preset: Preset, summary: DataSummary) -> Choice:
    """Add the charges of elements that the data tell, where a preset takes them."""
    if name == "dispersive" and summary.has_ions:
        preset = _reads(CAREFUL if summary.element_charges is None else IONS, preset)
    if preset.options.get("readout") == CAREFUL:
        return Choice(name, preset, summary.reason, _held(summary))
    if preset.options.get("readout") != IONS:
        return Choice(name, preset, summary.reason)
    if not summary.element_charges:
        why = summary.reason or "no element has a charge"
        return Choice(name, preset, why)
    text = ",".join(f"{symbol}={charge:g}" for symbol, charge in summary.element_charges.items())
    options = {**preset.options, "element_charges": text}
    why = "charges of elements give every fragment its own"
    if summary.charges is None:
        why = f"ions have their usual charges, though {summary.reason}"
    return Choice(name, dataclasses.replace(preset, options=options), why)


def _held(summary: DataSummary) -> FragmentCharges | None:
    """Charges that a loss can hold; in matter ions are screened, and have none that are whole."""
    is_open = summary.open_axes == (3,) and summary.has_molecules
    return FragmentCharges(summary.charges) if summary.charges and is_open else None


def _has_solid(summary: DataSummary) -> bool:
    """Tell whether there are metals or single atoms, which make up solids, not molecules alone."""
    return summary.has_metals or any(map(is_atom, summary.fragments))


def explain_choice(choice: Choice, found: str, options: str) -> str:
    """Say in one line what was found and which options that means.

    Parameters
    ----------
    choice : Choice
    found : str
        From :meth:`~sog_longrange.ase_support.data_summary.DataSummary.describe`.
    options : str
        From :func:`~sog_longrange.presets.describe_options`.

    Returns
    -------
    str
    """
    why = f" ({choice.why})" if choice.why else ""
    return f"Preset {choice.name}{why}, by {found}: {options}"


def look_at_file(
    path: str,
    keys: Sequence[str] = TOTAL_CHARGE,
    cutoff: float | None = None,
    forces_key: str | None = None,
) -> tuple[DataSummary, Decay | None]:
    """Read structures, and find what they consist of and how they attract each other.

    Parameters
    ----------
    path : str
        Any file that ASE reads.
    keys : sequence of str
        Where total charges are in `atoms.info`.
    cutoff : float, in Å, optional
        Of the model of the host; nothing is measured beyond it where it is not known.
    forces_key : str, optional
        Where forces are in `atoms.arrays`; by default "REF_forces", or as ASE knows them.

    Returns
    -------
    DataSummary
    Decay or None

    Raises
    ------
    InputError
        If the file cannot be read, a total charge is no number, or no structure has such forces.
    MissingLibraryError
        If ASE is not installed.
    """
    io = load_library("ase.io", "ase")
    try:
        frames = io.read(path, ":")
    except Exception as error:  # The format decides what is raised.
        got = f"{path!r}: {type(error).__name__}: {error}"
        raise InputError(explain("file", "a file of structures that ASE reads", got)) from error
    summary = formal_charges(frames, [total_charge(frame, keys) for frame in frames])
    if cutoff is None:
        return summary, None
    sample = [frames[place] for place in spread(len(frames))]
    forces = [_forces(frame, forces_key) for frame in sample]
    if forces_key is not None and all(own is None for own in forces):
        got = ", ".join(sorted({key for frame in sample for key in frame.arrays}))
        raise InputError(explain("forces_key", "one of the arrays of structures", got))
    return summary, measure_decay(sample, forces, cutoff)


def _forces(atoms: Any, key: str | None) -> Any:  # noqa: ANN401
    """Look for forces of a structure."""
    known = atoms.calc.results if atoms.calc else {}
    return atoms.arrays.get(key or FORCES, known.get("forces") if key is None else None)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the preset that fits a file of structures.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("file", help="structures to train on, in a format that ASE reads")
    parser.add_argument(
        "--total_charge_key", help="key of total charges (default: total_charge or charge)"
    )
    parser.add_argument(
        "--cutoff",
        type=float,
        help="cutoff of the model in Å: a third of it is min_width, and forces between what is "
        "farther apart tell their law",
    )
    parser.add_argument(
        "--forces_key", help=f"key of forces (default: {FORCES}, or as ASE knows them)"
    )
    args = parser.parse_args(argv)
    keys = [args.total_charge_key] if args.total_charge_key else TOTAL_CHARGE
    try:
        found = look_at_file(args.file, keys, args.cutoff, args.forces_key)
    except SOGError as error:
        raise SystemExit(f"{COMMAND}: {error}") from error
    sys.stdout.write("\n".join(_lines(*found, args.cutoff)) + "\n")


def _lines(summary: DataSummary, decay: Decay | None, cutoff: float | None) -> list[str]:
    choice = choose_preset(summary, decay=decay)
    options = apply_preset(choice.preset, {}, cutoff=cutoff)
    every = apply_preset(choice.preset, {}, has_vectors=True, cutoff=cutoff)
    of_mace = {**every, **choice.preset.schedule}
    words = [shlex.quote(f"--sog_{key}={value}") for key, value in of_mace.items()]
    of_pyg = {"num_charges" if k == "num_channels" else k: v for k, v in options.items()}
    lines = [
        f"Found: {summary.describe()}",
        *([f"Forces: {decay.describe()}"] if decay else []),
        f"Preset: {choice.name}, for {choice.preset.purpose}",
        *([f"Because {choice.why}"] if choice.why else []),
        "",
        "MACE:   " + " ".join(words or [f"--sog_preset={NONE}"]),
        f"NequIP: sog: {{{', '.join(f'{k}: {_yaml(v)}' for k, v in every.items())}}}",
        f"PyG:    LongRangeLayer({', '.join(f'{k}={v!r}' for k, v in of_pyg.items())})",
        "",
    ]
    if every != options:
        names = ", ".join(key for key in every if key not in options)
        lines.append(f"{names}: only for models with vectors (1o) among the features of atoms")
    if choice.preset.by_cutoff and cutoff is None:
        lines.append("min_width: besides, a third of the cutoff of the model (--cutoff prints it)")
    return lines


def _yaml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()
