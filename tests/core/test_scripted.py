"""The long-range part in TorchScript, against the eager one."""

import io
import math

import pytest
import torch
from references import DOUBLE as FLOAT64

from sog_longrange import ConfigError, HostError, SOGConfig, SOGLongRange
from sog_longrange.charges.sites import Edges, Sites
from sog_longrange.geometry import apply_strain, shorten
from sog_longrange.scripted import ScriptedLongRange
from sog_longrange.scripted.dense import ScriptedDense

DOUBLE = {"dtype": FLOAT64}
SIZES, VECTORS = [6, 4], 3
HOST = {"cutoff": 4.0, "atomic_numbers": [1, 8]}
OPTIONS = {
    "default": {},
    "free": {"num_channels": 2, "charge_constraint": "none"},
    "ewald": {"kernel": "ewald", "charge_constraint": "none"},
    "yukawa": {"kernel": "yukawa"},
    "power law": {"kernel": "power_law(exponent=6)", "charge_constraint": "none"},
    "two": {"kernel": "coulomb+power_law(exponent=6)", "num_channels": 2},
    "dispersion": {"kernel": "coulomb+dispersion", "num_channels": 2, "readout": "ions"},
    "coupled": {"num_channels": 2, "couple_channels": True, "latent_dipoles": True},
    "states": {"charge_constraint": "total", "charge_embedding": 3},
    "dipoles": {"latent_dipoles": True, "hidden_size": 0},
}


def make(**options):
    """A model with no weight at zero, and its form in TorchScript, out of a file."""
    torch.manual_seed(0)
    config = SOGConfig(tolerance=1e-8, **options)
    model = SOGLongRange(SIZES, config, num_vectors=VECTORS, **HOST).double()
    for own in model.parameters():
        own.data += 0.1 * torch.randn_like(own)
    model.requires_grad_(False).gate.fill_(0.81)
    return model, reload(model)


def reload(model):
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(ScriptedLongRange(model, VECTORS).eval()), file)
    file.seek(0)
    return torch.jit.load(file)


def structure(n_atoms, edge, periodic):
    """Features, vectors, positions, cell and pbc; a sheared and left-handed cell."""
    torch.manual_seed(n_atoms)
    cell = edge * (torch.eye(3, **DOUBLE) + 0.1 * torch.randn(3, 3, **DOUBLE))[[1, 0, 2]]
    cell[2] += 2.0 * cell[0]
    positions = torch.rand(n_atoms, 3, **DOUBLE) @ cell
    features = torch.randn(n_atoms, sum(SIZES), **DOUBLE)
    vectors = torch.randn(n_atoms, 3, VECTORS, **DOUBLE)
    return features, vectors, positions, cell, torch.full((3,), periodic)


def sites_of(x):
    """Edges between atoms that follow each other, and two elements in turn."""
    first = torch.arange(len(x) - 1)
    centres, neighbours = torch.cat([first, first + 1]), torch.cat([first + 1, first])
    distances = (x[centres] - x[neighbours]).norm(dim=1)
    return Sites(Edges(centres, neighbours, distances), torch.arange(len(x)) % 2)


def results(model, inputs, charge):
    """Energy, energies of atoms, charges, and forces and virial with charges that move along."""
    features, vectors, positions, cell, pbc = inputs
    places = positions.clone().requires_grad_()
    strain = torch.zeros(1, 3, 3, **DOUBLE).requires_grad_()
    x, lattice = apply_strain(places, cell[None], strain)
    moving = features * (1.0 + 0.1 * torch.sin(x).sum(1, keepdim=True))
    if isinstance(model, SOGLongRange):
        total = torch.full((1,), charge, **DOUBLE)
        given = total if model.config.needs_total_charge else None
        given = {"total_charge": given, "vectors": vectors, "sites": sites_of(x)}
        out = model(moving, x, lattice, pbc[None], **given)
        values = out.energy.sum(), out.atomic_energies, out.charges
    else:
        (centres, neighbours, distances, _), species, _ = sites_of(x)
        edges = torch.stack([centres, neighbours])
        more = edges, distances, species
        values = model(moving, vectors, x, lattice[0], pbc, charge, True, *more)[:3]
    return *values, *torch.autograd.grad(values[0], (places, strain))


@pytest.mark.parametrize("name", OPTIONS)
def test_energies_and_derivatives_are_those_of_the_model(name):
    model, scripted = make(**OPTIONS[name])
    charge = 2.0 if model.config.needs_total_charge else 0.0
    # Mode by mode, on a grid, and over pairs.
    for inputs in (structure(8, 6.0, True), structure(70, 12.0, True), structure(7, 5.0, False)):
        expected = results(model, inputs, charge)
        for ours, theirs in zip(results(scripted, inputs, charge), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-7)


