"""
A surface, and why its boundary matters
=======================================

A slab repeats along two axes and ends along the third. Codes that know only fully periodic cells
put a layer of vacuum into the cell and repeat the slab along the third axis too. Where the slab
has a dipole, its images then act on each other through the vacuum, however wide it is in
practice. Here the third axis is really open: ``pbc = T T F``.

You learn how to

* train on crystals and slabs together, with the preset for surfaces,
* compute a surface energy, and see what the boundary does to it,
* see what goes wrong with vacuum where a slab is polar.
"""

# %%
# The data
# --------
# Rock salt of ions with fixed charges of +1 and -1 e, which repel their neighbours. Its energy is
# known in any boundary, so that every number below can be checked. The training set has 40 small
# crystals, strained and displaced, and 20 slabs of one cell (two layers of ions), open along z.

import tempfile
from pathlib import Path

import ase.io
import numpy as np
from ase.build import bulk
from ase.units import J, m
from lesson import commands
from workbench import rock_salt

from sog_longrange import LongRangeEnergy, SumOfGaussians

lattice = 5.63  # Å
kernel = SumOfGaussians(min_width=0.8, max_width=1000.0, num_gaussians=18)
ions = rock_salt.FixedIons()
ions.long_range = LongRangeEnergy(kernel, tolerance=1e-7).double()
rng = np.random.default_rng(1)


def make_slab(cells, vacuum=15.0, periodic=False):
    """Slab of rock salt with (001) surfaces; each cell has two layers of ions."""
    slab = bulk("NaCl", "rocksalt", a=lattice, cubic=True).repeat((1, 1, cells))
    slab.cell[2, 2] += vacuum
    slab.pbc = [True, True, periodic]
    return slab


frames = rock_salt.make_frames(50, seed=1)
for _ in range(24):
    slab = make_slab(1)
    slab.positions += rng.normal(scale=0.1, size=slab.positions.shape)
    frames.append(slab)
for frame in frames:
    frame.info["REF_energy"] = ions.get_potential_energy(frame)
    frame.arrays["REF_forces"] = ions.get_forces(frame)

folder = Path(tempfile.mkdtemp())
ase.io.write(folder / "train.xyz", frames[:40] + frames[50:70])
ase.io.write(folder / "valid.xyz", frames[40:50] + frames[70:])
for frame in (frames[0], frames[1], frames[50]):
    print(frame.get_chemical_formula(), "periodic along", frame.pbc)

# %%
# Training
# --------
# The preset ``interface`` lets elements bring charges, and makes them sum to zero in each frame.
# That matters: energies of bulk crystals do not change when all charges are shifted alike, so
# that they could not tell, but those of slabs do.
#
# ``--sog_kernel_start=1`` keeps the kernel at 1/r: the share of the training before which it does
# not learn is all of it. Where the law is known to be Coulomb's, there is nothing to be learned.
#
# ``--sog_max_width`` is the width of the widest Gaussian. The kernel follows 1/r to 0.15 of it.
# The default of 100 Å is enough for what decays in a crystal or a liquid; the potential of a
# polar slab does not decay, and asks for more. ``--sog_min_width`` is that of the made-up world
# here; leave it out for yours.
#
# ``E0s`` are the energies of the parts that are infinitely far apart. These are ions here, whose
# energies are zero.

commands.run(
    folder,
    """sog_mace_run_train --name=slab --sog_preset=interface --sog_kernel_start=1
    --sog_min_width=0.8 --sog_max_width=1000 --sog_num_gaussians=18
    --train_file=train.xyz --valid_file=valid.xyz --energy_key=REF_energy
    --forces_key=REF_forces --E0s='{11: 0.0, 17: 0.0}' --r_max=4.5 --num_interactions=1
    --max_ell=2 --correlation=2 --hidden_irreps=16x0e --batch_size=5 --max_num_epochs=36
    --lr=0.02 --scheduler=ExponentialLR --lr_scheduler_gamma=0.9 --energy_weight=100
    --forces_weight=100 --ema --ema_decay=0.98 --seed=1 --device=cpu""",
)
print(commands.log_lines(folder, "^Preset"))
print(commands.summary(folder))

# %%
# Surface energy
# --------------
# The energy of a slab over that of as much bulk crystal, for each of its two surfaces:
#
# .. math:: \gamma = \frac{E_\text{slab} - n E_\text{bulk}}{2A}
#
# It should not depend on the number of layers, nor on the boundary, since this slab has no dipole.

from sog_mace import SOGMACECalculator

