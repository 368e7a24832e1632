"""NequIP's own tests of energy models, run on ours."""

import copy

import numpy as np
import pytest
import torch
from nequip.utils.unittests.model_tests import BaseEnergyModelTests
from nequip_builders import ALLEGRO, NEQUIP, evaluate

from sog_nequip.calculator import SOGNequIPCalculator
from sog_nequip.parts import long_range_parts
from sog_nequip.registry import ASE_TARGET

# Subprocesses, Lightning and deprecations inside the host are the host's.
pytestmark = pytest.mark.filterwarnings("ignore")

SHIFTS = {"H": 1.0, "C": 2.0, "O": 3.0}


def long_range_config(base):
    return {
        "_target_": "sog_nequip.model.SOGModel",
        "sog": {"num_channels": 2, "charge_constraint": "none"},
        "per_type_energy_shifts": SHIFTS,
        "seed": 123,
        **{k: v for k, v in copy.deepcopy(base).items() if k not in ("seed", "model_dtype")},
    }


class LongRangeTests(BaseEnergyModelTests):
    """What differs from a model that sees a cutoff's range only."""

    @pytest.fixture(scope="class", params=["minimal_toy_emt.yaml"])
    def conffile(self, request):
        return request.param  # The other one downloads data.

    @pytest.fixture
    def strict_locality(self):
        return False

    def test_large_separation(self, model, molecules, device):
        """Far fragments interact as their charges do through the kernel, and not otherwise."""
        instance = model[0]
        fragments = [molecules[0], molecules[1]]
        alone = [evaluate(instance, atoms) for atoms in fragments]
        charges = [out["latent_charges"].double().detach() for out in alone]
        expected_ratio = []
        for distance in (20.0, 40.0):
            moved = fragments[1].copy()
            moved.positions += distance * np.array([0.6, 0.0, 0.8])
            both = evaluate(instance, fragments[0] + moved)
            found = both["total_energy"] - sum(out["total_energy"] for out in alone)
            expected = pair_energy(instance, charges, fragments[0].positions, moved.positions)
            tolerance = {torch.float32: 1e-5, torch.float64: 1e-10}[instance.model_dtype]
            assert abs(float(expected)) > 1e-4
            torch.testing.assert_close(found.squeeze(), expected, atol=tolerance, rtol=tolerance)
            expected_ratio.append(float(expected))
        assert expected_ratio[0] / expected_ratio[1] == pytest.approx(2.0, rel=0.3)


def pair_energy(model, charges, first, second):
    """Interaction of two groups of charges through the kernel of a model, pair by pair."""
    kernel = long_range_parts(model)[0].long_range.energy.kernel
    distances = torch.cdist(torch.as_tensor(first), torch.as_tensor(second))
    law = kernel.radial(distances.flatten() ** 2).detach().reshape(-1, *distances.shape)
    return torch.einsum(
        "ic,cij,jc->", charges[0], law.expand(charges[0].shape[1], -1, -1), charges[1]
    )


class TestSOGNequIP(LongRangeTests):
    @pytest.fixture(scope="class")
    def config(self):
        return long_range_config(NEQUIP)

    @pytest.fixture(scope="class")
    def ase_compile_modifiers(self):
        return lambda mode, device, model_dtype: ["sog_periodic"]


class TestSOGAllegro(LongRangeTests):
    @pytest.fixture(scope="class")
    def config(self):
        return long_range_config(ALLEGRO)

    @pytest.fixture(scope="class")
    def ase_aoti_target(self):
        return ASE_TARGET

    @pytest.fixture(scope="class")
    def ase_calculator_cls(self):
        return SOGNequIPCalculator
