"""Fit the coefficients of the cost model to this machine, and write them into the package.

Times the energy and the forces of single structures by each sum and engine, all in turns, and
keeps the smallest time of each. Coefficients are the non-negative ones with the smallest squares
of relative errors. What is printed first are the coefficients that the package had before.

    python -m nox -s fit_costs                      # about ten minutes
    python -m nox -s fit_costs -- --quick           # two minutes
    python -m nox -s fit_costs -- --device cuda     # the tables of GPUs, beside those of CPUs
    python benchmarks/fit_costs.py --device cuda --quick --save cuda.json    # without nox
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import random
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from fit_costs_report import write_module
from scipy.optimize import nnls
from speed_report import describe_machine, find_versions
from speed_systems import System, make_system
from timing import seconds_of

from sog_longrange import LongRangeEnergy, SumOfGaussians
from sog_longrange.geometry import reduced_cell
from sog_longrange.summation import dispatch
from sog_longrange.summation.cost_coefficients import COEFFICIENTS, MACHINES
from sog_longrange.summation.cost_model import is_possible, predict_memory, predict_time
from sog_longrange.summation.cost_terms import Size, table_key, terms
from sog_longrange.summation.engines.select import find_engine
from sog_longrange.summation.resolution import Resolution

OUT = Path(__file__).parents[1] / "sog_longrange" / "summation" / "cost_coefficients.py"
MOST_MEMORY = {"cpu": 4e9, "cuda": 16e9}  # bytes of one evaluation
KINDS = ("dense", "pairs", "mesh", "finufft")
FINEST = {"float32": 1e-5, "float64": 1e-12}  # tolerances that a dtype can keep
FULL = {
    "sizes": [8, 32, 128, 512, 2000, 8000, 30_000],
    "min_widths": [0.6, 1.0, 1.6],
    "tolerances": [1e-3, 1e-4, 1e-5, 1e-7],
    "seconds": 0.3,
    "most": 2.0,
}
QUICK = {
    "sizes": [8, 64, 500, 4000, 30_000],
    "min_widths": [0.7, 1.4],
    "tolerances": [1e-3, 1e-5, 1e-7],
    "seconds": 0.1,
    "most": 0.3,
}
# Until a device has coefficients of its own, what is predicted are times of a CPU.
LARGE = {"sizes": [100_000, 300_000], "most": 20.0}
"""What GPUs add to these."""
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)

Key = tuple[str, str, str, str]
Tables = dict[Key, dict[str, float]]


class Place(NamedTuple):
    """A structure and the accuracy of its sums."""

    n_atoms: int
    min_width: float
    tolerance: float
    channels: int
    dtype: str


class Candidate(NamedTuple):
    """A sum and an engine, by the names of the package's options."""

    kind: str
    engine: str


class Timing(NamedTuple):
    """Smallest time, in ms, of a candidate at a place."""

    place: Place
    candidate: Candidate
    size: Size
    ms: float


Clock = Callable[[Place, dict[Candidate, Size]], dict[Candidate, float]]


def make_places(options: argparse.Namespace) -> list[Place]:
    """All combinations of what was asked for, with tolerances that the dtype can keep.

    Shuffled, so that what else a machine does for a while falls on structures of all sizes.
    """
    axes = (options.sizes, options.min_widths, options.tolerances, options.channels)
    places = [Place(*own) for own in itertools.product(*axes, options.dtypes)]
    random.Random(0).shuffle(places)  # noqa: S311
    return [place for place in places if place.tolerance >= FINEST[place.dtype]]


