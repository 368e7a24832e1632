"""Born charges and dielectric data that phonon programs need for ionic crystals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from ase import Atoms

from sog_longrange.ase_support import EXTERNAL_FIELD, TOTAL_CHARGE, has_volume, total_charge
from sog_longrange.errors import BoundaryError, InputError, InputTypeError, explain
from sog_longrange.hosts import is_installed, load_library
from sog_longrange.units import COULOMB_CONSTANT
from sog_longrange.validation import WHOLE

LEAST_HEIGHT: Final = 16.0
"""Least distance in Å between periodic images of the cell that gives Born charges."""

LARGEST_EXCESS: Final = 0.05
"""Violation of the acoustic sum rule, in e an atom, above which there is a warning."""

STRENGTHS: Final = (0.5, 2.0)
"""Strengths of a kernel relative to 1/r between which training may have brought one of charges."""

SYMMETRY_TOLERANCE: Final = 1e-4
"""Distance in Å within which a symmetry operation must map atoms onto atoms."""


def nac_params(
    calculator: Any,
    primitive: Any,
    *,
    supercell: int | Sequence[int] | None = None,
    eps_inf: float = 1.0,
    reach: float | None = None,
    enforce_sum_rule: bool = True,
    symmetrize: bool | None = None,
    largest_excess: float = LARGEST_EXCESS,
    log: Callable[[str], object] | None = print,
) -> dict[str, Any]:
    """Parameters of the non-analytical term correction (NAC) of the phonons of a crystal.

    Forces in a supercell hold the field of longitudinal waves for the few wave vectors that fit
    into it only; for all others, the zone centre included, it follows from Born charges. With
    phonopy::

        phonon.nac_params = nac_params(calculator, phonon.primitive)

    and with ASE::

        found = nac_params(calculator, atoms)
        phonons.Z_avv, phonons.eps_vv = found["born"], found["dielectric"]
        phonons.band_structure(path, born=True)

    Force constants need a small supercell, Born charges one over half of which a displacement
    acts: they are taken from a supercell of their own, and averaged over its cells.

    Parameters
    ----------
    calculator : ase.calculators.calculator.Calculator
        With `get_born_charges`, of one model that is not compiled.
    primitive : ase.Atoms or phonopy.structure.atoms.PhonopyAtoms
        Cell whose atoms the phonons are of, periodic along all axes and neutral.
    supercell : int or 3 ints, optional
        Number of cells along each lattice vector that Born charges are taken from. Left out, as
        many as make all heights 16 Å or more; better twice the reach of the charges, the
        number of layers times the cutoff of the model.
    eps_inf : float
        High-frequency dielectric constant. Charges of the model act unscreened, so that it
        multiplies Born charges by its root, is the dielectric constant, and cancels in phonons.
        A kernel of the model that training left with another strength than 1/r (see
        :meth:`~sog_longrange.ase_support.ChargesInASE.get_coulomb_strength`) divides it.
    reach : float, optional
        As for :func:`sog_longrange.born_charges`: fewer passes for charges that are not projected.
    enforce_sum_rule : bool
        Whether to take the mean of the Born charges from all of them. What violates the sum rule
        opens a gap of acoustic waves.
    symmetrize : bool, optional
        Whether to average over the symmetry operations that spglib finds. Left out, where it
        is installed, as it is with phonopy.
    largest_excess : float
        Violation of the sum rule, the largest element of the mean of the Born charges in e, above
        which there is a warning. Model charges that were never trained have 0.1 and more.
    log : callable, optional
        Takes a line that says what the Born charges are and how far the sum rule is violated.

    Returns
    -------
    dict
        `born` (n_atoms, 3, 3) in e, of the atoms of the primitive cell in their order, the first
        index that of the dipole; `dielectric` (3, 3); and `factor`, e^2 / (4 pi epsilon_0) in
        eV Å, the unit conversion of phonopy.

    Raises
    ------
    BoundaryError
        If the cell is not periodic along all axes.
    InputError, InputTypeError
        If the calculator has no Born charges or its charges are none of 1/r, or an argument is
        malformed.
    HostError
        If the charges of the calculator cannot be differentiated (compiled models), or have no
        mean (committees).
    MissingLibraryError
        If `symmetrize` is set and spglib is not installed.
    """
    if not callable(getattr(calculator, "get_born_charges", None)):
        expected = "one of a model with latent charges, with `get_born_charges`"
        remedy = "Open the file of the model by sog_longrange.ase_support.open_calculator."
        raise InputTypeError(explain("calculator", expected, type(calculator).__name__, remedy))
    atoms = _as_crystal(primitive)
    strength = _coulomb_strength(calculator)
    repeats = _count_cells(atoms, supercell)
    repeated = atoms.repeat(repeats)
    found = calculator.get_born_charges(repeated, eps_inf=eps_inf, reach=reach)
    born = found.values.reshape(-1, len(atoms), 3, 3).mean(0)
    excess = born.mean(0)
    if enforce_sum_rule:
        born = born - excess
    is_symmetric = is_installed("spglib") if symmetrize is None else symmetrize
    if is_symmetric:
        born = average_over_symmetry(born, atoms)
    largest = float(np.abs(excess).max())
    if log is not None:
        how = "symmetrised" if is_symmetric else "averaged over its cells"
        log(_describe(born, atoms, repeats, how, largest, enforce_sum_rule) + _note(strength))
    if not largest <= largest_excess:
        warnings.warn(_explain_excess(largest, largest_excess, repeats), stacklevel=2)
    dielectric = eps_inf / strength * np.eye(3)
    return {"born": born, "dielectric": dielectric, "factor": COULOMB_CONSTANT}


def average_over_symmetry(tensors: np.ndarray, atoms: Atoms) -> np.ndarray:
    """Average tensors of atoms over the symmetry operations of a crystal.

    Parameters
    ----------
    tensors : ndarray, shape (n_atoms, 3, 3)
        Such as Born charges, each of which is turned from both sides.
    atoms : ase.Atoms
        Periodic along all axes.

    Returns
    -------
    ndarray, shape (n_atoms, 3, 3)

    Raises
    ------
    MissingLibraryError
        If spglib, which finds the operations, is not installed.
    InputError
        If it finds none, as where atoms coincide.
    """
    lattice, places = atoms.cell.array, atoms.get_scaled_positions()
    rotations, shifts = _symmetry_operations(atoms)
    total = np.zeros_like(tensors)
    for rotation, shift in zip(rotations, shifts, strict=True):
        turn = lattice.T @ rotation @ np.linalg.inv(lattice.T)
        apart = (places @ rotation.T + shift)[:, None] - places
        distances = np.linalg.norm((apart - np.round(apart)) @ lattice, axis=-1)
        distances[atoms.numbers[:, None] != atoms.numbers] = np.inf
        total[distances.argmin(1)] += turn @ tensors @ turn.T
    averaged: np.ndarray = total / len(rotations)
    return averaged


def _symmetry_operations(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (n, 3, 3) and translations (n, 3) of a crystal in reduced coordinates."""
    spglib = load_library("spglib", "phonons")
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    found, reason = None, "one that spglib finds no symmetry of"
    try:
        found = spglib.get_symmetry_dataset(cell, symprec=SYMMETRY_TOLERANCE)
    except Exception as error:  # Older versions return None, newer ones raise one of many.
        reason = f"one of which spglib says: {error}"
    if found is None:
        raise InputError(explain("atoms", "a crystal of atoms that are apart", reason))
    return found.rotations, found.translations


