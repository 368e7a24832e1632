"""NequIP models with latent dipoles."""

import ase.io
import numpy as np
import pytest
import torch
from nequip.data import AtomicDataDict
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.model import ModelFromPackage
from nequip.utils.test import assert_AtomicData_equivariant
from nequip_builders import (
    R_MAX,
    STRUCTURES,
    TYPES,
    acetaldehyde,
    build,
    crystal,
    evaluate,
    in_vacuum,
    slab,
    to_data,
)
from test_compile import LARGEST, assert_same, compare_output_and_gradients, export, modify
from test_training import MODEL, extend, load, run, train

from sog_longrange import HostError, SOGConfig
from sog_nequip.calculator import SOGNequIPCalculator
from sog_nequip.model import attach
from sog_nequip.parts import long_range_parts
from sog_nequip.registry import ASE_TARGET

SOG = {"num_channels": 2, "tolerance": 1e-8, "latent_dipoles": True}


@pytest.fixture(scope="module", params=[2, 3], ids=["2 layers", "3 layers"])
def model(request):
    return build("nequip", sog=SOG, num_layers=request.param).eval()


def energy_of(model, atoms):
    return evaluate(model, atoms)["total_energy"].item()


def derivative(energy, h=1e-3):
    """Fifth-order central difference of a function of a step, at zero."""
    weights = {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}
    return sum(w * (energy(n * h) - energy(-n * h)) for n, w in weights.items()) / h


def dipoles_of(out):
    """Latent dipoles as (n_atoms, 3, n_channels)."""
    flat = out["latent_dipoles"].detach()
    return flat.view(len(flat), -1, 3).transpose(1, 2)


@pytest.mark.parametrize("name", STRUCTURES)
def test_forces_and_stress_are_the_gradients_of_the_energy(model, name):
    atoms = STRUCTURES[name]()
    out = evaluate(model, atoms)
    rng = np.random.default_rng(0)
    direction, strain = rng.normal(size=atoms.positions.shape), rng.normal(size=(3, 3))
    strain = strain + strain.T

    def moved(step):
        copy = atoms.copy()
        copy.positions += step * direction
        return energy_of(model, copy)

    def strained(step):
        copy = atoms.copy()
        copy.set_cell(atoms.cell.array @ (np.eye(3) + step * strain), scale_atoms=True)
        return energy_of(model, copy)

    expected = -(out["forces"].detach().numpy() * direction).sum()
    assert derivative(moved) == pytest.approx(expected, rel=1e-6, abs=1e-7)
    if atoms.pbc.any():
        expected = (out["stress"][0].detach().numpy() * strain).sum() * atoms.get_volume()
        assert derivative(strained) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("make", [in_vacuum, crystal, slab])
def test_dipoles_are_equivariant_vectors_that_matter(model, make):
    data = AtomicDataDict.with_batch_(to_data(make()))
    # Looks at every output that has irreps, the latent dipoles among them.
    assert_AtomicData_equivariant(model, data, e3_tolerance=1e-7)
    out = evaluate(model, make())
    assert out["latent_dipoles"].shape == (len(make()), 6)
    assert out["latent_dipoles"].abs().max() > 1e-3
    (part,) = long_range_parts(model)
    kept = {k: v.clone() for k, v in part.long_range.dipole_readout.state_dict().items()}
    for parameter in part.long_range.dipole_readout.parameters():
        torch.nn.init.zeros_(parameter)
    without = evaluate(model, make())
    part.long_range.dipole_readout.load_state_dict(kept)
    assert (without["long_range_energy"] - out["long_range_energy"]).abs() > 1e-6


def test_vectors_turn_as_cartesian_ones(model):
    """Independent of the host's own idea of 1o."""
    atoms = acetaldehyde()
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    turned = atoms.copy()
    turned.positions = atoms.positions @ rotation.T
    here, there = (dipoles_of(evaluate(model, x)) for x in (atoms, turned))
    expected = torch.einsum("ab,nbp->nap", torch.tensor(rotation), here)
    torch.testing.assert_close(there, expected, rtol=0, atol=1e-9)


