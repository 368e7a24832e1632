"""Files of SOGMACE models for engines that run without Python."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import torch
from ase import Atoms
from mace.data.neighborhood import get_neighborhood
from torch import Tensor
from torch.jit._fuser import optimized_execution

from sog_longrange import ConfigError, HostError
from sog_longrange.ase_support import TOTAL_CHARGE
from sog_longrange.errors import explain
from sog_longrange.hosts import load_library

from .calculator import SOGMACECalculator
from .gromacs import GromacsFile, GromacsSOGMACE
from .model import SOGMACE
from .scripted import ScriptedSOGMACE

FORMATS: Final = ("torchscript", "metatomic", "gromacs")
"""What :func:`export` writes."""

_ROUNDING: Final = {"float64": 1e-8, "float32": 1e-3}


def export(
    model: SOGMACE, path: str | Path, kind: str = "torchscript", dtype: torch.dtype | None = None
) -> None:
    """Write a model to a file for engines without Python, and check what was written.

    Parameters
    ----------
    model : SOGMACE
        Of one head, with a plain MACE inside. Not changed.
    path : str or Path
        Of the file. Nothing is there until the check has passed.
    kind : {"torchscript", "metatomic", "gromacs"}
        "torchscript" for LAMMPS by `pair_style sog` and for programs of your own, with the methods
        `forward` and `evaluate` of :class:`~sog_mace.scripted.ScriptedSOGMACE`; "metatomic" for
        all engines with an interface to it; "gromacs" for GROMACS' own, with its units.
    dtype : torch.dtype, optional
        Of positions and results; by default that of the model.

    Raises
    ------
    ConfigError
        If the kind is unknown.
    HostError
        If the model has something that cannot be exported, or the file does not give its energies
        and forces.
    MissingLibraryError
        If metatomic is not installed.
    """
    if kind not in FORMATS:
        raise ConfigError(explain("kind", f"one of {', '.join(FORMATS)}", repr(kind)))
    metatomic = _load_metatomic() if kind == "metatomic" else None
    path = Path(path)
    draft = path.with_name(f"{path.name}.part")
    try:
        with quiet():
            scripted = ScriptedSOGMACE(model, dtype).cpu().eval()
            if metatomic is not None:
                metatomic.save(scripted, str(draft))
            else:
                whole = GromacsSOGMACE(scripted).eval() if kind == "gromacs" else scripted
                torch.jit.script(whole).save(str(draft))
            check_file(draft, kind, model, scripted.dtype)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def check_file(path: str | Path, kind: str, model: SOGMACE, dtype: str) -> None:
    """Compare a file with its model, for a crystal and a molecule of all elements.

    Parameters
    ----------
    path : str or Path
    kind : str
        A member of `FORMATS`.
    model : SOGMACE
    dtype : str
        Of the file.

    Raises
    ------
    HostError
        If energies or forces differ by more than the tolerance of the model and rounding allow.
    """
    exported = open_file(path, kind)
    first = next(model.parameters())
    own = str(first.dtype).removeprefix("torch.")
    # MACE's calculator ends the training of what it is given.
    calculator = SOGMACECalculator(
        models=[copy.deepcopy(model)], device=str(first.device), default_dtype=own
    )
    config = model.long_range.config
    allowed = 50.0 * config.tolerance + _ROUNDING[dtype]
    for probe in probes([int(z) for z in model.atomic_numbers]):
        if config.needs_total_charge:
            probe.info[TOTAL_CHARGE[0]] = 1.0
        probe.calc = calculator
        out = evaluate(exported, probe, float(model.r_max), getattr(torch, dtype))
        wanted = {"energy": probe.get_potential_energy(), "forces": probe.get_forces()}
        scale = max(1.0, float(np.abs(wanted["forces"]).max()))
        for name, value in wanted.items():
            error = float(np.abs(out[name].numpy() - value).max()) / scale
            if not error <= allowed:
                expected = f"within {allowed:.1e} of the model's {name} of {probe.symbols}"
                remedy = "Please report this model."
                raise HostError(explain("the exported model", expected, f"{error:.1e}", remedy))


def open_file(path: str | Path, kind: str) -> Any:  # noqa: ANN401
    """Open an exported file, to be evaluated by :func:`evaluate`.

    Parameters
    ----------
    path : str or Path
    kind : str
        A member of `FORMATS`.

    Returns
    -------
    object
        With the method `evaluate` of :class:`~sog_mace.scripted.ScriptedSOGMACE`.

    Raises
    ------
    MissingLibraryError
        If metatomic is needed and not installed.
    """
    if kind == "metatomic":
        return _load_metatomic().MetatomicFile(str(path))
    with quiet():
        return GromacsFile(str(path)) if kind == "gromacs" else torch.jit.load(str(path))


def evaluate(
    exported: Any,  # noqa: ANN401
    atoms: Atoms,
    r_max: float,
    dtype: torch.dtype = torch.float64,
    **options: bool,
) -> dict[str, Tensor]:
    """Evaluate an exported model on a structure of ASE, as an engine does.

    Parameters
    ----------
    exported : object
        From :func:`open_file`.
    atoms : ase.Atoms
        With its total charge in ``info["charge"]``, if the model takes one.
    r_max : float
        Up to which neighbours are wanted, in Å.
    dtype : torch.dtype
        Of the model.
    **options : bool
        `per_atom`.

    Returns
    -------
    dict
        That of :meth:`~sog_mace.scripted.ScriptedSOGMACE.evaluate`.
    """
    pbc = tuple(bool(axis) for axis in atoms.pbc)
    edges, _, unit_shifts, _ = get_neighborhood(atoms.positions, r_max, pbc, atoms.cell.array)
    inputs = (
        torch.from_numpy(atoms.positions).to(dtype),
        torch.from_numpy(atoms.cell.array).to(dtype),
        torch.tensor(pbc),
        torch.from_numpy(atoms.numbers).long(),
        torch.from_numpy(edges).long(),
        torch.from_numpy(unit_shifts).to(dtype),
    )
    charge = float(atoms.info.get(TOTAL_CHARGE[0], 0.0))
    # Compiling for speed takes longer than a few evaluations.
    with optimized_execution(False):
        results: dict[str, Tensor] = exported.evaluate(*inputs, charge, **options)
    return results


def probes(numbers: list[int]) -> list[Atoms]:
    """Structures with all elements of a model, periodic and open.

    Parameters
    ----------
    numbers : list of int
        Atomic numbers.

    Returns
    -------
    list of ase.Atoms
    """
    rng = np.random.default_rng(0)
    repeats = max(2, int(np.ceil(len(numbers) ** (1.0 / 3.0))))
    cell = 2.2 * repeats * np.array([[1.0, 0.0, 0.0], [0.2, 1.0, 0.0], [-0.1, 0.15, 1.0]])
    places = np.array(list(np.ndindex(repeats, repeats, repeats))) / repeats
    positions = places @ cell + 0.1 * rng.normal(size=places.shape)
    elements = np.resize(numbers, len(places))
    crystal = Atoms(elements, positions=positions, cell=cell, pbc=True)
    count = max(4, len(numbers))
    return [crystal, Atoms(elements[:count], positions=positions[:count])]


@contextmanager
def quiet() -> Iterator[None]:
    """Without what PyTorch and e3nn warn of where models are compiled to TorchScript."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated")
        warnings.filterwarnings("ignore", message="The TorchScript type system")
        yield


def _load_metatomic() -> ModuleType:
    load_library("metatomic.torch", "metatomic")
    from . import metatomic

    return metatomic
