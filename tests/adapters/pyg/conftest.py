import pytest

pytest.importorskip("torch_geometric", reason="torch-geometric is not installed here")

import torch
import torch_geometric.typing
from torch_geometric.nn.models import dimenet, schnet, visnet

from sog_pyg import periodic_edges


@pytest.fixture(autouse=True)
def double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if "adapters/pyg" in item.path.as_posix():
            item.add_marker(pytest.mark.pyg)


def stand_in_graph(pos, r, batch=None, loop=False, **_):
    """What `radius_graph` does, for environments without pyg-lib."""
    index, _ = periodic_edges(pos, r, batch=batch)
    loops = torch.arange(len(pos)).expand(2, -1)
    return torch.cat([index, loops], 1) if loop else index


def stand_in_triplets(edge_index, num_nodes):
    """What `triplets` does, for environments without torch-sparse."""
    row, col = edge_index
    kj, ji = (col[:, None] == row).nonzero().unbind(1)
    kept = row[kj] != col[ji]
    kj, ji = kj[kept], ji[kept]
    return col, row, col[ji], row[ji], row[kj], kj, ji


@pytest.fixture
def radius_graphs(monkeypatch):
    """PyG's own graphs, by the libraries they need where those are installed."""
    host = torch_geometric.typing
    flag = "WITH_RADIUS" if hasattr(host, "WITH_RADIUS") else "WITH_TORCH_CLUSTER"
    if not getattr(host, flag):
        for module in (schnet, visnet, dimenet):
            monkeypatch.setattr(module, "radius_graph", stand_in_graph)
    if not host.WITH_TORCH_SPARSE:
        monkeypatch.setattr(dimenet, "triplets", stand_in_triplets)