def test_an_unsorted_batch_gives_what_its_structures_give(model):
    atoms = [crystal(), in_vacuum()]
    data = AtomicDataDict.batched_from_list([to_data(a) for a in atoms])
    order = torch.randperm(len(data["pos"]), generator=torch.Generator().manual_seed(1))
    mixed = dict(data) | {key: data[key][order] for key in ("pos", "atom_types", "batch")}
    mixed |= {"edge_index": order.argsort()[data["edge_index"]]}
    found = model(mixed)
    singles = [evaluate(model, a) for a in atoms]
    for key in ("total_energy", "forces", "atomic_energy", "latent_charges", "latent_dipoles"):
        expected = torch.cat([out[key] for out in singles])
        expected = expected if "total" in key else expected[order]
        torch.testing.assert_close(found[key], expected, atol=1e-9, rtol=1e-9)
    totals = torch.zeros(2, 1).index_add(0, mixed["batch"], found["atomic_energy"])
    torch.testing.assert_close(totals, found["total_energy"], atol=1e-10, rtol=1e-10)


def test_a_force_loss_reaches_every_parameter_of_the_readout():
    model = build("nequip", sog=SOG).train()
    evaluate(model, crystal())["forces"].square().sum().backward()
    (part,) = long_range_parts(model)
    for name, parameter in part.long_range.dipole_readout.named_parameters():
        assert float(parameter.grad.abs().max()) > 0.0, name


def test_trained_models_get_dipoles_too():
    """What SOGModelFromSaved does, starting at exactly the short-range model."""
    bare = build("nequip", bare=True)
    expected = evaluate(bare, crystal())["total_energy"].detach()
    model = attach(bare, SOGConfig.from_dict(SOG), warm_up=True).eval()
    out = model(to_data(crystal()))
    assert torch.equal(out["total_energy"].detach(), expected)
    (part,) = long_range_parts(model)
    part.long_range.gate.fill_(1.0)
    out = model(to_data(crystal()))
    assert out["latent_dipoles"].abs().max() > 1e-3


def test_float32_models_have_dipoles_in_the_precision_of_the_positions():
    out = evaluate(build("nequip", sog=SOG, model_dtype="float32").eval(), crystal())
    assert out["latent_dipoles"].dtype == torch.float64


@pytest.mark.parametrize(
    ("base", "changes"),
    [("nequip", {"num_layers": 1}), ("nequip", {"l_max": 0}), ("allegro", {})],
    ids=["one layer", "scalars", "allegro"],
)
def test_models_without_vectors_of_atoms_are_refused(base, changes):
    with pytest.raises(HostError, match="no layer of this model gives atoms any"):
        build(base, sog=SOG, **changes)


def test_the_dense_sum_equals_the_mesh(model):
    other = build("nequip", sog=SOG | {"backend": "dense"}, num_layers=2).eval()
    if model.state_dict().keys() != other.state_dict().keys():
        pytest.skip("one number of layers suffices")
    expected, found = (evaluate(own, crystal()) for own in (model, other))
    for key in ("total_energy", "forces", "stress", "latent_dipoles"):
        torch.testing.assert_close(found[key], expected[key], atol=1e-6, rtol=1e-6)


def test_the_fixed_mesh_equals_the_model():
    model = build("nequip", sog=SOG, num_layers=2).eval()
    fixed = build("nequip", sog=SOG, num_layers=2, largest_cell=LARGEST)
    fixed = modify(fixed, [{"modifier": "sog_use_mesh"}]).eval()
    assert_same(fixed, model, crystal() * (2, 2, 1), tolerance=2e-6)


@pytest.mark.slow
def test_compiled_models_equal_eager_ones(tmp_path):
    """Training, the ASE target for any boundary and the one of C++, with dipoles."""
    model = build("nequip", sog=SOG, num_layers=2)
    compiled = build("nequip", sog=SOG, num_layers=2, compile_mode="compile")
    batch = AtomicDataDict.batched_from_list([to_data(crystal()), to_data(crystal() * (2, 1, 1))])
    compare_output_and_gradients(model, compiled, batch, tol=1e-10)
    _, found = export(model, ASE_TARGET, tmp_path)
    for make in (crystal, slab, acetaldehyde):
        assert_same(found, model.eval(), make(), tolerance=1e-8)
        assert found(to_data(make()))["latent_dipoles"].abs().max() > 0.0


@pytest.mark.full
def test_compiled_models_take_dipoles_to_a_field(tmp_path):
    model = build("nequip", sog=SOG, num_layers=2)
    _, found = export(model, "sog_ase_field", tmp_path)
    for make, sign in ((acetaldehyde, 1.0), (in_vacuum, -1.0)):
        data = to_data(make()) | {"external_field": sign * torch.tensor([[0.1, -0.2, 0.3]])}
        expected, out = model.eval()(dict(data)), found(dict(data))
        for key in ("total_energy", "forces", "field_energy"):
            torch.testing.assert_close(out[key], expected[key], atol=1e-8, rtol=1e-8)
        assert expected["field_energy"].abs() > 1e-4


