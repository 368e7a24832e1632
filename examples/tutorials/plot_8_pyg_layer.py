"""
A long-range layer in PyTorch Geometric
=======================================

Message passing reaches as far as the cutoff times the number of layers. ``LongRangeLayer`` is one
more layer, in which each node hears of all others, however far away: nodes get latent charges
from their features, and the layer returns the potential and the field of all charges at each
node, at near-linear cost. Here it is put between two convolutions, and the network learns a gas
of ions.

You learn how to

* make graphs with periodic cells (``StoreBoundary``, ``periodic_edges``),
* put the layer into a network of your own,
* train on energies and forces (``energy_forces_stress``).
"""

# %%
# The data
# --------
# Boxes of 64 ions of +1 and -1 e at random places, with exact Coulomb energies and forces. Much
# of the force on an ion comes from beyond the cutoff of 5 Å. ``StoreBoundary`` keeps cells and
# periodicity such that PyG's loaders can join graphs.

import numpy as np
import torch
from lesson import salts
from torch import nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from sog_pyg import LongRangeLayer, StoreBoundary, energy_forces_stress, periodic_edges

torch.manual_seed(1)
torch.set_default_dtype(torch.float32)


def to_graph(atoms):
    """Turn a labelled structure of ASE into a graph in single precision."""
    data = Data(
        z=torch.tensor(atoms.numbers),
        pos=torch.tensor(atoms.positions, dtype=torch.float32),
        energy=torch.tensor([atoms.info["REF_energy"]], dtype=torch.float32),
        forces=torch.tensor(atoms.arrays["REF_forces"], dtype=torch.float32),
    )
    return StoreBoundary(atoms.cell.array, pbc=True)(data)


boxes = [to_graph(atoms) for atoms in salts.make_gas(salts.PointIons(), 60, seed=1)]
train, test = boxes[:50], boxes[50:]
print(train[0])

# %%
# The network
# -----------
# A convolution with distances is imported from the examples
# (``examples/workbench/charge_network.py``, twenty lines of plain PyG); what is new is the layer
# between two of them. With ``output="features"`` it returns, for each of its charges, a potential
# [N, C], which is invariant, and a field [N, 3, C], whose components turn with the structure.
# Features must not, so the square of the field is used.
#
# ``charge_constraint="neutral"`` makes the charges of a box sum to zero. ``tolerance`` is
# the relative accuracy of the sum.

from workbench.charge_network import Convolution, perceptron


class Network(nn.Module):
    """Two convolutions, and between them the potential and the field of all ions."""

    def __init__(self, channels=24, cutoff=5.0, num_charges=2):
        super().__init__()
        self.cutoff, self.num_charges = cutoff, num_charges
        self.embedding = nn.Embedding(20, channels)
        self.first, self.second = Convolution(channels, cutoff), Convolution(channels, cutoff)
        if num_charges:
            options = {"output": "features", "tolerance": 1e-4, "charge_constraint": "neutral"}
            self.long_range = LongRangeLayer(channels, num_charges, **options)
            self.receive = nn.Linear(channels, channels, bias=False)
            self.mix = nn.Linear(2 * num_charges, channels, bias=False)
        self.readout = perceptron(channels, channels, 1)

    def forward(self, z, pos, batch, cell, pbc, batch_size):
        """Energies [batch_size, 1] in eV."""
        edge_index, edge_vec = periodic_edges(pos, self.cutoff, cell, pbc, batch, batch_size)
        length = edge_vec.norm(dim=-1)
        x = self.first(self.embedding(z), edge_index, length)
        if self.num_charges:
            potential, field = self.long_range(x, pos, batch, cell, pbc, batch_size)
            x = x + self.receive(x) * self.mix(torch.cat([potential, field.square().sum(1)], -1))
        x = self.second(x, edge_index, length)
        index = torch.zeros_like(z) if batch is None else batch
        return x.new_zeros(batch_size, 1).index_add(0, index, self.readout(x))


# %%
# Training
# --------
# ``energy_forces_stress`` calls the model with what a graph or a batch holds, and differentiates.
# The loss is that of forces, with a little of the energy. The same network without the layer is
# trained beside it.


def train_network(model, epochs=14):
    """Force error in meV/Å of each epoch."""
    loader = DataLoader(train, batch_size=2, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=epochs * len(loader)
    )
    history = []
    for _ in range(epochs):
        errors = []
        for batch in loader:
            out = energy_forces_stress(model, batch, create_graph=True)
            force = (out.forces - batch.forces).square().mean()
            energy = ((out.energy - batch.energy) / 64).square().mean()
            optimizer.zero_grad()
            (force + 0.1 * energy).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            errors.append(float(force.detach()))
        history.append(1e3 * np.mean(errors) ** 0.5)
    return history


models = {"cutoff only": Network(num_charges=0), "long-range layer": Network(num_charges=2)}
history = {name: train_network(model) for name, model in models.items()}

# %%
# Errors
# ------
# On boxes that were not trained on:

exact = torch.cat([box.forces for box in test]).ravel().numpy()
found = {
    name: torch.cat([energy_forces_stress(model, box).forces for box in test]).ravel().numpy()
    for name, model in models.items()
}
for name, forces in found.items():
    error = 1e3 * np.sqrt(np.mean((forces - exact) ** 2))
    print(f"{name:17s} {error:4.0f} meV/Å, of forces of {1e3 * exact.std():.0f} meV/Å")

# %%
# The network without the layer stops learning at the part of the forces that comes from afar.

import matplotlib.pyplot as plt

from sog_longrange.plots import COLOURS, FAINT, house_style

with house_style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 5.4), layout="constrained")
    limits = np.quantile(exact, [0.002, 0.998]) * 1.1
    right.plot(limits, limits, color=FAINT, lw=1)
    for (name, errors), colour in zip(history.items(), COLOURS, strict=False):
        left.plot(range(1, len(errors) + 1), errors, color=colour, lw=3, label=name)
        right.plot(exact, found[name], ".", color=colour, ms=4, alpha=0.5)
    left.set(yscale="log", xlabel="epoch", ylabel="force error in training (meV/Å)")
    left.legend(loc="lower left", labelcolor="linecolor")
    right.set(xlim=limits, ylim=limits, aspect="equal")
    right.set(xlabel="exact force (eV/Å)", ylabel="predicted force (eV/Å)")

# %%
# Larger cells
# ------------
# Nothing in the layer depends on the size of a graph. A box repeated eight times has eight times
# the energy:

box = test[0]
shifts = torch.tensor(list(np.ndindex(2, 2, 2)), dtype=torch.float32) @ box.cell[0]
large = Data(
    z=box.z.repeat(8),
    pos=(box.pos[None] + shifts[:, None]).reshape(-1, 3),
    cell=2 * box.cell,
    pbc=box.pbc,
)
model = models["long-range layer"]
ratio = energy_forces_stress(model, large).energy / energy_forces_stress(model, box).energy
print(f"energy of the repeated box: {float(ratio):.4f} times that of the box")

# %%
# With ``output="energy"`` the layer returns an energy instead, and ``WithLongRange`` adds it to a
# model of PyG as it is, such as SchNet. Presets work here as well:
# ``LongRangeLayer(preset="ionic", ...)``. :doc:`/start/pyg` begins at the beginning.
