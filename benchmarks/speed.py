"""Time all backends and every installed peer at the same accuracy, side by side.

Energy, energy with forces, and a training step, of 32 to 1,000,000 atoms and of a batch of
32 structures. All candidates take turns in one process; medians count. Writes speed.json,
the tables speed.md and the figure speed.png.

    python benchmarks/speed.py --memory                      # all, an hour or more
    python benchmarks/speed.py --short                       # about three minutes
    python benchmarks/speed.py --small --dtype float64       # small structures and batches
    python benchmarks/speed.py --device cuda --tasks forces training
    python benchmarks/speed.py --sizes 1000 --candidates mesh-numba nvalchemi
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import speed_report
import torch
from speed_candidates import ACCURACY, CANDIDATES, Candidate, Evaluation, reference
from speed_systems import BATCH, System, make_system
from timing import alternate
from torch import Tensor
from tqdm import tqdm

from sog_longrange.testing.operations import Operations

ENERGY, FORCES, TRAINING = TASKS = ("energy", "energy + forces", "training step")
TASK_KEYS = {"energy": ENERGY, "forces": FORCES, "training": TRAINING}
LARGEST_CHECKED = 1000  # atoms in one structure; the reference is a dense sum
PRESETS = {
    "--short": {
        **{"sizes": [32, 200, 1000, 10_000], "min_widths": [1.2]},
        **{"repetitions": 5, "max_seconds": 6.0},
    },
    "--small": {"sizes": [32, 200], "tasks": ["forces", "training"], "repetitions": 31},
}
MEMORY_FIELDS = ("task", "min_width", "system", "title", "candidate", "gib", "reason")

Call = Callable[[], tuple[Tensor, ...]]


@dataclass
class Record:
    """Time of one candidate in one place of the tables, or the reason why there is none.

    Operations and host reads are counted of candidates of this package alone.
    """

    task: str
    min_width: float
    system: str
    title: str
    n_atoms: int
    candidate: str
    median: float | None = None
    minimum: float | None = None
    cpu: float | None = None
    operations: int | None = None
    host_reads: int | None = None
    repetitions: int = 0
    reason: str = ""


def make_call(task: str, evaluation: Evaluation, system: System) -> Call:
    """What is timed: a function without arguments that returns what the task is after.

    Parameters
    ----------
    task : one of `TASKS`.
    evaluation : of `system`.
    system : where the charges and positions come from.
    """
    if task == ENERGY:
        return lambda: _energy(evaluation, system)
    charges = system.charges.clone().requires_grad_()
    positions = system.positions.clone().requires_grad_()
    # Only training needs the graph through the kernel's parameters.
    for parameter in evaluation.parameters:
        parameter.requires_grad_(task == TRAINING)
    if task == FORCES:
        return lambda: _forces(evaluation, charges, positions)
    counts = torch.tensor(system.counts).to(charges)
    return lambda: _training_step(evaluation, charges, positions, counts)


def _energy(evaluation: Evaluation, system: System) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return (evaluation.energy(system.charges, system.positions),)


def _forces(evaluation: Evaluation, charges: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
    energy = evaluation.energy(charges, positions)
    return energy.detach(), *torch.autograd.grad(energy.sum(), (positions, charges))


def _training_step(
    evaluation: Evaluation, charges: Tensor, positions: Tensor, counts: Tensor
) -> tuple[Tensor, ...]:
    energy = evaluation.energy(charges, positions)
    (slopes,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    loss = (energy / counts).square().mean() + slopes.square().mean()
    return torch.autograd.grad(loss, (charges, *evaluation.parameters))


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Relative l2 error."""
    difference = value.detach().cpu().double() - exact.detach().cpu()
    return float(torch.linalg.norm(difference) / torch.linalg.norm(exact.detach().cpu()))


