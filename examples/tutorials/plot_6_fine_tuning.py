"""
Fine-tuning: give a trained model a long range
==============================================

You have a MACE model that took long to train, and it lacks the long range. It need not be trained
again from the beginning: passed as ``--foundation_model``, it becomes the short-range part of a
new model, which starts at exactly its energies. The long-range part is switched on over the first
steps.

You learn how to

* fine-tune a model of ``mace_run_train`` with ``sog_mace_run_train``,
* check that the start is that model,
* see what it gains, and what it does to what was right before.
"""

# %%
# A model without a long range
# ----------------------------
# Ammonium and hydrogen cyanide, an ion and a polar molecule, attract each other with an energy that
# falls as :math:`1/r^2`. The data are labelled with GFN2-xTB, at separations of up to 8 Å. Take the
# model below for the one that you have. It is small and trained for a minute.

import tempfile
from pathlib import Path

import ase.io
import numpy as np
from lesson import commands, molecules

kind, near, far = "charged-polar", 8.0, 15.0  # Å
folder = Path(tempfile.mkdtemp())
train = molecules.make_pairs(kind, 90, 0.0, near, seed=1, alone=10)
valid = molecules.make_pairs(kind, 12, 0.0, near, seed=2)
ase.io.write(folder / "train.xyz", train)
ase.io.write(folder / "valid.xyz", valid)

options = """
    --train_file=train.xyz --valid_file=valid.xyz --energy_key=REF_energy --forces_key=REF_forces
    --r_max=4.5 --batch_size=8 --scheduler=ExponentialLR --energy_weight=1000
    --forces_weight=100 --ema --ema_decay=0.98 --seed=1 --device=cpu
"""
commands.run(
    folder,
    f"""mace_run_train --name=trained --E0s=average --num_interactions=2 --max_ell=1
    --correlation=2 --hidden_irreps='8x0e + 8x1o' --max_num_epochs=25 --lr=0.02
    --lr_scheduler_gamma=0.88 {options}""",
)
print(commands.log_lines(folder, "Epoch 24:"))

# %%
# Fine-tuning
# -----------
# Three options change: ``--foundation_model`` names the model, ``--E0s=foundation`` keeps the
# energies of its atoms, and the learning rate is smaller. What the network looks like is taken
# from the model. ``--multiheads_finetuning=False`` means that all of the data are one task, as
# usual for a model of your own.

commands.run(
    folder,
    f"""sog_mace_run_train --name=tuned --foundation_model=trained.model --E0s=foundation
    --multiheads_finetuning=False --sog_preset=auto --max_num_epochs=20 --lr=0.005
    --lr_scheduler_gamma=0.88 {options}""",
)
print(commands.log_lines(folder, "^Preset", "Initial:", "Epoch 19:"))

# %%
# The line ``Initial`` has the errors before the first step. They are those of the trained model,
# to the last digit: the long-range energy is multiplied by a factor that begins at zero
# (``--sog_warmup`` is the number of steps in which it grows to one).
#
# Before and after
# ----------------

from mace.calculators import MACECalculator

from sog_mace import SOGMACECalculator

scan, separate = molecules.make_scan(kind, 31, far)
distances = np.array([frame.info["separation"] for frame in scan])
reference = np.array([frame.info["REF_energy"] for frame in scan]) - separate
calculators = {
    "before": MACECalculator(str(folder / "trained.model"), device="cpu", default_dtype="float64"),
    "after": SOGMACECalculator(str(folder / "tuned.model"), device="cpu", default_dtype="float64"),
}
energies = {}
for name, calculator in calculators.items():
    values = [calculator.get_potential_energy(frame) for frame in scan]
    energies[name] = np.array(values) - separate

for name, values in energies.items():
    errors = 1e3 * np.abs(values - reference)
    inside, beyond = errors[distances <= near].mean(), errors[distances > near].mean()
    print(f"{name:7s} mean error up to {near:g} Å {inside:6.1f} meV, beyond {beyond:6.1f} meV")

# %%
# Errors at trained separations become smaller as well. In part that is the long range, which is
# felt there too, in part the training that goes on.
#
# In the figure, the shaded region is that of the training. Right of it the model before is flat,
# since neither molecule sees the other.

import matplotlib.pyplot as plt

from sog_longrange.plots import COLOURS, FAINT, INK, SHADE, house_style

with house_style():
    figure, ax = plt.subplots(figsize=(9.0, 5.6), layout="constrained")
    ax.axvspan(0.0, near, color=SHADE, lw=0, zorder=-2)
    ax.text(
        near - 0.1, 0.03, "trained", transform=ax.get_xaxis_transform(), ha="right", color=FAINT
    )
    ax.axhline(0, color=FAINT, lw=1, zorder=-1)
    ax.plot(distances, 1e3 * reference, "o", color=INK, ms=6, label="GFN2-xTB")
    for (name, values), colour in zip(energies.items(), COLOURS, strict=False):
        ax.plot(distances, 1e3 * values, color=colour, lw=3, zorder=0, label=name)
    ax.set(xlim=(distances[0] - 0.3, far + 0.3), xlabel="separation (Å)")
    ax.set_ylabel("energy relative to\nseparate molecules (meV)")
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 0.12))

# %%
# A model with a long-range part may be a foundation model too: then that part is taken as it is,
# with its options.
# :doc:`/start/mace` has the options of training.
