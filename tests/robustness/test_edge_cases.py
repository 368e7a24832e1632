"""Unusual but valid input."""

import pytest
import torch
from references import (
    DOUBLE,
    OPEN,
    PERIODIC,
    all_kernels,
    energy_of,
    energy_value,
    evaluate,
    forces_of,
    random_structure,
    relative_error,
    sum_of_gaussians,
)

from sog_longrange import Ewald, LongRangeEnergy, SOGConfig, SOGLongRange
from sog_longrange.testing import Structure, assert_batch_consistent, join

KERNELS = ("coulomb", "ewald")
every_kernel = pytest.mark.parametrize("name", KERNELS)
both_boundaries = pytest.mark.parametrize("periodic", [True, False])
NO_BATCH = torch.zeros(0, dtype=torch.int64)


def model_of(name, **options):
    return LongRangeEnergy(all_kernels()[name], tolerance=1e-4, **options)


def gradient(energy, x):
    return torch.autograd.grad(energy.sum(), x)[0]


@every_kernel
@pytest.mark.parametrize("remove_self", [True, False])
def test_a_lone_open_atom_feels_nothing(name, remove_self):
    structure = random_structure(0, 1, 2, periodic=False)
    model = model_of(name, remove_self=remove_self)
    positions = structure.positions.requires_grad_()
    out = evaluate(model, structure)
    squares = structure.charges.square().sum()
    at_zero = model.kernel.radial(torch.zeros(1, dtype=DOUBLE))[0, 0]
    expected = 0.0 if remove_self else 0.5 * float((at_zero * squares).detach())
    assert float(out.energy.detach()) == pytest.approx(expected, abs=1e-15)
    assert not gradient(out.energy, positions).any()


@every_kernel
def test_a_lone_periodic_atom_feels_no_force(name):
    forces = forces_of(model_of(name), random_structure(0, 1))
    assert float(forces.abs().max()) < 1e-12


@every_kernel
def test_a_batch_of_lone_open_atoms_trains(name):
    structures = [random_structure(s, 1, 1, periodic=False) for s in range(3)]
    charges, positions, *rest = join(structures)
    charges.requires_grad_(), positions.requires_grad_()
    energy = model_of(name)(charges, positions, *rest).energy.sum()
    forces = torch.autograd.grad(energy, positions, create_graph=True)[0]
    (second,) = torch.autograd.grad(forces.square().sum() + energy, charges)
    assert not second.any()


@every_kernel
@both_boundaries
@pytest.mark.parametrize("num_graphs", [1, 3])
def test_no_atoms_give_no_energy(name, periodic, num_graphs):
    pbc = PERIODIC if periodic else OPEN
    cell = 4.0 * torch.eye(3, dtype=DOUBLE).expand(num_graphs, 3, 3)
    empty = torch.zeros(0, 2, dtype=DOUBLE), torch.zeros(0, 3, dtype=DOUBLE)
    out = model_of(name)(*empty, cell, pbc.expand(num_graphs, 3), NO_BATCH, num_graphs)
    assert out.energy.tolist() == [0.0] * num_graphs
    assert out.potential.shape == (0, 2)


@every_kernel
def test_no_structures_give_no_energies(name):
    empty = torch.zeros(0, 2, dtype=DOUBLE), torch.zeros(0, 3, dtype=DOUBLE)
    assert model_of(name)(*empty, batch=NO_BATCH).energy.shape == (0,)


@every_kernel
@both_boundaries
def test_structures_without_atoms_anywhere_in_a_batch_have_no_energy(name, periodic):
    full = random_structure(1, 3, periodic=periodic)
    none = full._replace(charges=full.charges[:0], positions=full.positions[:0])
    batch = [none, full, none, none, full, none]
    assert_batch_consistent(energy_of(model_of(name)), batch)
    energies = model_of(name)(*join(batch)).energy
    assert (energies != 0).tolist() == [False, True, False, False, True, False]


