"""Can a sum of Gaussians learn how an interaction decays, given the true charges?

Two rigid fragments in a box of 30 Å interact by 1/r, a Yukawa law, 1/r^4 or 1/r^6 between all
atoms and images, summed exactly in float64. Kernels are fitted by L-BFGS to the interaction
energies of frames with gaps of 3.5 to 9 Å between the fragments, relative to the size of each,
and tested at gaps of 9 to 12.5 Å. There is no network: what is tested is the kernel alone,
beside the fixed Ewald kernel. Only the scale of the energies, which is that of the charges, is
free for all kernels, and found by least squares.

Prints a table of errors over the spread of the energies, writes it as JSON and draws the kernels.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sog_longrange import Ewald, SumOfGaussians, coulomb, plots, power_law, yukawa
from sog_longrange.kernels.initial import InitialPotential
from sog_longrange.kernels.kernel import Kernel
from sog_longrange.units import COULOMB_CONSTANT

BOX = 30.0
SPLIT = 0.35  # of the reference's Ewald sum, 1/Å; results do not depend on it
REAL_CUTOFF = 6.2 / SPLIT
KERNEL_CUTOFF = 6.1  # 1/Å, where Gaussians of width 1 Å are below 1e-8
TRAINED, FARTHER = (3.5, 9.0), (9.0, 12.5)
FIRST = [[0, 0, 0], [1.9, 0, 0], [-0.6, 1.8, 0], [-0.6, -0.9, 1.6]]
SECOND = [[0, 0, 0], [0, 0, 2.0], [1.7, 0.9, -0.5]]
NEUTRAL = [0.4, 0.3, 0.2, 0.1, -0.6, -0.2, -0.2]
KAPPA = 0.2


@dataclass(frozen=True)
class Law:
    """An interaction, split for an Ewald sum into parts that converge in real and Fourier space.

    `near` is what is left of `bare` when a smooth part is taken off, `fourier` and `zero` the
    transform of that part and its value at k = 0.
    """

    title: str
    strength: float
    charges: list[float]
    initial: InitialPotential
    zero_mode: bool
    bare: Callable[[Tensor], Tensor]
    near: Callable[[Tensor], Tensor]
    fourier: Callable[[Tensor], Tensor]
    zero: float


def _yukawa_near(r: Tensor) -> Tensor:
    b = KAPPA / (2.0 * SPLIT)
    both = (torch.exp(s * KAPPA * r) * torch.erfc(SPLIT * r + s * b) for s in (1.0, -1.0))
    return 0.5 * sum(both) / r


def _fourth_fourier(k2: Tensor) -> Tensor:
    k = k2.sqrt()
    inside = torch.exp(-k2 / (4.0 * SPLIT**2)) * 2.0 * SPLIT
    return math.pi**1.5 * (inside - k * math.pi**0.5 * torch.erfc(k / (2.0 * SPLIT)))


def _sixth_fourier(k2: Tensor) -> Tensor:
    b2 = k2 / (4.0 * SPLIT**2)
    tail = 2.0 * b2**1.5 * math.pi**0.5 * torch.erfc(b2.sqrt())
    return math.pi**1.5 * SPLIT**3 / 3.0 * ((1.0 - 2.0 * b2) * torch.exp(-b2) + tail)


_DECAY = math.exp(-((KAPPA / (2.0 * SPLIT)) ** 2))
LAWS = {
    "coulomb": Law(
        "1/r",
        COULOMB_CONSTANT,
        NEUTRAL,
        coulomb(),
        False,
        lambda r: 1.0 / r,
        lambda r: torch.erfc(SPLIT * r) / r,
        lambda k2: 4.0 * math.pi * torch.exp(-k2 / (4.0 * SPLIT**2)) / k2,
        -math.pi / SPLIT**2,  # with a neutralising background
    ),
    "yukawa": Law(
        "exp(-0.2 r)/r",
        COULOMB_CONSTANT,
        NEUTRAL,
        yukawa(0.1),  # half of the screening that is to be learned
        True,
        lambda r: torch.exp(-KAPPA * r) / r,
        _yukawa_near,
        lambda k2: 4.0 * math.pi * _DECAY * torch.exp(-k2 / (4.0 * SPLIT**2)) / (k2 + KAPPA**2),
        4.0 * math.pi * _DECAY / KAPPA**2,
    ),
    "fourth": Law(
        "1/r⁴",
        -60.0,
        [1.2, 1.0, 0.8, 0.6, 1.1, 0.9, 0.9],
        power_law(4.0),
        True,
        lambda r: r**-4,
        lambda r: (1.0 + (SPLIT * r) ** 2) * torch.exp(-((SPLIT * r) ** 2)) / r**4,
        _fourth_fourier,
        2.0 * math.pi**1.5 * SPLIT,
    ),
    "sixth": Law(
        "1/r⁶",
        -150.0,
        [1.8, 1.6, 1.6, 1.3, 1.7, 1.4, 1.4],
        power_law(6.0),
        True,
        lambda r: r**-6,
        lambda r: (
            (1.0 + (SPLIT * r) ** 2 + 0.5 * (SPLIT * r) ** 4)
            * torch.exp(-((SPLIT * r) ** 2))
            / r**6
        ),
        _sixth_fourier,
        math.pi**1.5 * SPLIT**3 / 3.0,
    ),
}


class Frames(NamedTuple):
    """Frames of one law and their interaction energies in eV.

    `shells` (n_frames, n_shells) is Re S_1(k) S_2(k)^* of the two fragments, summed over the
    wave vectors of each length; `k2` holds the squares of these lengths in 1/Å^2, from 0.
    """

    positions: Tensor
    gaps: Tensor
    energies: Tensor
    shells: Tensor
    k2: Tensor


def turned(rng: np.random.Generator, places: list[list[float]]) -> np.ndarray:
    """Return a fragment about its centre, in a random orientation."""
    matrix, upper = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix *= np.sign(np.diag(upper))
    matrix *= np.linalg.det(matrix)
    fragment = np.array(places, dtype=float)
    return (fragment - fragment.mean(0)) @ matrix.T


def dimer(rng: np.random.Generator, gap: float) -> np.ndarray:
    """Two fragments whose nearest atoms, images included, are `gap` apart."""
    while True:
        first, second = turned(rng, FIRST), turned(rng, SECOND)
        way = rng.normal(size=3)
        way /= np.linalg.norm(way)
        near, far = 0.0, 40.0
        for _ in range(60):
            middle = 0.5 * (near + far)
            distance = np.linalg.norm(first[:, None] - second - middle * way, axis=-1).min()
            near, far = (near, middle) if distance > gap else (middle, far)
        delta = first[:, None] - second - far * way
        delta -= BOX * np.round(delta / BOX)
        if abs(np.linalg.norm(delta, axis=-1).min() - gap) < 1e-6:
            return np.concatenate([first, second + far * way])


def shell_sums(positions: Tensor, charges: Tensor) -> tuple[Tensor, Tensor]:
    """Sum Re S_1 S_2^* over all wave vectors of each length, and return the squared lengths."""
    largest = int(KERNEL_CUTOFF * BOX / (2.0 * math.pi))
    axis = torch.arange(-largest, largest + 1)
    modes = torch.cartesian_prod(torch.arange(largest + 1), axis, axis)
    modes = modes[modes.square().sum(1) <= largest**2]
    lengths, shell = modes.square().sum(1).unique(return_inverse=True)
    weights = torch.where(modes[:, 0] == 0, 1.0, 2.0).double()  # -k is not listed
    k = 2.0 * math.pi / BOX * modes.double()
    sums = torch.zeros(len(positions), len(lengths), dtype=torch.float64)
    for frame, place in enumerate(positions):
        waves = charges[:, None] * torch.exp(1j * (place @ k.T))
        overlap = (waves[:4].sum(0) * waves[4:].sum(0).conj()).real
        sums[frame].index_add_(0, shell, weights * overlap)
    return sums, (2.0 * math.pi / BOX) ** 2 * lengths.double()


def exact_energies(law: Law, positions: Tensor, shells: Tensor, k2: Tensor) -> Tensor:
    """Energies between the two fragments and all images, in eV, by an Ewald sum."""
    charges = torch.tensor(law.charges, dtype=torch.float64)
    images = BOX * torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=3))).double()
    delta = positions[:, :4, None, None] - positions[:, None, 4:, None] + images
    r = delta.norm(dim=-1)
    near = torch.where(r < REAL_CUTOFF, law.near(r), 0.0).sum(-1)
    energies = torch.einsum("i,fij,j->f", charges[:4], near, charges[4:])
    smooth = torch.cat([torch.tensor([law.zero], dtype=torch.float64), law.fourier(k2[1:])])
    return law.strength * (energies + shells @ smooth / BOX**3)


def make_frames(law: Law, gaps: tuple[float, float], count: int, seed: int) -> Frames:
    """Frames with random gaps and orientations, and their exact energies."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.uniform(*gaps, count))
    positions = torch.tensor(np.stack([dimer(rng, gap) for gap in chosen]))
    shells, k2 = shell_sums(positions, torch.tensor(law.charges, dtype=torch.float64))
    energies = exact_energies(law, positions, shells, k2)
    return Frames(positions, torch.tensor(chosen), energies, shells, k2)


