"""The command ``sog_lammps``."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Final

import torch

from sog_longrange.errors import SOGError

from .input_script import run_input
from .library import all_arrive, end_all, load_mpi

_USAGE: Final = """usage: [mpiexec -n RANKS] sog_lammps -in FILE [options of LAMMPS]

Runs LAMMPS on an ordinary input file, in which a model with a long range is

    pair_style sog [device cuda] [decompose yes|no] [virial yes|no] [charge Q] [field X Y Z]
    pair_coeff * * my.model H O

with the elements of the atom types behind the file; several files are a committee.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the command line.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    names = [name for name in ("-in", "-i") if name in given[:-1]]
    if len(names) != 1 or {"-h", "-help", "--help"} & set(given):
        print(_USAGE, end="")
        sys.exit(0 if {"-h", "-help", "--help"} & set(given) else 2)
    place = given.index(names[0])
    path = given[place + 1]
    del given[place : place + 2]
    sys.exit(_run(path, given))


def _run(path: str, arguments: list[str]) -> int:
    """Run an input, with an error as one message."""
    comm = load_mpi().COMM_WORLD
    _share_cores(comm)
    try:
        run_input(path, arguments, comm).close()
    except Exception as error:  # noqa: BLE001
        _explain(error, comm.rank)
        if not all_arrive(comm):
            end_all(comm, f"ERROR on rank {comm.rank}: {error}")
        return 1
    return 0


def _explain(error: Exception, rank: int) -> None:
    """Print an error once, with its trace if it is not one that is meant for users."""
    # LAMMPS has no class of errors of its own, and shows them on its screen only.
    if type(error) is Exception:
        print(f"rank {rank}: {error}", file=sys.stderr, flush=True)
    elif not isinstance(error, SOGError):
        traceback.print_exception(error)
    elif rank == 0:
        print(f"ERROR: {error}", file=sys.stderr, flush=True)


def _share_cores(comm: Any) -> None:
    """Give each rank of a host its part of the cores, unless that is set already."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    local = comm.Split_type(load_mpi().COMM_TYPE_SHARED)
    cores = set().union(*local.allgather(_own_cores()))
    torch.set_num_threads(max(1, len(cores) // local.size))


def _own_cores() -> set[int]:
    """Cores that this process may use, which a launcher may have bound it to."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
