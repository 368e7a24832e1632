"""Models in TorchSim against the ASE calculator, in batches of systems of different sizes."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

# Python 3.11 and older get a version of TorchSim that is too old.
pytest.importorskip(
    "torch_sim",
    reason="torch-sim-atomistic is not installed: it needs Python 3.12",
    exc_type=ImportError,
)

import ase.io
import torch_sim as ts
from ase.build import molecule
from mace_builders import make_mace, make_sogmace, open_molecule, water_box

from sog_longrange import HostError, InputError, MissingLibraryError, SOGConfig
from sog_longrange.errors import BoundaryError
from sog_mace import SOGMACECalculator
from sog_mace.torchsim import SOGMACETorchSimModel

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),  # MACE's own
]

CPU = torch.device("cpu")
STATES = SOGConfig(charge_embedding=4, charge_constraint="total", tolerance=1e-8)
PAGE = (Path(__file__).parents[3] / "docs/engines/torchsim.md").read_text("utf-8")
EXTRAS = {"charge": "charge", "external_E_field": "external_field"}


def charged_model():
    """A model whose energy depends on the total charge."""
    model = make_sogmace(STATES)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.long_range.states.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return model


def to_state(frames):
    return ts.io.atoms_to_state(frames, CPU, torch.float64, system_extras_map=EXTRAS)


def boxes(charges=None):
    """Boxes of 9 and 18 atoms."""
    frames = [water_box(), water_box(1).repeat((1, 2, 1)), water_box(2)]
    for frame, charge in zip(frames, charges or (), strict=bool(charges)):
        frame.info["charge"] = charge
    return frames


def compare(out, frames, calculator, tolerance=1e-9):
    """Assert that results of a batch are those of ASE, of each structure for itself."""
    first = 0
    for index, frame in enumerate(frames):
        frame = frame.copy()
        frame.calc = calculator
        rows = slice(first, first + len(frame))
        first += len(frame)
        expected = {"energy": frame.get_potential_energy(), "forces": frame.get_forces()}
        if frame.cell.rank == 3:
            expected["stress"] = frame.get_stress(voigt=False)
        names = ("long_range_energy", "short_range_energy", "charge_state_energy", "field_energy")
        names += ("latent_charges", "charges", "latent_dipoles", "dipole")
        expected |= {key: calculator.results[key] for key in names if key in calculator.results}
        for key, value in expected.items():
            own = out[key][rows] if np.shape(value)[:1] == (len(frame),) else out[key][index]
            assert np.allclose(own.numpy(), value, atol=tolerance, rtol=1e-9), (index, key)
        assert not own.requires_grad


def test_a_batch_of_several_sizes_equals_ase():
    model, frames = make_sogmace(), boxes()
    out = SOGMACETorchSimModel(model, "cpu")(to_state(frames))
    assert out["latent_charges"].shape == (36, 2)
    assert out["dipole"].shape == (3, 3)
    assert out["long_range_energy"].abs().min() > 1e-3
    compare(out, frames, SOGMACECalculator(models=model, device="cpu"))


def test_a_batch_of_molecules_and_one_of_slabs_equal_ase():
    model = make_sogmace(SOGConfig(num_channels=2, tolerance=1e-8, latent_dipoles=True))
    calculator = SOGMACECalculator(models=model, device="cpu")
    open_frames = [open_molecule(), molecule("H2O"), open_molecule(2)]
    slabs = boxes()
    for slab in slabs:
        slab.pbc = [True, True, False]
    for frames in (open_frames, slabs):
        for frame in frames:
            frame.info["external_field"] = [0.0, 0.0, 0.4]
        if frames is slabs:
            for frame in frames:
                frame.info["external_field"] = 0.3 * np.cross(*frame.cell.array[:2]) / 30.0
        out = SOGMACETorchSimModel(model, "cpu")(to_state(frames))
        assert out["latent_dipoles"].shape == (sum(map(len, frames)), 3, 2)
        assert out["field_energy"].abs().min() > 1e-4
        compare(out, frames, calculator)


def test_total_charges_of_a_state_reach_the_model_and_last():
    model, frames = charged_model(), boxes([0, 1, -2])
    own = SOGMACETorchSimModel(model, "cpu")
    state = to_state(frames)
    out = own(state)
    assert out["charge_state_energy"].abs().max() > 1e-3
    compare(out, frames, SOGMACECalculator(models=model, device="cpu"))
    sums = torch.zeros(3, dtype=torch.float64).index_add(0, state.system_idx, out["charges"])
    assert torch.allclose(sums, torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64))
    final = ts.integrate(
        system=state,
        model=own,
        integrator=ts.Integrator.nvt_langevin,
        n_steps=3,
        temperature=300,
        timestep=0.00025,
    )
    assert final.charge.tolist() == [0.0, 1.0, -2.0]
    assert torch.equal(final.charges, own(final)["charges"])
    assert final.dipole.shape == (3, 3)


def test_energies_are_conserved_and_batches_are_cut_and_joined():
    """Newton's equations for each system of a batch, and an optimiser that swaps systems."""
    own, frames = SOGMACETorchSimModel(make_sogmace(), "cpu"), boxes()
    totals, potentials = [], []
    state = ts.integrators.nve_init(to_state(frames), own, kT=torch.tensor(0.02))
    for _ in range(40):
        state = ts.integrators.nve_step(state, own, dt=torch.tensor(0.02))  # of 10.2 fs
        kinetic = ts.calc_kinetic_energy(
            masses=state.masses, momenta=state.momenta, system_idx=state.system_idx
        )
        totals.append(state.energy + kinetic)
        potentials.append(state.energy)
    change, drift = (torch.stack(x).std(0) for x in (potentials, totals))
    assert (drift < 1e-3 * change).all()
    with pytest.warns(UserWarning, match="maximum number of steps"):
        final = swap_systems(own, frames)
    assert final.charges.shape == (36,)


