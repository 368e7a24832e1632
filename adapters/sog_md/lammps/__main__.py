"""``python -m sog_md.lammps`` is the command ``sog_lammps``."""

from .cli import main

main()