@pytest.mark.slow
def test_the_target_of_cpp_equals_the_fixed_mesh(tmp_path):
    fixed = build("nequip", sog=SOG, num_layers=2, largest_cell=LARGEST)
    fixed = modify(fixed, [{"modifier": "sog_use_mesh"}]).eval()
    _, found = export(fixed, "pair_nequip", tmp_path)
    assert_same(found, fixed, crystal() * (2, 2, 1), tolerance=1e-8)


@pytest.mark.parametrize("make", [acetaldehyde, slab])
def test_ase_reports_dipoles_and_their_energy_in_a_field(model, make):
    types = {t: t for t in TYPES}
    mapper = ChemicalSpeciesToAtomTypeMapper(
        model_type_names=TYPES, chemical_species_to_atom_type_map=types
    )
    transforms = [mapper, NeighborListTransform(r_max=R_MAX)]
    atoms, across = make(), np.array([0.1, -0.2, 0.3])
    if atoms.pbc.any():
        across = 0.05 * np.cross(*atoms.cell.array[:2])
    atoms.calc = SOGNequIPCalculator(model, "cpu", transforms=transforms)
    energy, dipole = atoms.get_potential_energy(), atoms.get_dipole_moment()
    own = atoms.calc.results["latent_dipoles"]
    assert own.shape == (len(atoms), 3, 2)
    assert own == pytest.approx(dipoles_of(evaluate(model, make())).numpy(), abs=1e-12)
    if not atoms.pbc.any():
        expected = atoms.get_charges() @ atoms.positions + own[:, :, 0].sum(0)
        assert dipole == pytest.approx(expected, abs=1e-12)
    atoms.info["external_field"] = across
    added = atoms.get_potential_energy() - energy
    assert added == pytest.approx(-dipole @ across, abs=1e-10)


@pytest.fixture
def folder(tmp_path):
    """Data to train on."""
    rng, frames = np.random.default_rng(0), []
    for make in (crystal, acetaldehyde) * 4:
        atoms = make()
        atoms.rattle(0.05, rng=rng)
        atoms.info["REF_energy"] = -3.0 * len(atoms) + rng.normal()
        atoms.arrays["REF_forces"] = rng.normal(size=(len(atoms), 3))
        frames.append(atoms)
    (tmp_path / "data").mkdir()
    ase.io.write(tmp_path / "data" / "train.xyz", frames[:4])
    ase.io.write(tmp_path / "data" / "valid.xyz", frames[4:])
    return tmp_path


@pytest.mark.full
def test_packages_of_short_range_models_get_dipoles(folder):
    bare = train(folder, "bare", "short_range", f"{MODEL}.num_layers=2")
    run("nequip-package", folder, "build", bare, "bare.nequip.zip")
    target = (
        "extended.model._target_=nequip.model.ModelFromPackage",
        f"+extended.model.package_path='{folder / 'bare.nequip.zip'}'",
        "~extended.model.checkpoint_path",
        "+extended.sog.latent_dipoles=true",
    )
    tuned = load(extend(folder, "tuned", "warm_up_steps=1", "trained=", *target))
    assert evaluate(tuned, crystal())["latent_dipoles"].abs().max() > 0.0


@pytest.mark.slow
def test_training_packaging_and_ase(folder):
    """A config line is all that a user writes."""
    options = (f"{MODEL}.num_layers=2", "warm_up_steps=1")
    line = f"+{MODEL}.sog.latent_dipoles=true"
    trained = train(folder, "dipoles", "long_range", *options, line)
    model = load(trained)
    run("nequip-package", folder, "build", trained, "dipoles.nequip.zip")
    package = ModelFromPackage(str(folder / "dipoles.nequip.zip"))["sole_model"].eval()
    expected, found = (evaluate(own, crystal()) for own in (model, package))
    for key in ("total_energy", "forces", "latent_dipoles"):
        torch.testing.assert_close(found[key], expected[key])
    assert found["latent_dipoles"].abs().max() > 0.0
    for path in (trained, folder / "dipoles.nequip.zip"):
        atoms = crystal()
        atoms.calc = SOGNequIPCalculator.from_saved_model(
            path, chemical_species_to_atom_type_map=True
        )
        atoms.get_potential_energy()
        assert atoms.calc.results["latent_dipoles"].shape == (len(atoms), 3, 1)
