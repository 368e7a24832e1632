"""Charge structure factors at the smallest wave vectors, of true and of latent charges."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from ase import Atoms, units

from sog_longrange.units import COULOMB_CONSTANT

from .system import Answer, Effect, frames_of

SHELLS = 3
ALIKE = 1.01  # lengths of wave vectors of one shell differ by less than this factor
BLOCKS = 5


def shells(cell: np.ndarray, count: int = SHELLS) -> list[np.ndarray]:
    """Wave vectors of the shortest lengths, one of each opposite pair, by length.

    Edges that are nearly alike make one shell.

    Parameters
    ----------
    cell : edges of the box, shape (3,), in Å.
    count : number of lengths.
    """
    grid = np.indices((7, 7, 7)).reshape(3, -1).T - 3
    waves = 2.0 * np.pi * grid[len(grid) // 2 + 1 :] / cell
    lengths, starts = np.linalg.norm(waves, axis=1), [0.0]
    for own in np.sort(lengths):
        starts += [own] if own > ALIKE * starts[-1] else []
    near = [(lengths >= own) & (lengths <= ALIKE * own) for own in starts[1 : count + 1]]
    return [waves[own] for own in near]


def charge_structure(frames: list[Atoms], charges: list[np.ndarray]) -> np.ndarray:
    """S(k) = <|sum q exp(i k r)|^2> / N by frame and shell, in e^2.

    Parameters
    ----------
    frames, charges : of one box; charges in e, shape (n_atoms,) each.

    Returns
    -------
    ndarray, shape (n_frames, n_shells)
    """
    waves = shells(frames[0].cell.lengths())
    found = []
    for frame, own in zip(frames, charges, strict=True):
        sums = [np.exp(1j * frame.positions @ k.T).T @ own for k in waves]
        found.append([np.mean(np.abs(one) ** 2) / len(frame) for one in sums])
    return np.array(found)


def block_error(values: np.ndarray) -> np.ndarray:
    """Standard error of the mean over frames, of five blocks, relative to the mean."""
    return _spread(_blocks(values)) / values.mean(0)


def ratio_error(values: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Standard error of the ratio of two means over the same frames, of five blocks, relative.

    What both owe to the frames that happen to be sampled, such as ions that stay paired for long,
    cancels in it.
    """
    ratios = _blocks(values) / _blocks(exact)
    return _spread(ratios) / ratios.mean(0)


def _blocks(values: np.ndarray) -> np.ndarray:
    return np.array([part.mean(0) for part in np.array_split(values, BLOCKS)])


def _spread(blocks: np.ndarray) -> np.ndarray:
    found: np.ndarray = blocks.std(0, ddof=1) / np.sqrt(len(blocks))
    return found


def screening(factor: float, frame: Atoms, kelvin: float) -> float:
    """1 - 1/eps(k) at the smallest k: 1 where charges screen each other wholly.

    Parameters
    ----------
    factor : charge structure factor at the smallest k, in e^2.
    frame : for number of atoms, volume and k.
    kelvin : temperature.

    Notes
    -----
    Linear response: <|sum q exp(i k r)|^2> / (eps_0 V k^2 k_B T).
    """
    k = np.linalg.norm(shells(frame.cell.lengths(), 1)[0], axis=1).mean()
    strength = 4.0 * math.pi * COULOMB_CONSTANT * len(frame) / frame.get_volume()
    return float(strength * factor / (k**2 * units.kB * kelvin))


def effects(folder: Path, kelvin: float = 0.0) -> list[Effect]:
    """How far charges screen each other, with the response where a temperature is given.

    S of uncorrelated charges is their mean square. In a liquid of neutral molecules S / k^2 is
    their longitudinal polarisation, which the dielectric constant suppresses.
    """
    frames = frames_of(folder, "snapshots")
    charges = [own.arrays["true_charges"] for own in frames]
    found = float(charge_structure(frames, charges).mean(0)[0])
    free = float(np.mean(charges[0] ** 2))
    shown = [Effect("charge fluctuations suppressed at the smallest k, times", free / found, 2.0)]
    if kelvin:
        response = screening(found, frames[0], kelvin)
        shown.append(Effect("1 - 1/ε(k) at the smallest k", response, 0.5))
    return shown


def compare(model, frames: list[Atoms]) -> dict:
    """Structure factors of latent and of true charges on exact frames.

    Parameters
    ----------
    model : of a host.
    frames : with `true_charges`.

    Returns
    -------
    dict
        Means by shell from the smallest k: of the model's charges (`latent`, where it has any)
        and of the true ones, the block error of the latter and that of their ratio.
    """
    exact = charge_structure(frames, [own.arrays["true_charges"] for own in frames])
    result = {"truth": names(exact.mean(0)), "block_error": names(block_error(exact))}
    charges = model.find(frames, False, "S(k)").charges
    if charges is not None:
        latent = charge_structure(frames, [own[:, 0] for own in charges])
        result |= {
            "latent": names(latent.mean(0)),
            "ratio_error": names(ratio_error(latent, exact)),
        }
    return result


def names(values: np.ndarray) -> dict[str, float]:
    """Numbers by shell."""
    return {f"k{number}": float(own) for number, own in enumerate(values, 1)}


def probe(model, folder: Path, split: str = "snapshots") -> dict:
    """Structure factors on exact snapshots."""
    return {"structure": compare(model, frames_of(folder, split))}


ANSWERS = tuple(
    Answer(
        f"charge structure factor, smallest k number {shell}, e²",
        f"probe/structure/latent/k{shell}",
        f"probe/structure/truth/k{shell}",
        factor=1.1,
    )
    for shell in range(1, SHELLS + 1)
)