def test_forces_in_a_batch_with_an_empty_structure_are_those_of_the_others():
    full = random_structure(1, 3)
    none = full._replace(charges=full.charges[:0], positions=full.positions[:0])
    charges, positions, *rest = join([none, full, none])
    positions.requires_grad_()
    found = -gradient(model_of("coulomb")(charges, positions, *rest).energy, positions)
    torch.testing.assert_close(found, forces_of(model_of("coulomb"), full))


@every_kernel
@both_boundaries
def test_atoms_on_top_of_each_other_have_finite_energy_and_forces(name, periodic):
    structure = random_structure(2, 3, periodic=periodic)
    structure.positions[1] = structure.positions[0]
    model = model_of(name)
    assert bool(evaluate(model, structure).energy.isfinite().all())
    assert bool(forces_of(model, structure).isfinite().all())


@every_kernel
@both_boundaries
def test_zero_charges_have_no_energy_and_finite_gradients(name, periodic):
    structure = random_structure(3, 3, periodic=periodic)
    charges = torch.zeros_like(structure.charges, requires_grad=True)
    energy = evaluate(model_of(name), structure._replace(charges=charges)).energy
    assert float(energy.detach()) == 0.0
    assert not gradient(energy, charges).any()


@every_kernel
@both_boundaries
def test_memory_layout_does_not_matter(name, periodic):
    charges, positions, cell, pbc = random_structure(4, 5, 3, periodic=periodic)
    strided = Structure(
        charges.T.contiguous().T,
        positions.repeat_interleave(2, 0)[::2],
        torch.stack([cell, cell], -1)[..., 0],
        pbc.repeat(2)[:3],
    )
    assert not strided.charges.is_contiguous()
    model = model_of(name)
    plain = Structure(charges, positions, cell, pbc)
    assert energy_value(model, strided) == pytest.approx(energy_value(model, plain), rel=1e-14)
    torch.testing.assert_close(forces_of(model, strided), forces_of(model, plain))


@both_boundaries
def test_inputs_are_left_as_they_were(periodic):
    structure = random_structure(5, 4, periodic=periodic)
    before = [x.clone() for x in structure]
    evaluate(model_of("coulomb"), structure)
    assert all(torch.equal(a, b) for a, b in zip(structure, before, strict=True))


@both_boundaries
def test_outputs_do_not_share_memory(periodic):
    structure = random_structure(5, 4, periodic=periodic)
    model = LongRangeEnergy(Ewald(1.0), remove_self=False)
    out = evaluate(model, structure)
    expected = evaluate(model, structure)
    out.potential.add_(1.0)
    torch.testing.assert_close(out.energy, expected.energy)


@both_boundaries
def test_energy_is_the_same_without_gradients(periodic):
    structure, model = random_structure(6, 4, periodic=periodic), model_of("coulomb")
    expected = evaluate(model, structure).energy.detach()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(evaluate(model, structure).energy, expected)


@every_kernel
@both_boundaries
def test_a_graph_can_be_differentiated_twice_over(name, periodic):
    structure = random_structure(6, 4, periodic=periodic)
    positions = structure.positions.requires_grad_()
    energy = evaluate(model_of(name), structure).energy.sum()
    first = torch.autograd.grad(energy, positions, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(energy, positions)[0], first)


def test_an_evaluation_leaves_no_garbage_behind():
    import gc
    import weakref

    structure = random_structure(7, 4)
    positions = structure.positions * 1.0
    alive = weakref.ref(positions)
    positions.requires_grad_()
    energy = evaluate(model_of("coulomb"), structure._replace(positions=positions)).energy.sum()
    force = torch.autograd.grad(energy, positions, create_graph=True)[0]
    gc.disable()
    try:
        del positions, energy, force
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("cells", "allowed"), [(10, 1e-12), (10**6, 1e-8)])
def test_atoms_many_cells_away_have_the_same_forces(cells, allowed):
    structure = random_structure(8, 5)
    shifts = torch.tensor([[1, 0, -1], [0, 1, 1], [-1, 1, 0], [1, 1, 1], [0, 0, 0]]).to(DOUBLE)
    far = structure._replace(positions=structure.positions + cells * shifts @ structure.cell)
    model = model_of("coulomb")
    assert relative_error(forces_of(model, far), forces_of(model, structure)) < allowed