def kernel_energies(kernel: Kernel, frames: Frames) -> Tensor:
    """Interaction energies by the kernel, in eV."""
    first = 0 if kernel.zero_mode[0] else 1
    return frames.shells[:, first:] @ kernel.fourier(frames.k2[first:])[0] / BOX**3


def best_scale(raw: Tensor, energies: Tensor) -> Tensor:
    """Scale that makes relative errors of energies smallest."""
    ratio = raw / energies
    return ratio.sum() / ratio.square().sum()


def fit(kernel: SumOfGaussians, frames: Frames, steps: int) -> None:
    """Fit amplitudes and widths to relative energies, their scale left free."""
    optimizer = torch.optim.LBFGS(
        list(kernel.parameters()),
        max_iter=steps,
        history_size=50,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-14,
        tolerance_change=1e-16,
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        raw = kernel_energies(kernel, frames)
        value = (best_scale(raw, frames.energies) * raw / frames.energies - 1.0).square().mean()
        value.backward()
        return value

    optimizer.step(loss)


def relative_error(kernel: Kernel, trained: Frames, tested: Frames) -> float:
    """RMSE over the standard deviation of the energies, with the scale from `trained`."""
    with torch.no_grad():
        scale = best_scale(kernel_energies(kernel, trained), trained.energies)
        error = scale * kernel_energies(kernel, tested) - tested.energies
        return float(error.square().mean().sqrt() / tested.energies.std(unbiased=False))


class Result(NamedTuple):
    """Errors over the spread of energies by kernel and test, and the fitted kernel in eV."""

    errors: dict[str, dict[str, float]]
    kernel: SumOfGaussians
    scale: float


def run(
    law: Law, *, steps: int = 500, seed: int = 0, initial: InitialPotential | None = None
) -> Result:
    """Fit a kernel to one law and measure it beside its initial potential and the Ewald kernel."""
    train = make_frames(law, TRAINED, 120, seed)
    tests = {
        "within": make_frames(law, TRAINED, 40, seed + 1),
        "beyond": make_frames(law, FARTHER, 40, seed + 2),
    }
    kernel = SumOfGaussians(
        law.initial if initial is None else initial,
        num_gaussians=12,
        min_width=1.0,
        max_width=20.0,  # wider ones are constant in the box
        zero_mode=law.zero_mode,
    ).double()
    errors = {}
    for name, candidate in (("Ewald", Ewald(1.0)), ("start", kernel)):
        errors[name] = {key: relative_error(candidate, train, test) for key, test in tests.items()}
    fit(kernel, train, steps)
    errors["fitted"] = {key: relative_error(kernel, train, test) for key, test in tests.items()}
    with torch.no_grad():
        scale = float(best_scale(kernel_energies(kernel, train), train.energies))
    return Result(errors, kernel, scale)


def table(results: dict[str, Result]) -> str:
    """Markdown table of the errors, in per cent of the spread."""
    lines = ["| law | gaps | Ewald | start | fitted |", "|---|---|---|---|---|"]
    for law, result in results.items():
        for test, label in (("within", "3.5 to 9 Å"), ("beyond", "9 to 12.5 Å")):
            cells = [
                f"{100.0 * result.errors[k][test]:.3g} %" for k in ("Ewald", "start", "fitted")
            ]
            lines.append(f"| {LAWS[law].title} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def comparison(law: Law, kernel: Kernel, scale: float) -> dict[str, plots.Law]:
    """Return the law to draw a kernel beside, by name."""
    if kernel.zero_mode[0]:
        return {law.title: lambda r: law.strength * law.bare(r)}
    # Without k = 0 a constant of the kernel is not seen by any energy.
    r = torch.linspace(*TRAINED, 100, dtype=torch.float64)
    with torch.no_grad():
        constant = (law.strength * law.bare(r) - scale * kernel.radial(r**2)[0]).mean()
    return {f"{law.title} less a constant": lambda r: law.strength * law.bare(r) - constant}


def draw(results: dict[str, Result], path: Path) -> None:
    """Draw the fitted kernels over the laws, one panel each."""
    with plots.house_style():
        figure, axes = plots.panels(len(results))
        for ax, (name, result) in zip(axes, results.items(), strict=True):
            laws = comparison(LAWS[name], result.kernel, result.scale)
            plots.draw_kernel(result.kernel, ax=ax, potentials=laws, scale=result.scale)
            ax.axvspan(*TRAINED, color=plots.SHADE, lw=0, zorder=-2)
            ax.set_title(LAWS[name].title, loc="left", fontweight="bold")
        axes[-1].text(TRAINED[0], 0.02, " trained", transform=axes[-1].get_xaxis_transform())
        plots.save_figure(figure, path)


def main() -> None:
    """Run all laws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", metavar="FOLDER", type=Path, default=Path("benchmark_output"))
    parser.add_argument("--steps", type=int, default=500, help="of L-BFGS")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    results = {name: run(law, steps=args.steps, seed=args.seed) for name, law in LAWS.items()}
    print(table(results))
    errors = {name: result.errors for name, result in results.items()}
    (args.output / "decay_laws.json").write_text(json.dumps(errors, indent=1))
    draw(results, args.output / "decay_laws.png")


if __name__ == "__main__":
    main()