model = SOGMACECalculator(str(folder / "slab.model"), device="cpu", default_dtype="float64")
calculators = {"exact": ions, "model": model}
cell = bulk("NaCl", "rocksalt", a=lattice, cubic=True)
cells = np.array([1, 2, 3, 4])
surface_energy = {}
for name, calculator in calculators.items():
    of_bulk = calculator.get_potential_energy(cell)
    for boundary in ("T T F", "T T T"):
        slabs = [make_slab(n, periodic=boundary == "T T T") for n in cells]
        excess = np.array([calculator.get_potential_energy(slab) for slab in slabs])
        gamma = (excess - cells * of_bulk) / (2 * lattice**2) / (J / m**2)
        surface_energy[name, boundary] = gamma
        print(f"{name:6s} {boundary}:", " ".join(f"{x:.4f}" for x in gamma), "J/m^2")

# %%
# A polar slab
# ------------
# Now all sodium ions are moved up by 0.15 Å, as in a ferroelectric film. With the dipole
# :math:`\mu` of the cell, the repeated slabs act on each other like plates of a capacitor that
# are joined: the energy of the periodic cell is lower than that of the single slab by :math:`2\pi
# k_e \mu^2 / A L`, where L is the height of the cell. The open boundary needs no such correction.


def make_polar(vacuum, periodic):
    """Slab of two cells with its sodium ions moved up."""
    slab = make_slab(2, vacuum, periodic)
    slab.positions[slab.numbers == 11, 2] += 0.15
    return slab


heights = np.array([20.0, 25.0, 30.0, 40.0, 50.0, 60.0, 80.0])
shift = {}
for name, calculator in calculators.items():
    alone = calculator.get_potential_energy(make_polar(20.0, periodic=False))
    repeated = [make_polar(height - 2 * lattice, periodic=True) for height in heights]
    shift[name] = np.array([calculator.get_potential_energy(slab) for slab in repeated]) - alone
    print(f"{name:6s} T T T - T T F:", " ".join(f"{1e3 * x:.1f}" for x in shift[name]), "meV")

polar = make_polar(20.0, periodic=False)
dipole = {"exact": 8 * 0.15, "model": abs(model.get_charges(polar) @ polar.positions[:, 2])}
print("dipole, e Å:", ", ".join(f"{name} {value:.3f}" for name, value in dipole.items()))

open_slabs = [make_polar(vacuum, periodic=False) for vacuum in (5.0, 50.0)]
thin, wide = (model.get_potential_energy(slab) for slab in open_slabs)
print(
    f"model, T T F: the height of the cell changes the energy by {1e3 * abs(thin - wide):.1e} meV"
)

# %%
# Look at the right panel: even 80 Å of cell leave an error of the periodic boundary, which falls
# as 1/L only. The model follows, as far as its dipole is right: the shift goes as the square of it.

import matplotlib.pyplot as plt

from sog_longrange.plots import COLOURS, FAINT, INK, house_style
from sog_longrange.units import COULOMB_CONSTANT

heights_line = np.linspace(18, 82, 100)
capacitor = -2 * np.pi * COULOMB_CONSTANT * dipole["exact"] ** 2 / lattice**2 / heights_line
with house_style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 5.2), layout="constrained")
    left.plot(2 * cells, surface_energy["exact", "T T F"], "o", color=INK, ms=9, label="exact")
    left.plot(
        2 * cells, surface_energy["model", "T T F"], color=COLOURS[1], lw=3, label="model, T T F"
    )
    style = {"ls": "", "marker": "x", "ms": 10, "mew": 2, "color": COLOURS[0]}
    left.plot(2 * cells, surface_energy["model", "T T T"], **style, label="model, T T T and vacuum")
    left.set(xlabel="layers", ylabel="surface energy (J/m$^2$)", ylim=(0, 0.21), xticks=2 * cells)
    left.legend(loc="lower left")
    right.axhline(0, color=COLOURS[1], lw=3)
    right.text(80, -5, "T T F", color=COLOURS[1], fontweight="bold", ha="right", va="top")
    right.plot(heights_line, 1e3 * capacitor, ":", color=FAINT, lw=2, label="$-2\\pi k_e\\mu^2/AL$")
    right.plot(heights, 1e3 * shift["exact"], "o", color=INK, ms=9, label="exact, T T T")
    right.plot(heights, 1e3 * shift["model"], **style, label="model, T T T")
    right.set(
        xlabel="height of the cell (Å)", ylabel="energy of the polar slab\nrelative to T T F (meV)"
    )
    right.legend(loc="lower right")

# %%
# Stresses of slabs are those of the structure's own cell, and the in-plane components times its
# height do not depend on it. ``sog_mace_eval_configs`` writes them right, MACE's own command does
# not.