class Benchmark:
    """Runs all candidates on all systems and keeps what was found.

    Parameters
    ----------
    options : argparse.Namespace
        From :func:`parse_arguments`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.dtype = getattr(torch, options.dtype)
        self.candidates = {key: CANDIDATES[key] for key in options.candidates}
        self.records: list[Record] = []
        self.errors: list[dict] = []
        self.memory: list[dict] = []
        self.last: dict[tuple[float, str, str], tuple[int, float]] = {}

    def run(self, save: Callable[[], object]) -> None:
        """Measure accuracy, time and, if asked, memory; save after each system."""
        names = [str(size) for size in sorted(self.options.sizes)]
        names += [BATCH] * self.options.batched
        places = [(width, name) for width in self.options.min_widths for name in names]
        with tqdm(total=len(places) * len(self.options.tasks), unit="row") as bar:
            for width, name in places:
                exact = make_system(name, self.options.channels)
                if self.options.check:
                    self._check(exact, width, bar)
                system = exact.to(self.dtype, self.options.device)
                for task in self.options.tasks:
                    bar.set_description(f"{task}, {width:g} Å, {system.title} atoms")
                    self._time(task, system, width)
                    bar.update()
                if self.options.memory:
                    bar.set_description(f"memory, {width:g} Å, {system.title} atoms")
                    self._probe(system, width)
                save()

    def _check(self, exact: System, width: float, bar: tqdm) -> None:
        """Errors of all candidates, each against the dense sum of the same kernel."""
        if max(exact.counts) > LARGEST_CHECKED:
            return
        system, dense = exact.to(self.dtype, self.options.device), {}
        for key, candidate in self.candidates.items():
            for kernel, build in candidate.kernels():
                bar.set_description(f"error of {candidate.label}, {width:g} Å, {exact.title} atoms")
                if kernel not in dense:
                    dense[kernel] = _outcomes(reference(exact, width, kernel), exact)
                try:
                    evaluation = build(system, width)
                    found = _outcomes(evaluation, system, trainable=not candidate.untrainable)
                except Exception as error:
                    bar.write(f"{candidate.label}: {_explain(error)}", file=sys.stderr)
                    continue
                errors = {n: relative_error(x, dense[kernel][n]) for n, x in found.items()}
                place = {"candidate": key, "kernel": kernel, "min_width": width}
                self.errors.append({**place, "system": exact.name, "title": exact.title, **errors})

    def _time(self, task: str, system: System, width: float) -> None:
        """One row of a table."""
        calls, rows = {}, {}
        for key, candidate in self.candidates.items():
            record = Record(task, width, system.name, system.title, system.n_atoms, key)
            self.records.append(record)
            record.reason = self._expect(candidate, key, record)
            if record.reason:
                continue
            try:
                calls[key] = make_call(task, candidate.build(system, width), system)
                calls[key]()
                rows[key] = record
            except Exception as error:
                calls.pop(key, None)
                record.reason = _explain(error)
        options = self.options
        found = alternate(calls, options.device, options.repetitions, options.max_seconds)
        for key, timings in found.items():
            walls, cpus = zip(*timings, strict=True)
            row = rows[key]
            row.median, row.minimum = statistics.median(walls), min(walls)
            row.cpu, row.repetitions = statistics.median(cpus), len(walls)
            if self.candidates[key].ours:
                _count(calls[key], row)
            if system.name != BATCH:
                self.last[width, task, key] = system.n_atoms, row.median
        calls.clear()
        gc.collect()

    def _expect(self, candidate: Candidate, key: str, record: Record) -> str:
        """Why a candidate is left out, before it costs any time."""
        if record.task == TRAINING and candidate.untrainable:
            return candidate.untrainable
        if record.system == BATCH or (record.min_width, record.task, key) not in self.last:
            return ""
        n_atoms, seconds = self.last[record.min_width, record.task, key]
        expected = seconds * (record.n_atoms / n_atoms) ** candidate.growth
        # Below a thousand atoms constant overhead hides how a fast method grows.
        unsure = candidate.growth == 1.0 and n_atoms < LARGEST_CHECKED
        if unsure or expected < self.options.max_seconds:
            return ""
        return f"about {expected:.0f} s, from {seconds:.2g} s for {n_atoms:,} atoms"

    def _probe(self, system: System, width: float) -> None:
        """Peak memory of the last task, each candidate in a process of its own."""
        task = self.options.tasks[-1]
        for record in self.records:
            place = (record.task, record.min_width, record.system)
            if place != (task, width, system.name) or record.median is None:
                continue
            command = [sys.executable, __file__, "--probe", system.name, "--tasks"]
            command += [next(key for key, name in TASK_KEYS.items() if name == task)]
            command += ["--candidates", record.candidate, "--min-widths", str(width)]
            for option in ("dtype", "channels", "device", "threads"):
                command += [f"--{option}", str(getattr(self.options, option))]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            found = asdict(record) | {"gib": None}
            if result.returncode == 0:
                found["gib"] = float(result.stdout.split()[-1])
            else:
                found["reason"] = (result.stderr.strip().splitlines() or ["no message"])[-1]
            self.memory.append({name: found[name] for name in MEMORY_FIELDS})


def _count(call: Call, record: Record) -> None:
    with Operations() as counted:
        call()
    record.operations, record.host_reads = counted.total, counted.host_reads


def _outcomes(
    evaluation: Evaluation, system: System, *, trainable: bool = True
) -> dict[str, Tensor]:
    energy, slopes, potential = make_call(FORCES, evaluation, system)()
    found = {"energy": energy, "forces": -slopes, "potential": potential}
    if trainable:
        found["loss gradient"] = make_call(TRAINING, evaluation, system)()[0]
    return found


def _explain(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def peak_memory(device: str) -> float:
    """Largest memory that this process has held, in GiB; on a GPU, of its tensors."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux it starts from what the parent process held.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    scale = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def probe(options: argparse.Namespace) -> None:
    """Evaluate one candidate twice and print the peak memory of this process."""
    (key,), (width,), (task,) = options.candidates, options.min_widths, options.tasks
    system = make_system(options.probe, options.channels)
    system = system.to(getattr(torch, options.dtype), options.device)
    call = make_call(task, CANDIDATES[key].build(system, width), system)
    for _ in range(2):
        call()
    print(peak_memory(options.device))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line; `--short` and `--small` change defaults of others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = [32, 200, 1000, 10_000, 100_000, 1_000_000]
    add, boolean = parser.add_argument, argparse.BooleanOptionalAction
    add("--sizes", type=int, nargs="*", default=sizes, help="atoms of single structures")
    add("--min-widths", type=float, nargs="+", default=[0.6, 1.2], help="in Å")
    add("--tasks", nargs="+", choices=TASK_KEYS, default=list(TASK_KEYS))
    few = "of " + ", ".join(CANDIDATES) + "; by default all that can run"
    add("--candidates", nargs="+", choices=CANDIDATES, metavar="NAME", help=few)
    add("--batched", action=boolean, default=True, help="also time a batch of structures")
    add("--channels", type=int, default=1)
    add("--dtype", choices=("float32", "float64"), default="float32")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=os.cpu_count())
    add("--repetitions", type=int, default=15)
    add("--max-seconds", type=float, default=60.0, help="of one size and task, about")
    add("--check", action=boolean, default=True, help="measure errors of small systems")
    add("--memory", action="store_true", help="also measure peak memory, of the last task")
    add("--short", action="store_true", help="fewer sizes, one width; about three minutes")
    add("--small", action="store_true", help="small structures, forces and training alone")
    add("--out", type=Path, default=Path("benchmark_output/speed"))
    add("--probe", metavar="SYSTEM", help=argparse.SUPPRESS)
    for preset in PRESETS.keys() & set(sys.argv[1:] if arguments is None else arguments):
        parser.set_defaults(**PRESETS[preset])
    options = parser.parse_args(arguments)
    options.left_out = {}
    if options.candidates is None:
        reasons = {key: own.missing(options.device) for key, own in CANDIDATES.items()}
        options.candidates = [key for key, reason in reasons.items() if not reason]
        options.left_out = {key: reason for key, reason in reasons.items() if reason}
    options.tasks = [name for key, name in TASK_KEYS.items() if key in options.tasks]
    return options


