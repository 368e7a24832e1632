"""
An infrared spectrum from molecular dynamics
============================================

Latent charges make a dipole, and a dipole that changes in time absorbs light. Here a model that
never saw a dipole in its training gives the infrared spectrum of water, in two ways:
from normal modes, and from the dipole along a trajectory. Both are compared with the reference
method.

You learn how to

* get dipoles from a model, and their derivatives,
* run dynamics in ASE and turn dipoles into a spectrum by ``infrared_spectrum``,
* compare areas of bands with harmonic intensities.
"""

# %%
# A model
# -------
# A model of a molecule alone could not know its dipole: any charges would do. The training set has
# a chloride ion beside the molecule, 3 to 8 Å away. Its field pulls at the atoms with their Born
# charges, which are the derivatives of the dipole, and so these can be learned from forces. Labels
# are of GFN2-xTB.

import tempfile
from pathlib import Path

import ase.io
import numpy as np
from ase import build
from lesson import commands, molecules, salts

folder = Path(tempfile.mkdtemp())
train = molecules.make_hydrated(130, 3.0, 8.0, seed=1, alone=20)
valid = molecules.make_hydrated(12, 3.0, 8.0, seed=2)
ase.io.write(folder / "train.xyz", train)
ase.io.write(folder / "valid.xyz", valid)
commands.run(
    folder,
    """sog_mace_run_train --name=model --sog_preset=auto --train_file=train.xyz
    --valid_file=valid.xyz --energy_key=REF_energy --forces_key=REF_forces --E0s=average
    --r_max=4.0 --num_interactions=2 --max_ell=1 --correlation=2
    --hidden_irreps='8x0e + 8x1o' --batch_size=8 --max_num_epochs=35 --lr=0.02
    --scheduler=ExponentialLR --lr_scheduler_gamma=0.9 --energy_weight=1000
    --forces_weight=100 --ema --ema_decay=0.98 --seed=1 --device=cpu""",
)
print(commands.log_lines(folder, "^Preset", "Epoch 34:"))

# %%
# Normal modes
# ------------
# Forces and dipoles at displaced geometries give the Hessian and the derivatives of the dipole;
# the intensity of a mode with mass-weighted coordinate Q is :math:`974.9\,|\partial\mu/\partial
# Q|^2` km/mol, in e and amu. ``get_dipole_moment`` is in e Å. The same function is used for the
# model and for the reference.

from ase.optimize import BFGS
from tblite.ase import TBLite

from sog_mace import SOGMACECalculator

temperature = 300.0  # K


def normal_modes(calculator, step=0.01):
    """Relaxed molecule, wave numbers in 1/cm and intensities in km/mol of its vibrations."""
    molecule = build.molecule("H2O", info={"charge": 0})
    molecule.calc = calculator
    BFGS(molecule, logfile=None).run(fmax=1e-3, steps=100)
    hessian, slopes = [], []
    for atom, axis in np.ndindex(len(molecule), 3):
        sides = []
        for sign in (1, -1):
            moved = molecule.copy()
            moved.calc = calculator
            moved.positions[atom, axis] += sign * step
            sides.append((moved.get_forces().ravel(), moved.get_dipole_moment()))
        hessian.append((sides[1][0] - sides[0][0]) / (2 * step))
        slopes.append((sides[0][1] - sides[1][1]) / (2 * step))
    scale = np.repeat(molecule.get_masses() ** -0.5, 3)
    squares, modes = np.linalg.eigh(scale[:, None] * np.array(hessian) * scale)
    strengths = 974.9 * ((scale[:, None] * modes).T @ np.array(slopes)) ** 2
    # sqrt(eV/(amu Å^2)) is 521.47 1/cm; the first six are translations and rotations.
    return molecule, 521.47 * np.sqrt(squares[6:].clip(0)), strengths.sum(1)[6:]


calculators = {
    "GFN2-xTB": TBLite(method="GFN2-xTB", verbosity=0),
    "model": SOGMACECalculator(str(folder / "model.model"), device="cpu", default_dtype="float64"),
}
harmonic = {}
for name, calculator in calculators.items():
    molecule, waves, strengths = normal_modes(calculator)
    harmonic[name] = waves, strengths
    dipole = np.linalg.norm(molecule.get_dipole_moment())
    pairs = ", ".join(f"{w:.0f} ({s:.0f})" for w, s in zip(waves, strengths, strict=True))
    print(f"{name:9s} dipole {dipole:.2f} e Å; modes in 1/cm (km/mol): {pairs}")

