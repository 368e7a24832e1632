"""Stress of slabs, wires and open structures in MACE: that of the cell they came with."""

import copy
import json
import logging
from contextlib import nullcontext, suppress
from functools import partial

import ase.io
import h5py
import mace.data.atomic_data
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from mace.calculators import MACECalculator
from mace.tools import AtomicNumberTable
from mace_builders import make_batch, make_sogmace
from stress_cases import (
    CHARGES,
    COMPONENTS,
    FLAT,
    NUMBERS,
    OPTIONS,
    STENCIL,
    STRUCTURES,
    committed_stress,
    strain_slope,
)

from sog_longrange import HostError, InputError, SOGConfig
from sog_mace import SOGMACE, SOGMACECalculator
from sog_mace.cells import check_stress_label, keep_input_cells
from sog_mace.cli.run_train import main

ALL = STRUCTURES | FLAT


def to_atoms(case):
    return Atoms(NUMBERS, case.positions, cell=case.cell, pbc=case.pbc)


def batch_of(*cases, **options):
    return make_batch([to_atoms(case) for case in cases], keep=partial(keep_input_cells, **options))


@pytest.fixture(scope="module")
def model():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    model = make_sogmace(SOGConfig(**OPTIONS))
    torch.set_default_dtype(before)
    return model


@pytest.fixture
def physical_cells(monkeypatch):
    """What MACE does from 0.3.17 on: rows of open axes stay as they were."""
    original = mace.data.atomic_data.get_neighborhood

    def get_neighborhood(positions, cutoff, pbc=None, cell=None, **more):
        physical = np.array(cell)
        edge_index, _, unit_shifts, _ = original(positions, cutoff, pbc, np.array(cell), **more)
        return edge_index, unit_shifts @ physical, unit_shifts, physical

    monkeypatch.setattr(mace.data.atomic_data, "get_neighborhood", get_neighborhood)


def test_fixed_charges_have_the_committed_stress(model):
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.mace.parameters():
            parameter.zero_()
    charges = torch.tensor(CHARGES * len(STRUCTURES))[:, None]
    model.long_range.readout.forward = lambda features, sites: charges
    found = model(batch_of(*STRUCTURES.values()), compute_stress=True)["stress"].numpy()
    expected = np.array([committed_stress()[name] for name in STRUCTURES])
    assert np.abs(found - expected).max() < 1e-8


def test_stress_is_the_strain_derivative_over_the_volume(model):
    out = model(batch_of(*ALL.values()), compute_stress=True)

    def energy(case):
        return model(make_batch([to_atoms(case)]), compute_force=False)["energy"].item()

    for graph, (name, case) in enumerate(ALL.items()):
        stress, virial = out["stress"][graph], out["virials"][graph]
        if name in FLAT:
            assert stress.isnan().all()
        for row, column in COMPONENTS[::2] if "displaced" in name else COMPONENTS[graph % 2 :: 2]:
            slope = strain_slope(energy, case, row, column)
            assert virial[row, column].item() == pytest.approx(-slope, rel=1e-6, abs=1e-8)
            if name not in FLAT:
                expected = pytest.approx(slope / case.volume, rel=1e-6, abs=1e-10)
                assert stress[row, column].item() == expected


def test_nothing_depends_on_what_mace_does_to_the_cell(model, request):
    keys = ("energy", "forces", "virials", "stress")
    before = model(batch_of(*ALL.values()), compute_stress=True)
    request.getfixturevalue("physical_cells")
    after = model(batch_of(*ALL.values()), compute_stress=True)
    for key in keys:
        torch.testing.assert_close(
            after[key], before[key], rtol=1e-9, atol=1e-11, equal_nan=key == "stress"
        )


def test_gradients_of_a_stress_loss_equal_finite_differences(model):
    model = copy.deepcopy(model)
    names = ("slab", "displaced wire", "open without a cell")
    data = batch_of(*(ALL[name] for name in names))

    def loss(training=False):
        stress = model(dict(data), training=training, compute_stress=True)["stress"]
        return 1e3 * torch.where(stress.isnan(), 0.0, stress - 0.01).square().sum()

    parameters = [p for p in model.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(loss(training=True), parameters, materialize_grads=True)
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator) for p in parameters]
    expected, place = 0.0, 0.0
    for offset, weight in STENCIL:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += (offset - place) * 1e-4 * d
        place = offset
        expected += weight * loss().item() / 1e-4
    found = sum((s * d).sum() for s, d in zip(slopes, direction, strict=True)).item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_calculator_divides_by_the_volume_of_the_structure(model):
    case = STRUCTURES["slab"]
    calculator = SOGMACECalculator(models=model, device="cpu", default_dtype="float64")
    committee = SOGMACECalculator(models=[model] * 2, device="cpu", default_dtype="float64")

    def energy(case):
        atoms = to_atoms(case)
        atoms.calc = calculator
        return atoms.get_potential_energy()

    expected = strain_slope(energy, case, 0, 1) / case.volume
    for name in ("slab", "displaced slab"):
        for calc in (calculator, committee):
            atoms = to_atoms(STRUCTURES[name])
            atoms.calc = calc
            assert atoms.get_stress(voigt=False)[0, 1] == pytest.approx(expected, rel=1e-6)
    assert committee.results["stress_comm"].shape == (2, 3, 3)


