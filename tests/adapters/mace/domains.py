"""An engine in a few lines: atoms on ranks, ghosts within a cutoff, and their exchange."""

import numpy as np
import torch
import torch.distributed as dist
from ase.neighborlist import neighbor_list

from sog_longrange.ase_support import total_charge
from sog_longrange.domains import Domain

SKIN = 0.4
"""What lists of pairs reach further than the model, in Å."""


def slabs(atoms, ranks, axis=2):
    """Rank of each atom where space is cut along one axis."""
    return np.minimum((atoms.get_scaled_positions()[:, axis] * ranks).astype(int), ranks - 1)


class Images:
    """Exchange by sums over the atoms of all ranks; `places` are those of own atoms and ghosts."""

    def __init__(self, places, num_own, total, group=None):
        self.places, self.num_own, self.total, self.group = places, num_own, total, group
        self.calls = []

    def forward(self, values):
        assert values.shape[0] == self.num_own
        self.calls.append(("forward", values.shape[1], values.dtype))
        return self._sum(self.places[: self.num_own], values)[self.places]

    def reverse(self, values):
        assert values.shape[0] == len(self.places)
        self.calls.append(("reverse", values.shape[1], values.dtype))
        return self._sum(self.places, values)[self.places[: self.num_own]]

    def _sum(self, places, values):
        assert values.is_contiguous()
        assert not values.requires_grad
        whole = values.new_zeros(self.total, values.shape[1]).index_add_(0, places, values)
        if self.group is not None:
            dist.all_reduce(whole, group=self.group)
        return whole


def make_domain(atoms, owners, rank, cutoff, group=None):
    """Domain of a rank, and the exchange of its ghosts."""
    atoms = atoms.copy()
    atoms.wrap()
    own = np.flatnonzero(owners == rank)
    i, j, vectors, shifts = neighbor_list("ijDS", atoms, cutoff + SKIN)
    mine = owners[i] == rank
    i, j, vectors, shifts = (x[mine] for x in (i, j, vectors, shifts))
    row = {(int(atom), 0, 0, 0): place for place, atom in enumerate(own)}
    images = [(int(atom), *map(int, shift)) for atom, shift in zip(j, shifts, strict=True)]
    for image in images:
        row.setdefault(image, len(row))
    places = torch.tensor([atom for atom, *_ in row], dtype=torch.int64)
    first = [row[(int(atom), 0, 0, 0)] for atom in i]
    second = [row[image] for image in images]
    domain = Domain(
        numbers=torch.from_numpy(atoms.numbers)[places],
        num_own=len(own),
        positions=torch.from_numpy(atoms.positions[own]),
        cell=torch.from_numpy(atoms.cell.array),
        pairs=torch.tensor([first, second], dtype=torch.int64).view(2, -1),
        vectors=torch.from_numpy(vectors).view(-1, 3),
        total_charge=total_charge(atoms),
    )
    return domain, Images(places, len(own), len(atoms), group)
