"""Small PyG models, structures and batches for the tests."""

import torch
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import DimeNetPlusPlus, MessagePassing, SchNet, ViSNet

from sog_pyg import LongRangeLayer, StoreBoundary, WithLongRange, make_periodic, periodic_edges

CUTOFF = 4.0
TRICLINIC = torch.tensor([[6.1, 0.0, 0.0], [1.2, 5.7, 0.0], [0.5, -0.8, 6.6]], dtype=torch.float64)
PERIODIC, OPEN = (True, True, True), (False, False, False)


def make_data(seed, n_atoms=6, cell=TRICLINIC, pbc=PERIODIC, images=2.0):
    """Atoms that keep a distance from each other, some of them in other images of the cell."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.cartesian_prod(*[torch.arange(3.0, dtype=torch.float64)] * 3)
    chosen = places[torch.randperm(27, generator=generator)[:n_atoms]]
    noise = 0.1 * torch.rand(n_atoms, 3, generator=generator, dtype=torch.float64)
    pos = (chosen / 3.0 + noise) @ TRICLINIC
    shifts = (images * torch.randn(n_atoms, 3, generator=generator)).round().double()
    pos = pos + (shifts * torch.tensor(pbc)) @ cell
    z = torch.tensor([1, 8])[torch.randint(2, (n_atoms,), generator=generator)]
    return StoreBoundary(cell, pbc)(Data(z=z, pos=pos))


def left_handed(seed=2):
    return make_data(seed, cell=TRICLINIC[[1, 0, 2]])


def slab(seed=3):
    return make_data(seed, pbc=(True, True, False))


def molecule(seed=4, n_atoms=5):
    return make_data(seed, n_atoms, cell=torch.zeros(3, 3, dtype=torch.float64), pbc=OPEN)


def mixed_frames():
    """Triclinic, open, left-handed, slab and another open structure."""
    return [make_data(1), molecule(), left_handed(), slab(), molecule(6, 4)]


def mixed_batch():
    return Batch.from_data_list(mixed_frames())


PRECISE = {"num_charges": 2, "tolerance": 1e-8}


def perceptron(size, channels, out):
    return nn.Sequential(nn.Linear(size, channels), nn.SiLU(), nn.Linear(channels, out))


class Convolution(MessagePassing):
    """Messages that depend on distance, smooth at the cutoff."""

    def __init__(self, channels):
        super().__init__(aggr="add")
        self.radial = nn.Sequential(
            nn.Linear(8, channels), nn.SiLU(), nn.Linear(channels, channels)
        )
        self.update_net = nn.Linear(channels, channels)

    def forward(self, x, edge_index, length):
        centres = torch.linspace(0.5, CUTOFF, 8)
        basis = torch.exp(-((length[:, None] - centres) ** 2))
        envelope = (1.0 - (length / CUTOFF) ** 2).clamp(min=0.0) ** 4
        weight = self.radial(basis) * envelope[:, None]
        return x + torch.tanh(self.update_net(self.propagate(edge_index, x=x, weight=weight)))

    def message(self, x_j, weight):
        return x_j * weight


class HandWritten(nn.Module):
    """Convolution, long-range layer, convolution: an energy from both."""

    def __init__(self, channels=8, **options):
        super().__init__()
        self.embedding = nn.Embedding(10, channels)
        self.first = Convolution(channels)
        self.long_range = LongRangeLayer(-1, output="features", **(PRECISE | options))
        self.mix = nn.Linear(2 * self.long_range.num_charges, channels)
        self.second = Convolution(channels)
        self.readout = nn.Sequential(
            nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, 1)
        )

    def forward(self, z, pos, batch=None, cell=None, pbc=None, batch_size=None):
        batch = torch.zeros_like(z) if batch is None else batch
        edge_index, edge_vec = periodic_edges(pos, CUTOFF, cell, pbc, batch, batch_size)
        length = edge_vec.norm(dim=-1)
        x = self.first(self.embedding(z), edge_index, length)
        potential, field = self.long_range(x, pos, batch, cell, pbc, batch_size)
        x = x + torch.tanh(self.mix(torch.cat([potential, field.square().sum(1)], -1)))
        x = self.second(x, edge_index, length)
        size = int(batch.max()) + 1 if batch_size is None else batch_size
        return x.new_zeros(size, 1).index_add(0, batch, self.readout(x))


def make_schnet(**options):
    sizes = {"hidden_channels": 16, "num_filters": 16, "num_interactions": 2, "num_gaussians": 10}
    return SchNet(**(sizes | {"cutoff": CUTOFF} | options))


def make_visnet(**options):
    sizes = {"hidden_channels": 16, "num_heads": 2, "num_layers": 2, "num_rbf": 8}
    return ViSNet(**(sizes | {"cutoff": CUTOFF} | options))


def make_dimenet(out_channels=1):
    torch.manual_seed(0)
    sizes = {"hidden_channels": 8, "num_blocks": 2, "int_emb_size": 4, "basis_emb_size": 4}
    sizes |= {"out_emb_channels": 8, "num_spherical": 3, "num_radial": 3, "cutoff": CUTOFF}
    return DimeNetPlusPlus(
        out_channels=out_channels, output_initializer="glorot_orthogonal", **sizes
    )


def call(model, data, **changes):
    arguments = [data.z, data.pos, data.get("batch"), data.cell, data.pbc]
    return model(*arguments, data.num_graphs if data.get("batch") is not None else 1, **changes)


def make_model(name):
    """A small random model in float64 with a long range, which has seen its first input."""
    torch.manual_seed(0)
    if name == "hand-written":
        model = HandWritten()
    else:
        host = make_periodic({"SchNet": make_schnet, "ViSNet": make_visnet}[name]())
        model = WithLongRange(host, LongRangeLayer(-1, **PRECISE))
    first = make_data(0)
    model(first.z, first.pos, None, first.cell, first.pbc)
    if name == "ViSNet":
        # New ones have vectors that are nearly zero, where their norms have a kink.
        with torch.no_grad():
            for block in model.model.representation_model.vis_mp_layers:
                block.s_proj.bias += 0.5 * torch.randn(block.s_proj.bias.shape)
    return model


MODELS = ("SchNet", "ViSNet", "hand-written")