def test_atoms_at_absurd_places_have_finite_forces():
    structure = random_structure(8, 5)
    far = structure._replace(positions=structure.positions + 1e12)
    assert bool(forces_of(model_of("coulomb"), far).isfinite().all())


@every_kernel
def test_open_atoms_at_absurd_distances_have_no_energy_between_them(name):
    structure = random_structure(9, 2, periodic=False)
    structure.positions[0] += 1e150
    assert energy_value(model_of(name), structure) == pytest.approx(0.0, abs=1e-140)


@pytest.mark.slow
@both_boundaries
@pytest.mark.parametrize("name", ["coulomb", "dispersion", "yukawa", "ewald"])
def test_float32_forces_agree_with_float64(name, periodic):
    structure = random_structure(10, 20, periodic=periodic, edge=8.0)
    expected = forces_of(model_of(name), structure)
    single = Structure(*(x.float() if x.dtype == DOUBLE else x for x in structure))
    model = model_of(name).float()
    # Another sum may be the fastest in float32, with another error within the tolerance.
    assert relative_error(forces_of(model, single).double(), expected) < 0.5 * model.tolerance


@both_boundaries
def test_second_derivatives_in_float32_agree_with_float64(periodic):
    def loss_gradient(dtype):
        structure = random_structure(11, 8, periodic=periodic)
        charges, positions, cell, pbc = (x.to(dtype) if x.dtype == DOUBLE else x for x in structure)
        charges, positions = charges.requires_grad_(), positions.requires_grad_()
        model = model_of("coulomb").to(dtype)
        energy = evaluate(model, Structure(charges, positions, cell, pbc)).energy.sum()
        force = torch.autograd.grad(energy, positions, create_graph=True)[0]
        return gradient(force.square(), charges).double()

    assert relative_error(loss_gradient(torch.float32), loss_gradient(DOUBLE)) < 1e-4


def test_a_cell_and_pbc_without_graph_axis_serve_one_structure():
    charges, positions, cell, pbc = random_structure(12, 3)
    model = model_of("coulomb")
    one = model(charges, positions, cell, pbc).energy
    assert torch.equal(one, model(charges, positions, cell[None], pbc[None]).energy)


def test_left_out_arguments_mean_one_open_structure():
    structure = random_structure(13, 4, periodic=False)
    model = model_of("ewald")
    assert torch.equal(
        model(structure.charges, structure.positions).energy, evaluate(model, structure).energy
    )


@pytest.mark.parametrize("total", [None, [0.5, 0.0, -1.0]])
def test_constraints_ignore_structures_without_atoms(total):
    config = SOGConfig(
        charge_constraint="neutral" if total is None else "total",
        fractional_charge=total is not None,
    )
    module = SOGLongRange([5], config).double()
    first, last = (random_structure(s, 3, 5) for s in (0, 2))
    none = first._replace(charges=first.charges[:0], positions=first.positions[:0])
    wanted = None if total is None else torch.tensor(total)
    out = module(*join([first, none, last]), total_charge=wanted)
    sums = [float(part.sum().detach()) for part in out.charges.split(3)]
    expected = [0.0, 0.0] if total is None else [0.5, -1.0]
    assert sums == pytest.approx(expected, abs=1e-12)
    assert float(out.energy[1].detach()) == 0.0


def test_one_kernel_may_serve_open_and_periodic_at_widths_at_their_bound():
    kernel = sum_of_gaussians(num_gaussians=3)
    with torch.no_grad():
        kernel.raw_widths.fill_(-1e4)
    structures = [random_structure(0, 3), random_structure(1, 3, periodic=False)]
    charges, positions, *rest = join(structures)
    positions.requires_grad_()
    energy = LongRangeEnergy(kernel)(charges, positions, *rest).energy.sum()
    parameters = tuple(kernel.parameters())
    gradients = torch.autograd.grad(energy, (positions, *parameters))
    assert all(bool(g.isfinite().all()) for g in gradients)


def test_a_model_prints_its_options():
    text = str(LongRangeEnergy(Ewald(1.5), tolerance=1e-3, remove_self=False))
    for part in ("smearing=1.5", "tolerance=0.001", "remove_self=False"):
        assert part in text
