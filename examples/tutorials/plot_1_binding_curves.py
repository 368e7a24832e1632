"""
Binding curves: what a cutoff cannot see
========================================

Two molecular ions, ammonium and perchlorate, attract each other as charges do: with the energy
:math:`-14.4\\,\\text{eV Å}/r`. A model that looks a few ångströms around each atom sees one ion or
the other beyond its cutoff, and nothing between them. Here you train such a model, MACE, with and
without a long-range part, on pairs that are near each other, and ask both for pairs that
are farther apart than any they were trained on.

You learn how to

* train with ``sog_mace_run_train``, and let a *preset* choose its options,
* read the summary that it prints,
* compare two models on a binding curve.
"""

# %%
# The data
# --------
# The reference is GFN2-xTB, a fast semi-empirical method. Pairs have random orientations and
# separations of up to 8 Å between centres of mass; some molecules alone are among them. Every
# frame has an energy (``REF_energy``, eV), forces (``REF_forces``, eV/Å) and a total charge
# (``total_charge``, e). Charges of atoms are not part of the data: models learn from energies and
# forces alone.

import tempfile
from pathlib import Path

import ase.io
import numpy as np
from lesson import commands, molecules

folder = Path(tempfile.mkdtemp())
near, far = 8.0, 15.0  # Å: largest separation in the training set, and in the test
train = molecules.make_pairs("charged-charged", 100, 0.0, near, seed=1, alone=8)
valid = molecules.make_pairs("charged-charged", 10, 0.0, near, seed=2)
ase.io.write(folder / "train.xyz", train)
ase.io.write(folder / "valid.xyz", valid)
print(len(train), "frames to train on, the first is", train[0])

# %%
# Training
# --------
# Both models get the same options, which are those of ``mace_run_train``: a cutoff of 4.5 Å, two
# layers and eight channels, which is very little, and 30 epochs. ``sog_mace_run_train`` takes all
# of them and adds the ones that begin with ``--sog_``. None has to be given: by default
# (``--sog_preset=auto``) it looks at the training data and says what it found and chose.
# ``commands.run`` does what a shell would do, for both commands at the same time.

options = """
    --train_file=train.xyz --valid_file=valid.xyz --energy_key=REF_energy --forces_key=REF_forces
    --E0s=average --r_max=4.5 --num_interactions=2 --max_ell=1 --correlation=2
    --hidden_irreps='8x0e + 8x1o' --batch_size=8 --max_num_epochs=30 --lr=0.01
    --scheduler=ExponentialLR --lr_scheduler_gamma=0.9 --energy_weight=1000 --forces_weight=100
    --ema --ema_decay=0.99 --seed=1 --device=cpu
"""
commands.run(
    folder,
    f"mace_run_train --name=MACE {options}",
    f"sog_mace_run_train --name=SOG-MACE --sog_preset=auto {options}",
)
print(commands.log_lines(folder, "^Preset", number=1))

# %%
# The line says what was found: molecules with charges of +1 and -1. The preset ``ionic``
# therefore lets each element bring a charge (``readout=ions``). These charges begin at values
# that sum to those of the ions, and all else that an atom has flows to it from its neighbours, so
# that an ion keeps its whole charge at any distance. :doc:`/guide/presets` describes the others.
#
# The summary
# -----------
# At the end of a training the charges of each element are listed, the share of the energy that
# is long-range, and the law that the kernel has learned: an exponent of 1 is Coulomb's.

print(commands.summary(folder, number=1))

# %%
# These charges are *latent*: they are what explains the energies. Their sums over the ions
# have a meaning far apart, and those of single atoms less so.
#
# Farther apart
# -------------
# A rigid scan, from contact to nearly twice the separations of the training. The two calculators
# of ASE differ in that ``SOGMACECalculator`` reads the total charge, ``atoms.info["charge"]`` or
# ``["total_charge"]``.

from mace.calculators import MACECalculator

from sog_mace import SOGMACECalculator

scan, separate = molecules.make_scan("charged-charged", 31, far)
distances = np.array([frame.info["separation"] for frame in scan])
reference = np.array([frame.info["REF_energy"] for frame in scan]) - separate
calculators = {
    "MACE": MACECalculator(str(folder / "MACE.model"), device="cpu", default_dtype="float64"),
    "SOG-MACE": SOGMACECalculator(
        str(folder / "SOG-MACE.model"), device="cpu", default_dtype="float64"
    ),
}
energies = {}
for name, calculator in calculators.items():
    values = [calculator.get_potential_energy(frame) for frame in scan]
    energies[name] = np.array(values) - separate

beyond = distances > near
for name, values in energies.items():
    error = 1e3 * np.sqrt(np.mean((values - reference) ** 2, where=beyond))
    print(f"{name:9s} RMSE of the energy beyond {near:g} Å: {error:6.1f} meV")

# %%
# In the figure, points are the reference, and the shaded region is that of the training. Look at
# the curve of MACE right of it: two atoms of different molecules are out of each other's sight,
# and the energy is that of a typical pair of the training set, at any distance. The dotted line
# is :math:`-14.4/r`.

import matplotlib.pyplot as plt

from sog_longrange.plots import COLOURS, FAINT, INK, SHADE, house_style

with house_style():
    figure, ax = plt.subplots(figsize=(9.0, 5.6), layout="constrained")
    ax.axvspan(0.0, near, color=SHADE, lw=0, zorder=-2)
    ax.text(
        near - 0.1, 0.03, "trained", transform=ax.get_xaxis_transform(), ha="right", color=FAINT
    )
    ax.plot(distances, -14.3996 / distances, ":", color=FAINT, lw=2)
    ax.plot(distances, reference, "o", color=INK, ms=6)
    ax.annotate("GFN2-xTB", (distances[8], reference[8]), (6, -18), textcoords="offset points")
    for (name, values), colour in zip(energies.items(), COLOURS, strict=False):
        ax.plot(distances, values, color=colour, lw=3, zorder=0)
        offset = (0, 8) if values[-1] > reference[-1] else (0, -30)
        place = {"textcoords": "offset points", "ha": "right", "fontweight": "bold"}
        ax.annotate(name, (distances[-1], values[-1]), offset, color=colour, **place)
    ax.set(xlim=(distances[0] - 0.3, far + 0.3), xlabel="separation of the ions (Å)")
    ax.set_ylabel("energy relative to separate ions (eV)")

# %%
# And the charges of the two ions at the largest distance, from the long-range model:

charges = calculators["SOG-MACE"].get_charges(scan[-1])
first = scan[-1].info["first_atoms"]
print(f"ammonium {charges[:first].sum():+.3f} e, perchlorate {charges[first:].sum():+.3f} e")

# %%
# The signs may be the other way round: charges act in pairs, so that the common sign of all is
# free.
#
# For a comparison of three kinds of dimer with larger models, run ``python -m nox -s demo``; on
# your own data, ``python -m nox -s demo -- --data "$PWD/my_frames.xyz"``.
