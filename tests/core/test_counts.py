"""What evaluations cost a GPU: operations, and the times that Python waits for a number."""

import pytest
import torch
from references import DOUBLE, random_structure

from sog_longrange import (
    FixedMeshEnergy,
    LongRangeEnergy,
    SOGConfig,
    SOGLongRange,
    SumOfGaussians,
    fixed_mesh,
    potential_and_field,
)
from sog_longrange.kernels import frozen
from sog_longrange.testing import join
from sog_longrange.testing.operations import Operations

SLAB = torch.tensor([True, False, True])


def crystals(count, n_atoms=20):
    return [random_structure(seed, n_atoms, edge=8.0) for seed in range(count)]


def mixed():
    slab = random_structure(5, 8)._replace(pbc=SLAB)
    return [*crystals(2), slab, random_structure(6, 8, periodic=False)]


BATCHES = {
    "one": crystals(1),
    "32": crystals(32),
    "1,000 atoms": [random_structure(0, 1000, edge=22.0)],
    "30,000 atoms": [random_structure(0, 30_000, edge=67.0)],
    "pairs": [random_structure(seed, 12, periodic=False) for seed in range(3)],
    "mixed": mixed(),
}
MOST = {"mixed": (290, 565)}
"""Operations of energy and forces and of a training step, where they are more."""

READS = {"mixed": 2}
"""Of those a padded grid takes one, because it depends on where the atoms are."""


def counted(evaluate):
    evaluate()
    with Operations() as operations:
        evaluate()
    return operations


def step_of(name, *, training):
    pytest.importorskip("numba", reason="numba is not installed.")
    kernel = SumOfGaussians(min_width=1.2).double().requires_grad_(training)
    energy = LongRangeEnergy(kernel, tolerance=1e-4, engine="numba")
    charges, positions, *rest = join(BATCHES[name])
    leaves = [positions.requires_grad_(), charges.requires_grad_(training), *kernel.parameters()]

    def step():
        total = energy(charges, positions, *rest).energy.sum()
        (forces,) = torch.autograd.grad(total, positions, create_graph=training)
        if training:
            loss = total.square() + forces.square().sum()
            torch.autograd.grad(loss, leaves)

    return step


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BATCHES)
def test_python_looks_once_and_operations_are_few(name, training, monkeypatch):
    # Of kernels on GPUs nothing is known that would allow to keep their tables.
    monkeypatch.setattr(frozen, "_numbers", lambda kernel: None)
    operations = counted(step_of(name, training=training))
    assert operations.host_reads == READS.get(name, 1), operations.reads
    assert operations.total <= MOST.get(name, (80, 160))[training], operations.counts


def test_a_grid_of_fixed_shape_can_be_captured(monkeypatch):
    # A CUDA graph can neither read numbers nor send any.
    monkeypatch.setattr(fixed_mesh, "_is_captured", lambda: True)
    kernel = SumOfGaussians(min_width=1.2).double().requires_grad_(False)
    structure = random_structure(0, 50, edge=12.0)
    fixed = FixedMeshEnergy(LongRangeEnergy(kernel, tolerance=1e-3), structure.cell)
    positions = structure.positions.clone().requires_grad_()

    def step():
        energy = fixed(structure.charges, positions, structure.cell).energy.sum()
        torch.autograd.grad(energy, positions)

    operations = counted(step)
    assert operations.host_reads == 0, operations.reads
    assert "lift_fresh" not in operations.counts


def test_potentials_take_one_look():
    energy = LongRangeEnergy(SumOfGaussians(min_width=1.2).double(), backend="mesh")
    arguments = join(BATCHES["32"])
    assert counted(lambda: potential_and_field(energy, *arguments)).host_reads == 1


@pytest.mark.parametrize(
    "options",
    [
        {"charge_constraint": "none"},
        {"charge_constraint": "neutral"},
        {"charge_constraint": "total"},
        {"charge_constraint": "auto"},
        {"charge_embedding": 4, "charge_constraint": "total"},
        {"latent_dipoles": True, "charge_constraint": "neutral"},
    ],
)
def test_a_model_takes_one_look(options):
    part = SOGLongRange([3, 2], SOGConfig(backend="mesh", **options), num_vectors=2).double()
    _, positions, *rest = join(BATCHES["32"])
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(positions), 5, generator=generator, dtype=DOUBLE)
    vectors = torch.randn(len(positions), 3, 2, generator=generator, dtype=DOUBLE)
    total = torch.zeros(rest[-1], dtype=DOUBLE)
    operations = counted(lambda: part(features, positions, *rest, total, vectors))
    assert operations.host_reads == 1, operations.reads


def test_the_number_of_structures_is_read_where_only_the_batch_tells_it():
    charges, positions, _, _, batch, _ = join(BATCHES["pairs"])
    energy = LongRangeEnergy(SumOfGaussians().double())
    known = counted(lambda: energy(charges, positions, batch=batch, num_graphs=3))
    found = counted(lambda: energy(charges, positions, batch=batch))
    assert known.host_reads == 1
    assert found.host_reads > 1


def test_large_non_periodic_structures_take_three_more_looks():
    # At their size, at their directions and at their extent along these.
    arguments = join([random_structure(0, 600, periodic=False, edge=6.0)] * 2)
    energy = LongRangeEnergy(SumOfGaussians(min_width=1.2).double(), tolerance=1e-3)
    operations = counted(lambda: energy(*arguments))
    assert operations.host_reads == 4, operations.reads
