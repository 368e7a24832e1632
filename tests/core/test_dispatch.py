"""Charges, dipoles and potentials inside a model: the same sums, values and refusals."""

import re

import pytest
import torch
from references import (
    DOUBLE,
    SUMS,
    LargestTensor,
    as_type,
    dipoles_of,
    random_structure,
    relative_error,
)

from sog_longrange import (
    BoundaryError,
    Ewald,
    FixedMeshEnergy,
    InputError,
    LongRangeEnergy,
    SizeError,
    SumOfGaussians,
    potential_and_field,
)
from sog_longrange.summation import dispatch
from sog_longrange.summation.rows import sphere_rows
from sog_longrange.testing import join

TOLERANCE = 1e-5
HUGE = {torch.float32: 3e38, torch.float64: 1e308}


def ions(distance, n_atoms=501):
    """Ions in an open box, one of them far away."""
    structure = random_structure(1, n_atoms, 1, edge=12.0, periodic=False)
    structure.positions[-1] = distance
    return structure


def structures_of(name):
    periodic = random_structure(2, 4, 1, edge=5.0)
    slab = periodic._replace(pbc=torch.tensor([True, False, True]))
    along = periodic._replace(pbc=torch.tensor([False, True, False]))
    small = random_structure(3, 4, 1, periodic=False)
    empty = random_structure(4, 0, 1)
    return {
        "periodic": [periodic],
        "slab": [slab],
        "one direction": [along],
        "small": [small],
        "dense": [ions(0.0, 1500)],
        "sparse": [ions(2000.0)],
        "empty": [empty],
        "mixed": [slab, empty, periodic, small, ions(120.0), along, empty],
    }[name]


KINDS = {
    "periodic": ["periodic"],
    "slab": ["padded"],
    "one direction": ["padded"],
    "small": ["pairs"],
    "dense": ["padded"],
    "sparse": ["pairs"],
    "empty": ["periodic"],
    "mixed": ["padded", "periodic", "periodic", "pairs", "pairs", "padded", "periodic"],
}
"""Sum of each structure; periodic ones get that of the backend."""

CASES = [
    *((name, "mesh") for name in KINDS),
    *((name, sums) for name in ("periodic", "empty", "mixed") for sums in SUMS if sums != "mesh"),
]


def options_of(sums):
    for library in {"numba", "finufft"} & {sums}:
        pytest.importorskip(library, reason=f"{library} is not installed.")
    return SUMS[sums]


def every_path(energy, structures):
    """Functions that evaluate charges, charges with dipoles of zero, and potentials."""
    charges, *geometry = join(structures)
    none = charges.new_zeros(len(charges), 3, charges.shape[1])
    return {
        "charges": lambda: energy(charges, *geometry),
        "dipoles": lambda: energy(charges, *geometry, dipoles=none),
        "potential": lambda: potential_and_field(energy, charges, *geometry),
    }


