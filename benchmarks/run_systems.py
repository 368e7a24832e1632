"""Evidence by one command: see `systems/command.py`, or `python -m nox -s systems -- --help`.

python benchmarks/run_systems.py [SYSTEM ...] [options]
python benchmarks/run_systems.py --measure FOLDER    # what the command runs for each model
"""

from __future__ import annotations

import sys

import jobs  # noqa: F401  (first: it makes the modules of the examples importable)
from systems import command, dynamics, measure

if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure.main(sys.argv[2])
    elif sys.argv[1:2] == ["--dynamics"]:
        dynamics.main(*sys.argv[2:])
    else:
        command.main()
