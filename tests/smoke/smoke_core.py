"""The core alone: energy of rock salt against Madelung's constant, and its derivatives."""

import itertools

import torch
from installed import assert_close, check_imports

import sog_longrange
from sog_longrange import LongRangeEnergy, SOGConfig, SOGLongRange, SumOfGaussians, coulomb
from sog_longrange.units import COULOMB_CONSTANT

MADELUNG, EDGE = 1.747564594633182, 5.64

check_imports("sog_longrange", absent=("ase", "mace", "nequip", "torch_geometric", "pytest"))

sites = torch.tensor(list(itertools.product((0.0, 0.5), repeat=3)), dtype=torch.float64)
charges = 1.0 - 2.0 * (2.0 * sites.sum(1, keepdim=True) % 2)
positions = (EDGE * sites).requires_grad_()
cell, pbc = EDGE * torch.eye(3, dtype=torch.float64)[None], torch.ones(1, 3, dtype=torch.bool)

# Widths from far below the nearest distance to far beyond the cell are 1/r.
kernel = SumOfGaussians(coulomb(), num_gaussians=36, min_width=0.35, max_width=5e4).double()
energy = LongRangeEnergy(kernel)(charges, positions, cell, pbc).energy
per_ion = -COULOMB_CONSTANT * MADELUNG / EDGE
assert_close("energy per ion (eV)", energy.item() / 8, per_ion, 1e-4 * abs(per_ion))
forces = -torch.autograd.grad(energy.sum(), positions)[0]
assert_close("forces in the crystal (eV/Å)", forces, torch.zeros(8, 3), 1e-3)

model = SOGLongRange(layer_sizes=(16,), config=SOGConfig())
features = torch.randn(8, 16, requires_grad=True)
out = model(features, positions.detach().float(), cell.float(), pbc)
out.energy.sum().backward()
assert_close("total charge (e)", out.charges.detach().sum(), 0.0, 1e-5)
if not torch.isfinite(features.grad).all():
    raise SystemExit("gradients are not finite")

try:
    import sog_mace  # noqa: F401
except sog_longrange.MissingLibraryError as error:
    print(error)
else:
    raise SystemExit("sog_mace must say that MACE is not installed")