def make_candidates(device: str) -> list[Candidate]:
    """Sums without the engine of a device and, where it is installed and has a part in it, with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = find_engine("auto", torch.device(device)).name != "torch"
    plain = [Candidate(kind, "none") for kind in KINDS]
    engines = [Candidate(kind, "auto") for kind in KINDS if compiled and is_compiled(kind, device)]
    return plain + engines


def is_compiled(kind: str, device: str) -> bool:
    """Tell whether a sum has a table of its own for an engine."""
    size = Size(1, 1, (1.0, 1.0, 1.0), Resolution.of(1.0, 1e-4), torch.float32, False, device)
    return table_key(kind, size) != table_key(kind, size._replace(compiled=True))


def size_at(place: Place, candidate: Candidate, cell: torch.Tensor, device: str) -> Size:
    """Size of a structure as the package sees it; `cell` has the shape (1, 3, 3)."""
    lengths = torch.linalg.vector_norm(reduced_cell(cell, [True])[0], dim=-1).tolist()
    resolution = Resolution.of(place.min_width, place.tolerance)
    how = (resolution, getattr(torch, place.dtype), candidate.engine != "none", device)
    return Size(place.n_atoms, place.channels, lengths, *how)


def is_feasible(kind: str, size: Size, most: float) -> bool:
    """Tell whether an evaluation is possible and takes less than `most` s, as predicted."""
    fits = is_possible(kind, size) and predict_memory(kind, size) < MOST_MEMORY[size.device]
    return fits and predict_time(kind, size) < 1000.0 * most


def measure(
    places: list[Place],
    candidates: list[Candidate],
    clock: Clock,
    *,
    device: str = "cpu",
    most: float = 2.0,
) -> Iterator[list[Timing]]:
    """Time what is feasible, place by place; a place without anything yields an empty list."""
    for place in places:
        cell = make_system(str(place.n_atoms), 1).cell
        sizes = {own: size_at(place, own, cell, device) for own in candidates}
        sizes = {own: size for own, size in sizes.items() if is_feasible(own.kind, size, most)}
        found = clock(place, sizes)
        yield [Timing(place, own, sizes[own], ms) for own, ms in found.items()]


class Stopwatch:
    """Times candidates in turns and keeps the smallest time of each.

    Parameters
    ----------
    device : type of the device.
    seconds : spent on each candidate, about; each has two turns at least.
    repetitions : turns at most.
    of_processor : time that all threads spend on processors, instead of that on the wall.
    """

    def __init__(
        self, device: str, seconds: float, repetitions: int = 15, *, of_processor: bool = False
    ) -> None:
        self.device, self.seconds, self.repetitions = device, seconds, repetitions
        self.of_processor = of_processor

    def __call__(self, place: Place, sizes: dict[Candidate, Size]) -> dict[Candidate, float]:
        """Smallest times in ms."""
        system = make_system(str(place.n_atoms), place.channels)
        system = system.to(getattr(torch, place.dtype), self.device)
        calls = {own: make_call(system, place, own) for own in sizes}
        for call in calls.values():
            call()
        times: dict[Candidate, list[float]] = {own: [] for own in calls}
        for turn in range(self.repetitions):
            for own, call in calls.items():
                if turn < 2 or sum(times[own]) < self.seconds:
                    wall, processor = seconds_of(call, self.device)
                    times[own].append(processor if self.of_processor else wall)
        gc.collect()
        return {own: 1000.0 * min(found) for own, found in times.items()}


def make_call(system: System, place: Place, candidate: Candidate) -> Callable[[], object]:
    """Energy, forces and potential of a system by one sum, as a function without arguments."""
    is_open = candidate.kind == "pairs"
    kernel = SumOfGaussians(min_width=place.min_width).to(system.cell).requires_grad_(False)
    how = {"backend": "auto" if is_open else candidate.kind, "engine": candidate.engine}
    model = LongRangeEnergy(kernel, tolerance=place.tolerance, **how)
    charges = system.charges.clone().requires_grad_()
    positions = system.positions.clone().requires_grad_()
    pbc = system.pbc & (not is_open)

    def call() -> object:
        energy = model(charges, positions, system.cell, pbc).energy
        return torch.autograd.grad(energy.sum(), (positions, charges))

    return call


def fit(timings: list[Timing], before: Tables) -> Tables:
    """Non-negative coefficients of each table with the smallest squares of relative errors."""
    groups: dict[Key, list[Timing]] = {}
    for timing in timings:
        groups.setdefault(table_key(timing.candidate.kind, timing.size), []).append(timing)
    return {key: _fit_table(own, before.get(key, {})) for key, own in groups.items()}


def _fit_table(timings: list[Timing], before: dict[str, float]) -> dict[str, float]:
    counts = [terms(timing.candidate.kind, timing.size) for timing in timings]
    names = list(counts[0])
    rows = np.array([[own[name] for name in names] for own in counts])
    rows /= np.array([[timing.ms] for timing in timings])
    scales = np.linalg.norm(rows, axis=0)
    seen = scales > 0.0
    found, _ = nnls(rows[:, seen] / scales[seen], np.ones(len(rows)))
    # A term that no structure had keeps its coefficient.
    values = np.array([before.get(name, 0.0) for name in names])
    values[seen] = found / scales[seen]
    return {name: float(f"{value:.3g}") for name, value in zip(names, values, strict=True)}


def predict(timing: Timing, tables: Tables) -> float:
    """Predicted time in ms."""
    kind, size = timing.candidate.kind, timing.size
    own = tables[table_key(kind, size)]
    return sum(own[name] * count for name, count in terms(kind, size).items())


def quality(timings: list[Timing], tables: Tables) -> dict[Key, list[float]]:
    """Quantiles of measured over predicted times, for each table."""
    ratios: dict[Key, list[float]] = {}
    for timing in timings:
        key = table_key(timing.candidate.kind, timing.size)
        if key in tables:
            ratios.setdefault(key, []).append(timing.ms / predict(timing, tables))
    return {key: np.quantile(own, QUANTILES).tolist() for key, own in ratios.items()}


def losses(timings: list[Timing], tables: Tables) -> list[tuple[float, Place, str]]:
    """Time of the sum that is predicted to be fastest over that of the fastest, sorted.

    Once for each place with and without an engine; pairs have no rival.
    """
    rivals: dict[tuple[Place, str], list[Timing]] = {}
    engines = {timing.candidate.engine for timing in timings}
    candidates = {timing.candidate for timing in timings}
    for timing in timings:
        place, (kind, engine) = timing.place, timing.candidate
        if kind == "pairs" or table_key(kind, timing.size) not in tables:
            continue
        for group in engines:
            # What has no code of an engine is the same with it.
            if group == engine or Candidate(kind, group) not in candidates:
                rivals.setdefault((place, group), []).append(timing)
    found = []
    for (place, engine), own in rivals.items():
        chosen = min(own, key=lambda timing: predict(timing, tables))
        best = min(own, key=lambda timing: timing.ms)
        note = f"engine {engine}, {chosen.candidate.kind} instead of {best.candidate.kind}"
        found.append((chosen.ms / best.ms, place, note))
    return sorted(found, key=lambda own: own[0])


def report(title: str, timings: list[Timing], tables: Tables) -> str:
    """What tables predict of timings, and what the choice by them loses."""
    lines = [f"{title}: measured / predicted, smallest, 10 %, median, 90 %, largest"]
    for key, own in sorted(quality(timings, tables).items()):
        lines.append(f"  {' '.join(key):32}" + "".join(f"{ratio:7.2f}" for ratio in own))
    if lost := losses(timings, tables):
        ratios = [own[0] for own in lost]
        nines = float(np.quantile(ratios, 0.9))
        mean = statistics.geometric_mean(ratios)
        lines.append(
            f"  auto over the fastest: median {statistics.median(ratios):.2f}, geometric mean "
            f"{mean:.3f}, 90 % {nines:.2f}, worst {ratios[-1]:.2f}"
        )
        lines += [f"    {ratio:.2f} for {place}, {note}" for ratio, place, note in lost[-3:]]
    return "\n".join(lines)


def describe(device: str) -> str:
    """Machine and versions, in one line."""
    machine, versions = describe_machine(device), find_versions()
    name = machine["gpu"] if device == "cuda" else machine["cpu"]
    names = ("torch", "numba", "finufft") if device == "cpu" else ("torch", "cufinufft")
    libraries = [f"{own} {versions[own]}" for own in names if versions[own]]
    threads = machine["threads"]
    return ", ".join([str(name), f"{threads} thread{'s'[: threads != 1]}", *libraries])


def save(timings: list[Timing], path: Path) -> None:
    """Keep timings in a JSON file."""
    rows = [(*timing.place, *timing.candidate, timing.ms) for timing in timings]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


def load(paths: list[Path], device: str) -> list[Timing]:
    """Timings of files that :func:`save` wrote, the smallest of all."""
    smallest: dict[tuple[Place, Candidate], float] = {}
    for path in paths:
        for *place, kind, engine, ms in json.loads(path.read_text(encoding="utf-8")):
            key = Place(*place), Candidate(kind, engine)
            smallest[key] = min(ms, smallest.get(key, ms))
    timings = []
    for (place, candidate), ms in smallest.items():
        cell = make_system(str(place.n_atoms), 1).cell
        timings.append(Timing(place, candidate, size_at(place, candidate, cell, device), ms))
    return timings


def run(options: argparse.Namespace) -> list[Timing]:
    """Measure with a progress bar; what an interruption leaves is returned."""
    from tqdm import tqdm

    warnings.simplefilter("ignore")
    # Otherwise large structures are summed on a padded grid.
    dispatch.MOST_PAIRED = sys.maxsize
    places, timings = make_places(options), []
    clock = Stopwatch(options.device, options.seconds, of_processor=options.of_processor)
    candidates = make_candidates(options.device)
    found = measure(places, candidates, clock, device=options.device, most=options.most)
    try:
        for own in tqdm(found, total=len(places), unit="structure"):
            timings += own
    except KeyboardInterrupt:
        print("interrupted; fitting what there is", file=sys.stderr)
    return timings


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line; `--quick` changes the defaults of others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sizes", type=int, nargs="+", help="atoms of a structure")
    add("--min-widths", type=float, nargs="+", help="in Å")
    add("--tolerances", type=float, nargs="+")
    add("--channels", type=int, nargs="+", default=[1, 4])
    add("--dtypes", nargs="+", choices=tuple(FINEST), default=list(FINEST))
    add("--seconds", type=float, help="spent on each sum of a structure, about")
    add("--most", type=float, help="leave out what is predicted to take longer, in s")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=os.cpu_count())
    of_processor = "processor time, for machines that are busy; use it with --threads 1"
    add("--of-processor", action="store_true", help=of_processor)
    add("--quick", action="store_true", help="fewer structures; about two minutes")
    add("--save", type=Path, metavar="JSON", help="keep the timings in a file")
    add("--load", type=Path, nargs="+", metavar="JSON", help="fit the timings of files")
    add("--out", type=Path, default=OUT, help="module to write, by default the package's")
    quick = "--quick" in (sys.argv[1:] if arguments is None else arguments)
    parser.set_defaults(**(QUICK if quick else FULL))
    options = parser.parse_args(arguments)
    if options.device == "cuda":
        if options.of_processor:
            parser.error("--of-processor: a GPU works while the processor waits")
        if options.sizes is parser.get_default("sizes"):
            options.sizes = options.sizes + LARGE["sizes"]
        if options.most is parser.get_default("most"):
            options.most = LARGE["most"]
    return options


def main() -> None:
    """Measure, fit, report and write."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    timings = load(options.load, options.device) if options.load else run(options)
    if options.save:
        save(timings, options.save)
    tables = fit(timings, COEFFICIENTS)
    print(report("before", timings, COEFFICIENTS))
    print(report("fitted", timings, tables))
    note = ", processor time" * options.of_processor
    machines = {**MACHINES, options.device: describe(options.device) + note}
    write_module(options.out, machines, {**COEFFICIENTS, **tables})
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
