"""A gas of ±1 ions with exact Coulomb forces, as PyG data.

Ions at random places of a periodic box, no two closer than 2.2 Å, repel each other at short
range (WCA) and interact by Coulomb's law, summed over all periodic images by Ewald's method in
float64. No model with a cutoff can learn it: half of the force on an ion comes from afar.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from tqdm import tqdm

from sog_longrange import Ewald, LongRangeEnergy
from sog_longrange.units import COULOMB_CONSTANT
from sog_pyg import StoreBoundary, periodic_edges

SODIUM, CHLORINE = 11, 17
SMEARING = 1.0  # Å, splits the Coulomb sum; the result does not depend on it
REAL_CUTOFF = 8.0  # Å, where erfc(r / sqrt(2) SMEARING) is 1e-15
WCA_DIAMETER, WCA_DEPTH = 2.4, 0.05  # Å, eV


@dataclass(frozen=True)
class Recipe:
    """What the boxes are like.

    Parameters
    ----------
    num_ions : of both signs together, an even number.
    volume : per ion, in Å^3.
    closest : smallest distance of two ions, in Å.
    stretch : largest relative change of each edge from the cube, drawn at random.
    """

    num_ions: int = 64
    volume: float = 27.0
    closest: float = 2.2
    stretch: float = 0.12


def make_gas(count: int, seed: int, recipe: Recipe | None = None, label: str = "") -> list[Data]:
    """Make labelled boxes of ions.

    Parameters
    ----------
    count : number of boxes.
    seed : of the random places.
    recipe : what the boxes are like.
    label : name on the progress bar.

    Returns
    -------
    list of Data in float32, with ``z``, ``pos``, ``cell``, ``pbc``, ``energy`` (1,) in eV,
    ``forces`` (n, 3) in eV/Å and ``charge`` (n,) in e, which is never trained on.
    """
    recipe = Recipe() if recipe is None else recipe
    rng = np.random.default_rng(seed)
    bar = tqdm(range(count), desc=f"  {label or 'ions':14s}", unit="box", ncols=100)
    return [_make_box(rng, recipe) for _ in bar]


def exact_energy(
    charges: Tensor, pos: Tensor, cell: Tensor, pbc: Tensor, wca: bool = True
) -> Tensor:
    """Coulomb energy of point charges by Ewald's method, plus the repulsion of the cores.

    Parameters
    ----------
    charges : Tensor, shape (n,), in e.
    pos : Tensor, shape (n, 3), in Å.
    cell : Tensor, shape (1, 3, 3), in Å.
    pbc : Tensor, shape (1, 3).
    wca : whether the repulsion is added.

    Returns
    -------
    Tensor, shape (), in eV
    """
    far = LongRangeEnergy(Ewald(SMEARING), tolerance=1e-14, backend="dense")
    energy = far(charges[:, None], pos, cell, pbc).energy.sum()
    (source, target), vectors = periodic_edges(pos, REAL_CUTOFF, cell, pbc)
    r = vectors.norm(dim=-1)
    screened = torch.erfc(r / (math.sqrt(2.0) * SMEARING)) / r
    pairs = COULOMB_CONSTANT * charges[source] * charges[target] * screened
    if wca:
        s6 = (WCA_DIAMETER / r) ** 6
        repulsion = 4.0 * WCA_DEPTH * (s6**2 - s6) + WCA_DEPTH
        pairs = pairs + torch.where(r < 2.0 ** (1 / 6) * WCA_DIAMETER, repulsion, 0.0)
    return energy + 0.5 * pairs.sum()


def _make_box(rng: np.random.Generator, recipe: Recipe) -> Data:
    edge = (recipe.num_ions * recipe.volume) ** (1 / 3)
    cell = np.diag(edge * np.exp(rng.uniform(-recipe.stretch, recipe.stretch, 3)))
    half = recipe.num_ions // 2
    z = torch.tensor([SODIUM] * half + [CHLORINE] * half)
    pos = torch.from_numpy(_places(rng, cell, recipe))
    data = StoreBoundary(cell, pbc=True)(Data(z=z, pos=pos))
    charges = torch.where(z == SODIUM, 1.0, -1.0).double()
    pos.requires_grad_()
    energy = exact_energy(charges, pos, data.cell, data.pbc)
    (slope,) = torch.autograd.grad(energy, pos)
    data.pos = pos.detach().float()
    data.cell = data.cell.float()
    data.energy, data.forces = energy.detach().float()[None], -slope.float()
    data.charge = charges.float()
    return data


def _places(rng: np.random.Generator, cell: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Random sequential addition in a rectangular box."""
    edges = np.diag(cell)
    places = np.empty((0, 3))
    while len(places) < recipe.num_ions:
        new = rng.random(3) * edges
        apart = places - new
        apart -= edges * np.round(apart / edges)
        if np.all((apart**2).sum(-1) >= recipe.closest**2):
            places = np.vstack([places, new])
    return places