def swap_systems(own, frames):
    """A few steps of an optimiser that has room for two systems at a time."""
    batcher = ts.InFlightAutoBatcher(own, memory_scales_with="n_atoms", max_memory_scaler=28)
    return ts.optimize(
        system=to_state(frames),
        model=own,
        optimizer=ts.Optimizer.fire,
        max_steps=5,
        autobatcher=batcher,
    )


@pytest.mark.filterwarnings("default")  # PyTorch's compilers have many of their own
def test_compiled_inner_models_equal_those_that_are_not():
    model, frames = make_sogmace(layers=1), boxes()
    out = SOGMACETorchSimModel(model, "cpu", compile_mode="default")(to_state(frames))
    compare(out, frames, SOGMACECalculator(models=model, device="cpu"), 1e-8)


@pytest.mark.filterwarnings("ignore:cuequivariance_ops_torch is not available:UserWarning")
def test_cuequivariance_evaluates_the_inner_model():
    pytest.importorskip("cuequivariance_torch", reason="cuequivariance-torch is not installed")
    model, frames = make_sogmace(), boxes()
    own = SOGMACETorchSimModel(model, "cpu", enable_cueq=True)
    assert own.model is not model
    compare(own(to_state(frames)), frames, SOGMACECalculator(models=model, device="cpu"), 1e-8)


def test_openequivariance_is_refused_where_it_is_not_installed():
    with pytest.raises(MissingLibraryError, match="openequivariance"):
        SOGMACETorchSimModel(make_sogmace(), "cpu", enable_oeq=True)


def test_files_are_opened_and_other_models_refused(tmp_path):
    torch.save(make_sogmace(), tmp_path / "own.model")
    own = SOGMACETorchSimModel(tmp_path / "own.model", "cpu")
    compare(own(to_state(boxes())), boxes(), SOGMACECalculator(models=own.model, device="cpu"))
    with pytest.raises(HostError, match="a SOGMACE model, got ScaleShiftMACE"):
        SOGMACETorchSimModel(make_mace(), "cpu")


def test_old_versions_of_torchsim_are_refused(monkeypatch):
    monkeypatch.setattr("sog_mace.torchsim.version", lambda name: "0.3.0")
    with pytest.raises(HostError, match="torch-sim-atomistic.*0.6.*got 0.3.0"):
        SOGMACETorchSimModel(make_sogmace(), "cpu")


def test_missing_and_malformed_extras_are_named():
    own = SOGMACETorchSimModel(charged_model(), "cpu")
    with pytest.raises(InputError, match="system_extras_map"):
        own(to_state(boxes()))
    some = boxes([0, 1, 2])
    del some[1].info["charge"]
    with pytest.raises(InputError, match="leaves it out where one structure has none"):
        own(to_state(some))
    with pytest.raises(InputError, match="whole number"):
        own(to_state(boxes([0, 0.5, 0])))
    twice = to_state(boxes([0, 1, 2]))
    twice.system_extras["total_charge"] = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(InputError, match="equal to `charge`"):
        own(twice)


def test_charges_that_a_model_ignores_are_warned_of_once():
    own, frames = SOGMACETorchSimModel(make_sogmace(), "cpu"), boxes([0, 1, 0])
    plain = own(to_state(boxes()))
    with pytest.warns(UserWarning, match="latent charges of this model sum to zero"):
        out = own(to_state(frames))
    assert torch.equal(out["energy"], plain["energy"])
    own(to_state(frames))


def test_fields_along_periodic_axes_and_mixed_boundaries_are_refused():
    frames = boxes()
    for frame in frames:
        frame.info["external_field"] = [0.0, 0.0, 0.1]
    with pytest.raises(BoundaryError, match="perpendicular to the periodic lattice vectors"):
        SOGMACETorchSimModel(make_sogmace(), "cpu")(to_state(frames))
    with pytest.raises(ValueError, match="same periodic boundary"):
        to_state([water_box(), open_molecule()])


def test_the_block_of_the_docs_page_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.save(charged_model(), "my_model.model")
    ase.io.write("frames.xyz", boxes([0, 1, -1]))
    names = {}
    exec(compile(code.replace("n_steps=100", "n_steps=2"), "torchsim.md", "exec"), names)  # noqa: S102
    assert names["final"].charges.shape == (36,)
