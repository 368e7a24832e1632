"""SOGMACE models with the inputs and units of GROMACS' interface to neural network potentials.

Without ``from __future__ import annotations``, which the compiler of TorchScript cannot read in
classes.
"""

import math

import torch
from torch import Tensor, nn

from sog_longrange import HostError
from sog_longrange.errors import explain
from sog_longrange.geometry import cell_volume, reciprocal_cell

from .scripted import ScriptedSOGMACE

ANGSTROM: float = 10.0
"""In one nm."""

KILOJOULE: float = 96.48533212331
"""In kJ/mol, one eV."""


class GromacsSOGMACE(nn.Module):
    """A SOGMACE model that finds its neighbours itself, in nm and kJ/mol.

    Parameters
    ----------
    model : ScriptedSOGMACE

    Raises
    ------
    HostError
        If the model takes a total charge, for which this interface has no place.
    """

    real: Tensor

    def __init__(self, model: ScriptedSOGMACE) -> None:
        super().__init__()
        if model.takes_total_charge:
            expected = "without charge_constraint='total' and charge_embedding for GROMACS"
            raise HostError(explain("model", expected, "one that takes a total charge"))
        self.model = model
        self.r_max: float = model.r_max
        self.length: float = ANGSTROM
        self.energy: float = KILOJOULE
        self.register_buffer("real", torch.zeros([], dtype=getattr(torch, model.dtype)))

    def forward(self, positions: Tensor, numbers: Tensor, box: Tensor, pbc: Tensor) -> Tensor:
        """Evaluate the energy; forces are its derivatives in the first input.

        Parameters
        ----------
        positions : Tensor, shape (n_atoms, 3), in nm
        numbers : Tensor, shape (n_atoms,)
            Atomic numbers.
        box : Tensor, shape (3, 3), in nm
            Rows are lattice vectors.
        pbc : Tensor, shape (3,), bool
            All true or all false.

        Returns
        -------
        Tensor, shape (), in kJ/mol
        """
        x, cell = (positions * self.length).to(self.real), (box * self.length).to(self.real)
        edges, shifts = self.neighbors(x.detach(), cell.detach(), bool(pbc.any()))
        out = self.model(x, cell, pbc, numbers.to(torch.int64), edges, shifts, 0.0, False)
        energy: Tensor = out["energy"] * self.energy
        return energy

    def neighbors(self, x: Tensor, cell: Tensor, periodic: bool) -> tuple[Tensor, Tensor]:
        """All pairs of atoms up to `r_max`, each in both orders, image by image.

        Parameters
        ----------
        x : Tensor, shape (n_atoms, 3), in Å
        cell : Tensor, shape (3, 3), in Å
        periodic : bool

        Returns
        -------
        edge_index : Tensor, shape (2, n_edges)
        unit_shifts : Tensor, shape (n_edges, 3)

        Raises
        ------
        ValueError
            If a periodic cell has no volume.
        """
        reach: list[int] = [0, 0, 0]
        turns = torch.zeros_like(x)
        if periodic:
            if float(cell_volume(cell[None])[0]) <= 0.0:
                raise ValueError("`box` must have a volume where `pbc` is true.")
            reciprocal = reciprocal_cell(cell[None])[0] / (2.0 * math.pi)
            turns = torch.floor(x @ reciprocal.t())
            norms = torch.linalg.vector_norm(reciprocal, dim=1)
            steps: list[float] = norms.double().cpu().tolist()
            reach = [math.floor(self.r_max * step) + 1 for step in steps]
        wrapped = x - turns @ cell if periodic else x
        first: list[Tensor] = []
        second: list[Tensor] = []
        shifts: list[Tensor] = []
        for a in range(-reach[0], reach[0] + 1):
            for b in range(-reach[1], reach[1] + 1):
                for c in range(-reach[2], reach[2] + 1):
                    image = torch.tensor([a, b, c], dtype=x.dtype, device=x.device)
                    away = wrapped + image @ cell if periodic else wrapped
                    vectors = away[None] - wrapped[:, None]
                    near = vectors.square().sum(2) < self.r_max**2
                    if a == 0 and b == 0 and c == 0:
                        near.fill_diagonal_(False)
                    i, j = near.nonzero().unbind(1)
                    first.append(i)
                    second.append(j)
                    shifts.append(image + turns[i] - turns[j])
        return torch.stack([torch.cat(first), torch.cat(second)]), torch.cat(shifts)


class GromacsFile:
    """A file for GROMACS that evaluates as :meth:`ScriptedSOGMACE.evaluate` does.

    Parameters
    ----------
    path : str
    """

    def __init__(self, path: str) -> None:
        self.model = torch.jit.load(path)

    def evaluate(
        self,
        positions: Tensor,
        cell: Tensor,
        pbc: Tensor,
        numbers: Tensor,
        edge_index: Tensor,
        unit_shifts: Tensor,
        total_charge: float = 0.0,
    ) -> dict[str, Tensor]:
        """Evaluate energy and forces, as GROMACS does.

        Parameters
        ----------
        positions, cell, pbc, numbers, edge_index, unit_shifts, total_charge
            As of :meth:`ScriptedSOGMACE.evaluate`; neighbours are not read.

        Returns
        -------
        dict
            `energy` in eV and `forces` in eV/Å.
        """
        places = (positions / ANGSTROM).requires_grad_()
        energy = self.model(places, numbers, cell / ANGSTROM, pbc)
        (slope,) = torch.autograd.grad(energy, places)
        scale = 1.0 / KILOJOULE
        return {"energy": scale * energy.detach(), "forces": -(scale / ANGSTROM) * slope}
