"""C10H2 and C10H3+: a proton at one end of a carbon chain is felt at the other, 12 Å away.

The charge spreads over the chain and changes its bonds everywhere. A model that knows its
neighbourhood alone takes the far end of both for the same. Heads are told the total charge.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from mace_options import ONE_LAYER

from . import xtb
from .checks import NotWorse
from .system import SPOOKYNET, Answer, Effect, Find, Published, System, frames_of, store

SIZES = {"train": 100, "val": 10, "test": 40}  # frames of each molecule
RATTLE = 0.03  # Å
FAR = -3  # last carbon but one, before the last carbon and its hydrogen, of the unprotonated end


def chain() -> Atoms:
    """C10H2 along x, relaxed; the hydrogen of the unprotonated end is last."""
    x = np.concatenate([[0.0], 1.06 + 1.29 * np.arange(10), [1.06 + 1.29 * 9 + 1.06]])
    atoms = Atoms("HC10H", [(own, 0.0, 0.0) for own in x], info={"total_charge": 0})
    return xtb.relaxed(atoms, xtb.GFN2, 0.01, 100)


def protonated(atoms: Atoms) -> Atoms:
    """The same chain with CH2 at its first end."""
    frame = atoms.copy()
    first = frame.positions[1]
    ends = first + np.array([(-0.58, 0.94, 0.0), (-0.58, -0.94, 0.0)])
    frame.positions[0] = ends[0]
    frame = Atoms("H", [ends[1]]) + frame
    frame.info["total_charge"] = 1
    return frame


def make_frames(folder: Path, find: Find, seed: int) -> None:
    """Rattled molecules between the bond lengths of both, and both at those of each."""
    rng, neutral = np.random.default_rng(203), chain()
    charged = xtb.relaxed(protonated(neutral), xtb.GFN2, 0.01, 200)
    axes = np.stack([neutral.positions[1:], charged.positions[2:]])
    axes[1] += axes[0].mean(0) - axes[1].mean(0)

    def molecule(charge: int, mixed: float) -> Atoms:
        frame = neutral.copy()
        frame.positions[1:] = axes[0] + mixed * (axes[1] - axes[0])
        frame.positions[0] += frame.positions[1] - neutral.positions[1]
        frame = protonated(frame) if charge else frame
        frame.info["mixed"] = mixed
        return frame

    splits = {
        split: [
            xtb.rattled(molecule(charge, rng.uniform(-0.2, 1.2)), RATTLE, rng)
            for charge in (0, 1)
            for _ in range(size)
        ]
        for split, size in SIZES.items()
    }
    splits["curve"] = [molecule(charge, own) for own in (0.0, 0.5, 1.0) for charge in (0, 1)]
    store(folder, xtb.label_splits(splits, xtb.GFN2))


def far_force(forces: list[np.ndarray]) -> float:
    """Mean change by the proton of the force along the chain at the far end, in eV/Å.

    It is that on the last C-H less that on the last carbon but one, at the same bond lengths.
    """
    pulls = [own[FAR + 1 :, 0].sum() - own[FAR, 0] for own in forces]
    return float(np.mean(np.subtract(pulls[1::2], pulls[::2])))


def of_labels(folder: Path) -> float:
    """The change by the labels."""
    return far_force([own.arrays["REF_forces"] for own in frames_of(folder, "curve")])


def effects(folder: Path) -> list[Effect]:
    """The change."""
    return [Effect("change of the force at the far end, eV/Å", of_labels(folder), 0.1)]


def probe(model, folder: Path) -> dict[str, float]:
    """The change by the model and by the labels, in eV/Å."""
    found = model.find(frames_of(folder, "curve"), False, "curve").forces
    return {"far_force": far_force(found), "truth": of_labels(folder)}


SHORT = (*ONE_LAYER, "--r_max=4.0", "--batch_size=4", "--eval_interval=4")
STATES = ("--sog_charge_embedding=32", "--sog_charge_constraint=total")
PUBLISHED = Published(
    "forces 129.5 (2G, short range), 78.0 (4G), 36.9 (LES), 33.5 meV/Å (SOG-Net), DFT",
    f"{SPOOKYNET}; arXiv:2412.15455; arXiv:2502.04668",
)
SYSTEMS = {
    "carbon_chains": System(
        "carbon_chains",
        ("test", "curve"),
        120,
        SHORT,
        heads=STATES,
        make=make_frames,
        effects=effects,
        probe=probe,
        answers=(Answer("change of the far force, eV/Å", "probe/far_force", "probe/truth"),),
        published=(PUBLISHED,),
        labels="GFN2-xTB",
        title="carbon chains, one end protonated or not",
        physics="The proton at one end changes the forces at the other.",
    ),
    "carbon_chains_4g": System(
        "carbon_chains_4g",
        ("test",),
        250,
        SHORT,
        heads=STATES,
        published=(PUBLISHED,),
        labels="DFT, published",
        title="carbon chains, DFT",
        physics="The same, by few DFT frames.",
    ),
}
CHECKS = tuple(NotWorse(name, "errors/test/forces") for name in SYSTEMS)
