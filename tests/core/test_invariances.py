import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import (
    DOUBLE,
    all_kernels,
    energy_of,
    random_structure,
    sum_of_gaussians,
)

from sog_longrange import Ewald, InputError, LongRangeEnergy, SOGConfig, SOGLongRange, coulomb
from sog_longrange.testing import (
    Structure,
    assert_batch_consistent,
    assert_cell_basis_invariant,
    assert_extensive,
    assert_forces_match_finite_differences,
    assert_image_invariant,
    assert_invariant,
    assert_permutation_invariant,
    assert_rotation_invariant,
    assert_translation_invariant,
    assert_twice_differentiable,
    join,
    make_supercell,
)

few = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 2**20)
structures = st.builds(
    random_structure,
    seed=seeds,
    n_atoms=st.integers(1, 8),
    n_channels=st.just(2),
    periodic=st.booleans(),
    edge=st.floats(1.0, 7.0),
)
periodic_structures = structures.map(lambda s: s._replace(pbc=torch.ones(3, dtype=torch.bool)))
MODELS = {
    "gaussians": LongRangeEnergy(
        sum_of_gaussians(coulomb(), num_channels=2, num_gaussians=5),
        tolerance=1e-4,
        backend="dense",
    ),
    "dispersion": LongRangeEnergy(all_kernels()["dispersion"], tolerance=1e-3, backend="dense"),
    "ewald": LongRangeEnergy(Ewald(1.1), tolerance=1e-4, remove_self=False, backend="dense"),
}
every_model = pytest.mark.parametrize("energy", [energy_of(m) for m in MODELS.values()], ids=MODELS)


@st.composite
def unimodular(draw):
    """Integer matrix of determinant 1 or -1: a product of shears and one permutation."""
    matrix = torch.eye(3, dtype=DOUBLE)[draw(st.permutations([0, 1, 2]))]
    for _ in range(draw(st.integers(1, 3))):
        row, column = draw(st.permutations([0, 1, 2]))[:2]
        matrix[row] += draw(st.integers(-2, 2)) * matrix[column]
    return [[int(x) for x in row] for row in matrix.tolist()]


@every_model
@few
@given(structure=structures, seed=seeds)
def test_translation(energy, structure, seed):
    assert_translation_invariant(energy, structure, seed=seed)


@every_model
@few
@given(structure=periodic_structures, seed=seeds)
def test_image_shift(energy, structure, seed):
    assert_image_invariant(energy, structure, seed=seed)


@every_model
@few
@given(structure=structures, seed=seeds)
def test_permutation(energy, structure, seed):
    assert_permutation_invariant(energy, structure, seed=seed)


@every_model
@few
@given(structure=structures, seed=seeds)
def test_rotation(energy, structure, seed):
    assert_rotation_invariant(energy, structure, seed=seed)


@every_model
@few
@given(structure=periodic_structures, basis=unimodular())
def test_cell_basis_of_either_handedness(energy, structure, basis):
    assert_cell_basis_invariant(energy, structure, bases=[basis])


@every_model
@few
@given(
    structure=periodic_structures,
    repeats=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2)),
)
def test_supercell(energy, structure, repeats):
    assert_extensive(energy, structure, repeats=repeats)


def without_atoms(structure):
    return structure._replace(charges=structure.charges[:0], positions=structure.positions[:0])


mixed_batches = st.lists(st.one_of(structures, structures.map(without_atoms)), max_size=6)


@every_model
@few
@given(batch=mixed_batches, one=structures)
def test_batch_equals_single(energy, batch, one):
    assert_batch_consistent(energy, [*batch, one])


@every_model
@few
@given(batch=st.lists(structures, min_size=2, max_size=4), seed=seeds)
def test_order_of_structures(energy, batch, seed):
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed)).tolist()
    expected = energy(*join(batch))[order]
    found = energy(*join([batch[i] for i in order]))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-10)


@every_model
@few
@given(structure=structures, factor=st.floats(-3.0, 3.0))
def test_energy_is_quadratic_in_the_charges(energy, structure, factor):
    scaled = structure._replace(charges=factor * structure.charges)
    expected = factor**2 * energy(*join([structure]))
    torch.testing.assert_close(energy(*join([scaled])), expected, rtol=1e-11, atol=1e-11)


@few
@given(structure=structures)
def test_energy_of_a_positive_kernel_is_never_negative_with_its_self_term(structure):
    model = LongRangeEnergy(Ewald(1.1), remove_self=False)
    assert float(model(*join([structure])).energy) >= 0.0


