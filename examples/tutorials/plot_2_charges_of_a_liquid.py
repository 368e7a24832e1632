"""
Charges of a liquid, and why they may be 0.7 e
==============================================

A long-range model gives each atom a latent charge, found from energies and forces alone. What do
these numbers mean? Here they are compared with charges that are known: those of a molten salt
made of ions of a fixed charge.

The ions are not of 1 e but of :math:`1/\\sqrt{2}` e. That is how ions of 1 e act on each other in
matter with a high-frequency dielectric constant :math:`\\varepsilon_\\infty = 2`: electrons
between them screen, and the energy of two charges is :math:`q^2/\\varepsilon_\\infty r`. From
energies and forces only :math:`q/\\sqrt{\\varepsilon_\\infty}` can be learned. Models of real
salts learn such charges for the same reason.

You learn how to

* train on a periodic liquid, and get the charges of its atoms,
* turn latent charges into the ones before screening,
* check charges without knowing them: by a sum rule that every conductor obeys.
"""

# %%
# The data
# --------
# Boxes of 64 ions along a trajectory at 800 K, with energies and forces of point charges by
# Ewald's method and of a short repulsion. The first 40 frames are for training, the others for
# the analysis.

import tempfile
from pathlib import Path

import ase.io
import numpy as np
from lesson import commands, salts

screening = 2.0  # dielectric constant of the electrons
true_charge = 1.0 / np.sqrt(screening)  # e
temperature = 800.0  # K

folder = Path(tempfile.mkdtemp())
frames = salts.make_melt(salts.PointIons(true_charge), 120, temperature, every=15, seed=1)
ase.io.write(folder / "train.xyz", frames[:40])
ase.io.write(folder / "valid.xyz", frames[40:45])
print(
    len(frames),
    "frames of",
    frames[0].get_chemical_formula(),
    "in boxes of",
    frames[0].cell[0, 0],
    "Å",
)

# %%
# Training
# --------
# ``sog_preset``, a command of its own, tells what ``--sog_preset=auto`` would take for a file:

commands.run(folder, "sog_preset train.xyz")
print(commands.log_lines(folder, "^Found", "^Preset", "^MACE"))

# %%
# It sees sodium and chlorine, and begins with their usual charges of +1 and -1 e
# (``element_charges``). These are only the start: the charges of elements are learned.
#
# One layer with a cutoff of 4 Å is enough here: the short-range part has nothing but a repulsion
# to learn. This training is short and looks at forces only (``--energy_weight=0``), since forces
# alone tell the charges. Energies of the model then differ from the reference by a constant.

commands.run(
    folder,
    """sog_mace_run_train --name=salt --sog_preset=auto
    --train_file=train.xyz --valid_file=valid.xyz --energy_key=REF_energy
    --forces_key=REF_forces --E0s=average --r_max=4.0 --num_interactions=1 --max_ell=1
    --correlation=2 --hidden_irreps=16x0e --batch_size=2 --max_num_epochs=16 --lr=0.02
    --scheduler=ExponentialLR --lr_scheduler_gamma=0.82 --energy_weight=0 --forces_weight=100
    --ema --ema_decay=0.98 --seed=1 --device=cpu""",
)
print(commands.summary(folder))

# %%
# The first lines of this summary are what to look at after any training: charges of each element,
# with their least and largest value. A warning below them names what looks unphysical, such as
# structures with a large net charge where none is prescribed.
#
# Latent charges and true charges
# -------------------------------
# ``get_charges`` gives them for any structure. Their common sign is free, since only products of
# charges enter the energy: here it is chosen such that sodium is positive.

from sog_mace import SOGMACECalculator

calculator = SOGMACECalculator(str(folder / "salt.model"), device="cpu", default_dtype="float64")
signs = salts.signs_of(frames[0])
unseen = frames[45:]
learned = np.array([calculator.get_charges(frame) for frame in unseen])
learned *= np.sign((learned * signs).sum())

