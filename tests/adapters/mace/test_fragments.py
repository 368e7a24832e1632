"""Whole charges of fragments in the loss of a training."""

import re
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from test_run_train import arguments, load, training_folder

from sog_longrange.ase_support import FragmentCharges, find_fragments
from sog_longrange.units import COULOMB_CONSTANT
from sog_mace import SOGMACECalculator
from sog_mace.cli.fragments import FragmentLoss
from sog_mace.cli.run_train import main

__all__ = ["training_folder"]

AMMONIUM, AMMONIA = ((1, 4), (7, 1)), ((1, 3), (7, 1))
CHARGES = {AMMONIUM: 1, AMMONIA: 0, ((1, 2),): 0, ((17, 1),): -1}
TABLE = {"E0s": "{1: 0.0, 7: 0.0, 17: 0.0}", "max_num_epochs": 40, "batch_size": 3, "lr": 0.03}
HEAD = {"sog_preset": "auto", "sog_latent_dipoles": False, "sog_kernel": "coulomb"}


def ammonium():
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    return Atoms("NH4", [[0, 0, 0], *(0.6 * corners)])


def pair(first, second, distance):
    other = second.copy()
    other.positions[:, 0] += distance
    return first + other


@pytest.fixture
def frames(training_folder):
    """Pairs to which no charges of elements sum, as training file."""
    rng, chosen = np.random.default_rng(0), []
    for distance in np.linspace(4.0, 6.0, 4):
        for second, total in ((Atoms("Cl"), 0), (molecule("NH3"), 1), (molecule("H2"), 1)):
            frame = pair(ammonium(), second, distance)
            frame.positions += 0.005 * rng.normal(size=(len(frame), 3))
            attraction = COULOMB_CONSTANT / distance if total == 0 else 0.0
            frame.info |= {"REF_energy": -attraction, "total_charge": total}
            frame.arrays["REF_forces"] = np.zeros((len(frame), 3))
            frame.arrays["REF_forces"][[0, -1], 0] = np.array([1, -1]) * attraction / distance
            chosen.append(frame)
    ase.io.write("train.xyz", chosen)
    return chosen


def errors(frames, name="tiny"):
    """Errors of the charges of all fragments by the trained model."""
    calculator = SOGMACECalculator(
        models=[load(f"{name}.model")], device="cpu", default_dtype="float64"
    )
    found = []
    for frame in frames:
        calculator.calculate(frame)
        charges = np.ravel(calculator.results["latent_charges"])
        parts = find_fragments(frame)
        found += [charges[list(own.atoms)].sum() - CHARGES[own.composition] for own in parts]
    return np.abs(found)


def test_charges_of_fragments_become_whole_in_a_training(frames, caplog):
    main(arguments(**TABLE, **HEAD))
    text = r"The loss holds charges of fragments to .*H4N \+1.*fragment_charge_weight=100"
    assert re.search(text, caplog.text)
    held = errors(frames).max()
    main(arguments(**TABLE, **HEAD, name="free", sog_fragment_charge_weight=0))
    assert caplog.text.count("The loss holds charges") == 1
    assert "has no effect" not in caplog.text
    assert held < 0.1
    assert held < 0.3 * errors(frames, "free").max()


@pytest.mark.parametrize("readout", ["flows", "ions"])
def test_readouts_that_conserve_charges_are_not_held(readout, frames, caplog):
    given = {"sog_readout": readout, "sog_fragment_charge_weight": 9}
    main(arguments(**TABLE | {"max_num_epochs": 1}, **HEAD, **given))
    assert "The loss holds charges" not in caplog.text
    assert "--sog_fragment_charge_weight has no effect: the readout gives them" in caplog.text


def test_the_loss_is_added_in_training_only_and_as_long_as_asked_for(caplog):
    loss = torch.nn.Module()
    loss.forward = lambda pred, ref: pred["energy"].square().sum()
    structures = [pair(ammonium(), Atoms("Cl"), 5.0), molecule("NH3"), Atoms("Cl")]
    ref = batch_of(structures)
    charges = torch.full((11, 2), 0.1, dtype=torch.float64, requires_grad=True)
    pred = {"energy": torch.ones(1, dtype=torch.float64), "latent_charges": charges}
    training = [True]
    added = FragmentLoss(FragmentCharges(CHARGES), 10.0, [1, 7, 17], 1, lambda: training[0])
    with added.added([loss]):
        value = loss(pred=pred, ref=ref)
        (gradient,) = torch.autograd.grad(value, charges)
        training[0] = False
        assert float(loss(pred=pred, ref=ref)) == 1.0
    # The total charge of the last structure contradicts that of its fragment.
    expected = 1.0 + 10.0 * (0.5**2 + 1.1**2 + 0.4**2) / 3.0
    assert float(value.detach()) == pytest.approx(expected)
    assert not gradient[:, 0].any()
    assert gradient[:10, 1].all()
    assert not gradient[10, 1]
    training[0] = True
    assert float(loss(pred=pred, ref=ref)) == 1.0


def batch_of(structures):
    """What a loss is given of a batch, cells of open structures as MACE makes them."""
    numbers = np.concatenate([own.numbers for own in structures])
    table = torch.tensor([1, 7, 17])
    return SimpleNamespace(
        node_attrs=(torch.tensor(numbers)[:, None] == table).double(),
        positions=torch.tensor(np.concatenate([own.positions for own in structures])),
        cell=torch.eye(3).repeat(len(structures), 1) * 100.0,
        pbc=torch.zeros(len(structures), 3, dtype=torch.bool),
        total_charge=torch.zeros(len(structures)),
        ptr=torch.tensor([0, *np.cumsum([len(own) for own in structures])]),
    )
