"""Molten NaCl and a toy electrolyte: fixed charges, exact forces, and screening at small k.

Molten NaCl is that of Fumi and Tosi; the toy is the electrolyte of SOG-Net, in units of 2.5 Å. In
both the charge structure factor at the smallest wave vectors is what long-range forces make
(Stillinger and Lovett): it vanishes as k^2, whatever the repulsion.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.io import read
from mace_options import GAS

from . import exact, structure
from .checks import Check, NotWorse, of_structure
from .system import Answer, Find, Motion, Published, System, elements, store

# Fumi, Tosi, J. Phys. Chem. Solids 25, 31 and 45 (1964): strengths by pair, lengths and C, D in
# eV Å^6, eV Å^8.
BORN, RHO = 0.2109608, 0.317  # eV, Å
PAIRS = {
    ("Na", "Na"): (1.25, 2.340, 1.0486, 0.4993),
    ("Cl", "Na"): (1.00, 2.755, 6.9906, 8.6758),
    ("Cl", "Cl"): (0.75, 3.170, 72.4022, 145.4285),
}
KELVIN, VOLUME = 1150.0, 32.5  # K, Å^3 for each ion: 1.49 g/cm^3
HOT = 3.0  # times that temperature
STEP, PAIR_CUTOFF = 2.0, 6.0  # fs, Å


def world(cutoff: float) -> exact.World:
    """Molten NaCl; pair terms up to a cutoff in Å."""
    return exact.World(
        {"Na": 1.0, "Cl": -1.0},
        {
            pair: (strength * BORN * np.exp(length / RHO), RHO, 0.0, c6, c8, cutoff)
            for pair, (strength, length, c6, c8) in PAIRS.items()
        },
    )


def crystal(cells: int, scale: float = 1.0) -> Atoms:
    """Rock salt of the melt's density, the length of whose edge is scaled."""
    edge = scale * (8.0 * VOLUME) ** (1.0 / 3.0)
    return bulk("NaCl", "rocksalt", a=edge, cubic=True).repeat((cells,) * 3)


def melt(cells: int, scale: float, steps: int, every: int, seed: int) -> list[Atoms]:
    """Labelled snapshots of a melt."""
    own = world(PAIR_CUTOFF)
    start = exact.sample(own, crystal(cells, scale), HOT * KELVIN, STEP, 1500, 1500, seed)[-1]
    start = exact.sample(own, start, KELVIN, STEP, 3000, 3000, seed + 1)[-1]
    frames = exact.sample(own, start, KELVIN, STEP, steps, every, seed + 2)
    return [exact.label(own, frame) for frame in frames]


def hot_melt(cells: int, scale: float, seed: int) -> list[Atoms]:
    """Labelled snapshots at three times the temperature, whose ions come closer than a melt's.

    Without them a model is free to have holes just within the contacts of the melt, into which
    long dynamics fall.
    """
    own = world(PAIR_CUTOFF)
    frames = exact.sample(own, crystal(cells, scale), HOT * KELVIN, STEP, 4000, 200, seed)
    return [exact.label(own, frame) for frame in frames[-10:]]


def make_molten(folder: Path, find: Find, seed: int) -> None:
    """64 ions at three densities to train, 216 ions to test and to look at."""
    scales = (0.98, 1.0, 1.03)
    frames = [melt(2, scale, 10000, 100, 10 * n) for n, scale in enumerate(scales)]
    splits: dict[str, list[Atoms]] = {"train": [], "val": [], "test": []}
    for n, scale in enumerate(scales):
        splits["train"] += hot_melt(2, scale, 400 + n)
    for own in frames:
        splits["train"] += own[:70]
        splits["val"] += own[75:82]
        splits["test"] += own[87:]
    splits["snapshots"] = melt(3, 1.0, 16000, 200, 301)
    splits["test_large"] = splits["snapshots"][::10]
    store(folder, splits)


SIGMA, ENERGY = 2.5, 0.1  # Å, eV: units of the toy


def make_toy(folder: Path, find: Find, seed: int) -> None:
    """The published configurations with exact forces, in Å and eV."""
    data = find("sognet_toy_ions")
    splits = {name: read(data / f"{name}.xyz", ":") for name in ("train", "val", "test")}
    for frame in (own for frames in splits.values() for own in frames):
        frame.set_cell(frame.cell * SIGMA, scale_atoms=True)
        frame.info["REF_energy"] *= ENERGY
        frame.arrays["REF_forces"] *= ENERGY / SIGMA
        scale = np.sqrt(3.5 * ENERGY * SIGMA / exact.COULOMB_CONSTANT)
        frame.arrays["true_charges"] = scale * frame.arrays["true_charges"]
    splits["snapshots"] = splits["test"]
    store(folder, splits)


DENSITY = Answer(
    "density at the pressure of the exact one, kg/m³",
    "dynamics/density/model/density",
    "dynamics/density/truth/density",
    factor=1.05,
)
NEQUIP_SALT = ("batch_size=4", "energy_weight=1.0")
SYSTEMS = {
    "molten_nacl": System(
        "molten_nacl",
        ("test", "test_large"),
        120,
        GAS,
        ("cutoff_radius=5.0", *NEQUIP_SALT),
        make=make_molten,
        effects=partial(structure.effects, kelvin=KELVIN),
        probe=structure.probe,
        answers=(*structure.ANSWERS, DENSITY),
        labels="exact sums",
        title="molten NaCl",
        physics="Forces; charges screen each other at small k; density at constant pressure.",
        motion=Motion(KELVIN, STEP, ("Na", "Cl"), world(PAIR_CUTOFF), density=True, share=1.5),
        recipe=2,
    ),
    "toy_electrolyte": System(
        "toy_electrolyte",
        ("test",),
        60,
        (*GAS, elements(11, 17), "--r_max=6.0", "--batch_size=2", "--energy_weight=10"),
        ("cutoff_radius=6.0", *NEQUIP_SALT),
        make=make_toy,
        effects=structure.effects,
        probe=structure.probe,
        answers=structure.ANSWERS,
        published=(
            Published("the same configurations; its labels are other energies", "SOG-Net's code"),
        ),
        labels="exact sums",
        title="toy electrolyte",
        physics="Forces; charges screen each other at small k.",
    ),
}
FORCES = "errors/test/forces"
CHECKS = (
    *(NotWorse(name, FORCES) for name in SYSTEMS),
    *(Check(name, FORCES, 0.5, other="sr") for name in SYSTEMS),
    *of_structure("molten_nacl", motion=True),
    *of_structure("molten_nacl", motion=False),
)
