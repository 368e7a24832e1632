"""Exchange of numbers between the owners of atoms and the ghosts of them on other ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .snapshot import Array


class TagHalo:
    """Exchange with the ranks that own an atom's ghosts, found by the tags of atoms.

    Whom to ask is found without any rank hearing of all atoms: every tag has a rank that knows
    its owner. Collective, as all its methods are.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    tags : ndarray, shape (n_all,)
        Own atoms first, ghosts behind; every ghost's atom is owned by some rank.
    num_own : int
    """

    def __init__(self, comm: Any, tags: Array, num_own: int) -> None:
        self.comm, self.num_own = comm, num_own
        wanted, self.ghosts = np.unique(tags[num_own:], return_inverse=True)
        owners, places = _ask(comm, wanted, *_directory(comm, tags[:num_own]))
        order = np.argsort(owners, kind="stable")
        received = np.empty_like(order)
        received[order] = np.arange(len(order))
        # From place among what is received, owner after owner, to the ghosts.
        self.ghosts = received[self.ghosts.ravel()]
        self.receives = np.bincount(owners, minlength=comm.size)
        asked, self.sends = _exchange(comm, places[order], self.receives)
        self.sent = asked.astype(np.int64)

    def forward(self, values: Tensor) -> Tensor:
        """Give ghosts the numbers of their owners.

        Parameters
        ----------
        values : Tensor, shape (n_own, k)

        Returns
        -------
        Tensor, shape (n_all, k)
        """
        own = values.detach().cpu().numpy()
        received = self._pass(own[self.sent], self.sends, self.receives)
        return torch.from_numpy(np.concatenate([own, received[self.ghosts]]))

    def reverse(self, values: Tensor) -> Tensor:
        """Add to own atoms what all ranks have on the ghosts of them.

        Parameters
        ----------
        values : Tensor, shape (n_all, k)

        Returns
        -------
        Tensor, shape (n_own, k)
        """
        given = values.detach().cpu()
        sums = given.new_zeros((int(self.receives.sum()), given.shape[1]))
        sums.index_add_(0, torch.from_numpy(self.ghosts), given[self.num_own :])
        returned = self._pass(sums.numpy(), self.receives, self.sends)
        own = given[: self.num_own].clone()
        return own.index_add_(0, torch.from_numpy(self.sent), torch.from_numpy(returned))

    def _pass(self, rows: Array, sends: Array, receives: Array) -> Array:
        """Send rows to ranks and receive others, only between ranks that have any."""
        comm, width = self.comm, rows.shape[1]
        received = np.empty((int(receives.sum()), width), rows.dtype)
        rows = np.ascontiguousarray(rows)
        starts, ends = np.cumsum(sends) - sends, np.cumsum(receives)
        requests = [
            comm.Irecv(received[ends[rank] - receives[rank] : ends[rank]], rank)
            for rank in _partners(receives, comm.rank)
        ]
        requests += [
            comm.Isend(rows[starts[rank] : starts[rank] + sends[rank]], rank)
            for rank in _partners(sends, comm.rank)
        ]
        me = comm.rank
        received[ends[me] - receives[me] : ends[me]] = rows[starts[me] : starts[me] + sends[me]]
        for request in requests:
            request.Wait()
        return received


def _partners(counts: Array, me: int) -> list[int]:
    return [rank for rank in np.flatnonzero(counts).tolist() if rank != me]


def _directory(comm: Any, tags: Array) -> tuple[Array, Array, Array]:
    """Tags that this rank knows the owners of, sorted, with the owners and their places there."""
    keepers = tags % comm.size
    order = np.argsort(keepers, kind="stable")
    counts = np.bincount(keepers, minlength=comm.size)
    known, sizes = _exchange(comm, tags[order], counts)
    places, _ = _exchange(comm, order, counts)
    owners = np.repeat(np.arange(comm.size), sizes)
    by_tag = np.argsort(known, kind="stable")
    return known[by_tag], owners[by_tag], places[by_tag]


def _ask(comm: Any, tags: Array, known: Array, owners: Array, places: Array) -> tuple[Array, Array]:
    """Owners of tags, and the places of the atoms there, from the ranks that know them."""
    keepers = tags % comm.size
    order = np.argsort(keepers, kind="stable")
    counts = np.bincount(keepers, minlength=comm.size)
    asked, sizes = _exchange(comm, tags[order], counts)
    found = np.searchsorted(known, asked)
    answers = []
    for column in (owners, places):
        answer, _ = _exchange(comm, column[found], sizes)
        restored = np.empty_like(answer)
        restored[order] = answer
        answers.append(restored)
    return answers[0], answers[1]


def _exchange(comm: Any, values: Array, counts: Array) -> tuple[Array, Array]:
    """Send whole numbers, those of rank after rank, and receive others with their counts."""
    counts = np.ascontiguousarray(counts, dtype=np.int64)
    sizes = np.empty_like(counts)
    comm.Alltoall(counts, sizes)
    received = np.empty(int(sizes.sum()), dtype=np.int64)
    given = np.ascontiguousarray(values, dtype=np.int64)
    comm.Alltoallv([given, counts], [received, sizes])
    return received, sizes
