"""Steps of NequIP models with and without the long-range head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from ase import Atoms
from head_frames import ENERGY, FORCES
from hydra.utils import get_method
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper
from nequip.train import EnergyForceLoss
from nequip.utils.global_state import set_global_state
from torch import nn

from sog_longrange.training import parameter_groups
from sog_nequip.parts import long_range_parts

LABEL = "NequIP"
R_MAX = 5.0
COMMON = {"seed": 0, "model_dtype": "float32", "r_max": R_MAX, "avg_num_neighbors": 50.0}
MODELS = {
    "large": {"num_layers": 3, "l_max": 2, "num_features": 64, "parity": True},
    # As in examples/nequip, which the accuracy benchmark takes.
    "gas": {
        **{"num_layers": 2, "l_max": 1, "num_features": 16, "parity": False},
        **{"radial_mlp_depth": 1, "radial_mlp_width": 32},
    },
}
"""Arguments of `nequip.model.NequIPGNNModel`; all others are NequIP's own."""
TITLES = {
    "large": "64 features, l_max 2, three layers, r_max 5 Å",
    "gas": "the options of examples/nequip: 16 features, l_max 1, two layers, r_max 5 Å",
}
EVALUATION = "energy + forces + stress"  # NequIP gives all three or none
TRAINING = "training step"
RATE = 1e-7  # labels are random: with a larger one models would diverge while they are timed

Call = Callable[[], object]
Data = dict[str, torch.Tensor]


def backbones() -> tuple[str, ...]:
    """Forms of the NequIP model that there are here."""
    return ("e3nn",)


def make_calls(
    name: str, frames: list[Atoms], device: str, *, head: bool, backbone: str = "e3nn"
) -> dict[str, Call]:
    """What is timed: functions without arguments, by the name of the task.

    Parameters
    ----------
    name : one of `MODELS`.
    frames : one batch, with labels.
    device : "cpu" or "cuda".
    head : whether the model has the long-range head, with its default options.
    backbone : one of :func:`backbones`.
    """
    if backbone != "e3nn":
        raise ValueError(f"NequIP has no backbone {backbone!r}.")
    types = sorted({symbol for frame in frames for symbol in frame.get_chemical_symbols()})
    batch = _make_batch(frames, types)
    still = _make_model(name, types, head=head).to(device).eval()
    still.requires_grad_(requires_grad=False)
    there = _moved(batch, device)
    trained = _make_model(name, types, head=head).to(device).train()
    return {
        EVALUATION: lambda: still(there.copy()),
        TRAINING: _training(trained, batch, device, types, head=head),
    }


def _make_model(name: str, types: list[str], *, head: bool) -> nn.Module:
    set_global_state()  # NequIP builds no models before; torch's default becomes float64
    options = {**COMMON, **MODELS[name], "type_names": types}
    base = "nequip.model.NequIPGNNModel"
    if head:
        return get_method("sog_nequip.model.SOGModel")(base=base, **options)
    return get_method(base)(**options)


def _make_batch(frames: list[Atoms], types: list[str]) -> Data:
    mapper = ChemicalSpeciesToAtomTypeMapper(
        model_type_names=types, chemical_species_to_atom_type_map={name: name for name in types}
    )
    keys = {ENERGY: AtomicDataDict.TOTAL_ENERGY_KEY, FORCES: AtomicDataDict.FORCE_KEY}
    items = [mapper(from_ase(frame, key_mapping=keys)) for frame in frames]
    items = [compute_neighborlist_(item, r_max=R_MAX) for item in items]
    return AtomicDataDict.batched_from_list(items)


def _moved(batch: Data, device: str) -> Data:
    return AtomicDataDict.to_(batch.copy(), torch.device(device))


def _training(model: nn.Module, batch: Data, device: str, types: list[str], *, head: bool) -> Call:
    """A step of NequIP's training, from a batch on the host to new weights."""
    heads = [part.long_range for part in long_range_parts(model)] if head else []
    ours = {id(own) for part in heads for own in part.parameters()}
    groups = [{"params": [own for own in model.parameters() if id(own) not in ours]}]
    if heads:
        groups += parameter_groups(heads, charges=RATE, kernel=RATE)
    optimizer = torch.optim.Adam(groups, lr=RATE, amsgrad=True)
    for part in heads:
        part.fade_in(optimizer, steps=100)
    keys = (AtomicDataDict.TOTAL_ENERGY_KEY, AtomicDataDict.FORCE_KEY)
    loss = EnergyForceLoss(per_atom_energy=True, coeffs=dict.fromkeys(keys, 1.0), type_names=types)
    loss = loss.to(device)

    def step() -> object:
        fresh = _moved(batch, device)
        target = fresh.copy()
        optimizer.zero_grad(set_to_none=True)
        value = loss(model(fresh), target)["weighted_sum"]
        value.backward()
        return optimizer.step()

    return step
