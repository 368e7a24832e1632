"""Atoms at one place are found, and named where a model's numbers are NaN."""

import pytest
import torch

import sog_longrange.coincidence as coincidence
from sog_longrange import InputError, SOGConfig, SOGLongRange
from sog_longrange.coincidence import coincident_atoms
from sog_longrange.validation import check_structures

SHEARED = torch.tensor([[5.0, 0.0, 0.0], [4.0, 5.0, 0.0], [-3.0, 6.0, 5.5]], dtype=torch.float64)
BOUNDARIES = {
    "open": (False, False, False),
    "wire": (False, True, False),
    "slab": (True, False, True),
    "bulk": (True, True, True),
}


def structure(pbc, n_atoms=40, seed=0):
    """Atoms on a grid, far from each other; rows of free axes hold nothing of use."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.cartesian_prod(*[torch.arange(4.0, dtype=torch.float64) / 4] * 3)
    turns = places[torch.randperm(64, generator=generator)[:n_atoms]]
    pbc = torch.tensor(pbc)
    cell = torch.where(pbc[:, None], SHEARED, torch.zeros(()))
    return turns @ SHEARED, cell, pbc


def find(positions, cell, pbc):
    return coincident_atoms(check_structures(positions, cell, pbc))


@pytest.mark.parametrize("pbc", BOUNDARIES.values(), ids=BOUNDARIES)
@pytest.mark.parametrize("apart", [0.0, 8e-4, 2e-3])
def test_a_pair_is_found_through_periodic_images(pbc, apart):
    positions, cell, flags = structure(pbc)
    assert find(positions, cell, flags) is None
    shift = (torch.tensor([-2.0, 1.0, 3.0], dtype=torch.float64) * flags) @ cell
    step = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3.0
    for i, j in [(0, 39), (17, 3)]:
        moved = positions.clone()
        moved[j] = moved[i] + apart * step + shift
        found = find(moved, cell, flags)
        if apart > 1e-3:
            assert found is None
            continue
        assert (found.structure, found.atoms) == (0, tuple(sorted((i, j))))
        assert found.distance == pytest.approx(apart, abs=1e-12)


def test_images_far_along_a_free_axis_do_not_coincide():
    positions, _, _ = structure(BOUNDARIES["slab"])
    positions[5] = positions[6] + SHEARED[1]
    pbc = torch.tensor(BOUNDARIES["slab"])
    assert find(positions, SHEARED, pbc) is None
    assert find(positions, SHEARED, torch.tensor([True] * 3)).atoms == (5, 6)


def test_a_pair_across_the_side_of_the_cell_is_found():
    positions, cell, pbc = structure(BOUNDARIES["bulk"])
    for axis in range(3):
        turns = torch.full((2, 3), 0.123, dtype=torch.float64)
        turns[:, axis] = torch.tensor([5e-5, 1.0 - 5e-5])
        moved = torch.cat([positions, turns @ cell])
        assert find(moved, cell, pbc).atoms == (40, 41)


def test_many_atoms_at_one_height_are_searched_in_parts(monkeypatch):
    positions, cell, pbc = structure(BOUNDARIES["bulk"])
    positions[30] = positions[2]
    for limit in (1, 7, 50):
        monkeypatch.setattr(coincidence, "_MAX_PAIRS", limit)
        assert find(positions, cell, pbc).atoms == (2, 30)


def batch_of_three():
    parts = [structure(pbc) for pbc in (BOUNDARIES["open"], BOUNDARIES["bulk"], BOUNDARIES["wire"])]
    positions, cell, pbc = (torch.stack(x) for x in zip(*parts, strict=True))
    positions[1, 7] = positions[1, 4] - cell[1, 0]
    batch = torch.arange(3).repeat_interleave(40)
    return positions.reshape(-1, 3), cell, pbc, batch


@pytest.mark.parametrize("dipoles", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_features_that_are_not_finite_are_explained_by_the_atoms_at_one_place(dipoles, bad):
    config = SOGConfig(latent_dipoles=dipoles, charge_constraint="neutral")
    part = SOGLongRange([4], config, num_vectors=2).double()
    features = torch.randn(120, 4, dtype=torch.float64)
    vectors = torch.randn(120, 3, 2, dtype=torch.float64)
    positions, *structures = batch_of_three()
    options = {"vectors": vectors} if dipoles else {}
    assert part(features, positions, *structures, **options).energy.isfinite().all()
    name, spoilt = ("vectors", vectors) if dipoles else ("features", features)
    spoilt[44, 1] = bad
    named = (
        f"`{name}` must be finite, got {bad} at index .44, 1.*Atoms 4 and 7 of structure 1 .atoms "
        "44 and 47 of the batch. are .* Å apart, periodic images included. Move them apart"
    )
    with pytest.raises(InputError, match=named):
        part(features, positions, *structures, **options)
    positions[44] += 0.5
    with pytest.raises(InputError, match=r"No two atoms were found .* weights .* diverged"):
        part(features, positions, *structures, **options)


def test_weights_that_diverged_are_told_from_features():
    part = SOGLongRange([4]).double()
    torch.nn.init.constant_(part.readout.linear.weight, torch.inf)
    arguments = torch.ones(2, 4).double(), torch.eye(3).double()[:2]
    with pytest.raises(InputError, match="`charges` must be finite.*weights of the model have"):
        part(*arguments)
    check = check_structures(arguments[1])
    part.latent_charges(arguments[0], check)
    with pytest.raises(InputError, match="`features` must be finite.*weights of the model have"):
        part.latent_charges(torch.nan * arguments[0], check)
