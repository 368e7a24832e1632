"""PyTorch Geometric: a long-range layer forward and backward, and SchNet with a long range."""

import torch
from installed import assert_close, check_imports
from torch_geometric.data import Batch, Data
from torch_geometric.nn import SchNet

from sog_pyg import LongRangeLayer, PeriodicGraph, WithLongRange, energy_forces_stress

check_imports("sog_longrange", "sog_pyg", absent=("ase", "mace", "nequip", "pytest"))

torch.manual_seed(0)


def structure(count, periodic):
    """Atoms at random places in a cell of 6 Å."""
    pbc = torch.full((1, 3), periodic)
    z, pos = torch.tensor([11, 17] * count)[:count], 6.0 * torch.rand(count, 3)
    return Data(z=z, pos=pos, cell=6.0 * torch.eye(3)[None], pbc=pbc)


batch = Batch.from_data_list([structure(6, True), structure(4, False)])
layer = LongRangeLayer(16, num_charges=4, output="features")
x = torch.randn(10, 16, requires_grad=True)
potential, field = layer(x, batch.pos, batch.batch, batch.cell, batch.pbc)
(potential.square().sum() + field.square().sum()).backward()
if potential.shape != (10, 4) or field.shape != (10, 3, 4) or not torch.isfinite(x.grad).all():
    raise SystemExit("potential, field or their gradients are wrong")

schnet = SchNet(32, 32, 2, cutoff=4.0, interaction_graph=PeriodicGraph(4.0))
model = WithLongRange(schnet, LongRangeLayer(num_charges=2)).double()
data = batch.apply(lambda x: x.double() if x.is_floating_point() else x)
energy, forces, stress = energy_forces_stress(model, data)
step = torch.zeros_like(data.pos)
step[0, 0] = 1e-4


def energy_at(pos):
    """Energy of the first structure at other positions."""
    moved = data.clone()
    moved.pos = pos
    return energy_forces_stress(model, moved)[0][0].item()


slope = (energy_at(data.pos - step) - energy_at(data.pos + step)) / 2e-4
assert_close("force (eV/Å)", forces[0, 0].item(), slope, 1e-5)