size = (learned * signs).mean()
print(f"mean size of a learned charge {size:.3f} e, true {true_charge:.3f} e")
print(f"largest deviation of a charge {np.abs(learned - true_charge * signs).max():.3f} e")
print(f"learned times the root of the dielectric constant {size * screening**0.5:.3f} e")

# %%
# The last line is the charge of an ion, as it would be without the screening by electrons.
# Functions that need it, such as ``get_born_charges``, take ``eps_inf`` and multiply by its root
# themselves.
#
# A check that needs no true charges
# ----------------------------------
# In a liquid of mobile ions the charge fluctuates little over long distances, because ions screen
# each other. With the structure factor of the charge
#
# .. math:: S(k) = \frac1V \Big\langle \big|\sum_j q_j e^{-i k\cdot r_j}\big|^2 \Big\rangle
#
# the second-moment condition of Stillinger and Lovett demands :math:`4\pi k_e S(k) \to k_B T\,
# k^2` for small :math:`k`, with :math:`k_e = 14.4` eV Å/e\ :sup:`2`. It holds for the charges
# that act in the simulation. If charges were too large by a factor of 1.4, all of S would be too
# large by 2.

from sog_longrange.units import BOLTZMANN_CONSTANT, COULOMB_CONSTANT


def structure_factor(frames, charges, squares=range(1, 15)):
    """Wave numbers in 1/Å, and S(k) in e^2/Å^3 averaged over directions and frames."""
    edge, places = frames[0].cell[0, 0], np.array([f.get_scaled_positions() for f in frames])
    grid = [np.array(n) - 3 for n in np.ndindex(7, 7, 7)]
    result = []
    for square in squares:
        waves = [n for n in grid if n @ n == square and tuple(n) > (0, 0, 0)]
        if waves:
            phases = np.exp(-2j * np.pi * places @ np.array(waves).T)
            sums = np.einsum("fn,fnk->fk", charges, phases)
            result.append((2 * np.pi / edge * square**0.5, np.mean(np.abs(sums) ** 2) / edge**3))
    return np.array(result).T


k, exact = structure_factor(unseen, np.broadcast_to(true_charge * signs, learned.shape))
found = structure_factor(unseen, learned)[1]
limit = BOLTZMANN_CONSTANT * temperature * k**2 / (4 * np.pi * COULOMB_CONSTANT)
print(f"S over its limit at the smallest k = {k[0]:.2f} 1/Å: {found[0] / limit[0]:.2f}")

# %%
# The left panel has the sizes of the learned charges of all ions in frames that were not trained
# on, the right panel the structure factor. Look at the left end of the right panel: a sum over a
# finite time and box scatters there, but the points come down to the line.

import matplotlib.pyplot as plt

from sog_longrange.plots import COLOURS, FAINT, INK, house_style

with house_style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 5.2), layout="constrained")
    bins = np.linspace(0.5, 0.8, 121)
    for sign, name, colour in ((1, "Na", COLOURS[1]), (-1, "Cl", COLOURS[0])):
        sizes = sign * learned[:, signs == sign].ravel()
        left.hist(sizes, bins, histtype="step", lw=2.2, color=colour, label=name)
    left.axvline(true_charge, color=INK, lw=2, ls=":", label="true")
    left.legend(loc="upper left", labelcolor="linecolor", handlelength=1.2)
    left.set(xlabel="size of the charge (e)", ylabel="number of ions", xlim=(0.5, 0.8))
    right.plot(k, limit, ":", color=FAINT, lw=2.5)
    right.annotate("perfect screening", (k[2], limit[2]), (8, -14), textcoords="offset points")
    right.plot(k, exact, "o", color=INK, ms=8, mfc="none", label="true charges")
    right.plot(k, found, "-", color=COLOURS[1], lw=2.5, label="learned charges")
    right.legend(loc="upper left")
    right.set(
        xscale="log", yscale="log", xlabel="k (1/Å)", ylabel="charge structure factor (e$^2$/Å$^3$)"
    )
    right.set_xticks([0.5, 1.0, 1.5], ["0.5", "1", "1.5"])
    right.set_xticks([], minor=True)

# %%
# :doc:`/guide/charges` says more of what latent charges mean, and of dipoles and Born charges.