def _as_crystal(primitive: Any) -> Atoms:
    """Neutral crystal of the atoms of ASE or of phonopy, which has neither info nor pbc."""
    info = dict(getattr(primitive, "info", {}))
    atoms = Atoms(
        symbols=list(getattr(primitive, "symbols", [])),
        cell=np.asarray(getattr(primitive, "cell", np.zeros((3, 3)))),
        positions=getattr(primitive, "positions", None),
        pbc=getattr(primitive, "pbc", True),
        info=info,
    )
    if not (len(atoms) and has_volume(atoms)):
        got = f"{len(atoms)} atoms with the cell {atoms.cell.array.tolist()}"
        raise InputError(explain("primitive", "the cell of a crystal, with atoms", got))
    if not atoms.pbc.all():
        remedy = (
            "Slabs and wires have no such term: their longitudinal field vanishes at the zone "
            "centre. Use their force constants as they are, from a large supercell."
        )
        got = f"pbc {atoms.pbc.tolist()}"
        raise BoundaryError(explain("primitive", "periodic along all axes", got, remedy))
    charge = total_charge(atoms) or 0.0
    if abs(charge) > WHOLE:
        remedy = "The polarisation of a charged crystal has no value."
        raise InputError(explain("primitive", "neutral", f"a total charge of {charge:g} e", remedy))
    for key in (*TOTAL_CHARGE, EXTERNAL_FIELD):
        info.pop(key, None)
    atoms.info = {**info, TOTAL_CHARGE[0]: 0.0}
    return atoms


