"""Models in TorchSim against those of NequIP, in batches of systems of different sizes."""

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

import torch_sim as ts
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.scripts._compile_utils import COMPILE_TARGET_DICT
from nequip_builders import R_MAX, TYPES, acetaldehyde, build, charged, crystal
from test_compile import export, without_checks_that_tracers_cannot_follow  # noqa: F401

from sog_longrange import HostError, InputError
from sog_longrange.errors import BoundaryError
from sog_nequip.torchsim import SOGNequIPTorchSimCalc

pytestmark = pytest.mark.full

CPU = torch.device("cpu")
EXTRAS = {"charge": "charge", "external_E_field": "external_field"}
MOLECULES = (np.array([0.1, -0.2, 0.3]), (1, -1, 0))


def to_state(frames):
    return ts.io.atoms_to_state(frames, CPU, torch.float64, system_extras_map=EXTRAS)


def wrap(model):
    """A TorchSim calculator of a model that is not compiled."""
    mapper = ChemicalSpeciesToAtomTypeMapper(TYPES, {t: t for t in TYPES})
    return SOGNequIPTorchSimCalc(model, CPU, [mapper, NeighborListTransform(r_max=R_MAX)])


def molecules(charges=None, field=None):
    frames = [acetaldehyde(), acetaldehyde()[:6], acetaldehyde()]
    frames[2].rattle(0.05, seed=4)
    for frame, charge in zip(frames, charges or (), strict=bool(charges)):
        frame.info["charge"] = charge
    for frame in frames if field is not None else ():
        frame.info["external_field"] = field
    return frames


def crystals(charges=None):
    frames = [crystal(), crystal().repeat((1, 2, 1)), crystal()]
    for frame, charge in zip(frames, charges or (), strict=bool(charges)):
        frame.info["charge"] = charge
    return frames


def compare(out, frames, model, tolerance=1e-9):
    """Assert that results of a batch are those of the model, of each structure for itself."""
    first = 0
    for index, frame in enumerate(frames):
        rows = slice(first, first + len(frame))
        first += len(frame)
        expected = evaluate_with_inputs(model, frame)
        assert float(out["energy"][index]) == pytest.approx(
            expected["total_energy"].item(), abs=tolerance
        )
        pairs = [("forces", "forces"), ("latent_charges", "latent_charges")]
        pairs += [("long_range_energies", "long_range_atomic_energy")]
        for ours, theirs in pairs:
            value = expected[theirs].view_as(out[ours][rows])
            assert torch.allclose(out[ours][rows], value, atol=tolerance), ours
        for key in ("long_range_energy", "charge_state_energy", "field_energy"):
            if key in expected:
                wanted = expected[key].item()
                assert float(out[key][index]) == pytest.approx(wanted, abs=tolerance), key
        charges = expected["latent_charges"][:, 0]
        assert torch.allclose(out["charges"][rows], charges, atol=tolerance)
        if not frame.pbc.any():
            moment = charges.detach().numpy() @ frame.positions
            assert np.allclose(out["dipole"][index], moment, atol=1e-8)
    total = out["short_range_energy"] + out["long_range_energy"]
    total = total + out.get("charge_state_energy", 0.0) + out.get("field_energy", 0.0)
    assert torch.allclose(total, out["energy"], atol=1e-9)


def evaluate_with_inputs(model, frame):
    from nequip_builders import to_data

    data = to_data(frame)
    if "charge" in frame.info:
        data["charge"] = torch.tensor([[float(frame.info["charge"])]])
    if "external_field" in frame.info:
        data["external_field"] = torch.tensor(frame.info["external_field"])[None]
    return model(data)


@pytest.mark.parametrize("make", [crystals, molecules])
def test_a_batch_of_several_sizes_equals_the_model(make):
    model = build(sog={"num_channels": 2, "tolerance": 1e-7}).eval()
    out = wrap(model)(to_state(make()))
    assert out["latent_charges"].shape == (sum(map(len, make())), 2)
    assert "field_energy" not in out
    assert out["stress"].shape == (3, 3, 3)
    compare(out, make(), model)


def test_total_charges_and_fields_of_a_state_reach_the_model():
    model = charged()
    field, charges = MOLECULES
    frames = molecules(charges, field)
    own = wrap(model)
    out = own(to_state(frames))
    assert out["field_energy"].abs().max() > 1e-4
    assert out["charge_state_energy"].abs().max() > 1e-4
    compare(out, frames, model)
    compare(own(to_state(crystals(charges))), crystals(charges), model)
    final = ts.integrate(
        system=to_state(frames),
        model=own,
        integrator=ts.Integrator.nvt_langevin,
        n_steps=2,
        temperature=300,
        timestep=0.00025,
    )
    assert final.charge.tolist() == list(charges)
    assert final.charges.shape == (sum(map(len, frames)),)


def test_a_compiled_model_takes_charges_and_fields(tmp_path):
    model = charged()
    path, _ = export(model, "sog_batch_charge_field", tmp_path)
    own = SOGNequIPTorchSimCalc.from_compiled_model(path, "cpu", {t: t for t in TYPES})
    field, charges = MOLECULES
    compare(own(to_state(molecules(charges, field))), molecules(charges, field), model, 1e-8)
    out = own(to_state(crystals(charges)))
    assert out["field_energy"].tolist() == [0.0, 0.0, 0.0]
    compare(out, crystals(charges), model, 1e-8)
    with pytest.raises(InputError, match="system_extras_map"):
        own(to_state(molecules()))
    with pytest.raises(InputError, match="whole number"):
        own(to_state(molecules((0.5, 0, 0))))


def test_what_models_do_not_take_is_refused_or_warned_of(tmp_path):
    own = wrap(build(sog={"tolerance": 1e-7}).eval())
    with pytest.warns(UserWarning, match="latent charges of this model sum to zero"):
        own(to_state(molecules((1, 0, 0))))
    frames = crystals()
    for frame in frames:
        frame.info["external_field"] = MOLECULES[0]
    with pytest.raises(BoundaryError, match="perpendicular to the periodic lattice vectors"):
        own(to_state(frames))
    with pytest.raises(HostError, match="with a long-range part"):
        wrap(build(bare=True).eval())(to_state(molecules()))


def test_old_versions_of_torchsim_are_refused(monkeypatch):
    monkeypatch.setattr("sog_nequip.torchsim.version", lambda name: "0.3.0")
    with pytest.raises(HostError, match="torch-sim-atomistic.*0.6.*got 0.3.0"):
        wrap(build(sog={"tolerance": 1e-7}))


def test_the_targets_that_the_docs_page_names_exist():
    page = (Path(__file__).parents[3] / "docs/engines/torchsim.md").read_text("utf-8")
    targets = set(re.findall(r"sog_batch\w*", page))
    assert len(targets) == 4
    assert targets <= COMPILE_TARGET_DICT.keys()
