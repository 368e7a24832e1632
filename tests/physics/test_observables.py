"""Multipoles, polarisation, Born charges and fields against formulas and differences."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import (
    CELLS,
    DOUBLE,
    OPEN,
    PERIODIC,
    all_kernels,
    crystal,
    evaluate,
    forces_of,
    random_structure,
    tensor,
)

from sog_longrange import (
    BoundaryError,
    InputError,
    InputTypeError,
    LongRangeEnergy,
    born_charges,
    centre,
    dipole,
    field_energy,
    polarisation,
    potential_and_field,
    quadrupole,
    uniform_field,
)
from sog_longrange.observables.images import nearest_images
from sog_longrange.testing import (
    CELL_BASES,
    Structure,
    assert_twice_differentiable,
    join,
    make_supercell,
)
from sog_longrange.units import COULOMB_CONSTANT

few = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**16)
REACH = 2.6
FIELD = tensor([0.03, -0.02, 0.05])
SLAB = torch.tensor([True, True, False])


def single(function, structure, **options):
    """A function of charges, positions, cells ... of one structure, its first channel."""
    charges, *rest = join([structure])
    return function(charges[:, 0], *rest, **options)[0]


def flowing(structure, reach=REACH, *, crowding=0.0, images=4):
    """Charges with transfer between atoms closer than `reach`, as a function of positions.

    The sum over images is explicit and shares no code with the package. With `crowding`
    the atoms' will to give charge depends on their neighbours: a response to twice the reach.
    """
    charges, _, cell, pbc = structure
    places = [range(-images, images + 1) if axis else (0,) for axis in pbc.tolist()]
    shifts = tensor(list(itertools.product(*places))) @ cell
    base = charges[:, 0]

    def function(positions):
        delta = positions[:, None, None] - positions[None, :, None] + shifts
        squares = delta.square().sum(-1) / reach**2
        near = torch.where(squares < 1.0, (1.0 - squares).clamp(min=0.0) ** 4, 0.0).sum(-1)
        will = base * (1.0 + crowding * near.sum(1))
        return base + 0.4 * (near * (will[:, None] - will[None])).sum(1)

    return function


def compact_structure(seed=0, n_atoms=5, pbc=PERIODIC, edge=7.0):
    """Neutral, triclinic; every response ends within half the cell."""
    structure = random_structure(seed, n_atoms, edge=edge, neutral=True)
    return structure._replace(pbc=pbc)


def born(structure, function=None, **options):
    function = flowing(structure) if function is None else function
    _, *rest = join([structure])
    return born_charges(function, *rest, **options)


def differences(structure, function, step=1e-3):
    """dP/dr of every atom from five-point differences of the dipole about that atom."""
    _, positions, *rest = join([structure])
    values = torch.zeros(len(positions), 3, 3, dtype=DOUBLE)
    for atom, axis in itertools.product(range(len(positions)), range(3)):

        def moment(x, atom=atom, axis=axis):
            moved = positions.clone()
            moved[atom, axis] += x
            return dipole(function(moved), moved, *rest, origin=positions[atom])[0]

        near, far = (moment(h) - moment(-h) for h in (step, 2.0 * step))
        values[atom, :, axis] = (8.0 * near - far) / (12.0 * step)
    return values


def rotation(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=DOUBLE))[0]


# ---------------------------------------------------------------- multipoles


@pytest.mark.parametrize("total", [0.0, 1.0])
def test_multipoles_give_the_potential_far_away(total):
    charges = random_structure(0, 5, neutral=True).charges[:, 0] + total / 5
    positions = random_structure(1, 5, edge=1.0).positions
    moment, second = dipole(charges, positions)[0], quadrupole(charges, positions)[0]
    far = 300.0 * torch.nn.functional.normalize(tensor([0.3, -0.8, 0.5]), dim=0)
    distance = far.norm()
    exact = (charges / (far - positions).norm(dim=1)).sum()
    series = [total / distance, moment @ far / distance**3, far @ second @ far / distance**5]
    assert abs(float(exact - sum(series[:2]))) > 1e-9  # so that the last term is seen
    assert float(exact) == pytest.approx(float(sum(series)), abs=3e-10)


def test_quadrupole_of_a_linear_molecule():
    positions = tensor([[0.0, 0.0, 1.2], [0.0, 0.0, -1.2], [0.0, 0.0, 0.0]])
    charges = tensor([-0.3, -0.3, 0.6])
    expected = -0.6 * 1.2**2 * torch.diag(tensor([-0.5, -0.5, 1.0]))
    torch.testing.assert_close(quadrupole(charges, positions)[0], expected)
    raw = quadrupole(charges, positions, traceless=False)[0]
    torch.testing.assert_close(raw, -0.6 * 1.2**2 * torch.diag(tensor([0.0, 0.0, 1.0])))


@few
@given(seeds, st.floats(-2.0, 2.0))
def test_multipoles_depend_on_the_origin_as_stated(seed, total):
    structure = random_structure(seed, 5, neutral=True)
    charges, positions = structure.charges[:, 0] + total / 5, structure.positions
    origin = tensor([1.0, -2.0, 0.5])
    moved = dipole(charges, positions, origin=origin)[0]
    torch.testing.assert_close(moved, dipole(charges, positions)[0] - total * origin)
    as_shift = quadrupole(charges, positions - origin)
    torch.testing.assert_close(quadrupole(charges, positions, origin=origin), as_shift)


@few
@given(seeds)
def test_multipoles_turn_with_the_molecule(seed):
    structure, matrix = random_structure(seed, 4, periodic=False), rotation(seed)
    charges, positions = structure.charges[:, 0], structure.positions
    turned = positions @ matrix.T
    torch.testing.assert_close(dipole(charges, turned)[0], matrix @ dipole(charges, positions)[0])
    second = matrix @ quadrupole(charges, positions)[0] @ matrix.T
    torch.testing.assert_close(quadrupole(charges, turned)[0], second)
    assert abs(float(second.trace())) < 1e-12


def test_a_batch_gives_what_its_structures_give():
    structures = [
        compact_structure(0),
        random_structure(1, 3, periodic=False),
        compact_structure(2, 4, SLAB),
        Structure(*(x[:0] for x in random_structure(3, 2)[:2]), torch.eye(3, dtype=DOUBLE), OPEN),
    ]
    charges, positions, *rest = join(structures)
    found = dipole(charges[:, 0], positions, *rest)
    torch.testing.assert_close(found, torch.stack([single(dipole, s) for s in structures]))
    second = quadrupole(charges[:, 0], positions, rest[2], rest[3])
    one = quadrupole(structures[1].charges[:, 0], structures[1].positions)[0]
    torch.testing.assert_close(second[1], one)
    assert torch.equal(second[3], torch.zeros(3, 3, dtype=DOUBLE))
    origins = tensor([[1.0, 2.0, 3.0]] * 4)
    apart = torch.stack([single(dipole, s, origin=origins[0]) for s in structures])
    torch.testing.assert_close(dipole(charges[:, 0], positions, *rest, origin=origins), apart)


def test_centre_is_weighted_and_zero_without_atoms():
    positions, batch = tensor([[0.0, 0, 0], [1.0, 0, 0], [5.0, 5, 5]]), torch.tensor([0, 0, 2])
    plain = centre(positions, None, batch, 3)
    torch.testing.assert_close(plain, tensor([[0.5, 0, 0], [0, 0, 0], [5.0, 5, 5]]))
    heavy = centre(positions, tensor([1.0, 3.0, 2.0]), batch, 3)
    torch.testing.assert_close(heavy[0], tensor([0.75, 0, 0]))


# -------------------------------------------------------------- polarisation


def quanta(structure, change, unit):
    """Change of the polarisation in units of those of charge `unit`."""
    inverse = torch.linalg.inv(structure.cell)
    return change @ inverse * torch.linalg.det(structure.cell).abs() / unit


def assert_whole(numbers):
    torch.testing.assert_close(numbers, numbers.round(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", CELLS)
def test_polarisation_is_that_of_the_phases_modulo_the_quantum(name):
    generator = torch.Generator().manual_seed(3)
    charges = 0.25 * torch.randint(-4, 5, (8, 1), generator=generator).double()
    places = 3.0 * torch.rand(8, 3, generator=generator, dtype=DOUBLE)
    # Where two images are equally near, one of them is taken, not their mean.
    charges[6:] = 0.25
    places[6:] = tensor([[0.5, 0.0, 0.0], [0.5, 0.5, 0.5]])
    structure = Structure(charges, places @ CELLS[name], CELLS[name], PERIODIC)
    reciprocal = 2.0 * torch.pi * torch.linalg.inv(CELLS[name]).T
    phases = torch.angle(torch.exp(1j * (structure.positions @ reciprocal.T)))
    volume = torch.linalg.det(CELLS[name]).abs()
    expected = (charges * phases).sum(0) @ CELLS[name] / (2.0 * torch.pi * volume)
    found = single(polarisation, structure)
    assert_whole(quanta(structure, found - expected, 0.25))


@few
@given(seeds, st.integers(0, 2), st.integers(0, len(CELLS) - 1))
def test_polarisation_does_not_depend_on_images_or_cell_basis(seed, basis, cell):
    generator = torch.Generator().manual_seed(seed)
    cell = list(CELLS.values())[cell]
    structure = random_structure(seed, 5)._replace(cell=cell)
    images = torch.randint(-3, 4, (5, 3), generator=generator).double() @ cell
    matrix = tensor(CELL_BASES[basis])
    same = structure._replace(positions=structure.positions + images, cell=matrix @ cell)
    found, expected = single(polarisation, same), single(polarisation, structure)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@few
@given(seeds)
def test_polarisation_turns_with_the_cell_and_ignores_the_order(seed):
    structure, matrix = random_structure(seed, 5), rotation(seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    turned = Structure(
        structure.charges[order],
        structure.positions[order] @ matrix.T,
        structure.cell @ matrix.T,
        PERIODIC,
    )
    expected = matrix @ single(polarisation, structure)
    torch.testing.assert_close(single(polarisation, turned), expected)


@few
@given(seeds, st.sampled_from([(2, 1, 1), (1, 3, 2)]))
def test_polarisation_of_a_supercell_is_the_same_modulo_its_quantum(seed, repeats):
    structure = random_structure(seed, 4)
    structure = structure._replace(charges=tensor([[1.0], [-2.0], [3.0], [-2.0]]))
    large = make_supercell(structure, repeats)
    change = single(polarisation, large) - single(polarisation, structure)
    # The cell's own quantum is e a / V; the supercell's are its parts.
    assert_whole(quanta(structure, change, 1.0 / (repeats[0] * repeats[1] * repeats[2])))


def test_displacing_a_sublattice_polarises_by_charge_times_distance():
    structure, _, _ = crystal("NaCl")
    shift = tensor([0.1, -0.05, 0.02])
    moved = structure._replace(
        positions=structure.positions + (structure.charges > 0) * shift + 0.3
    )
    still = structure._replace(positions=structure.positions + 0.3)
    change = single(polarisation, moved) - single(polarisation, still)
    torch.testing.assert_close(change, 4.0 * shift / 5.64**3)


def test_the_dipole_of_a_slab_or_wire_does_not_depend_on_basis_and_images():
    structure = compact_structure(0, pbc=SLAB)
    skewed = tensor([[1, 15, 0], [-1, -14, 0], [0, 0, 1]]) @ structure.cell
    found = single(dipole, structure._replace(cell=skewed))
    torch.testing.assert_close(found, single(dipole, structure), rtol=0, atol=1e-11)
    wire = structure._replace(pbc=torch.tensor([True, False, False]))
    moved = wire._replace(positions=wire.positions + 3.0 * wire.cell[0])
    torch.testing.assert_close(single(dipole, moved), single(dipole, wire))


def test_a_slab_has_its_dipole_along_the_normal():
    structure = compact_structure(0, pbc=SLAB)
    normal = torch.nn.functional.normalize(torch.linalg.cross(*structure.cell[:2]), dim=0)
    expected = normal @ (structure.charges * structure.positions).sum(0)
    torch.testing.assert_close(normal @ single(dipole, structure), expected)


def test_polarisation_and_field_energy_are_twice_differentiable():
    structure = compact_structure(4, 3)

    def function(charges, positions, cell):
        energy = field_energy(charges, positions, FIELD, cell[None], PERIODIC[None])
        return polarisation(charges, positions, cell[None], PERIODIC[None]), energy

    inputs = (structure.charges[:, 0], structure.positions, structure.cell)
    assert_twice_differentiable(function, inputs)


# -------------------------------------------------------------- Born charges

TWO_ATOMS = Structure(
    tensor([[0.8], [-0.8]]),
    tensor([[0.1, 0.2, 5.9], [1.3, 0.6, 0.4]]),  # in different images
    tensor([[6.0, 0.0, 0.0], [1.0, 6.5, 0.0], [-0.5, 1.0, 6.0]]),
    PERIODIC,
)


def rock_salt(repeats=(1, 1, 1)):
    """Rock salt with every atom displaced, and charges that flow to the neighbours."""
    structure = make_supercell(crystal("NaCl")[0], repeats)
    noise = 0.2 * random_structure(0, len(structure.positions), edge=1.0).positions
    return structure._replace(positions=structure.positions + noise)


def slab():
    structure = compact_structure(2, pbc=SLAB)
    return structure._replace(positions=0.5 * structure.positions)


BORN_CASES = {
    "two atoms": (TWO_ATOMS, REACH),
    "open": (random_structure(0, 4, periodic=False, edge=2.0), REACH),
    "crystal": (rock_salt(), 3.4),
    "left-handed": (compact_structure(1), REACH),
    "slab": (slab(), REACH),
}


@pytest.mark.parametrize("name", BORN_CASES)
def test_born_charges_are_differences_of_the_dipole(name):
    structure, reach = BORN_CASES[name]
    function = flowing(structure, reach)
    found = born(structure, function).values
    expected = differences(structure, function)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    fixed = function(structure.positions)[:, None, None] * torch.eye(3, dtype=DOUBLE)
    assert float((found - fixed).abs().max()) > 0.02  # the response is seen


@pytest.mark.parametrize("name", ["two atoms", "left-handed"])
def test_born_charges_are_differences_of_the_polarisation(name):
    structure, _ = BORN_CASES[name]
    function, step = flowing(structure), 1e-4
    volume = torch.linalg.det(structure.cell).abs()
    origin = structure.positions[0]
    ends = []
    for x in (-step, step):
        moved = structure.positions.clone()
        moved[0, 2] += x
        now = structure._replace(positions=moved, charges=function(moved)[:, None])
        ends.append(single(polarisation, now, origin=origin))
    expected = volume * (ends[1] - ends[0]) / (2.0 * step)
    torch.testing.assert_close(born(structure).values[0, :, 2], expected, rtol=0, atol=1e-8)


def test_mean_images_keep_the_precision_of_the_vectors():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        vectors = torch.tensor([[0.4, 0.0, 0.0], [0.5, 0.0, 0.0]], dtype=torch.float32)
        lattice, batch = torch.eye(3)[None].to(vectors), torch.zeros(2).long()
        found = nearest_images(vectors, lattice, batch, mean=True)
    finally:
        torch.set_default_dtype(before)
    expected = torch.tensor([[0.4, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_images_along_a_long_axis_do_not_blur_those_along_short_ones(dtype):
    lattice = torch.diag(torch.tensor([4.0, 4.0, 100.0], dtype=dtype))[None]
    vectors = torch.tensor([[1.7, 0.0, 0.0], [2.0, 0.0, 50.0]], dtype=dtype)
    found = nearest_images(vectors, lattice, torch.zeros(2).long(), mean=True)
    expected = torch.tensor([[1.7, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_fixed_charges_are_their_own_born_charges():
    structure = compact_structure(0)
    found = born(structure, lambda positions: structure.charges[:, 0], eps_inf=2.25)
    expected = 1.5 * structure.charges[:, :, None] * torch.eye(3, dtype=DOUBLE)
    torch.testing.assert_close(found.values, expected)


def test_the_first_index_is_that_of_the_dipole():
    def charges(positions):
        flow = 0.1 * positions[0, 1]  # moving atom 0 along y moves charge along x
        return torch.stack([flow, -flow])

    structure = Structure(None, tensor([[0.0, 0, 0], [3.0, 0, 0]]), None, OPEN)
    values = born_charges(charges, structure.positions).values
    assert float(values[0, 0, 1]) == pytest.approx(-0.3)
    assert float(values[0, 1, 0]) == pytest.approx(0.0)


@pytest.mark.parametrize("name", BORN_CASES)
def test_the_acoustic_sum_rule_holds_for_charges_that_flow_between_pairs(name):
    structure, reach = BORN_CASES[name]
    found = born(structure, flowing(structure, reach), eps_inf=1.7)
    assert float(found.sum_rule.abs().max()) < 1e-12


def test_the_sum_rule_tells_a_cell_that_is_too_narrow_for_the_response():
    positions = tensor([[0.0, 0.0, 0.0], [1.2, 0.3, 0.1], [2.1, -0.2, 0.4]])
    cell = 3.3 * torch.eye(3, dtype=DOUBLE)
    structure = Structure(tensor([[0.5], [-0.8], [0.3]]), positions, cell, PERIODIC)
    narrow = born(structure, flowing(structure, 2.0, crowding=0.5))
    assert float(narrow.sum_rule.abs().max()) > 1e-3
    large = make_supercell(structure, (3, 3, 3))
    function = flowing(large, 2.0, crowding=0.5, images=1)
    assert float(born(large, function, reach=4.0).sum_rule.abs().max()) < 1e-11


def test_a_charged_cell_has_the_sum_rule_of_its_charge():
    structure = compact_structure(0)
    charged = structure._replace(charges=structure.charges + 0.2)
    found = born(charged, eps_inf=4.0)
    assert float(found.sum_rule.abs().max()) < 1e-12
    total = 2.0 * torch.eye(3, dtype=DOUBLE)  # sqrt(4) times five atoms of 0.2 e
    torch.testing.assert_close(found.values.sum(0), total)


def leaking(structure):
    """Charges that are not conserved."""
    return lambda x: structure.charges[:, 0] + 0.1 * (x - x.roll(1, 0))[:, 0].sin()


def test_a_broken_sum_rule_is_reported_and_mended_on_request():
    structure = compact_structure(0)
    reported = born(structure, leaking(structure))
    assert float(reported.sum_rule.abs().max()) > 1e-3
    torch.testing.assert_close(
        reported.values.sum(0),
        reported.sum_rule[0]
        + leaking(structure)(structure.positions).sum() * torch.eye(3, dtype=DOUBLE),
    )
    screened = born(structure, leaking(structure), eps_inf=4.0)
    torch.testing.assert_close(screened.sum_rule, 2.0 * reported.sum_rule)
    mended = born(structure, leaking(structure), enforce_sum_rule=True)
    torch.testing.assert_close(mended.sum_rule, reported.sum_rule)
    torch.testing.assert_close(
        reported.values - mended.values, (reported.sum_rule / 5).expand(5, 3, 3)
    )


@few
@given(seeds)
def test_born_charges_turn_with_the_structure(seed):
    structure, matrix = compact_structure(seed), rotation(seed)
    turned = structure._replace(
        positions=structure.positions @ matrix.T, cell=structure.cell @ matrix.T
    )
    expected = matrix @ born(structure).values @ matrix.T
    torch.testing.assert_close(born(turned).values, expected, rtol=0, atol=1e-10)


@few
@given(seeds, st.integers(0, 2))
def test_born_charges_do_not_depend_on_images_place_order_or_cell_basis(seed, basis):
    structure = compact_structure(seed)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(-1, 2, (5, 3), generator=generator).double() @ structure.cell
    order = torch.randperm(5, generator=generator)
    changed = Structure(
        structure.charges[order],
        (structure.positions + images)[order] + tensor([3.0, -1.0, 2.0]),
        tensor(CELL_BASES[basis]) @ structure.cell,
        PERIODIC,
    )
    base = born(structure).values
    function = flowing(structure._replace(charges=structure.charges[order]))
    # The charges' own sum over images is in the first basis, which is as good.
    found = born(changed, lambda x: function(x - images[order])).values
    torch.testing.assert_close(found, base[order], rtol=0, atol=1e-10)


@pytest.mark.parametrize("repeats", [(2, 1, 1), (1, 2, 2)])
def test_born_charges_of_a_supercell_are_those_of_the_cell(repeats):
    structure = compact_structure(0, 3)
    large = make_supercell(structure, repeats)
    copies = len(large.positions) // 3
    expected = born(structure).values.repeat(copies, 1, 1)
    torch.testing.assert_close(born(large).values, expected, rtol=0, atol=1e-10)


def counting(function, calls):
    def wrapped(positions):
        charges = function(positions)
        charges.register_hook(lambda gradient: calls.append(1) or gradient)
        return charges

    return wrapped


def test_with_a_reach_few_passes_give_the_same_charges():
    structure = make_supercell(compact_structure(1, 4, edge=6.5), (2, 2, 2))
    full, few_passes = [], []
    expected = born(structure, counting(flowing(structure), full)).values
    found = born(structure, counting(flowing(structure), few_passes), reach=REACH).values
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert len(full) == 32
    assert len(few_passes) <= 10


@pytest.mark.slow
def test_a_reach_serves_charges_that_are_not_conserved():
    structure = make_supercell(compact_structure(1, 4, edge=6.5), (2, 2, 2))

    def function(positions):  # charges grow where atoms are close
        return flowing(structure)(positions) + flowing(structure)(positions) ** 2

    expected = born(structure, function)
    found = born(structure, function, reach=REACH)
    assert float(expected.sum_rule.abs().max()) > 1e-3
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-12)


def test_open_structures_take_four_passes():
    structure, calls = compact_structure(0, 9, OPEN), []
    born(structure, counting(flowing(structure), calls))
    assert len(calls) == 4


def test_a_cell_too_narrow_for_the_reach_is_summed_in_full():
    structure = compact_structure(1, 6)
    found = born(structure, reach=50.0).values
    torch.testing.assert_close(found, born(structure).values, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("reach", [None, REACH])
def test_born_charges_of_a_batch_are_those_of_its_structures(reach):
    large = make_supercell(compact_structure(1, 4, edge=6.5), (2, 2, 2))
    structures = [compact_structure(0), compact_structure(5, 4, OPEN), large]
    _, positions, *rest = join(structures)
    parts = [len(s.positions) for s in structures]

    def function(x):
        pieces = zip(structures, x.split(parts), strict=True)
        return torch.cat([flowing(s)(piece) for s, piece in pieces])

    found = born_charges(function, positions, *rest, reach=reach)
    expected = [born(s) for s in structures]
    for whole, name in zip(found, ("values", "sum_rule"), strict=True):
        parts_of = torch.cat([getattr(one, name) for one in expected])
        torch.testing.assert_close(whole, parts_of, rtol=0, atol=1e-11)


def test_atoms_that_are_equally_near_in_two_images_count_from_the_middle():
    # Two halves of a square lattice: by symmetry no charge flows aside of the displacement.
    cell = tensor([[4.0, 0, 0], [0, 4.0, 0], [0, 0, 5.0]])
    positions = tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 0.4]])
    structure = Structure(tensor([[0.7], [-0.7]]), positions, cell, PERIODIC)
    values = born(structure, flowing(structure, reach=3.5)).values
    aside = values[:, ~torch.eye(3, dtype=torch.bool)]
    assert float(aside.abs().max()) < 1e-12
    assert float((values[0, 2, 2] - values[0, 0, 0]).abs()) > 5e-3


def test_born_charges_of_given_charges_are_those_of_their_function():
    structure = compact_structure(0)
    positions = structure.positions.clone().requires_grad_()
    charges = flowing(structure)(positions)
    rest = structure.cell[None], structure.pbc[None]
    found = born_charges(charges, positions, *rest)
    torch.testing.assert_close(found.values, born(structure).values)
    assert not found.values.requires_grad
    charges.sum().backward()  # the graph is still there


@pytest.mark.parametrize("pbc", [PERIODIC, OPEN], ids=["periodic", "open"])
def test_born_charges_can_be_trained(pbc):
    structure = compact_structure(0, 3, pbc)
    function = flowing(structure)

    def values(positions):
        rest = structure.cell[None], pbc[None]
        return born_charges(function, positions, *rest, create_graph=True).values

    leaf = structure.positions.clone().requires_grad_()
    assert torch.autograd.gradcheck(values, leaf, eps=1e-5, atol=1e-7)


# --------------------------------------------------------------------- fields


@pytest.mark.parametrize("pbc", [OPEN, PERIODIC, SLAB], ids=["open", "periodic", "slab"])
def test_energy_in_a_field_is_minus_dipole_times_field(pbc):
    structure = compact_structure(0, pbc=pbc)
    found = single(field_energy_of(FIELD), structure, eps_inf=2.25)
    assert float(found) == pytest.approx(-1.5 * float(single(dipole, structure) @ FIELD))


def field_energy_of(field):
    def function(charges, positions, *rest, **options):
        return field_energy(charges, positions, field, *rest, **options)

    return function


def test_energy_of_a_displacement_is_minus_charge_times_field_times_distance():
    structure = compact_structure(0)
    shift = torch.zeros(5, 3, dtype=DOUBLE)
    shift[2] = tensor([0.01, 0.02, -0.01])
    origin = structure.positions[2]  # far from the jump
    moved = structure._replace(positions=structure.positions + shift)
    energies = [single(field_energy_of(FIELD), s, origin=origin) for s in (moved, structure)]
    expected = -float(structure.charges[2] * (shift[2] @ FIELD))
    assert float(energies[0] - energies[1]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("pbc", [OPEN, PERIODIC], ids=["open", "periodic"])
def test_forces_of_the_field_are_differences_and_born_charges_times_field(pbc):
    # A molecule that the jump, half a cell from the origin, does not cut.
    structure = random_structure(1, 4, edge=1.2, neutral=True)
    structure = structure._replace(pbc=pbc, cell=random_structure(1, 1, edge=9.0).cell)
    function, rest = flowing(structure), (structure.cell[None], pbc[None])

    def energy(positions):
        return field_energy(function(positions), positions, FIELD, *rest, eps_inf=1.8)[0]

    positions = structure.positions.clone().requires_grad_()
    forces = -torch.autograd.grad(energy(positions), positions)[0]
    values = born(structure, eps_inf=1.8).values
    torch.testing.assert_close(forces, torch.einsum("jab,a->jb", values, FIELD))
    for atom, axis in itertools.product(range(4), range(3)):
        step = torch.zeros(4, 3, dtype=DOUBLE)
        step[atom, axis] = 1e-4
        slope = (energy(structure.positions + step) - energy(structure.positions - step)) / 2e-4
        assert float(forces[atom, axis]) == pytest.approx(-float(slope), abs=1e-9)


def test_fields_of_a_batch_are_those_of_its_structures():
    structures = [compact_structure(s, pbc=p) for s, p in ((0, OPEN), (1, PERIODIC))]
    charges, positions, *rest = join(structures)
    fields = torch.stack([FIELD, -2.0 * FIELD])
    found = field_energy(charges[:, 0], positions, fields, *rest)
    pairs = zip(fields, structures, strict=True)
    expected = torch.stack([single(field_energy_of(field), s) for field, s in pairs])
    torch.testing.assert_close(found, expected)


def test_energies_of_atoms_in_a_field_sum_to_the_energy():
    structures = [compact_structure(s, pbc=p) for s, p in ((0, OPEN), (1, PERIODIC))]
    charges, positions, *rest = join(structures)
    found = uniform_field(charges[:, 0], positions, FIELD, *rest, eps_inf=1.8)
    sums = torch.zeros(2, dtype=DOUBLE).index_add(0, rest[2], found.atomic_energies)
    torch.testing.assert_close(sums, found.energy, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.energy, -(1.8**0.5) * found.dipole @ FIELD)
    torch.testing.assert_close(found.dipole, dipole(charges[:, 0], positions, *rest))


@pytest.mark.parametrize("periodic", [True, False], ids=["periodic", "open"])
@pytest.mark.parametrize("name", ["coulomb", "dispersion", "ewald"])
def test_charges_times_field_at_atoms_are_the_forces(name, periodic):
    model = LongRangeEnergy(all_kernels()[name], tolerance=1e-10)
    structure = random_structure(0, 6, 2, periodic=periodic)
    found = potential_and_field(model, *join([structure])).field
    assert found.shape == (6, 3, 2)
    forces = (structure.charges[:, None] * found).sum(-1)
    torch.testing.assert_close(forces, forces_of(model, structure), rtol=1e-9, atol=1e-10)


def test_field_of_a_smeared_charge_on_neutral_atoms_is_coulombs_far_away():
    charges, positions = tensor([[0.0], [2.0]]), tensor([[12.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    energy = LongRangeEnergy(all_kernels()["ewald"])
    found = potential_and_field(energy, charges, positions).field
    expected = tensor([2.0 * COULOMB_CONSTANT / 144.0, 0.0, 0.0])
    torch.testing.assert_close(found[0, :, 0], expected)
    torch.testing.assert_close(found[1, :, 0], torch.zeros(3, dtype=DOUBLE))


def test_field_is_minus_the_gradient_of_the_potential_of_a_batch():
    model = LongRangeEnergy(all_kernels()["coulomb"], tolerance=1e-10)
    structures = [random_structure(0, 4), random_structure(1, 3, periodic=False)]
    field = potential_and_field(model, *join(structures)).field
    neutral = structures[1].charges.clone()
    neutral[0] = 0.0  # so that its potential depends on the others only
    probe = structures[1]._replace(charges=neutral)
    step = torch.zeros(3, 3, dtype=DOUBLE)
    step[0, 1] = 1e-4
    ends = [
        evaluate(model, probe._replace(positions=probe.positions + x * step)).potential[0, 0]
        for x in (1.0, -1.0)
    ]
    slope = float((ends[0] - ends[1]).detach()) / 2e-4
    assert field[4, 1, 0].item() == pytest.approx(-slope, rel=1e-6)


# --------------------------------------------------------------------- errors

ONE = compact_structure(0)
ARGUMENTS = (ONE.charges[:, 0], ONE.positions, ONE.cell[None], PERIODIC[None])
MALFORMED = [
    (lambda q, r, c, p: dipole(q[:, None], r, c, p), InputError, r"\(n_atoms=5,\), one channel"),
    (lambda q, r, c, p: dipole(q[:4], r, c, p), InputError, "`charges` must be of shape"),
    (lambda q, r, c, p: dipole(q.float(), r, c, p), InputTypeError, "like `positions`"),
    (lambda q, r, c, p: dipole(q * float("nan"), r), InputError, "`charges` must be finite"),
    (lambda q, r, c, p: dipole(q, r, origin=r), InputError, "`origin` must be of shape"),
    (lambda q, r, c, p: polarisation(q, r, c, ~p), BoundaryError, "Use `dipole`"),
    (lambda q, r, c, p: polarisation(q, r, 0 * c, p), InputError, "non-zero volume"),
    (lambda q, r, c, p: born_charges(q, r, c, p), InputError, "in the graph of `positions`"),
    (lambda q, r, c, p: born_charges(lambda x: x, r), InputError, "one channel"),
    (lambda q, r, c, p: born_charges(lambda x: q, r, eps_inf=0.0), InputError, "`eps_inf`"),
    (lambda q, r, c, p: field_energy(q, r, r), InputError, "`field` must be of shape"),
    (lambda q, r, c, p: field_energy(q, r, FIELD.float()), InputTypeError, "`field` must be"),
    (lambda q, r, c, p: field_energy(q, r, FIELD, eps_inf=-1.0), InputError, "`eps_inf`"),
    (lambda q, r, c, p: centre(r, q[:2]), InputError, "`weights` must be of shape"),
]


@pytest.mark.parametrize(("call", "error", "message"), MALFORMED)
def test_a_malformed_argument_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(*ARGUMENTS)


def test_a_reach_out_of_range_is_named():
    with pytest.raises(InputError, match="`reach` must be positive"):
        born(ONE, reach=-1.0)