@pytest.mark.parametrize("constraint", ["none", "neutral"])
@few
@given(structure=structures, seed=seeds)
def test_the_whole_module_has_every_invariance(constraint, structure, seed):
    torch.manual_seed(seed)
    config = SOGConfig(
        num_channels=2, charge_constraint=constraint, tolerance=1e-2, backend="dense"
    )
    module = SOGLongRange([2], config).double()
    assert_invariant(energy_of(module), structure, seed=seed)


BROKEN = {
    "translation": (assert_translation_invariant, lambda q, r, *_: r.sum()[None]),
    "order": (assert_permutation_invariant, lambda q, r, *_: (q[0] * r[0]).sum()[None]),
    "rotation": (assert_rotation_invariant, lambda q, r, *_: r[:, 0].square().sum()[None]),
    "lattice vectors": (assert_image_invariant, lambda q, r, *_: r.square().sum()[None]),
    "cell basis": (assert_cell_basis_invariant, lambda q, r, c, *_: torch.linalg.det(c)),
    "supercell": (assert_extensive, lambda q, r, c, *_: 0.0 * q.sum() + torch.ones(1)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_asserts_notice_a_broken_invariance(name):
    check, energy = BROKEN[name]
    with pytest.raises(AssertionError, match=name):
        check(energy, random_structure(2, 5))


@pytest.mark.parametrize("name", BROKEN)
def test_asserts_notice_nan(name):
    check, _ = BROKEN[name]
    with pytest.raises(AssertionError, match="nan"):
        check(lambda *_: torch.tensor([float("nan")]), random_structure(2, 5))


def test_the_batch_assert_notices_a_dependence_on_the_batch():
    def energy(charges, positions, cell, pbc, batch, num_graphs):
        return torch.full((num_graphs,), float(len(charges)))

    with pytest.raises(AssertionError, match="Structure 0 of the batch"):
        assert_batch_consistent(energy, [random_structure(0), random_structure(1)])


def test_the_batch_assert_notices_a_missing_energy():
    with pytest.raises(AssertionError, match=r"2 structures have energies of shape \(1,\)"):
        assert_batch_consistent(lambda *_: torch.ones(1), [random_structure(0)] * 2)


class WrongForce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 1.01 * grad


def wrong_force(charges, positions, cell, *_):
    return 10.0 * (WrongForce.apply(positions) ** 2).sum()[None]


def wrong_stress(charges, positions, cell, *_):
    return 10.0 * (WrongForce.apply(cell) ** 2).sum()[None] + 0.0 * positions.sum()


@pytest.mark.parametrize(("energy", "name"), [(wrong_force, "force"), (wrong_stress, "stress")])
def test_the_force_assert_notices_a_wrong_derivative(energy, name):
    with pytest.raises(AssertionError, match=f"The {name} is"):
        assert_forces_match_finite_differences(energy, random_structure(2, 5))


@pytest.mark.parametrize("periodic", [True, False])
def test_the_force_assert_accepts_the_model(periodic):
    structure = random_structure(3, 4, 2, periodic=periodic)
    assert_forces_match_finite_differences(energy_of(MODELS["gaussians"]), structure)


def test_the_derivative_assert_notices_a_wrong_first_derivative():
    with pytest.raises(AssertionError, match="First derivatives are wrong"):
        assert_twice_differentiable(WrongForce.apply, [torch.ones(2, dtype=DOUBLE)])


def test_the_derivative_assert_wants_float64():
    with pytest.raises(InputError, match=r"`inputs\[1\]` must be float64, got torch.float32"):
        assert_twice_differentiable(torch.add, [torch.ones(2, dtype=DOUBLE), torch.ones(2)])


def test_the_basis_assert_wants_the_same_lattice():
    doubled = [[2, 0, 0], [0, 1, 0], [0, 0, 1]]
    with pytest.raises(InputError, match="`bases` must be of determinant 1 or -1, got 2"):
        assert_cell_basis_invariant(
            energy_of(MODELS["ewald"]), random_structure(0), bases=[doubled]
        )


def test_join_wants_a_structure():
    with pytest.raises(InputError, match="`structures` must be at least one, got none"):
        join([])


def test_a_supercell_holds_every_copy_once():
    structure = random_structure(4, 2)
    large = make_supercell(structure, (2, 1, 3))
    shift = structure.cell[0] + 2.0 * structure.cell[2]
    assert isinstance(large, Structure)
    assert large.positions.shape == (12, 3)
    torch.testing.assert_close(large.positions[-2:], structure.positions + shift)
    torch.testing.assert_close(torch.linalg.det(large.cell), 6.0 * torch.linalg.det(structure.cell))
    torch.testing.assert_close(large.charges[4:6], structure.charges)