def _coulomb_strength(calculator: Any) -> float:
    """Strength of the interaction of long waves, 1 where a calculator does not say."""
    get = getattr(calculator, "get_coulomb_strength", None)
    strength = 1.0 if get is None else float(get())
    low, high = STRENGTHS
    if not low <= strength <= high:
        expected = f"one whose charges interact by 1/r, {low:g} to {high:g} times as strongly"
        remedy = "Other potentials have no non-analytical term: use force constants as they are."
        raise InputError(explain("calculator", expected, f"{strength:.3g} times", remedy))
    return strength


def _note(strength: float) -> str:
    is_one = abs(strength - 1.0) < 0.005
    return "" if is_one else f"; the kernel is {strength:.3f} times as strong as 1/r"


def _count_cells(atoms: Atoms, supercell: int | Sequence[int] | None) -> tuple[int, int, int]:
    """Cells along each lattice vector that Born charges are taken from."""
    if supercell is None:
        heights = 1.0 / np.linalg.norm(atoms.cell.reciprocal().array, axis=1)
        given = np.ceil(LEAST_HEIGHT / heights)
    else:
        given = np.broadcast_to(np.asarray(supercell), 3) if np.size(supercell) in (1, 3) else None
    if given is None or given.dtype.kind not in "iuf" or (given != np.round(given)).any():
        raise InputError(explain("supercell", "one or 3 whole numbers", repr(supercell)))
    if (given < 1).any():
        raise InputError(explain("supercell", "1 or more along each axis", repr(supercell)))
    first, second, third = (int(x) for x in given)
    return first, second, third


def _describe(
    born: np.ndarray,
    atoms: Atoms,
    repeats: Sequence[int],
    how: str,
    excess: float,
    is_enforced: bool,
) -> str:
    """Say in one line what Born charges are, element by element, and what the sum rule lacks."""
    means = np.trace(born, axis1=1, axis2=2) / 3.0
    names = dict.fromkeys(atoms.symbols)
    values = ", ".join(f"{name} {means[atoms.symbols == name].mean():+.3f}" for name in names)
    size = "x".join(map(str, repeats))
    fate = "taken out" if is_enforced else "left in"
    return (
        f"Born charges of {size} cells, {how}: {values} e; "
        f"acoustic sum rule violated by {excess:.3f} e an atom, {fate}"
    )


def _explain_excess(excess: float, largest: float, repeats: Sequence[int]) -> str:
    size = "x".join(map(str, repeats))
    return (
        f"Born charges violate the acoustic sum rule by {excess:.3g} e an atom, more than "
        f"{largest:g}: displacements move net charge, as those of charges that were not trained "
        f"to do so, or act over half of the {size} cells and more. Phonons near the zone centre "
        "are then uncertain. Take a larger `supercell`; if that does not help, train on more "
        "displaced structures."
    )
