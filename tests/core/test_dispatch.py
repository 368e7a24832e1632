"""Charges, dipoles and potentials inside a model: the same sums, values and refusals."""

import pytest
import torch
from references import DOUBLE, as_type, random_structure, relative_error

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
from sog_longrange.summation.dispatch import Interaction
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
    wire = periodic._replace(pbc=torch.tensor([False, True, False]))
    small = random_structure(3, 4, 1, periodic=False)
    empty = random_structure(4, 0, 1)
    return {
        "periodic": [periodic],
        "slab": [slab],
        "wire": [wire],
        "small": [small],
        "dense": [ions(0.0, 1500)],
        "sparse": [ions(2000.0)],
        "empty": [empty],
        "mixed": [slab, empty, periodic, small, ions(120.0), wire, empty],
    }[name]


KINDS = {
    "periodic": ["mesh"],
    "slab": ["padded"],
    "wire": ["padded"],
    "small": ["pairs"],
    "dense": ["padded"],
    "sparse": ["pairs"],
    "empty": ["mesh"],
    "mixed": ["padded", "mesh", "mesh", "pairs", "pairs", "padded", "mesh"],
}


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
    plan = Interaction.plan

    def recorded(self, *arguments):
        made.append(plan(self, *arguments))
        return made[-1]

    monkeypatch.setattr(Interaction, "plan", recorded)
    return made


@pytest.mark.parametrize("name", KINDS)
def test_every_path_sums_alike(name, plans):
    energy = LongRangeEnergy(SumOfGaussians(min_width=1.0), tolerance=TOLERANCE, backend="mesh")
    structures = structures_of(name)
    charges, dipoles, potential = (
        own() for own in every_path(energy.double(), structures).values()
    )
    assert [own.kinds for own in plans] == 3 * [KINDS[name]]
    q, _, _, _, batch, _ = join(structures)
    work = 0.5 * (q * potential.potential).sum(-1)
    scale = 1.0 + float(charges.energy.detach().abs().max())
    for found in (dipoles.energy, torch.zeros_like(charges.energy).index_add(0, batch, work)):
        torch.testing.assert_close(found, charges.energy, rtol=0.0, atol=1e-8 * scale)
    for found in (dipoles.potential, potential.potential):
        torch.testing.assert_close(found, charges.potential, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(dipoles.field, potential.field, rtol=1e-8, atol=1e-8)


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
    wire = tiny._replace(pbc=torch.tensor([False, False, True]))
    free = random_structure(3, 4, 1, periodic=False)
    wide = crystal._replace(cell=1e5 * torch.eye(3, dtype=DOUBLE))
    finite = "`positions` must be finite"
    return {
        "phases": ([moved(tiny, [huge])], InputError, finite),
        "slab": ([moved(slab, [huge, -huge])], InputError, finite),
        "phases of a wire": ([moved(wire, [[0.0, 0.0, huge]])], InputError, finite),
        "pairs": ([moved(free, [huge, -huge])], InputError, finite),
        "squares of distances": ([moved(free, [huge**0.6])], InputError, finite),
        "large open": ([moved(ions(0.0), [huge, -huge])], InputError, finite),
        "one of a batch": ([crystal, moved(tiny, [huge]), free], InputError, finite),
        "size": ([wide], SizeError, "Use a larger `min_width` or `tolerance`"),
    }[name]


REFUSED = (
    *("phases", "slab", "phases of a wire", "pairs", "squares of distances"),
    *("large open", "one of a batch", "size"),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", REFUSED)
def test_every_path_refuses_alike(name, dtype):
    structures, error, message = refused(name, dtype)
    energy = LongRangeEnergy(SumOfGaussians(min_width=1.0), tolerance=1e-2, backend="mesh")
    messages = set()
    for own in every_path(energy.to(dtype), [as_type(s, dtype) for s in structures]).values():
        with pytest.raises(error, match=message) as caught:
            own()
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_every_path_refuses_slabs_of_the_ewald_kernel():
    energy = LongRangeEnergy(Ewald(1.0))
    for own in every_path(energy, structures_of("mixed")).values():
        with pytest.raises(BoundaryError, match="false, |Slabs and wires need a sum of Gaussians"):
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
        with pytest.raises(InputError, match="`charges` must be so small"):
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