def collect(benchmark: Benchmark, seconds: float) -> dict:
    """All that was found and how, ready for JSON."""
    options = {**vars(benchmark.options), "out": str(benchmark.options.out)}
    records = [asdict(record) for record in benchmark.records]
    return {
        "accuracy": ACCURACY,
        "options": options,
        "seconds": round(seconds, 1),
        "machine": speed_report.describe_machine(benchmark.options.device),
        "versions": speed_report.find_versions(),
        "candidates": dict(_describe(benchmark.candidates)),
        "records": records,
        "errors": benchmark.errors,
        "exponents": speed_report.fit_exponents(records),
        "auto": speed_report.compare_auto(records, _ours(benchmark.candidates)),
        "memory": benchmark.memory,
    }


def _ours(candidates: dict[str, Candidate]) -> list[str]:
    return [key for key, candidate in candidates.items() if candidate.ours]


def _describe(candidates: dict[str, Candidate]) -> Iterator[tuple[str, dict]]:
    for key, candidate in candidates.items():
        fields = ("label", "ours", "kernel", "settings")
        yield key, {name: getattr(candidate, name) for name in fields}


def main() -> None:
    """Run what was asked for and write the three files."""
    options = parse_arguments()
    # Peers warn of deprecations of their own; they would tear the progress bar.
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    if options.probe:
        probe(options)
        return
    benchmark, started = Benchmark(options), time.monotonic()

    def save() -> dict:
        results = collect(benchmark, time.monotonic() - started)
        speed_report.write_json(results, options.out)
        return results

    try:
        benchmark.run(save)
    except KeyboardInterrupt:
        print("interrupted; writing what there is", file=sys.stderr)
    print(f"\n{speed_report.write(save(), options.out)}\nfiles in {options.out}")


if __name__ == "__main__":
    main()
