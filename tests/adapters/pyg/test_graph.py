"""Periodic graphs against a brute-force search."""

import itertools

import pytest
import torch
from ase.neighborlist import primitive_neighbor_list
from pyg_builders import (
    CUTOFF,
    TRICLINIC,
    make_data,
    make_schnet,
    make_visnet,
    mixed_batch,
    mixed_frames,
    molecule,
)
from torch import nn
from torch_geometric.nn import DimeNetPlusPlus

from sog_longrange import ConfigError, HostError, InputError
from sog_pyg import PeriodicGraph, make_periodic, periodic_edges
from sog_pyg.graph import PeriodicDistance

PATTERNS = list(itertools.product([True, False], repeat=3))
CELLS = {
    "triclinic": TRICLINIC,
    "left-handed": TRICLINIC[[1, 0, 2]],
    "small": 0.4 * TRICLINIC,
    "sheared": torch.tensor([[4.0, 0.0, 0.0], [9.0, 4.0, 0.0], [3.0, -7.0, 4.0]]).double(),
}


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
@pytest.mark.parametrize("pbc", PATTERNS)
@pytest.mark.parametrize("n_atoms", [1, 6])
def test_edges_are_those_of_another_library(cell, pbc, n_atoms):
    data = make_data(1, n_atoms, cell=cell, pbc=pbc)
    (source, target), vectors = periodic_edges(data.pos, CUTOFF, data.cell, data.pbc)
    i, j, d = primitive_neighbor_list("ijD", pbc, cell.numpy(), data.pos.numpy(), CUTOFF)

    def rows(ends, values):
        table = torch.cat([torch.stack(ends, 1).double(), values], 1)
        return sorted(tuple(round(x, 6) + 0.0 for x in row) for row in table.tolist())

    # The other library's vectors go from the first atom to the second.
    expected = rows([torch.as_tensor(j), torch.as_tensor(i)], torch.as_tensor(d))
    assert rows([source, target], vectors) == expected


def test_a_batch_has_the_edges_of_its_graphs():
    batch, start, expected = mixed_batch(), 0, []
    for frame in mixed_frames():
        index, vectors = periodic_edges(frame.pos, CUTOFF, frame.cell, frame.pbc)
        expected.append((index + start, vectors))
        start += len(frame.pos)
    index, vectors = periodic_edges(batch.pos, CUTOFF, batch.cell, batch.pbc, batch.batch, 5)
    assert torch.equal(index, torch.cat([i for i, _ in expected], 1))
    torch.testing.assert_close(vectors, torch.cat([v for _, v in expected]))


def test_rows_of_free_axes_are_never_read():
    data = make_data(1, pbc=(True, True, False))
    expected = periodic_edges(data.pos, CUTOFF, data.cell, data.pbc)
    cell = data.cell.clone()
    cell[0, 2] = 1e30
    found = periodic_edges(data.pos, CUTOFF, cell, data.pbc)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_vectors_are_differentiable_in_positions_and_cell():
    data = make_data(1)

    def lengths(pos, cell):
        return periodic_edges(pos, CUTOFF, cell, data.pbc)[1].norm(dim=-1)

    leaves = data.pos.requires_grad_(), data.cell.requires_grad_()
    assert torch.autograd.gradcheck(lengths, leaves)


def test_no_nodes_have_no_edges():
    index, vectors = periodic_edges(torch.zeros(0, 3), CUTOFF)
    assert (index.shape, vectors.shape) == ((2, 0), (0, 3))
    index, vectors = periodic_edges(torch.zeros(1, 3), CUTOFF)
    assert (index.shape, vectors.shape) == ((2, 0), (0, 3))


def test_a_graph_without_cells_says_who_hands_them_over():
    graph, data = PeriodicGraph(CUTOFF), make_data(1)
    with pytest.raises(InputError, match=r"with graph\.at\(cell, pbc, batch\)"):
        graph(data.pos)
    with graph.at(data.cell, data.pbc):
        index, lengths = graph(data.pos)
    assert lengths.max() < CUTOFF
    assert index.shape == (2, len(lengths))
    with pytest.raises(InputError, match="given its cells"):
        graph(data.pos)


def test_cells_are_forgotten_after_an_error():
    graph, data = PeriodicGraph(CUTOFF), make_data(1)
    with pytest.raises(InputError), graph.at(data.cell, data.pbc):
        graph(torch.full((2, 3), torch.nan))
    assert graph.boundary is None


def test_make_periodic_keeps_cutoff_and_parameters():
    schnet, visnet = make_schnet(), make_visnet()
    keys = [list(model.state_dict()) for model in (schnet, visnet)]
    assert make_periodic(schnet).interaction_graph.cutoff == CUTOFF
    assert make_periodic(visnet).representation_model.distance.cutoff == CUTOFF
    assert [list(model.state_dict()) for model in (schnet, visnet)] == keys
    for other in (nn.Linear(1, 1), DimeNetPlusPlus(8, 1, 1, 4, 4, 8, 3, 3)):
        with pytest.raises(HostError, match="SchNet or ViSNet"):
            make_periodic(other)


def test_open_structures_have_the_edges_that_visnet_builds_by_itself():
    data = molecule()
    distance = PeriodicDistance(CUTOFF)
    with distance.at(None, None):
        (source, target), length, vectors = distance(data.pos)
    torch.testing.assert_close(vectors, data.pos[source] - data.pos[target])
    torch.testing.assert_close(length, vectors.norm(dim=-1))
    near = (torch.cdist(data.pos, data.pos) < CUTOFF).nonzero().tolist()
    assert sorted(zip(source.tolist(), target.tolist(), strict=True)) == sorted(map(tuple, near))


def test_visnet_refuses_cells_in_which_a_node_sees_itself():
    data = make_data(1, 2, cell=0.4 * TRICLINIC)
    distance = PeriodicDistance(CUTOFF)
    with distance.at(data.cell, data.pbc), pytest.raises(HostError, match="own periodic image"):
        distance(data.pos)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_cutoffs_are_refused(cutoff):
    with pytest.raises(ConfigError, match="`cutoff` must be positive"):
        PeriodicGraph(cutoff)
    with pytest.raises(ConfigError, match="`cutoff` must be positive"):
        periodic_edges(torch.zeros(2, 3), cutoff)


def test_bad_structures_are_refused():
    data = make_data(1)
    with pytest.raises(InputError, match="never guessed"):
        periodic_edges(data.pos, CUTOFF, data.cell)
    with pytest.raises(InputError, match="sorted"):
        periodic_edges(data.pos, CUTOFF, batch=torch.tensor([1, 0, 0, 0, 0, 0]))
    with pytest.raises(InputError, match="must be finite"):
        periodic_edges(torch.full((2, 3), torch.nan), CUTOFF)
