"""Simulations in LAMMPS, also on several ranks: ``mpiexec -n 2 python lammps_cases.py``."""

import json
import sys
from pathlib import Path

import numpy as np
from ase.calculators.lammps import Prism
from ase.data import atomic_masses
from mace_builders import water_box
from md_builders import water

from sog_longrange.ase_support import open_calculator
from sog_md.lammps import attach
from sog_md.lammps.library import load_mpi, start_lammps, world_of

SPECIES = (1, 8)
QUIET = ("-log", "none", "-screen", "none")
BAR = 1.602176634e6
"""Pressure of 1 eV/Å^3 in bar."""


def start(atoms, *, commands="", units="metal"):
    """Start LAMMPS with the atoms of a structure; returns it and the rotation to its box."""
    prism = Prism(atoms.cell.array, pbc=atoms.pbc)
    xx, yy, zz, xy, xz, yz = prism.get_lammps_prism()
    lmp = start_lammps(QUIET)
    lmp.commands_string(f"""
units {units}
atom_style atomic
atom_modify map yes
boundary {" ".join("p" if p else "f" for p in atoms.pbc)}
{commands}
box tilt large
region box prism 0 {xx:.16g} 0 {yy:.16g} 0 {zz:.16g} {xy:.16g} {xz:.16g} {yz:.16g}
create_box {len(SPECIES)} box
""")
    for index, number in enumerate(SPECIES):
        lmp.command(f"mass {index + 1} {atomic_masses[number]:.10f}")
    positions = prism.vector_to_lammps(atoms.positions, wrap=False)
    types = [SPECIES.index(number) + 1 for number in atoms.numbers]
    tags = list(range(1, len(atoms) + 1))
    lmp.create_atoms(len(atoms), tags, types, positions.ravel().tolist())
    return lmp, prism


def results_of(lmp, prism):
    """Energy, forces, stress, charges and energies of atoms, in the frame of the structure."""
    by_atom = {}
    for name, count in (("f", 3), ("x", 3), ("d_sog_charge", 1), ("c_atomic", 1)):
        values = np.array(lmp.gather(name, 1, count))
        by_atom[name] = values.reshape(-1, 3) if count == 3 else values
    pressure = [lmp.get_thermo(f"p{axes}") for axes in ("xx", "yy", "zz", "yz", "xz", "xy")]
    xx, yy, zz, yz, xz, xy = -np.array(pressure) / BAR
    stress = prism.tensor2_to_ase(np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]))
    return {
        "energy": lmp.get_thermo("pe"),
        "forces": prism.vector_to_ase(by_atom["f"]).tolist(),
        "positions": prism.vector_to_ase(by_atom["x"]).tolist(),
        "stress": stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]].tolist(),
        "charges": by_atom["d_sog_charge"].tolist(),
        "energies": by_atom["c_atomic"].tolist(),
        "parts": [lmp.extract_fix("sog", 0, 1, index) for index in range(4)],
        "tags_on_ranks": world_of(lmp).allgather(own_tags(lmp)),
    }


def own_tags(lmp):
    count = lmp.extract_setting("nlocal")
    return sorted(lmp.numpy.extract_atom("id", nelem=count).ravel().tolist()) if count else []


def evaluate(atoms, calculator, *, commands="", units="metal", steps=0, **options):
    """Evaluate a structure in LAMMPS, after some steps at constant energy or as it is."""
    lmp, prism = start(atoms, commands=commands, units=units)
    attach(lmp, calculator, ["H", "O"], **options)
    lmp.command("compute atomic all pe/atom")
    lmp.command("compute needed all reduce sum c_atomic")
    lmp.command("thermo_style custom step pe etotal pxx pyy pzz pxy pxz pyz c_needed")
    if steps:
        lmp.command("neighbor 0.3 bin")
        lmp.command("velocity all create 6000 7 loop geom")
        lmp.command("timestep 0.0005")
        lmp.command("fix move all nve")
    lmp.command("run 0")
    if steps:
        lmp.command(f"run {steps}")
    lmp.command("run 0")
    found = results_of(lmp, prism)
    lmp.close()
    return found


def rod():
    """Three molecules at one end of a long cell, so that a rank along it has no atom."""
    atoms = water_box()
    atoms.set_cell([6.5, 6.5, 40.0])
    atoms.positions[:, 2] = atoms.positions[:, 2] % 6.6 + 1.0
    return atoms


def cases():
    """Structures, models and options that must give the same on any number of ranks."""
    along = "processors 1 1 *"
    for name, decompose in (("gathered", False), ("domains", True)):
        own = {"decompose": decompose}
        yield f"triclinic {name}", water_box(), "plain", own
        yield f"cubic {name}", water(2), "plain", own
        yield f"empty {name}", rod(), "plain", own | {"commands": along}
        yield f"moving {name}", water(2), "plain", own | {"steps": 40}
        yield f"neutral {name}", water(2), "neutral", own
        for constraint in ("total", "states"):
            yield f"{constraint} {name}", water(2), constraint, own | {"info": {"charge": 1.0}}


def main(folder):
    """Run all cases and write what the first rank finds."""
    found = {}
    for name, atoms, model, options in cases():
        found[name] = evaluate(atoms, open_calculator(folder / f"{model}.model"), **options)
    if load_mpi().COMM_WORLD.rank == 0:
        size = len(found["cubic gathered"]["tags_on_ranks"])
        (folder / f"ranks{size}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