def test_padding_does_not_change_the_stress(model):
    found = []
    for options in ({}, {"pad_num_atoms": 9, "pad_num_edges": 500}):
        atoms = to_atoms(STRUCTURES["slab"])
        try:
            atoms.calc = SOGMACECalculator(
                models=model, device="cpu", default_dtype="float64", **options
            )
        except TypeError:  # mace-torch 0.3.15 has no padding
            return
        found.append(atoms.get_stress())
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("num_models", [1, 2])
def test_a_structure_without_a_volume_has_energy_and_forces_only(model, name, num_models):
    calculator = SOGMACECalculator(
        models=[model] * num_models, device="cpu", default_dtype="float64"
    )
    atoms = to_atoms(FLAT[name])
    atoms.calc = calculator
    assert np.isfinite(atoms.get_potential_energy())
    assert np.isfinite(atoms.get_forces()).all()
    assert not {"stress", "stress_comm", "stress_var"} & calculator.results.keys()
    with pytest.raises(PropertyNotImplementedError, match="whose cell has no volume"):
        atoms.get_stress()


def test_maces_own_calculator_says_that_the_cell_is_lost(model):
    atoms = to_atoms(STRUCTURES["slab"])
    atoms.calc = MACECalculator(models=model, device="cpu", default_dtype="float64")
    with pytest.warns(UserWarning, match="SOGMACECalculator instead of MACECalculator"):
        assert np.isnan(atoms.get_stress()).all()
    assert np.isfinite(atoms.get_forces()).all()
    molecule = to_atoms(FLAT["open without a cell"])
    molecule.calc = atoms.calc
    assert np.isnan(molecule.get_stress()).all()


def test_a_cell_filter_relaxes_a_slab(model):
    atoms = to_atoms(STRUCTURES["displaced slab"])
    atoms.calc = SOGMACECalculator(models=model, device="cpu", default_dtype="float64")
    atoms.set_constraint(FixAtoms(range(len(atoms))))
    relaxed = FrechetCellFilter(atoms, mask=[True, True, False, False, False, True])
    places, forces = relaxed.get_positions(), relaxed.get_forces()[-3:]

    def energy(entry, change):
        moved = places.copy()
        moved[len(atoms) + entry[0], entry[1]] += change
        relaxed.set_positions(moved)
        return relaxed.get_potential_energy()

    for entry in ((0, 0), (0, 1), (1, 1)):
        slope = sum(weight * energy(entry, 1e-2 * offset) for offset, weight in STENCIL) / 1e-2
        assert forces[entry] == pytest.approx(-slope, rel=1e-5)
    relaxed.set_positions(places)
    assert BFGS(relaxed, logfile=None).run(fmax=1e-2, steps=200)


def test_labels_of_frames_without_a_volume_are_refused():
    for case in FLAT.values():
        for stress in (np.zeros(6), np.ones((3, 3))):
            with pytest.raises(InputError, match=r"one in frame 7, .*Virials need no volume"):
                check_stress_label("frame 7", case.pbc, case.cell, stress)
        check_stress_label("frame 7", case.pbc, case.cell, None)
    with pytest.raises(InputError, match="one in frame 7"):
        check_stress_label("frame 7", (False,) * 3, None, np.zeros(6))
    for case in STRUCTURES.values():
        check_stress_label("frame 7", case.pbc, case.cell, np.zeros(6))


def test_cells_are_kept_in_the_context_only():
    slab = STRUCTURES["slab"]
    original = mace.data.AtomicData.__dict__["from_config"]
    with suppress(ZeroDivisionError), keep_input_cells():
        raise ZeroDivisionError
    assert mace.data.AtomicData.__dict__["from_config"] is original
    assert "input_cell" not in make_batch([to_atoms(slab)], keep=nullcontext)
    flat = FLAT["open without a cell"]
    kept, trained = batch_of(slab, flat), batch_of(slab, flat, training=True)
    assert torch.equal(kept["input_cell"], torch.tensor(np.concatenate([slab.cell, flat.cell])))
    assert torch.equal(trained["input_cell"][3:], torch.eye(3))
    assert trained["stress_weight"][1] == 0.0


