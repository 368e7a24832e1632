"""One process of `test_domain.py`: python domain_worker.py FOLDER RANK."""

import sys
from datetime import timedelta
from functools import cache
from pathlib import Path

import ase.build
import numpy as np
import pytest
import torch
import torch.distributed as dist
from ase import Atoms
from domains import make_domain, slabs
from mace_builders import make_mace, water_box

from sog_longrange import SOGConfig
from sog_mace import SOGMACE, SOGMACECalculator

RANKS = 3


def cubic_box():
    """Eight water molecules in a cubic cell, 24 atoms."""
    rng = np.random.default_rng(2)
    box = Atoms(cell=[6.4] * 3, pbc=True)
    for index in np.ndindex(2, 2, 2):
        molecule = ase.build.molecule("H2O")
        molecule.rotate(rng.uniform(0, 360), rng.normal(size=3))
        molecule.translate(3.2 * (np.array(index) + 0.5))
        box += molecule
    return box


def charged(atoms):
    atoms.info["charge"] = 1
    return atoms


STRUCTURES = {"triclinic": charged(water_box()), "cubic": charged(cubic_box())}

# What the ranks have of the atoms, by a function of structure and number of ranks.
OWNERS = {
    "one": lambda atoms: slabs(atoms, 1),
    "two": lambda atoms: slabs(atoms, 2),
    "three": lambda atoms: slabs(atoms, 3),
    "three_with_an_empty_one": lambda atoms: 2 * slabs(atoms, 2, axis=1),
    "three_with_one_atom": lambda atoms: np.where(
        np.arange(len(atoms)) == 4, 1, 2 * slabs(atoms, 2)
    ),
}
SIZES = {"one": 1, "two": 2}

HOW = {"num_channels": 2, "backend": "mesh", "engine": "none"}
CONFIGS = {
    "none": SOGConfig(**HOW, kernel="coulomb+dispersion", charge_constraint="none"),
    "neutral": SOGConfig(**HOW, charge_constraint="neutral"),
    "total": SOGConfig(**HOW, charge_constraint="total"),
    "embedding": SOGConfig(**HOW, charge_constraint="total", charge_embedding=3),
    "dipoles": SOGConfig(**HOW, latent_dipoles=True),
    "flows": SOGConfig(**HOW, readout="flows", charge_constraint="none"),
    "ions": SOGConfig(**HOW, readout="ions", charge_constraint="total"),
    "ewald": SOGConfig(**HOW, kernel="ewald(smearing=1.0)"),
}
CASES = [
    (config, structure, owners)
    for config in CONFIGS
    for structure in STRUCTURES
    for owners in OWNERS
]


@cache
def shared_mace():
    """Of all models: e3nn takes a second to compile it."""
    return make_mace(num_bessel=4, radial_MLP=[8], pair_repulsion=True)


def make_model(name):
    mace = shared_mace()
    torch.manual_seed(0)
    model = SOGMACE(mace, CONFIGS[name])
    states = model.long_range.states
    if states is not None:
        with torch.no_grad():
            for parameter in states.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def evaluate(case, rank, group):
    config, structure, owners = case
    calculator = SOGMACECalculator(models=[make_model(config)], device="cpu")
    model = calculator.domain_model(group)
    atoms = STRUCTURES[structure]
    domain, halo = make_domain(atoms, OWNERS[owners](atoms), rank, model.cutoff, group)
    return {**model.evaluate(domain, halo)._asdict(), "calls": halo.calls}


def refused(rank, group):
    """What ranks say where the first has a position that is not a number, or an unknown element."""
    model = SOGMACECalculator(models=[make_model("neutral")], device="cpu").domain_model(group)
    atoms = STRUCTURES["cubic"]
    domain, halo = make_domain(atoms, slabs(atoms, RANKS), rank, model.cutoff, group)
    changed = {"positions": np.nan * domain.positions, "numbers": 6 + 0 * domain.numbers}
    messages = []
    for name, value in changed.items():
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            model.evaluate(domain._replace(**{name: value}) if rank == 0 else domain, halo)
        messages.append(str(caught.value))
    return messages


def main(folder, rank):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    store = dist.FileStore(str(folder / "store"), RANKS)
    options = {"rank": rank, "world_size": RANKS, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", store=store, **options)
    groups = {1: dist.new_group([0]), 2: dist.new_group([0, 1]), 3: dist.group.WORLD}
    found = {}
    for case in CASES:
        size = SIZES.get(case[2], RANKS)
        if rank < size:
            found[case] = evaluate(case, rank, groups[size])
    found["refused"] = refused(rank, dist.group.WORLD)
    torch.save(found, folder / f"rank_{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
