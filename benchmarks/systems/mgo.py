"""Au2 on MgO(001), with and without Al far below: which of two adsorption sites is preferred.

Made: three layers, two of eight Mg of the lowest one replaced by Al, labelled by periodic
GFN1-xTB. The gold stands on an oxygen (non-wetting) or lies over two (wetting); without Al lying
is preferred, with Al standing, so that the sign of the difference tells whether a model feels
the Al. No atom is within the cutoff of both Al and Au. Published: a sample of the same physics by
density functional theory, of too few frames for a model worth quoting.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from mace_options import BOXES

from . import xtb
from .checks import NotWorse
from .system import SPOOKYNET, Answer, Effect, Find, Published, System, frames_of, store

LATTICE, LAYERS, HEIGHT = 4.21, 3, 22.0  # Å, layers, Å of the cell
SIZES = {"train": 12, "val": 2, "test": 3}  # frames of each of the four kinds
RATTLE = 0.06  # Å
STEPS = 12  # of the relaxation
KINDS = [(doped, site) for doped in (False, True) for site in ("wetting", "non-wetting")]


def slab(doped: bool, site: str) -> Atoms:
    """The slab with its gold, before it is relaxed."""
    crystal = bulk("MgO", "rocksalt", a=LATTICE, cubic=True).repeat((2, 2, 2))
    atoms = crystal[crystal.positions[:, 2] < (LAYERS - 0.5) * LATTICE / 2]
    atoms.cell[2, 2] = HEIGHT
    if doped:
        lowest = [own.index for own in atoms if own.symbol == "Mg" and own.z < 0.1]
        atoms.symbols[[lowest[0], lowest[5]]] = "Al"
    top = atoms[(atoms.numbers == 8) & (atoms.positions[:, 2] > (LAYERS - 1.1) * LATTICE / 2)]
    middle = np.append(atoms.cell.lengths()[:2] / 2, (LAYERS - 1) * LATTICE / 2)
    oxygen = top.positions[np.linalg.norm(top.positions - middle, axis=1).argmin()]
    if site == "wetting":
        gold = oxygen + [(0.12, 0.11, 2.53), (2.0, 1.99, 2.53)]
    else:
        gold = oxygen + [(0.0, 0.0, 2.25), (0.0, 0.0, 4.78)]
    atoms += Atoms("Au2", gold)
    atoms.positions[:, 2] += 3.0
    atoms.info.update(doped=doped, site=site)
    return atoms


def make_frames(folder: Path, find: Find, seed: int) -> None:
    """Rattled minima; the minima themselves are the curve."""
    rng = np.random.default_rng(201)
    minima = []
    for kind in KINDS:
        atoms = slab(*kind)
        fixed = tuple(np.flatnonzero(atoms.positions[:, 2] < 4.0))
        minima.append(xtb.relaxed(atoms, xtb.GFN1, 0.1, STEPS, fixed))
    splits = {
        split: [xtb.rattled(own, RATTLE, rng) for own in minima for _ in range(size)]
        for split, size in SIZES.items()
    }
    store(folder, xtb.label_splits(splits | {"curve": minima}, workers=2))


def differences(frames: list[Atoms], energies: np.ndarray) -> dict[str, float]:
    """Lowest wetting minus lowest non-wetting energy in meV, by doping."""
    found = {}
    for doped, name in ((False, "undoped"), (True, "doped")):
        lowest = [
            min(e for own, e in zip(frames, energies, strict=True) if _is(own, doped, site))
            for site in ("wetting", "non-wetting")
        ]
        found[name] = 1e3 * float(lowest[0] - lowest[1])
    return found


def _is(frame: Atoms, doped: bool, site: str) -> bool:
    return bool(frame.info["doped"]) == doped and frame.info["site"] == site


def wetting(folder: Path) -> dict[str, float]:
    """What the labels say."""
    frames = frames_of(folder, "curve")
    return differences(frames, np.array([own.info["REF_energy"] for own in frames]))


def effects(folder: Path) -> list[Effect]:
    """Both differences, and what the Al changes."""
    found = wetting(folder)
    change = found["doped"] - found["undoped"]
    return [
        Effect("wetting minus non-wetting, undoped, meV", found["undoped"], 50.0),
        Effect("wetting minus non-wetting, doped, meV", found["doped"], 50.0),
        Effect("change by Al, meV", change, 100.0),
    ]


def probe(model, folder: Path) -> dict:
    """Differences by the model and by the labels."""
    frames = frames_of(folder, "curve")
    own = differences(frames, model.find(frames, False, "curve").energies)
    return {"wetting": own, "truth": wetting(folder)}


def answers() -> tuple[Answer, ...]:
    """Both differences."""
    words = "wetting minus non-wetting energy, {}, meV"
    return tuple(
        Answer(words.format(own), f"probe/wetting/{own}", f"probe/truth/{own}")
        for own in ("undoped", "doped")
    )


SLAB = (
    *BOXES,
    "--E0s=average",
    "--r_max=4.0",
    "--energy_weight=100000",  # per atom: energies of four minima are a few meV apart
    "--default_dtype=float64",
)
SYSTEMS = {
    "gold_mgo": System(
        "gold_mgo",
        ("test", "curve"),
        240,
        SLAB,
        make=make_frames,
        effects=effects,
        probe=probe,
        answers=answers(),
        published=(
            Published(
                "forces 153.1 (2G, short range), 66.0 (4G), 7.9 (LES), 5.7 meV/Å (CACE-SOG), "
                "DFT; wetting minus non-wetting 934.8 meV undoped, -66.9 meV doped",
                f"{SPOOKYNET}; arXiv:2412.15455; J. Chem. Phys. 164, 024109 (2026)",
            ),
        ),
        labels="GFN1-xTB, periodic",
        title="Au2 on MgO(001), doped with Al or not",
        physics="Al in the lowest layer, beyond the cutoff, turns the preferred site around.",
    ),
    "aumgo_4g": System(
        "aumgo_4g",
        ("test",),
        60,
        SLAB,
        valid="test",
        labels="DFT, published",
        title="Au2 on MgO(001), DFT",
        physics="15 frames: it loads and trains.",
    ),
}
CHECKS = (NotWorse("gold_mgo", "errors/test/forces"),)