def streamed(path, case, stress=None):
    """A data set of one frame that is read from a file, when it is asked for."""
    atoms = to_atoms(case)
    atoms.info |= {} if stress is None else {"REF_stress": stress}
    keys = mace.data.KeySpecification(info_keys={"stress": "REF_stress"}, arrays_keys={})
    with h5py.File(path, "w") as file:
        config = mace.data.config_from_atoms(atoms, key_specification=keys)
        mace.data.save_configurations_as_HDF5([config], 0, file)
    return mace.data.HDF5Dataset(str(path), r_max=3.0, z_table=AtomicNumberTable([1, 8]))


def test_streamed_data_keep_their_cells(tmp_path):
    slab, flat = STRUCTURES["slab"], FLAT["slab without its open row"]
    with keep_input_cells(training=True):
        data = streamed(tmp_path / "0.h5", slab, np.zeros(6))[0]
        assert torch.equal(data.input_cell, torch.tensor(slab.cell))
        assert streamed(tmp_path / "1.h5", flat)[0].stress_weight == 0.0
        dataset = streamed(tmp_path / "2.h5", flat, np.zeros(6))
        with pytest.raises(InputError, match="`stress` must be absent where the cell has no"):
            dataset[0]


@pytest.fixture
def training_folder(tmp_path, monkeypatch):
    """A folder for a training; MACE adds handlers to the root logger."""
    monkeypatch.chdir(tmp_path)
    handlers = logging.getLogger().handlers[:]
    yield tmp_path
    for handler in set(logging.getLogger().handlers) - set(handlers):
        handler.close()
        logging.getLogger().removeHandler(handler)


def train_file(name, *, flat_stress=False):
    """Slabs, wires and bulk with labels of stress, and frames without a volume."""
    rng = np.random.default_rng(0)
    frames = []
    for key, case in 2 * list(ALL.items()):
        atoms = to_atoms(case)
        atoms.rattle(0.05, rng=rng)
        atoms.info["REF_energy"] = -3.0 * len(atoms) + rng.normal()
        atoms.arrays["REF_forces"] = rng.normal(size=(len(atoms), 3))
        if key in STRUCTURES or flat_stress:
            atoms.info["REF_stress"] = 0.01 * rng.normal(size=6)
        frames.append(atoms)
    ase.io.write(name, frames)


def arguments(folder, **options):
    settings = {
        "name": "tiny",
        "train_file": "train.xyz",
        "valid_fraction": 0.25,
        "E0s": "{1: -1.0, 8: -2.0}",
        "hidden_irreps": "4x0e",
        "MLP_irreps": "4x0e",
        "radial_MLP": "[4]",
        "num_radial_basis": 4,
        "max_ell": 1,
        "correlation": 1,
        "num_interactions": 1,
        "r_max": 3.0,
        "batch_size": 5,
        "max_num_epochs": 2,
        "loss": "stress",
        "energy_key": "REF_energy",
        "forces_key": "REF_forces",
        "stress_key": "REF_stress",
        "default_dtype": "float64",
        "device": "cpu",
        "plot": "False",
        "work_dir": str(folder),
    }
    return [f"--{key}={value}" for key, value in (settings | options).items()]


def test_training_on_stress_uses_the_cells_of_the_frames(training_folder, monkeypatch):
    train_file("train.xyz")
    seen, original = [], SOGMACE.forward

    def forward(self, data, **options):
        out = original(self, data, **options)
        if out["stress"] is not None:
            seen.append((data["input_cell"].view(-1, 3, 3), out["virials"], out["stress"]))
        return out

    monkeypatch.setattr(SOGMACE, "forward", forward)
    main(arguments(training_folder))
    volumes = sorted({round(case.volume, 6) for case in STRUCTURES.values()} | {1.0})
    found = set()
    for cell, virials, stress in seen:
        volume = cell.det().abs()
        found |= set(volume.numpy().round(6))
        torch.testing.assert_close(stress, -virials / volume[:, None, None])
        assert virials.abs().amax((1, 2)).min() > 0.0
    assert sorted(found) == pytest.approx(volumes, abs=1e-5)
    (results,) = (training_folder / "results").glob("*.txt")
    lines = results.read_text().splitlines()
    losses = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    assert np.isfinite(losses).all()
    assert len(losses) > 4


def test_training_on_the_stress_of_frames_without_a_volume_is_refused(training_folder):
    train_file("train.xyz", flat_stress=True)
    with pytest.raises(SystemExit, match="`REF_stress` must be absent .* in frame 8 of train.xyz"):
        main(arguments(training_folder))


def test_another_mace_is_refused(monkeypatch):
    monkeypatch.delattr(mace.data.AtomicData, "from_config")
    with pytest.raises(HostError, match="from_config"), keep_input_cells():
        pass