# %%
# The modes are the bending and two stretches. How well intensities come out depends on how much
# of the derivatives of the dipole was learned in so short a training: compare the dipoles first.
#
# Dynamics
# --------
# A single trajectory of a small molecule has poor statistics. So here are 12 molecules, 15 Å
# apart. Each moves nearly as if alone, and the spectrum of the sum of their dipoles is the sum of
# their spectra. The start is the relaxed molecule with twice the kinetic energy, of which half
# becomes potential energy.

from ase import Atoms, units
from ase.md.langevin import Langevin

from sog_longrange import infrared_spectrum

count, time_step = 12, 0.5  # fs
swarm = Atoms()
for place in 15.0 * np.array(list(np.ndindex(3, 2, 2))):
    copy = molecule.copy()
    copy.positions += place
    swarm += copy
swarm.info["charge"] = 0
swarm.calc = calculators["model"]
rng = np.random.default_rng(1)
salts.set_velocities(swarm, 2 * temperature, rng)
friction = {"friction": 1e-3 / units.fs, "fixcm": False, "rng": rng}
dynamics = Langevin(swarm, time_step * units.fs, temperature_K=temperature, **friction)
dipoles = []
dynamics.attach(lambda: dipoles.append(swarm.get_dipole_moment()))
dynamics.run(2000)
spectrum = infrared_spectrum(dipoles, time_step, temperature=temperature, resolution=50.0)
section = spectrum.cross_section / count
print(f"{len(dipoles)} dipoles, spectrum up to {spectrum.wave_numbers[-1]:.0f} 1/cm")

# %%
# The area under a band is its intensity: with the cross-section in Å\ :sup:`2`, times 602.2 it is
# in km/mol. It should be that of the harmonic modes of the model, but for what a short trajectory
# scatters. Below 1000 1/cm is the rotation of the molecules, which has no mode.

waves, strengths = harmonic["model"]
for low, high in ((1200, 2200), (2800, 4400)):
    band = (spectrum.wave_numbers > low) & (spectrum.wave_numbers < high)
    area = 602.2 * section[band].sum() * np.diff(spectrum.wave_numbers[:2])[0]
    inside = (waves > low) & (waves < high)
    centre = np.average(spectrum.wave_numbers[band], weights=section[band])
    print(
        f"{low:4d} to {high} 1/cm: dynamics {area:4.0f} km/mol, mean {centre:.0f} 1/cm; "
        f"harmonic {strengths[inside].sum():4.0f} km/mol"
    )

# %%
# Sticks are the harmonic modes of the model, and of the reference in black; their heights are
# intensities, on the right axis. The line is the spectrum of the dynamics. It has two wings around
# each mode: a molecule that rotates absorbs at the sum and at the difference of both frequencies.

import matplotlib.pyplot as plt

from sog_longrange.plots import COLOURS, INK, house_style

with house_style():
    figure, ax = plt.subplots(figsize=(10.5, 5.6), layout="constrained")
    ax.plot(spectrum.wave_numbers, 1e3 * section, color=COLOURS[1], lw=2.5)
    ax.set(xlim=(0, 4400), xlabel="wave number (1/cm)", ylim=(0, None))
    at = 1e3 * section[spectrum.wave_numbers < 1000].max()
    ax.text(420, 0.8 * at, "rotation", color=COLOURS[1])
    ax.text(1750, 0.25 * at, "dynamics", color=COLOURS[1])
    ax.set_ylabel("absorption cross-section ($10^{-3}$ Å$^2$)", color=COLOURS[1])
    sticks = ax.twinx()
    sticks.spines["right"].set_visible(True)
    for (name, (waves, strengths)), colour in zip(harmonic.items(), (INK, COLOURS[0]), strict=True):
        sticks.vlines(waves, 0, strengths, color=colour, lw=4, alpha=0.8, label=f"harmonic, {name}")
    sticks.set(ylabel="harmonic intensity (km/mol)", ylim=(0, None))
    sticks.legend(loc="upper right")

# %%
# In periodic cells the dipole jumps where an atom passes from one nearest image to the next. Then
# the rate of change of the dipole is collected, from ``get_born_charges`` and velocities, and
# ``rates=True`` is passed; :doc:`/guide/charges` has the lines for it.
