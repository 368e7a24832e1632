"""SOGMACE models in the form that TorchScript compiles, for engines without Python.

Without ``from __future__ import annotations``, which the compiler cannot read in classes.
"""

import copy
from typing import Any

import torch
from ase.data import chemical_symbols
from e3nn.util import jit
from mace import modules
from torch import Tensor, nn

from sog_longrange import HostError
from sog_longrange.errors import explain
from sog_longrange.hosts import count_columns
from sog_longrange.scripted import ScriptedLongRange
from sog_longrange.scripted.traced import trace

from .backbone import is_plain
from .model import SOGMACE
from .readout import has_component_order, invariant_features, vector_features


class _Features(nn.Module):
    """Invariant features and vectors of the long-range part, from those of MACE."""

    def __init__(self, model: SOGMACE) -> None:
        super().__init__()
        self.invariants = model.invariants
        self.parts = model.vectors
        self.by_component = has_component_order(model.mace)

    def forward(self, node_feats: Tensor) -> tuple[Tensor, Tensor]:
        invariants = invariant_features(node_feats, self.invariants)
        if not self.parts:
            return invariants, node_feats[:, None, :0].expand(-1, 3, -1)
        return invariants, vector_features(node_feats, self.parts, self.by_component)


class ScriptedSOGMACE(nn.Module):
    """A SOGMACE model of one structure at a time, ready for `torch.jit.script`.

    Parameters
    ----------
    model : SOGMACE
        Not changed.
    dtype : torch.dtype, optional
        Of the result; by default that of the model.

    Raises
    ------
    HostError
        If the model has several heads, a converted MACE inside, one that takes charges by itself,
        or latent dipoles and a kernel that is no sum of Gaussians.

    Attributes
    ----------
    r_max : float
        Neighbours are wanted up to this distance, in Å.
    symbols : list of str
        Elements that the model knows.
    dtype : str
        "float32" or "float64", of positions and all results.
    takes_total_charge : bool
        Whether the total charge of a structure matters.
    """

    index: Tensor

    def __init__(self, model: SOGMACE, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        check_exportable(model)
        model = copy.deepcopy(model).eval()
        model.to(dtype or next(model.parameters()).dtype)
        for own in nn.Module.parameters(model):
            own.requires_grad_(False)
        self.dtype: str = str(next(model.parameters()).dtype).removeprefix("torch.")
        mace: Any = model.mace
        self.r_max: float = float(mace.r_max)
        self.numbers: list[int] = [int(z) for z in mace.atomic_numbers]
        self.symbols: list[str] = [chemical_symbols[z] for z in self.numbers]
        index = torch.full((len(chemical_symbols),), -1, dtype=torch.int64)
        index[self.numbers] = torch.arange(len(self.numbers))
        self.register_buffer("index", index.to(mace.atomic_numbers.device))
        self.features = trace(_Features(model), _node_feats(model))
        self.long_range = ScriptedLongRange(model.long_range, count_columns(model.vectors) // 3)
        self.takes_total_charge: bool = self.long_range.takes_total_charge
        self.mace = jit.compile(mace)

    def forward(
        self,
        positions: Tensor,
        cell: Tensor,
        pbc: Tensor,
        numbers: Tensor,
        edge_index: Tensor,
        unit_shifts: Tensor,
        total_charge: float = 0.0,
        per_atom: bool = False,
    ) -> dict[str, Tensor]:
        """Evaluate energies, whose derivatives autograd gives.

        Parameters
        ----------
        positions : Tensor, shape (n_atoms, 3), in Å
            Any periodic image of each atom.
        cell : Tensor, shape (3, 3), in Å
            Rows are lattice vectors.
        pbc : Tensor, shape (3,), bool
            All true or all false.
        numbers : Tensor, shape (n_atoms,), int64
            Atomic numbers.
        edge_index : Tensor, shape (2, n_edges), int64
            Both atoms of all pairs up to `r_max`, each pair in both orders, images included.
        unit_shifts : Tensor, shape (n_edges, 3)
            How many lattice vectors the second atom is moved by, so that the vector of an edge is
            ``positions[second] - positions[first] + unit_shifts @ cell``.
        total_charge : float
            In e; zero unless the model takes one.
        per_atom : bool
            Whether energies of single atoms are wanted.

        Returns
        -------
        dict
            `energy` () in eV; `atomic_energies` (n_atoms,), its sum, those of single atoms only
            if wanted; `charges` (n_atoms, n_channels) in e and `dipoles` (n_atoms, 3, n_channels
            or 0) in e Å.
        """
        types = self.index[numbers]
        if bool((types < 0).any()):
            raise ValueError("`numbers` must be of elements that the model knows: " + self.known())
        count, device = positions.shape[0], positions.device
        data: dict[str, Tensor] = {
            "positions": positions,
            "cell": cell,
            "node_attrs": nn.functional.one_hot(types, len(self.numbers)).to(positions),
            "edge_index": edge_index,
            "shifts": unit_shifts @ cell,
            "unit_shifts": unit_shifts,
            "batch": torch.zeros([count], dtype=torch.int64, device=device),
            "ptr": torch.tensor([0, count], device=device),
            "head": torch.zeros([1], dtype=torch.int64, device=device),
        }
        out = self.mace(data, True, False, False, False, False)
        node_energy, node_feats = out["node_energy"], out["node_feats"]
        if node_energy is None or node_feats is None:
            raise ValueError("The MACE model gives no energies or features of its atoms.")
        features, vectors = self.features(node_feats)
        energy, shares, charges, dipoles = self.long_range(
            features, vectors, positions, cell, pbc, total_charge, per_atom, types
        )
        return {
            "energy": node_energy.sum() + energy,
            "atomic_energies": node_energy + shares,
            "charges": charges,
            "dipoles": dipoles,
        }

    def known(self) -> str:
        """Elements that the model knows, as a line."""
        return " ".join(self.symbols)

    @torch.jit.export
    def evaluate(
        self,
        positions: Tensor,
        cell: Tensor,
        pbc: Tensor,
        numbers: Tensor,
        edge_index: Tensor,
        unit_shifts: Tensor,
        total_charge: float = 0.0,
        per_atom: bool = False,
    ) -> dict[str, Tensor]:
        """Evaluate energies, forces and virial, for programs without automatic differentiation.

        Parameters
        ----------
        positions, cell, pbc, numbers, edge_index, unit_shifts, total_charge, per_atom
            As of :meth:`forward`.

        Returns
        -------
        dict
            What `forward` returns, without a graph, and `forces` (n_atoms, 3) in eV/Å and the
            `virial` (3, 3) in eV: minus the derivative of the energy in the strain.
        """
        strain = torch.zeros_like(cell).requires_grad_(True)
        places = positions.detach().requires_grad_(True)
        change = 0.5 * (strain + strain.t())
        out = self.forward(
            places + places @ change,
            cell + cell @ change,
            pbc,
            numbers,
            edge_index,
            unit_shifts,
            total_charge,
            per_atom,
        )
        grads = torch.autograd.grad([out["energy"]], [places, strain], allow_unused=True)
        results: dict[str, Tensor] = {}
        for key, value in out.items():
            results[key] = value.detach()
        forces, virial = torch.zeros_like(places), torch.zeros_like(strain)
        slope, pull = grads[0], grads[1]
        if slope is not None:
            forces = -slope
        if pull is not None:
            virial = -pull
        results["forces"], results["virial"] = forces, virial
        return results


def check_exportable(model: SOGMACE) -> None:
    """Raise `HostError` unless a model can be exported.

    Parameters
    ----------
    model : SOGMACE
    """
    heads = list(getattr(model, "heads", None) or ["Default"])
    if len(heads) > 1:
        remedy = "Choose one by sog_mace_select_head."
        raise HostError(explain("model", "one of a single head", ", ".join(heads), remedy))
    if not is_plain(model.mace):
        got = "one that is converted to cuEquivariance or OpenEquivariance"
        raise HostError(explain("model", "a plain MACE inside", got))
    inputs: Any = getattr(model.mace, "embedding_specs", None)
    if inputs:
        expected = "a MACE without inputs of its own beside the structure"
        raise HostError(explain("model", expected, str(sorted(inputs))))


def _node_feats(model: SOGMACE) -> Tensor:
    """Features of three atoms, as an example."""
    mace: modules.MACE = model.mace
    width = sum(product.linear.irreps_out.dim for product in mace.products)
    return next(nn.Module.parameters(model)).detach().new_ones(3, width)
