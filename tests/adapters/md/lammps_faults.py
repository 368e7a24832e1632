"""Runs that go wrong on a rank: ``mpiexec -n 2 python lammps_faults.py FAULT MODEL``."""

import os
import signal
import sys

from lammps_cases import attach, start
from md_builders import water

from sog_longrange.ase_support import open_calculator
from sog_longrange.errors import HostError
from sog_md.lammps.library import load_mpi


def main(fault, model):
    lmp, _ = start(water(2))
    couple = attach(lmp, open_calculator(model), ["H", "O"], decompose=fault != "gathered")
    evaluate = couple.method.evaluate
    wrong = 0 if fault == "gathered" else 1

    def go_wrong(own):
        if couple.calls == 3 and load_mpi().COMM_WORLD.rank == wrong:
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "gathered":
                couple.method.calculator = None
            else:
                raise HostError("The springs are broken.")
        return evaluate(own)

    couple.method.evaluate = go_wrong
    lmp.command("fix move all nve")
    try:
        lmp.command("run 1000")
    except (HostError, AttributeError) as error:
        print(f"rank {load_mpi().COMM_WORLD.rank} at {lmp.extract_global('ntimestep')}: {error}")
        sys.exit(3)


if __name__ == "__main__":
    main(*sys.argv[1:])
