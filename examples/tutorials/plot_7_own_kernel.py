"""
Write a kernel of your own
==========================

Charges of a model interact through a kernel :math:`K(r)`. It is a sum of Gaussians, which begins
as an *initial potential* and is learned from there. Coulomb's, dispersion, powers and a screened
potential are built in. One of your own is a class of a few lines.

The example is dispersion with the damping of Tang and Toennies, as models of noble gases have it:

.. math::
    K(r) = -C_6\\, f_6(br)\\, r^{-6}, \\qquad f_6(x) = 1 - e^{-x} \\sum_{n=0}^{6} \\frac{x^n}{n!}

You learn how to

* write the class, and see how well Gaussians fit it,
* check energies and derivatives with what the package has for tests,
* let the kernel learn.
"""

# %%
# The class
# ---------
# Options are the fields of a frozen dataclass. ``radial`` is the potential in eV/e\ :sup:`2` at
# distances in Å. ``zero_mode`` says whether it is integrable over all space: :math:`r^{-6}` is,
# :math:`1/r` is not. ``register`` gives it a name for options.

from dataclasses import dataclass

import torch
from torch import Tensor

from sog_longrange import InitialPotential, SOGConfig, register


@register("tang_toennies")
@dataclass(frozen=True)
class TangToennies(InitialPotential):
    """Damped dispersion -C6 f6(b r) / r^6."""

    c6: float = 40.0  # eV Å^6/e^2, about that of two argon atoms
    decay: float = 2.0  # b, in 1/Å
    zero_mode = True

    def radial(self, r: Tensor) -> Tensor:
        """Value in eV/e^2 at distances in Å."""
        # P(7, x), the regularised incomplete gamma function, is f6(x) without cancellation.
        damping = torch.special.gammainc(torch.full_like(r, 7.0), self.decay * r)
        return -self.c6 * damping / r**6


# %%
# In a training the class must be importable wherever the model is loaded, so it goes into a module
# of your own. Then no ``register`` is needed, but the name is that of module and class:
#
# .. code-block:: bash
#
#     PYTHONPATH=. sog_mace_run_train --sog_num_channels=2 \
#         --sog_kernel="coulomb+my_kernels:TangToennies(c6=60)" ...
#
# How good the fit is
# -------------------
# Amplitudes of Gaussians are fitted by least squares. A fit that is off by more than 10 % is an
# error. More Gaussians, or a smaller range of widths (1.2 to 100 Å by default), make it better.

builds = {}
for count in (8, 12, 20):
    config = SOGConfig(kernel="tang_toennies(c6=60)", num_gaussians=count)
    builds[count] = config.build_kernel().double()
    error = builds[count].initial_error(4.0, 12.0)
    print(f"{count:2d} Gaussians: off by at most {100 * error:.2g} % from 4 to 12 Å")

# %%
# Left the potential and the Gaussians, right the error of the fits. They are best where :math:`r`
# is larger than two or three times the narrowest width (``min_width``, 1 Å by default). Within
# the cutoff of a network this does not matter, since the network takes up the difference.

import matplotlib.pyplot as plt
import numpy as np

from sog_longrange.plots import COLOURS, FAINT, INK, SHADE, house_style

true = TangToennies(c6=60.0)
r = torch.linspace(2.0, 14.0, 241, dtype=torch.float64)
with house_style(), torch.no_grad():
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 5.2), layout="constrained")
    left.plot(r, 1e3 * true.radial(r), color=INK, lw=6, alpha=0.25)
    left.annotate("Tang-Toennies", (4.2, 1e3 * float(true.radial(r[44]))), (5.5, -8), color=FAINT)
    for (count, kernel), colour in zip(builds.items(), COLOURS, strict=False):
        values = kernel.radial(r.square())[0]
        left.plot(r, 1e3 * values, color=colour, lw=1.8)
        right.plot(
            r, 100 * (values / true.radial(r) - 1), color=colour, lw=2.2, label=f"{count} Gaussians"
        )
    left.set(xlabel="distance (Å)", ylabel="K(r) (meV/e$^2$)", ylim=(-60, 3))
    right.set(xlabel="distance (Å)", ylabel="error of the fit (%)", ylim=(-12, 17))
    right.axhline(0, color=FAINT, lw=1)
    right.legend(loc="upper right")

# %%
# Checks
# ------
# A crystal of argon with a latent value of 1 on each atom. The sum in reciprocal space has all
# pairs, however far. It is compared with the potential itself, summed over pairs up to a distance
# R, and what is beyond it taken as :math:`-\tfrac{2\pi}{3}\, C_6 N \rho / R^3` at the density
# :math:`\rho`.

from ase.build import bulk
from ase.neighborlist import neighbor_list

