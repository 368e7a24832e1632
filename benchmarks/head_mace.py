"""Steps of MACE models with and without the long-range head."""

from __future__ import annotations

import argparse
import ast
import copy
from collections.abc import Callable

import mace_options
import numpy as np
import torch
from ase import Atoms
from head_frames import ENERGY, FORCES
from mace import data, modules, tools  # before e3nn
from mace.modules.wrapper_ops import CUET_AVAILABLE
from mace.tools import torch_geometric
from mace.tools.train import take_step
from torch import nn
from torch_ema import ExponentialMovingAverage

from sog_longrange import SOGConfig
from sog_longrange.training import parameter_groups
from sog_mace import SOGMACE
from sog_mace.cells import keep_input_cells

LABEL = "MACE"
MODELS = {
    "large": (
        "--num_interactions=2",
        "--hidden_irreps=128x0e+128x1o",
        "--r_max=5.0",
        "--default_dtype=float32",
    ),
    "gas": (*mace_options.COMMON, *mace_options.GAS),
}
"""Options of `mace_run_train`; all others are MACE's own."""
TITLES = {
    "large": "128x0e+128x1o, two layers, r_max 5 Å",
    "gas": "the gas options of benchmarks/mace_options.py: 16x0e, one layer, r_max 5 Å",
}
EVALUATIONS = ("energy + forces", "energy + forces + stress")
TRAINING = "training step"
RATE = 1e-7  # labels are random: with a larger one models would diverge while they are timed

Batch = torch_geometric.batch.Batch
Call = Callable[[], object]


def backbones() -> tuple[str, ...]:
    """Forms of the MACE model that there are here."""
    return ("e3nn", "cueq") if CUET_AVAILABLE else ("e3nn",)


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
    args = tools.build_default_arg_parser().parse_args(["--name=head", *MODELS[name]])
    torch.set_default_dtype(getattr(torch, args.default_dtype))
    batch = _make_batch(frames, args.r_max)

    def build() -> nn.Module:
        model = _make_mace(args, frames).to(device)
        if backbone == "cueq":
            model = _convert(model, device)
        return SOGMACE(model, SOGConfig()).to(device) if head else model

    # As in MACE's calculator, weights of models that are not trained want no gradients.
    still = build().requires_grad_(requires_grad=False)
    calls = {task: _evaluation(still, batch, device, task) for task in EVALUATIONS}
    return calls | {TRAINING: _training(build(), batch, device, args)}


def _convert(model: nn.Module, device: str) -> nn.Module:
    from mace.cli.convert_e3nn_cueq import run

    return run(model, device=device, return_model=True)


def _numbers(frames: list[Atoms]) -> list[int]:
    return sorted({int(z) for frame in frames for z in frame.numbers})


def _make_batch(frames: list[Atoms], r_max: float) -> Batch:
    """A batch as `sog_mace_run_train` makes it."""
    keys = data.KeySpecification(info_keys={"energy": ENERGY}, arrays_keys={"forces": FORCES})
    configs = [data.config_from_atoms(frame, key_specification=keys) for frame in frames]
    table = tools.AtomicNumberTable(_numbers(frames))
    with keep_input_cells(training=True):
        items = [data.AtomicData.from_config(own, z_table=table, cutoff=r_max) for own in configs]
    loader = torch_geometric.dataloader.DataLoader(items, batch_size=len(items))
    return next(iter(loader))


def _make_mace(args: argparse.Namespace, frames: list[Atoms]) -> nn.Module:
    from e3nn import o3

    torch.manual_seed(0)
    numbers = _numbers(frames)
    return modules.ScaleShiftMACE(
        r_max=args.r_max,
        num_bessel=args.num_radial_basis,
        num_polynomial_cutoff=args.num_cutoff_basis,
        max_ell=args.max_ell,
        interaction_cls=modules.interaction_classes[args.interaction],
        interaction_cls_first=modules.interaction_classes[args.interaction_first],
        num_interactions=args.num_interactions,
        num_elements=len(numbers),
        hidden_irreps=o3.Irreps(args.hidden_irreps),
        MLP_irreps=o3.Irreps(args.MLP_irreps),
        gate=modules.gate_dict[args.gate],
        atomic_energies=np.zeros(len(numbers)),
        avg_num_neighbors=50.0,
        atomic_numbers=numbers,
        correlation=args.correlation,
        radial_MLP=ast.literal_eval(args.radial_MLP),
        radial_type=args.radial_type,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


def _evaluation(model: nn.Module, batch: Batch, device: str, task: str) -> Call:
    there = copy.copy(batch).to(device).to_dict()
    # MACE writes into its input.
    return lambda: model(dict(there), compute_force=True, compute_stress="stress" in task)


def _training(model: nn.Module, batch: Batch, device: str, args: argparse.Namespace) -> Call:
    """A step of MACE's training, from a batch on the host to new weights."""
    inner = getattr(model, "mace", model)
    groups = [{"params": list(inner.parameters())}]
    if inner is not model:
        groups += parameter_groups([model.long_range], charges=RATE, kernel=RATE)
    optimizer = torch.optim.Adam(groups, lr=RATE, amsgrad=args.amsgrad)
    if inner is not model:
        model.long_range.fade_in(optimizer, steps=100)
    loss = modules.WeightedEnergyForcesLoss(args.energy_weight, args.forces_weight)
    average = None
    if args.ema:
        average = ExponentialMovingAverage(list(model.parameters()), decay=args.ema_decay)
    asked = {"forces": True, "virials": False, "stress": False}
    where = torch.device(device)

    def step() -> object:
        fresh = copy.copy(batch)
        fresh.positions = batch.positions.detach()
        return take_step(model, loss, fresh, optimizer, average, asked, args.clip_grad, where)

    return step
