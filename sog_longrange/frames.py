"""Checks of one structure as a file or a calculator holds it, before anything is built from it.

Host frameworks build graphs first: a missing cell becomes a box of 1 Å there, a singular one a
bare error of linear algebra, and the neighbours of a flat one have no end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .errors import InputError, explain
from .geometry import SINGULAR_CELL, reduced_cell

SHORTEST_VECTOR: float = 0.1
"""Length in Å of the shortest lattice vector along periodic directions that is believed."""

_MISSING = 1e-6
_AXES = ("first", "second", "third")


def check_positions(positions: Any, where: str) -> None:  # noqa: ANN401
    """Raise `InputError` unless positions are those of one atom or more, and finite.

    Parameters
    ----------
    positions : array_like, shape (n_atoms, 3), in Å
    where : str
        Names the structure, such as "frame 3 of train.xyz", for the message.
    """
    given = np.asarray(positions, dtype=float)
    if len(given) == 0:
        raise InputError(explain("positions", "of at least one atom", f"none in {where}"))
    check_label("positions", given, [(len(given), 3)], where)


def check_cell(cell: Any, pbc: Sequence[bool], where: str) -> None:  # noqa: ANN401
    """Raise `InputError` unless lattice vectors span the periodic directions of a structure.

    Parameters
    ----------
    cell : array_like, shape (3, 3), in Å
        Rows are lattice vectors; those of non-periodic directions are only looked at for NaN.
    pbc : sequence of 3 bool
    where : str
        Names the structure, for the message.
    """
    rows = np.asarray(cell, dtype=float)
    periodic = np.asarray(pbc, dtype=bool)
    if not np.isfinite(rows).all():
        remedy = "Correct or remove the frame."
        raise InputError(explain("cell", "finite", f"{rows.tolist()} in {where}", remedy))
    flags = f'pbc="{" ".join("T" if flag else "F" for flag in periodic)}"'
    lengths = np.linalg.norm(rows, axis=1)
    missing = periodic & (lengths < _MISSING)
    if missing.any():
        lost = ", ".join(name for name, own in zip(_AXES, missing, strict=True) if own)
        what = "no cell" if (lengths < _MISSING).all() else f"no {lost} lattice vector"
        remedy = 'Give its Lattice, or set pbc to F along such directions, "F F F" for a molecule.'
        expected = "given along periodic directions"
        raise InputError(explain("cell", expected, f"{what} with {flags} in {where}", remedy))
    if periodic.any():
        _check_spanned(rows[periodic], f"{rows.tolist()} with {flags} in {where}")


def _check_spanned(rows: np.ndarray, got: str) -> None:
    """Refuse periodic lattice vectors that are parallel, coplanar or nearly so."""
    spread = np.sqrt(np.linalg.det(rows @ rows.T).clip(min=0.0))
    if not spread > SINGULAR_CELL * np.linalg.norm(rows, axis=1).prod():
        remedy = "Correct its lattice vectors: they lie in one plane or on one line."
        raise InputError(explain("cell", "of non-zero volume", got, remedy))
    # With perpendicular vectors along the other directions the reduction leaves those alone.
    rest = np.linalg.svd(rows)[2][len(rows) :]
    full = torch.tensor(np.concatenate([rows, rest]))[None]
    shortest = float(reduced_cell(full, [True])[0, : len(rows)].norm(dim=-1).min())
    if shortest < SHORTEST_VECTOR:
        expected = f"without periodic images closer than {SHORTEST_VECTOR} Å"
        remedy = f"Correct its lattice vectors: a sum of them is {shortest:.2g} Å long."
        raise InputError(explain("cell", expected, got, remedy))


def check_label(key: str, value: Any, shapes: Sequence[tuple[int, ...]], where: str) -> None:  # noqa: ANN401
    """Raise `InputError` unless a label has a shape and is finite.

    Parameters
    ----------
    key : str
        Name of the label in the data, for the message.
    value : array_like
    shapes : sequence of tuple of int
        Shapes that the label may have.
    where : str
        Names the structure, for the message.
    """
    remedy = "Correct or remove the frame."
    expected = "one number" if () in shapes else "of shape " + " or ".join(map(str, shapes))
    try:
        numbers = np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise InputError(explain(key, expected, f"{value!r} in {where}", remedy)) from error
    if numbers.shape not in shapes:
        got = f"{np.asarray(value).tolist()} of shape {numbers.shape} in {where}"
        raise InputError(explain(key, expected, got, remedy))
    if not np.isfinite(numbers).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(numbers))[0])
        at = f" at index {index}" if index else ""
        raise InputError(explain(key, "finite", f"{numbers[index]}{at} in {where}", remedy))