from sog_longrange import LongRangeEnergy

argon = bulk("Ar", "fcc", a=5.26, cubic=True)
argon.rattle(0.1, seed=1)
summed = LongRangeEnergy(builds[20], tolerance=1e-7)
charges = torch.ones(len(argon), 1, dtype=torch.float64)
positions = torch.tensor(argon.positions)
cell, pbc = torch.tensor(argon.cell.array)[None], torch.ones(1, 3, dtype=torch.bool)
energy = float(summed(charges, positions, cell, pbc).energy.detach())
print(f"reciprocal sum of 20 Gaussians {energy:9.5f} eV")
for reach in (10.0, 20.0, 40.0):
    distances = torch.tensor(neighbor_list("d", argon, reach))
    pairs = 0.5 * float(true.radial(distances).sum())
    rest = -2 * np.pi / 3 * true.c6 * len(argon) ** 2 / argon.get_volume() / reach**3
    print(f"pairs up to {reach:2.0f} Å {pairs:9.5f} eV, and what is beyond {pairs + rest:9.5f} eV")

# %%
# Differences are those of the fit. A model with a cutoff misses the second part, which falls
# slowly.
#
# ``sog_longrange.testing`` has asserts for what any interaction must obey. They say nothing if
# all is well, and end in a message otherwise.

from sog_longrange.testing import (
    Structure,
    assert_forces_match_finite_differences,
    assert_invariant,
)

structure = Structure(charges, positions, cell[0], pbc[0])


def evaluate(*inputs):
    """Energies of a batch, as the asserts ask for them."""
    return summed(*inputs).energy


assert_invariant(evaluate, structure)
assert_forces_match_finite_differences(evaluate, structure)
print("rotations, images, cell bases, batches, forces and stress are right")

# %%
# Learning
# --------
# What if the guess was wrong? Let a kernel begin as :math:`-1/r^4`, and show it forces of the
# true potential between pairs of atoms at 3.5 to 10 Å. The value of a kernel at one distance is
# pinned in training, which gives charges a scale, so that the latent value of the atoms is
# learned too, as a network would do. Errors are relative to the force of each pair: otherwise the
# near ones would decide alone.

from sog_longrange import SumOfGaussians, power_law

learner = SumOfGaussians(power_law(exponent=4, strength=-10.0)).double()
value = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
model = LongRangeEnergy(learner)
apart = torch.logspace(np.log10(3.5), 1.0, 40, dtype=torch.float64)
batch = torch.arange(40).repeat_interleave(2)
places = torch.zeros(80, 3, dtype=torch.float64)
places[1::2, 0] = apart
places.requires_grad_()
apart.requires_grad_()
(wanted,) = torch.autograd.grad(true.radial(apart).sum(), apart)

optimizer = torch.optim.Adam([*learner.parameters(), value], lr=0.03)
history = []
for _ in range(400):
    out = model(value.expand(80, 1), places, batch=batch)
    (slope,) = torch.autograd.grad(out.energy.sum(), places, create_graph=True)
    loss = (slope[1::2, 0] / wanted - 1).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    history.append(100 * float(loss.detach()) ** 0.5)
print(f"relative error of forces: {history[0]:.0f} % at the start, {history[-1]:.1f} % at the end")

# %%
# The force between two atoms, their latent values included. Shaded: the distances that were
# learned from. A kernel is known as far as data show it, so compare the lines beyond as well.

r = torch.linspace(2.5, 20.0, 400, dtype=torch.float64, requires_grad=True)
curves = {
    "true: Tang-Toennies": (true.radial(r), {"color": INK, "lw": 6, "alpha": 0.25}),
    "start: $1/r^4$": (-10.0 / r**4, {"color": FAINT, "ls": ":", "lw": 2}),
    "learned": (value**2 * learner.radial(r.square())[0], {"color": COLOURS[1], "lw": 2.5}),
}
with house_style():
    figure, ax = plt.subplots(figsize=(9.0, 5.2), layout="constrained")
    ax.axvspan(3.5, 10.0, color=SHADE, lw=0, zorder=-2)
    for name, (potential, style) in curves.items():
        (slope,) = torch.autograd.grad(potential.sum(), r)
        ax.plot(r.detach(), 1e3 * slope, label=name, **style)
    ax.set(xscale="log", yscale="log", xlabel="distance (Å)", ylabel="attractive force (meV/Å)")
    ax.set_xticks([3, 5, 10, 20], ["3", "5", "10", "20"])
    ax.set_xticks([], minor=True)
    ax.legend()

# %%
# :doc:`/extend/add_a_kernel` has the other attributes of such a class, and kernels that are no
# sum of Gaussians.
