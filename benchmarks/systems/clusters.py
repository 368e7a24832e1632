"""Na9Cl8+ and Na8Cl8+: one Na moves, and feels whether another one, far away, is there.

Both have a total charge of +1, so that taking a neutral Na away changes the charges of its
neighbours. The minimum of the moved Na, 7 Å away, shifts with that. The cutoff is so short
that no atom has both in sight.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from mace_options import ONE_LAYER

from . import xtb
from .checks import NotWorse
from .system import SPOOKYNET, Answer, Effect, Find, Published, System, frames_of, store

SPACING = 2.75  # Å
MOVED, TAKEN = 0, 15  # opposite corners of one layer, 6.9 Å apart
ALONG = np.array([-0.355, -0.355, 0.865])  # where the moved Na is soft
RANGE = -0.35, 0.35  # Å
SIZES = {"train": 150, "val": 15, "test": 40}  # frames of each cluster
RATTLE = 0.04  # Å


def nine() -> Atoms:
    """Na9Cl8+: a block of 3 x 3 x 2 ions without the Cl above a corner, relaxed."""
    sites = [(i, j, k) for i in range(3) for j in range(3) for k in range(2)]
    sites.remove((0, 0, 1))
    symbols = ["Cl" if sum(own) % 2 else "Na" for own in sites]
    atoms = Atoms(symbols, SPACING * np.array(sites), info={"total_charge": 1})
    return xtb.relaxed(atoms, xtb.GFN1, 0.01, 200)


def moved(atoms: Atoms, distance: float, sodium: int) -> Atoms:
    """The cluster with one Na displaced, with or without the far Na."""
    frame = atoms.copy()
    frame.positions[MOVED] += distance * ALONG
    frame.info.update(sodium=sodium, distance=distance)
    if sodium == 8:
        del frame[TAKEN]
    return frame


def make_frames(folder: Path, find: Find, seed: int) -> None:
    """Rattled clusters with the Na anywhere on its way, and two rigid curves."""
    rng, atoms = np.random.default_rng(202), nine()
    splits = {
        split: [
            xtb.rattled(moved(atoms, rng.uniform(*RANGE), sodium), RATTLE, rng)
            for sodium in (9, 8)
            for _ in range(size)
        ]
        for split, size in SIZES.items()
    }
    steps = np.linspace(*RANGE, 29)
    splits["curve"] = [moved(atoms, own, sodium) for sodium in (9, 8) for own in steps]
    store(folder, xtb.label_splits(splits))


def minimum(distances: np.ndarray, energies: np.ndarray) -> float:
    """Where a curve is lowest, by a parabola through five points, in Å."""
    at = int(np.clip(energies.argmin(), 2, len(energies) - 3))
    near = slice(at - 2, at + 3)
    bend, slope, _ = np.polyfit(distances[near], energies[near], 2)
    return float(np.clip(-slope / (2.0 * bend), *RANGE))


def minima(frames: list[Atoms], energies: np.ndarray) -> dict[str, float]:
    """Minima of both clusters, and how far the second lies from the first, in Å."""
    found = {}
    for sodium in (9, 8):
        chosen = np.array([own.info["sodium"] == sodium for own in frames])
        distances = np.array([own.info["distance"] for own in frames])
        found[f"Na{sodium}"] = minimum(distances[chosen], energies[chosen])
    return found | {"shift": found["Na8"] - found["Na9"]}


def of_labels(folder: Path) -> dict[str, float]:
    """Minima by the labels."""
    frames = frames_of(folder, "curve")
    return minima(frames, np.array([own.info["REF_energy"] for own in frames]))


def effects(folder: Path) -> list[Effect]:
    """The shift."""
    return [Effect("shift of the minimum by the far Na, Å", of_labels(folder)["shift"], 0.02)]


def probe(model, folder: Path) -> dict:
    """Minima by the model and by the labels."""
    frames = frames_of(folder, "curve")
    return {
        "minima": minima(frames, model.find(frames, False, "curve").energies),
        "truth": of_labels(folder),
    }


SYSTEMS = {
    "nacl_clusters": System(
        "nacl_clusters",
        ("test", "curve"),
        200,
        (*ONE_LAYER, "--r_max=3.6", "--batch_size=4", "--eval_interval=4"),
        make=make_frames,
        effects=effects,
        probe=probe,
        answers=(Answer("shift of the minimum, Å", "probe/minima/shift", "probe/truth/shift"),),
        published=(
            Published(
                "forces 57.4 (2G, short range), 32.8 (4G), 1.1 meV/Å (SpookyNet), DFT",
                SPOOKYNET,
            ),
        ),
        labels="GFN1-xTB",
        title="Na9Cl8+ and Na8Cl8+",
        physics="The far Na, beyond the cutoff, shifts the minimum of the moved one.",
    )
}
CHECKS = (NotWorse("nacl_clusters", "errors/test/forces"),)
