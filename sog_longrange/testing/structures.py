"""Structures to test a model on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sog_longrange.errors import InputError, explain

EnergyFunction = Callable[..., Tensor]
"""energy(charges, positions, cell, pbc, batch, num_graphs) -> Tensor of shape (n_graphs,)."""


class Structure(NamedTuple):
    """One structure to test a model on.

    Attributes
    ----------
    charges : Tensor, shape (n_atoms, n_channels)
        Latent charges in e, or whatever invariant features the model takes.
    positions : Tensor, shape (n_atoms, 3), in Å
    cell : Tensor, shape (3, 3), in Å
        Rows are lattice vectors.
    pbc : Tensor, shape (3,), bool
    """

    charges: Tensor
    positions: Tensor
    cell: Tensor
    pbc: Tensor


def join(structures: Sequence[Structure]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    """Join structures into the arguments of one batched evaluation.

    Parameters
    ----------
    structures : sequence of Structure
        At least one; structures without atoms are allowed.

    Returns
    -------
    tuple
        charges (n_atoms, n_channels), positions (n_atoms, 3) in Å, cell (n_graphs, 3, 3)
        in Å, pbc (n_graphs, 3), batch (n_atoms,) and num_graphs.

    Raises
    ------
    InputError
        If there is no structure.
    """
    if not structures:
        raise InputError(explain("structures", "at least one", "none"))
    first = structures[0].positions
    sizes = torch.tensor([len(s.positions) for s in structures], device=first.device)
    batch = torch.arange(len(structures), device=first.device).repeat_interleave(sizes)
    return (
        torch.cat([s.charges for s in structures]),
        torch.cat([s.positions for s in structures]),
        torch.stack([s.cell for s in structures]),
        torch.stack([s.pbc for s in structures]),
        batch,
        len(structures),
    )


def make_supercell(structure: Structure, repeats: tuple[int, int, int]) -> Structure:
    """Repeat a periodic structure along its lattice vectors.

    Parameters
    ----------
    structure : Structure
    repeats : tuple of 3 int
        Number of copies along each lattice vector.

    Returns
    -------
    Structure
        With the atoms of each copy together.
    """
    like = structure.positions
    ranges = [torch.arange(n, dtype=like.dtype, device=like.device) for n in repeats]
    shifts = torch.cartesian_prod(*ranges) @ structure.cell
    return Structure(
        structure.charges.repeat(len(shifts), 1),
        (like + shifts[:, None]).reshape(-1, 3),
        structure.cell * torch.tensor(repeats, dtype=like.dtype, device=like.device)[:, None],
        structure.pbc,
    )