@pytest.fixture
def plans(monkeypatch):
    """Sums of the structures of each evaluation."""
    made = []
    plan = dispatch.plan_sums

    def recorded(*arguments, **options):
        made.append(plan(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(dispatch, "plan_sums", recorded)
    return made


@pytest.mark.parametrize(("name", "sums"), CASES)
def test_every_path_sums_alike(name, sums, plans):
    options = options_of(sums)
    energy = LongRangeEnergy(SumOfGaussians(min_width=1.0), tolerance=TOLERANCE, **options)
    structures = structures_of(name)
    charges, dipoles, potential = (
        own() for own in every_path(energy.double(), structures).values()
    )
    kinds = [options["backend"] if kind == "periodic" else kind for kind in KINDS[name]]
    assert [own.kinds for own in plans] == 3 * [kinds]
    q, _, _, _, batch, _ = join(structures)
    work = 0.5 * (q * potential.potential).sum(-1)
    scale = 1.0 + float(charges.energy.detach().abs().max())
    from_potential = torch.zeros_like(charges.energy).index_add(0, batch, work)
    torch.testing.assert_close(from_potential, charges.energy, rtol=0.0, atol=1e-8 * scale)
    torch.testing.assert_close(potential.potential, charges.potential, rtol=1e-8, atol=1e-8)
    # Sums over dipoles take finer grids for the same tolerance.
    near = {"rtol": 0.0, "atol": 10.0 * TOLERANCE * scale}
    torch.testing.assert_close(dipoles.energy, charges.energy, **near)
    torch.testing.assert_close(dipoles.potential, charges.potential, **near)
    torch.testing.assert_close(dipoles.field, potential.field, **near)


@pytest.mark.parametrize("sums", [name for name in SUMS if name != "dense"])
def test_every_backend_has_the_values_of_the_dense_sum(sums):
    kernel = SumOfGaussians(min_width=1.0, num_channels=2).double()
    structures = [random_structure(seed, 5, 2, edge=5.0) for seed in (2, 3)]
    charges, *geometry = join(structures)
    dipoles = dipoles_of(charges)

    def outputs(tolerance, **options):
        energy = LongRangeEnergy(kernel, tolerance=tolerance, **options)
        out = energy(charges, *geometry, dipoles=dipoles)
        inside = potential_and_field(energy, charges, *geometry, dipoles=dipoles)
        return out.energy, out.potential, out.field, *inside

    # A width of the window for each tolerance takes time to compile.
    tolerance = 1e-4 if sums == "numba" else 1e-7
    found, expected = outputs(tolerance, **options_of(sums)), outputs(1e-9, **SUMS["dense"])
    for own, other in zip(found, expected, strict=True):
        assert relative_error(own, other) < 10.0 * tolerance


def test_an_ion_far_away_changes_the_others_by_its_own_potential_only():
    energy = LongRangeEnergy(Ewald(1.0), tolerance=TOLERANCE)
    far = ions(2000.0)
    near = far._replace(charges=far.charges[:-1], positions=far.positions[:-1])
    found = every_path(energy, [far])["potential"]().potential[:-1]
    own = every_path(energy, [near])["potential"]().potential
    distances = (far.positions[:-1] - far.positions[-1]).norm(dim=-1, keepdim=True)
    expected = own + energy.kernel.radial(distances[:, 0].square()).T * far.charges[-1]
    assert relative_error(found, expected) < 1e-12


def moved(structure, values):
    positions = structure.positions.clone()
    for atom, value in enumerate(values):
        positions[atom] = torch.as_tensor(value, dtype=DOUBLE)
    return structure._replace(positions=positions)


def refused(name, dtype):
    """Structures that no path evaluates, with the error that all of them raise."""
    huge = HUGE[dtype]
    crystal = random_structure(2, 4, 1, edge=5.0)
    tiny = crystal._replace(cell=0.1 * torch.eye(3, dtype=DOUBLE))
    slab = crystal._replace(pbc=torch.tensor([True, True, False]))
    along = tiny._replace(pbc=torch.tensor([False, False, True]))
    free = random_structure(3, 4, 1, periodic=False)
    wide = crystal._replace(cell=1e5 * torch.eye(3, dtype=DOUBLE))
    finite = "`positions` must be finite"
    return {
        "phases": ([moved(tiny, [huge])], InputError, finite),
        "slab": ([moved(slab, [huge, -huge])], InputError, finite),
        "phases along one direction": ([moved(along, [[0.0, 0.0, huge]])], InputError, finite),
        "pairs": ([moved(free, [huge, -huge])], InputError, finite),
        "squares of distances": ([moved(free, [huge**0.6])], InputError, finite),
        "large non-periodic": ([moved(ions(0.0), [huge, -huge])], InputError, finite),
        "one of a batch": ([crystal, moved(tiny, [huge]), free], InputError, finite),
        "size": ([wide], SizeError, "Use a larger `min_width` or `tolerance`"),
    }[name]


REFUSED = [
    *((name, "mesh", dtype) for name in ("phases", "one of a batch", "size") for dtype in HUGE),
    *((name, "mesh", DOUBLE) for name in ("slab", "phases along one direction", "pairs")),
    *((name, "mesh", torch.float32) for name in ("squares of distances", "large non-periodic")),
    *((name, sums, DOUBLE) for name in ("phases", "size") for sums in SUMS if sums != "mesh"),
]


@pytest.mark.parametrize(("name", "sums", "dtype"), REFUSED, ids=str)
def test_every_path_refuses_alike(name, sums, dtype):
    structures, error, message = refused(name, dtype)
    options = options_of(sums)
    energy = LongRangeEnergy(SumOfGaussians(min_width=1.0), tolerance=1e-2, **options)
    messages = set()
    for own in every_path(energy.to(dtype), [as_type(s, dtype) for s in structures]).values():
        with pytest.raises(error, match=message) as caught:
            own()
        # Sums over dipoles take more points for the same tolerance.
        messages.add(re.sub(r"[\d.e+]+", "", str(caught.value)))
    assert len(messages) == 1


def test_every_path_refuses_slabs_of_the_ewald_kernel():
    energy = LongRangeEnergy(Ewald(1.0))
    for own in every_path(energy, structures_of("mixed")).values():
        with pytest.raises(BoundaryError, match="sum of Gaussians"):
            own()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["periodic", "slab", "small"])
def test_every_path_refuses_charges_whose_energies_overflow(name, dtype):
    energy = LongRangeEnergy(SumOfGaussians(min_width=1.0), tolerance=1e-2).to(dtype)
    huge = 0.5 * torch.finfo(dtype).max
    structures = [
        s._replace(
            charges=(huge * s.charges).to(dtype),
            positions=s.positions.to(dtype),
            cell=s.cell.to(dtype),
        )
        for s in structures_of(name)
    ]
    for own in every_path(energy, structures).values():
        with pytest.raises(InputError, match="`charges and dipoles` must be so small"):
            own()


def test_energies_of_a_kernel_that_training_has_ruined_are_nan():
    energy = LongRangeEnergy(SumOfGaussians(min_width=1.0), tolerance=1e-2).double()
    with torch.no_grad():
        energy.kernel.log_amplitudes.fill_(torch.nan)
    assert bool(every_path(energy, structures_of("periodic"))["charges"]().energy.isnan().all())


def test_a_fixed_mesh_that_is_not_traced_refuses_phases_that_overflow():
    (crystal,), _, message = refused("phases", torch.float64)
    fixed = FixedMeshEnergy(LongRangeEnergy(Ewald(1.0), tolerance=1e-2), crystal.cell)
    with pytest.raises(InputError, match=message):
        fixed(*crystal[:3])


def test_sums_of_huge_positions_overflow_nowhere():
    huge = moved(structures_of("small")[0], [1e308, 1e308, 1e308, 1e308])
    energy = LongRangeEnergy(Ewald(1.0), tolerance=1e-2)
    for own in every_path(energy, [huge, *structures_of("empty")]).values():
        assert all(bool(values.isfinite().all()) for values in own() if values is not None)


@pytest.mark.parametrize("sums", SUMS)
@pytest.mark.parametrize("path", ["charges", "dipoles", "potential"])
def test_no_tensor_is_as_large_as_atoms_times_modes(path, sums):
    options = options_of(sums)
    energy = LongRangeEnergy(SumOfGaussians(min_width=1.0), tolerance=1e-3, **options).double()
    n_atoms = 300
    structure = random_structure(2, n_atoms, 1, edge=30.0)
    structure.positions.requires_grad_()
    cutoff = energy.interaction().resolution(1).cutoff
    n_modes = 2 * sphere_rows(structure.cell[None].numpy(), cutoff).total
    with LargestTensor() as largest:
        out = every_path(energy, [structure])[path]()
        scalar = sum(x.sum() for x in out if x is not None and x.requires_grad)
        torch.autograd.grad(scalar, structure.positions)
    assert largest.numel < 0.3 * n_atoms * n_modes
