"""KF in water, in bulk and between vapour, and pure water: flexible SPC/Fw and ions, exact sums.

Charges are known, so that what they make of exact snapshots can be compared: the structure factor
of charges at the smallest k, which in water is its longitudinal polarisation, and the potential
across the surface of the solution.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from ase import Atoms
from mace_options import BOXES
from measures import BOND
from scipy.spatial.transform import Rotation

from . import born, exact, infrared, structure
from .checks import NotWorse, of_structure
from .exact import KCAL
from .system import Answer, Effect, Find, Motion, System, elements, frames_of, store

# Wu, Tepper, Voth (2006) for water; Joung, Cheatham, J. Phys. Chem. B 112, 9020 (2008), those for
# SPC/E: epsilon in kcal/mol, half of the distance of the minimum in Å.
OXYGEN = 0.1554253 * KCAL, 3.165492
IONS = {"K": (0.4297054, 1.593), "F": (0.0074005, 2.257)}
CHARGES = {"O": -0.82, "H": 0.41, "K": 1.0, "F": -1.0}
KELVIN, STEP, CUTOFF = 300.0, 0.8, 5.4  # K, fs, Å
HOT = 3.0, 6.0, 10.0  # times that temperature
SQUEEZED, SHAKEN, NEARER = 0.92, 0.14, 0.05  # lengths; Å of hydrogens, and to their own oxygen
GRID, SPACING = (4, 4, 3), np.array([2.78, 2.78, 3.7])  # sites of molecules and ions, Å
PAIRS_OF_IONS = 3
VACUUM = 20.0  # Å
OVER_EPSILON = 4.0 * np.pi * exact.COULOMB_CONSTANT  # V Å/e


def world() -> exact.World:
    """Water, potassium and fluoride."""
    sizes = {"O": OXYGEN} | {
        own: (epsilon * KCAL, 2.0 * half / 2.0 ** (1.0 / 6.0))
        for own, (epsilon, half) in IONS.items()
    }
    pairs = {}
    for a in sizes:
        for b in (own for own in sizes if own >= a):
            epsilon = np.sqrt(sizes[a][0] * sizes[b][0])
            sigma = 0.5 * (sizes[a][1] + sizes[b][1])
            pairs[a, b] = exact.lennard_jones(epsilon, sigma, CUTOFF)
    return exact.World(CHARGES, pairs, water=True)


def start(ions: int, vacuum: float, rng: np.random.Generator) -> Atoms:
    """Molecules turned at random on a grid, some replaced by ions."""
    sites = np.indices(GRID).reshape(3, -1).T * SPACING + 1.0
    sites = sites[rng.permutation(len(sites))]
    half = np.radians(113.24 / 2.0)
    arms = 1.012 * np.array([(np.sin(half), np.cos(half), 0), (-np.sin(half), np.cos(half), 0)])
    shape = np.vstack([np.zeros(3), arms])
    count = len(sites) - 2 * ions
    places = [site + Rotation.random(rng=rng).apply(shape) for site in sites[:count]]
    symbols = ["O", "H", "H"] * count + ["K", "F"] * ions
    cell = SPACING * GRID + [0.0, 0.0, vacuum]
    return Atoms(symbols, np.vstack([*places, sites[count:]]), cell=cell, pbc=True)


def solution(
    ions: int, vacuum: float, seed: int, frames: int, kelvin: float = KELVIN
) -> list[Atoms]:
    """Labelled snapshots, 80 fs apart."""
    own, rng = world(), np.random.default_rng(seed)
    atoms = start(ions, vacuum, rng)
    for step, count, friction in ((0.05, 400, 0.5), (0.3, 1000, 0.1), (STEP, 3000, 0.02)):
        atoms = exact.sample(own, atoms, kelvin, step, count, count, seed, friction)[-1]
    every = 100
    kept = exact.sample(own, atoms, kelvin, STEP, frames * every, every, seed + 1)
    return [exact.label(own, frame) for frame in kept]


def make_solution(folder: Path, find: Find, seed: int) -> None:
    """Bulk and interface, trained together and tested apart."""
    bulk = solution(PAIRS_OF_IONS, 0.0, 400, 150)
    interface = solution(PAIRS_OF_IONS, VACUUM, 500, 100)
    splits = {
        "train": bulk[:90] + interface[:60],
        "val": bulk[94:104:2] + interface[64:74:2],
        "test_bulk": bulk[-30:],
        "test_interface": interface[-24:],
        "snapshots": solution(PAIRS_OF_IONS, 0.0, 450, 1400),
    }
    store(folder, splits)


def squeezed(frame: Atoms, rng: np.random.Generator) -> Atoms:
    """A denser frame with hydrogens as they are where one is handed over, on this side of it."""
    atoms = frame.copy()
    atoms.set_cell(SQUEEZED * atoms.cell, scale_atoms=True)
    moved, hydrogens = atoms.copy(), np.flatnonzero(atoms.numbers == 1)
    moved.positions[hydrogens] += rng.normal(scale=SHAKEN, size=(len(hydrogens), 3))
    oxygens = np.flatnonzero(atoms.numbers == 8)
    distances = moved.get_all_distances(mic=True)[np.ix_(hydrogens, oxygens)]
    own = (np.arange(len(hydrogens)), np.arange(len(hydrogens)) // 2)
    others = distances.copy()
    others[own] = np.inf
    kept = hydrogens[distances[own] + NEARER < others.min(1)]
    atoms.positions[kept] = moved.positions[kept]
    return exact.label(world(), atoms)


def make_water(folder: Path, find: Find, seed: int) -> None:
    """Bulk water; to train also frames with closer contacts than those of dynamics.

    They count the less the larger their forces are.
    """
    frames, rng = solution(0, 0.0, 600, 160), np.random.default_rng(620)
    close = [own for times in HOT for own in solution(0, 0.0, 610, 10, times * KELVIN)]
    close += [squeezed(own, rng) for own in frames[:90:9]]
    square = np.mean([own.arrays["REF_forces"] ** 2 for own in frames[:90]])
    for own in close:
        own.info["config_weight"] = float(square / np.mean(own.arrays["REF_forces"] ** 2))
    splits = {"train": close + frames[:90], "val": frames[95:105], "test": frames[120:]}
    store(folder, splits | {"snapshots": frames[110:]})


def potential(frames: list[Atoms], charges: list[np.ndarray]) -> float:
    """Mean potential of the film over that of the vapour, in V, of charges in e."""
    drops = []
    for frame, own in zip(frames, charges, strict=True):
        z = frame.positions[:, 2]
        middle = np.average(z, weights=frame.get_masses())
        area = np.prod(frame.cell.lengths()[:2])
        drops.append(-OVER_EPSILON * own @ np.abs(z - middle) / (2.0 * area))
    return float(np.mean(drops))


def effects(folder: Path) -> list[Effect]:
    """The potential, and how far charges screen each other."""
    frames = frames_of(folder, "test_interface")
    truth = potential(frames, [own.arrays["true_charges"] for own in frames])
    shown = Effect("potential of the film over the vapour, V", truth, 0.1)
    return [shown, *structure.effects(folder, KELVIN)]


def probe(model, folder: Path) -> dict:
    """Structure factors of the bulk, and the potential across the interface."""
    frames = frames_of(folder, "test_interface")
    exact_charges = [own.arrays["true_charges"] for own in frames]
    found = {"potential_truth": potential(frames, exact_charges)}
    latent = model.find(frames, False, "potential").charges
    if latent is not None:
        turn = np.sign(sum(a[:, 0] @ b for a, b in zip(latent, exact_charges, strict=True)))
        found["potential"] = potential(frames, [turn * own[:, 0] for own in latent])
    return found | structure.probe(model, folder)


def probe_water(model, folder: Path) -> dict:
    """Structure factors, and Born charges of two frames."""
    found = born.compare(model, frames_of(folder, "test")[:2])
    return structure.probe(model, folder) | ({"born": found} if found else {})


LINES = tuple(
    Answer(
        f"infrared, {name} of water, 1/cm",
        f"dynamics/infrared/model/{name}",
        f"dynamics/infrared/truth/{name}",
        factor=1.02,
    )
    for name in infrared.LINES
)
SYSTEMS = {
    "kf_water": System(
        "kf_water",
        ("test_bulk", "test_interface"),
        60,
        (*BOXES, elements(1, 8, 9, 19)),
        make=make_solution,
        recipe=3,
        effects=effects,
        probe=probe,
        answers=(
            Answer(
                "potential of the film over the vapour, V",
                "probe/potential",
                "probe/potential_truth",
            ),
            *structure.ANSWERS,
        ),
        labels="exact sums",
        title="KF in water, bulk and surface",
        physics="Ions and molecules screen at small k; molecules at the surface are oriented.",
    ),
    "spcfw_water": System(
        "spcfw_water",
        ("test",),
        60,
        (*BOXES, elements(1, 8)),
        make=make_water,
        recipe=5,
        effects=partial(structure.effects, kelvin=KELVIN),
        probe=probe_water,
        bond=BOND,
        answers=(*structure.ANSWERS, born.answer("O", "water"), *LINES),
        labels="exact sums",
        motion=Motion(KELVIN, 0.5, ("O", "O"), world(), infrared=True, share=0.25),
        title="water, SPC/Fw",
        physics="Longitudinal polarisation at small k is suppressed by the dielectric constant; "
        "Born charges are the fixed charges; infrared lines.",
    ),
}
CHECKS = (
    NotWorse("kf_water", "errors/test_bulk/forces"),
    NotWorse("kf_water", "errors/test_interface/forces"),
    NotWorse("spcfw_water", "errors/test/forces"),
    *of_structure("kf_water", motion=False),
)
