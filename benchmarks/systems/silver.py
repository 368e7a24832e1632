"""Ag3+ and Ag3-: two potential energy surfaces of the same atoms, by one model.

The cation is an equilateral triangle, the anion a chain. Heads are told the total charge; a
model that is not gives both the same energy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from mace_options import ONE_LAYER

from . import xtb
from .checks import Check, NotWorse
from .system import SPOOKYNET, Answer, Effect, Find, Published, System, frames_of, store

SIZES = {"train": 120, "val": 15, "test": 60}  # geometries, each at both charges
BONDS = 2.45, 3.1  # Å
ANGLES = 50.0, 180.0  # degrees
RATTLE = 0.03  # Å


def trimer(bonds: tuple[float, float], angle: float, charge: int) -> Atoms:
    """Two bonds that meet at an angle in degrees."""
    turned = np.radians(angle)
    last = bonds[1] * np.array([np.cos(turned), np.sin(turned), 0.0])
    return Atoms(
        "Ag3", [(bonds[0], 0.0, 0.0), (0.0, 0.0, 0.0), last], info={"total_charge": charge}
    )


def make_frames(folder: Path, find: Find, seed: int) -> None:
    """Triangles and bent chains, and a curve over the angle, each at both charges."""
    rng = np.random.default_rng(204)
    splits: dict[str, list[Atoms]] = {}
    for split, size in SIZES.items():
        for _ in range(size):
            shape = tuple(rng.uniform(*BONDS, 2)), rng.uniform(*ANGLES)
            noise = rng.normal(scale=RATTLE, size=(3, 3))
            for charge in (1, -1):
                frame = trimer(*shape, charge)
                frame.positions += noise
                splits.setdefault(split, []).append(frame)
    angles = np.linspace(56.0, 180.0, 32)
    splits["curve"] = [trimer((2.65, 2.65), own, charge) for charge in (1, -1) for own in angles]
    store(folder, xtb.label_splits(splits))


def openings(frames: list[Atoms], energies: np.ndarray) -> dict[str, float]:
    """Energy of the chain over that of the equilateral triangle, by charge, in eV."""
    found = {}
    for charge, name in ((1, "cation"), (-1, "anion")):
        own = energies[[frame.info["total_charge"] == charge for frame in frames]]
        found[name] = float(own[-1] - own[1])  # at 180 and 60 degrees
    return found


def of_labels(folder: Path) -> dict[str, float]:
    """Both by the labels."""
    frames = frames_of(folder, "curve")
    return openings(frames, np.array([own.info["REF_energy"] for own in frames]))


def effects(folder: Path) -> list[Effect]:
    """Both, which differ."""
    found = of_labels(folder)
    return [Effect(f"chain over triangle, {own}, eV", found[own], 0.1) for own in found]


def probe(model, folder: Path) -> dict:
    """Both by the model and by the labels."""
    frames = frames_of(folder, "curve")
    own = openings(frames, model.find(frames, False, "curve").energies)
    return {"openings": own, "truth": of_labels(folder)}


def answers() -> tuple[Answer, ...]:
    """Chain over triangle at both charges."""
    return tuple(
        Answer(f"chain over triangle, {own}, eV", f"probe/openings/{own}", f"probe/truth/{own}")
        for own in ("cation", "anion")
    )


SYSTEMS = {
    "ag3": System(
        "ag3",
        ("test", "curve"),
        120,
        (*ONE_LAYER, "--batch_size=4"),
        heads=("--sog_charge_embedding=32", "--sog_charge_constraint=total"),
        make=make_frames,
        effects=effects,
        probe=probe,
        answers=answers(),
        published=(
            Published(
                "forces 1803 (2G, short range), 31.7 (4G), 26.6 meV/Å (SpookyNet), DFT",
                SPOOKYNET,
            ),
        ),
        labels="GFN1-xTB",
        title="Ag3+ and Ag3-",
        physics="One model gives the triangle of the cation and the chain of the anion.",
    )
}
CHECKS = (
    NotWorse("ag3", "errors/test/forces"),
    Check("ag3", "errors/test/forces", 0.5, other="sr"),
)
