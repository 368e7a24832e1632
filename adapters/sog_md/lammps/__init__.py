"""LAMMPS moves the atoms, a model with a long range gives energy, forces and virial."""

from .couple import Couple, attach
from .input_script import run_input

__all__ = ["Couple", "attach", "run_input"]
