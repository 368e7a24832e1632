"""Domains of LAMMPS, each evaluated by the rank that has it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from ase import Atoms
from scipy.spatial import cKDTree
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from sog_longrange.ase_support import EXTERNAL_FIELD, total_charge
from sog_longrange.domains import Domain
from sog_longrange.errors import HostError

from .halo import TagHalo
from .library import load_mpi
from .snapshot import Array, Evaluated, Snapshot, box_of

_SKIN: Final = 0.5
"""Further reach of pairs in Å, so that they serve until an atom has moved half of it."""

_NO_PAIRS: Final = np.zeros((2, 0), dtype=np.int64)
_NOTHING_SEEN: Final = np.zeros((0, 3))


class Decomposed:
    """Model that every rank evaluates for the atoms of its own domain.

    Parameters
    ----------
    lmp : lammps.lammps
    calculator : ase.calculators.calculator.Calculator
        With a `domain_model`.
    comm : mpi4py.MPI.Comm
        Of the ranks that hold the atoms.
    info : dict
        With the total charge, if the model takes one.
    numbers : sequence of int
        Atomic numbers of the types 1, 2, ...

    Raises
    ------
    HostError
        If the model cannot be evaluated on domains.
    """

    def __init__(
        self, lmp: Any, calculator: Any, comm: Any, info: dict[str, Any], numbers: Sequence[int]
    ) -> None:
        self.lmp, self.comm = lmp, comm
        self.numbers = torch.tensor([0, *numbers])
        self.total_charge = total_charge(Atoms(info=info))
        self.model = calculator.domain_model(process_group(comm))
        self.cutoff: float = self.model.cutoff
        self.tags = np.zeros(0, dtype=np.int64)
        self.halo: TagHalo | None = None
        self.seen, self.pairs = _NOTHING_SEEN, _NO_PAIRS

    def evaluate(self, own: Snapshot) -> Evaluated:
        """Evaluate the domain of this rank; to be called by all ranks.

        Parameters
        ----------
        own : Snapshot

        Returns
        -------
        Evaluated
        """
        tags, types, positions = self._atoms_and_ghosts(len(own.tags))
        halo = self._exchange(tags, len(own.tags))
        pairs = self._find_pairs(positions, len(own.tags))
        domain = Domain(
            numbers=self.numbers[torch.from_numpy(types)],
            num_own=len(own.tags),
            positions=torch.from_numpy(own.positions),
            cell=torch.from_numpy(own.cell),
            pairs=torch.from_numpy(pairs),
            vectors=torch.from_numpy(positions[pairs[1]] - positions[pairs[0]]),
            total_charge=self.total_charge,
        )
        found = self.model.evaluate(domain, halo)
        long_range, state = found.long_range_energy, found.charge_state_energy
        energies = {
            "long_range_energy": long_range,
            "short_range_energy": found.energy - long_range - state,
            "charge_state_energy": state,
        }
        forces, virial, atomic, charges = (
            values.numpy()
            for values in (found.forces, found.virial, found.atomic_energies, found.charges)
        )
        return Evaluated(found.energy, forces, virial, atomic, charges, energies)

    def _atoms_and_ghosts(self, num_own: int) -> tuple[Array, Array, Array]:
        """Tags, types and positions of own atoms and, behind them, of ghosts."""
        count = num_own + int(self.lmp.extract_setting("nghost"))
        if not count:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros((0, 3))
        tags, types = (
            np.array(self.lmp.numpy.extract_atom(name, nelem=count), dtype=np.int64).ravel()
            for name in ("id", "type")
        )
        positions = self.lmp.numpy.extract_atom("x", nelem=count, dim=3)
        return tags, types, np.array(positions).reshape(-1, 3)

    def _exchange(self, tags: Array, num_own: int) -> TagHalo:
        """Return what exchanges numbers of ghosts, a new one where any rank has other atoms."""
        changed = self.halo is None or self.halo.num_own != num_own
        changed = changed or not np.array_equal(tags, self.tags)
        if self.halo is None or self.comm.allreduce(int(changed)):
            self.halo = TagHalo(self.comm, tags, num_own)
            self.tags, self.seen, self.pairs = tags, _NOTHING_SEEN, _NO_PAIRS
        return self.halo

    def _find_pairs(self, positions: Array, num_own: int) -> Array:
        """Pairs of own atoms and their neighbours, found anew once atoms have moved."""
        if len(positions) == len(self.seen):
            moved = ((positions - self.seen) ** 2).sum(axis=1)
            if not len(moved) or moved.max() < (_SKIN / 2) ** 2:
                return self.pairs
        self.seen, self.pairs = positions, _NO_PAIRS
        # Trees want finite positions; of others the model says what is wrong.
        if num_own and np.isfinite(positions).all():
            centres, all_atoms = cKDTree(positions[:num_own]), cKDTree(positions)
            reach = self.cutoff + _SKIN
            found = centres.sparse_distance_matrix(all_atoms, reach, output_type="ndarray")
            pairs = np.stack([found["i"], found["j"]]).astype(np.int64)
            self.pairs = pairs[:, pairs[0] != pairs[1]]
        return self.pairs


def reason_to_gather(lmp: Any, calculator: Any, info: dict[str, Any]) -> str | None:
    """Say why the domains of a simulation cannot be evaluated one by one.

    Parameters
    ----------
    lmp : lammps.lammps
    calculator : ase.calculators.calculator.Calculator
    info : dict

    Returns
    -------
    str or None
        None if they can be, as far as can be told without asking the model.
    """
    if not hasattr(calculator, "domain_model"):
        return f"{type(calculator).__name__} evaluates whole structures only."
    if not box_of(lmp)[2].all():
        return "The box is not periodic along all axes, and sums over ranks need that."
    if EXTERNAL_FIELD in info:
        return "External fields act on whole structures only."
    return None


def process_group(comm: Any) -> Any:
    """Process group of torch for the ranks of a communicator.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        Of all processes: partitions are refused.

    Returns
    -------
    ProcessGroup or None
        None for one rank.

    Raises
    ------
    HostError
        If there are other processes than those of the communicator.
    """
    if comm.size == 1:
        return None
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=_store(comm), rank=comm.rank, world_size=comm.size)
    if dist.get_world_size() != comm.size:
        raise HostError("Partitions of LAMMPS cannot evaluate domains one by one.")
    return dist.group.WORLD


def _store(comm: Any) -> TCPStore:
    """Store through which the ranks find each other, kept by the first on a port that is free."""
    local = comm.Split_type(load_mpi().COMM_TYPE_SHARED)
    is_one_host = comm.allreduce(int(local.size == comm.size)) == comm.size
    host = comm.bcast("127.0.0.1" if is_one_host else socket.getfqdn())
    if comm.rank == 0:
        store = TCPStore(host, 0, comm.size, is_master=True, wait_for_workers=False)
        comm.bcast(store.port)
        return store
    return TCPStore(host, comm.bcast(None), comm.size, is_master=False)
