"""
Charge states: one model, several total charges
===============================================

A molecule has different energies as an anion, neutral and as a cation. A model that sees elements
and positions only gives it the same energy at each charge. Here the total charge is an input: one
small model learns benzoquinone at charges of -1, 0 and +1 e, and with it vertical ionisation
energies and electron affinities.

You learn how to

* give frames a total charge, and train with a charge embedding,
* ask for energies at a charge in ASE,
* see what happens if the charge is forgotten.
"""

# %%
# The data
# --------
# Distorted geometries of one molecule, each labelled at each charge with IPEA1-xTB, a method
# fitted to ionisation energies and electron affinities. ``total_charge`` is where each frame says
# its charge; ``--total_charge_key`` names another key.

import tempfile
import textwrap
from pathlib import Path

import ase.io
import numpy as np
from lesson import commands
from workbench import charged_molecules

charges = charged_molecules.CHARGES
rng = np.random.default_rng(1)


def make_frames(count):
    """Labelled geometries, at each charge in turn."""
    frames = []
    for number in range(count):
        states = charged_molecules.conformation("benzoquinone", number, 0.02, rng)
        frames += [charged_molecules.label(frame) for frame in states]
    return frames


folder = Path(tempfile.mkdtemp())
train, valid, test = make_frames(30), make_frames(4), make_frames(20)
ase.io.write(folder / "train.xyz", train)
ase.io.write(folder / "valid.xyz", valid)
for frame in train[:3]:
    print(f"charge {frame.info['total_charge']:+d}: {frame.info['REF_energy']:.3f} eV")

# %%
# Training
# --------
# ``--sog_charge_embedding=16`` makes 16 functions of the total charge inputs of the model, and
# adds an energy of the charge state, :math:`\sum_i \chi_i Q_i + \eta_i Q_i^2`: the model shares
# the charge Q among the atoms, and learns an electronegativity :math:`\chi` and a hardness
# :math:`\eta` of each. ``--sog_charge_constraint=total`` lets latent charges sum to Q. It is what
# ``auto``, the default, takes where all frames have a total charge.

commands.run(
    folder,
    """sog_mace_run_train --name=states --sog_charge_embedding=16 --sog_charge_constraint=total
    --train_file=train.xyz --valid_file=valid.xyz --energy_key=REF_energy
    --forces_key=REF_forces --E0s=average --r_max=4.5 --num_interactions=2 --max_ell=2
    --correlation=2 --hidden_irreps='8x0e + 8x1o' --batch_size=6 --max_num_epochs=30 --lr=0.02
    --scheduler=ExponentialLR --lr_scheduler_gamma=0.88 --energy_weight=1000
    --forces_weight=100 --ema --ema_decay=0.98 --seed=1 --device=cpu""",
)
print(commands.log_lines(folder, "^Charge constraint", "Epoch 0:", "Epoch 29:"))

# %%
# Energies at a charge
# --------------------
# In ASE the total charge is ``atoms.info["charge"]``.

from sog_mace import SOGMACECalculator

calculator = SOGMACECalculator(str(folder / "states.model"), device="cpu", default_dtype="float64")


def energy_at(frame, charge):
    """Energy in eV of the geometry of a frame at a total charge in e."""
    atoms = frame.copy()
    atoms.info = {"charge": charge}
    return calculator.get_potential_energy(atoms)


exact = np.array([frame.info["REF_energy"] for frame in test]).reshape(-1, 3)
found = np.array([[energy_at(frame, q) for q in charges] for frame in test[::3]])

vertical = {}
for name, upper, lower in (("ionisation energy", 2, 1), ("electron affinity", 1, 0)):
    vertical[name] = exact[:, upper] - exact[:, lower], found[:, upper] - found[:, lower]
    wanted, said = vertical[name]
    error = 1e3 * np.sqrt(np.mean((said - wanted) ** 2))
    mean, scatter = wanted.mean(), 1e3 * wanted.std()
    print(f"{name}: {mean:.2f} eV, scatter {scatter:.0f} meV, error {error:.0f} meV")

# %%
# The error is to be compared with the scatter over geometries: a model that had learned only the
# mean would be off by as much.
#
# If the charge is forgotten
# --------------------------
# The model does not guess. It also refuses charges that are no whole numbers, unless
# ``--sog_fractional_charge=True`` was an option of its training.

from sog_longrange import SOGError

for charge in (None, 0.5):
    atoms = test[0].copy()
    atoms.info = {} if charge is None else {"charge": charge}
    try:
        calculator.get_potential_energy(atoms)
    except SOGError as error:
        print(textwrap.fill(f"charge {charge}: {error}", 100, subsequent_indent="    "))

# %%
# In the left panel, each geometry is there at each charge, relative to the mean energy of the
# neutral molecule. In the right panel the differences are shown on a finer scale.

import matplotlib.pyplot as plt

from sog_longrange.plots import draw_parity, house_style

zero = exact[:, 1].mean()
states = [f"charge {q:+d}" if q else "charge 0" for q in charges]
with house_style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 6.0), layout="constrained")
    groups = states * len(exact)
    draw_parity((exact - zero).ravel(), (found - zero).ravel(), groups, ax=left)
    wanted, said = (
        np.concatenate([pair[i] - pair[0].mean() for pair in vertical.values()]) for i in (0, 1)
    )
    groups = [name for name in vertical for _ in exact]
    draw_parity(wanted, said, groups, quantity="difference from its mean (eV)", ax=right)

# %%
# The total charge is that of the whole structure. Two molecules far apart do not hold whole
# charges each by it; where they should, see ``readout=ions`` in :doc:`plot_1_binding_curves`.
# More is in :doc:`/guide/charge_states`.