def test_the_sum_mode_by_mode_is_taken_for_few_atoms_only():
    model, _ = make()
    dense = ScriptedLongRange(model, VECTORS).dense
    assert isinstance(dense, ScriptedDense)
    small, large = structure(8, 6.0, True), structure(70, 12.0, True)
    assert dense.is_faster(8, small[3])
    assert not dense.is_faster(70, large[3])


def test_derivatives_are_those_of_the_energy():
    _, scripted = make(latent_dipoles=True)
    features, vectors, positions, cell, pbc = structure(70, 12.0, True)

    def energy(x):
        return scripted(features, vectors, x, cell, pbc, 0.0, False)[0]

    x = positions.clone().requires_grad_()
    (slope,) = torch.autograd.grad(energy(x), x)
    step = torch.randn_like(x)
    h = 1e-4
    numeric = (energy(positions + h * step) - energy(positions - h * step)) / (2 * h)
    assert math.isclose(float(numeric.detach()), float((slope * step).sum()), rel_tol=1e-7)


def test_float32_and_another_basis_of_the_lattice():
    model, _ = make()
    inputs = structure(70, 12.0, True)
    expected = float(results(model, inputs, 0.0)[0].detach())
    scripted = torch.jit.script(ScriptedLongRange(model.float(), VECTORS))
    single = [x.float() if x.is_floating_point() else x for x in inputs]
    moving = single[0] * (1.0 + 0.1 * torch.sin(single[2]).sum(1, keepdim=True))
    energies = []
    for change in (torch.eye(3), torch.tensor([[1.0, 3, 0], [0, 1, 0], [0, -2, 1]])):
        out = scripted(moving, *single[1:3], change @ single[3], single[4], 0.0, False)
        energies.append(float(out[0].detach()))
    assert energies == pytest.approx([expected] * 2, rel=1e-4)


def test_what_it_cannot_do_is_refused():
    model, scripted = make()
    features, vectors, positions, cell, pbc = structure(8, 6.0, True)
    slab = torch.tensor([True, True, False])
    with pytest.raises(Exception, match="no slabs and wires"):
        scripted(features, vectors, positions, cell, slab, 0.0, False)
    with pytest.raises(Exception, match="must be 0 for this model"):
        scripted(features, vectors, positions, cell, pbc, 1.0, False)
    with pytest.raises(Exception, match="at most 512 grid points"):
        scripted(features, vectors, positions, cell * 100.0, pbc, 0.0, False)
    with pytest.raises(Exception, match="where gradients are disabled"), torch.no_grad():
        scripted(features, vectors, positions, cell, pbc, 0.0, True)
    _, charged = make(charge_constraint="total")
    with pytest.raises(Exception, match="whole number of e"):
        charged(features, vectors, positions, cell, pbc, 0.4, False)
    _, fractional = make(charge_constraint="total", fractional_charge=True)
    assert fractional(features, vectors, positions, cell, pbc, 0.4, False)[0].isfinite()
    many = 4097
    rows = [torch.ones(many, *x.shape[1:], **DOUBLE) for x in (features, vectors, positions)]
    with pytest.raises(Exception, match="at most 4096 atoms"):
        scripted(*rows, cell, torch.zeros(3, dtype=torch.bool), 0.0, False)
    model.energy.remove_self = False
    with pytest.raises(ConfigError, match="`remove_self` must be True"):
        ScriptedLongRange(model)


def test_models_that_cannot_be_scripted_are_refused_by_the_option():
    options = {"kernel": "ewald", "latent_dipoles": True}
    model = SOGLongRange(SIZES, SOGConfig(**options), num_vectors=VECTORS).requires_grad_(False)
    with pytest.raises(HostError, match="`latent_dipoles` must be False in an exported model"):
        ScriptedLongRange(model, VECTORS)
    model = SOGLongRange(SIZES, SOGConfig())
    model.fix_mesh(10.0 * torch.eye(3))
    with pytest.raises(ConfigError, match="not fixed"):
        ScriptedLongRange(model)


def test_vectors_are_shortened_alike_in_torchscript():
    rows = [[6.0, 0.0, 0.0], [13.0, 5.0, 0.0], [2.0, -9.0, 4.0]]
    steps = torch.jit.script(shorten)([list(row) for row in rows])
    assert steps == shorten([list(row) for row in rows])
    short = torch.tensor(steps) @ torch.tensor(rows)
    assert float(torch.linalg.det(torch.tensor(steps))) == pytest.approx(1.0)
    assert float(short.norm(dim=1).max()) < 8.0


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_traced_holds_no_device(name):
    _, scripted = make(**OPTIONS[name])
    for part in (scripted.latent, scripted.mesh.fourier, scripted.pairs.radial):
        assert "cpu" not in str(part.inlined_graph)


def test_edges_and_species_that_are_needed_must_be_given():
    _, scripted = make(**OPTIONS["dispersion"])
    features, vectors, positions, cell, pbc = structure(8, 6.0, True)
    with pytest.raises(torch.jit.Error, match="`distances` and `species` must be"):
        scripted(features, vectors, positions, cell, pbc, 0.0, False)
