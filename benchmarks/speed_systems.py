"""Ionic systems that the speed benchmark evaluates, the same in every run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DENSITY = 0.1  # atoms per Å^3
JITTER = 0.3  # Å, standard deviation of each coordinate
BATCH = "batch"
BATCH_GRAPHS = 32
BATCH_ATOMS = (20, 200)


@dataclass(frozen=True)
class System:
    """A batch of periodic structures.

    Parameters
    ----------
    name : number of atoms as text, or `BATCH`.
    charges : Tensor, shape (n_atoms, n_channels), neutral in each structure.
    positions : Tensor, shape (n_atoms, 3), in Å.
    cell : Tensor, shape (n_graphs, 3, 3), in Å.
    counts : number of atoms of each structure.
    """

    name: str
    charges: Tensor
    positions: Tensor
    cell: Tensor
    counts: tuple[int, ...]

    @property
    def n_atoms(self) -> int:
        """Number of atoms of all structures together."""
        return sum(self.counts)

    @property
    def title(self) -> str:
        """Name in tables."""
        if self.name != BATCH:
            return f"{self.n_atoms:,}"
        low, high = min(self.counts), max(self.counts)
        return f"{len(self.counts)} x {low}-{high} ({self.n_atoms:,})"

    @property
    def pbc(self) -> Tensor:
        """Periodicity, true everywhere; shape (n_graphs, 3)."""
        return torch.ones(len(self.counts), 3, dtype=torch.bool, device=self.cell.device)

    @property
    def batch(self) -> Tensor:
        """Structure of each atom, shape (n_atoms,)."""
        counts = torch.tensor(self.counts, device=self.cell.device)
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> System:
        """The same system in another precision or place."""
        moved = (x.to(device, dtype) for x in (self.charges, self.positions, self.cell))
        return System(self.name, *moved, self.counts)


def make_system(name: str, channels: int) -> System:
    """The system of a name, in double precision.

    Parameters
    ----------
    name : number of atoms as text, or `BATCH`.
    channels : charges of each atom.
    """
    if name != BATCH:
        charges, positions, cell = ionic_box(int(name), channels, seed=0)
        return System(name, charges, positions, cell[None], (int(name),))
    generator = torch.Generator().manual_seed(0)
    low, high = BATCH_ATOMS
    counts = tuple(torch.randint(low, high + 1, (BATCH_GRAPHS,), generator=generator).tolist())
    boxes = [ionic_box(count, channels, seed) for seed, count in enumerate(counts)]
    charges, positions, cells = zip(*boxes, strict=True)
    return System(name, torch.cat(charges), torch.cat(positions), torch.stack(cells), counts)


def ionic_box(n_atoms: int, channels: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Charges, positions and cell of a jittered rock salt in a triclinic box.

    Atoms are shuffled: a host hands them over in no order that helps a mesh.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = _lattice_shape(n_atoms)
    sites = torch.cartesian_prod(*(torch.arange(n) for n in shape))
    sites = sites[torch.randperm(len(sites), generator=generator)[:n_atoms]]
    shape = torch.tensor(shape, dtype=torch.float64)
    spacing = (n_atoms / DENSITY / float(shape.prod())) ** (1.0 / 3.0)
    shear = 0.3 * torch.rand(3, 3, generator=generator, dtype=torch.float64).tril(-1) - 0.15
    cell = (torch.eye(3, dtype=torch.float64) + shear.tril(-1)) * shape[:, None] * spacing
    noise = torch.randn(n_atoms, 3, generator=generator, dtype=torch.float64)
    positions = (sites + 0.25) / shape @ cell + JITTER * noise
    spread = torch.randn(n_atoms, channels, generator=generator, dtype=torch.float64)
    charges = (1.0 - 2.0 * (sites.sum(1, keepdim=True) % 2)) * (1.0 + 0.2 * spread)
    return charges - charges.mean(0), positions, cell


def _lattice_shape(n_atoms: int) -> tuple[int, int, int]:
    """A nearly cubic lattice of at least that many sites."""
    first = max(1, round(n_atoms ** (1.0 / 3.0)))
    second = max(1, round((n_atoms / first) ** 0.5))
    return first, second, -(-n_atoms // (first * second))
