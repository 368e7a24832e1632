import pytest
import torch

from sog_longrange import Ewald, LongRangeEnergy, SOGConfig, SOGLongRange, SumOfGaussians
from sog_longrange.summation.dispatch import plan_sums
from sog_longrange.summation.multipoles import Multipoles
from sog_longrange.validation import check_structures


def ions(n_atoms, edge, seed=0):
    generator = torch.Generator().manual_seed(seed)
    positions = edge * torch.rand(n_atoms, 3, generator=generator)
    charges = torch.ones(n_atoms, 1)
    charges[::2] = -1.0
    return charges, positions, edge * torch.eye(3), torch.tensor([True, True, True])


def test_energies_of_many_float32_atoms_are_sums_of_atomic_energies():
    model = LongRangeEnergy(SumOfGaussians(min_width=2.0), tolerance=1e-3, engine="numba")
    with torch.no_grad():
        out = model(*ions(100_000, 100.0))
    expected = out.atomic_energies.double().sum()
    assert float(out.energy) == pytest.approx(float(expected), rel=5e-5)


def sum_of(n_atoms, edge, kernel=None):
    charges, positions, *_ = ions(n_atoms, edge)
    kernel = SumOfGaussians() if kernel is None else kernel
    interaction = LongRangeEnergy(kernel).interaction()
    return plan_sums(interaction, Multipoles(charges), check_structures(positions)).kinds[0]


@pytest.mark.parametrize(
    ("n_atoms", "edge", "padded"),
    [(400, 15.0, False), (2000, 27.0, True), (600, 150.0, False), (20_000, 60.0, True)],
)
def test_non_periodic_structures_are_padded_where_that_is_faster(n_atoms, edge, padded):
    assert sum_of(n_atoms, edge) == ("padded" if padded else "pairs")


def test_the_ewald_kernel_is_never_padded():
    assert sum_of(1000, 23.0, Ewald()) == "pairs"


def test_dense_batches_of_unlike_cells_give_what_their_structures_give():
    cells = torch.stack(
        [torch.diag(torch.tensor(x)).double() for x in ([60.0, 3, 3], [3.0, 3, 60])]
    )
    positions = torch.rand(4, 3, dtype=torch.float64) * 3.0
    charges = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    batch = torch.tensor([0, 0, 1, 1])
    pbc = torch.ones(2, 3, dtype=torch.bool)
    model = LongRangeEnergy(Ewald(), tolerance=1e-3, backend="dense")
    out = model(charges, positions, cells, pbc, batch)
    for graph in (0, 1):
        own = batch == graph
        alone = model(charges[own], positions[own], cells[graph], pbc[graph])
        torch.testing.assert_close(out.energy[graph], alone.energy[0])
        torch.testing.assert_close(out.potential[own], alone.potential)


def test_states_do_not_depend_on_how_sums_are_computed():
    saved = SOGLongRange([2], SOGConfig(backend="dense", engine="none")).state_dict()
    assert "backend" not in saved["_extra_state"]["config"]
    SOGLongRange([2], SOGConfig()).load_state_dict(saved)


def test_no_atoms_give_an_energy_that_can_be_differentiated():
    positions = torch.zeros(0, 3, requires_grad=True)
    cell, pbc = 5.0 * torch.eye(3), torch.tensor([True, True, True])
    out = LongRangeEnergy(Ewald())(torch.zeros(0, 1), positions, cell, pbc, num_graphs=1)
    (gradient,) = torch.autograd.grad(out.energy.sum(), positions)
    assert gradient.shape == (0, 3)
