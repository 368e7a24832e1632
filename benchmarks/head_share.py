"""Measure the share of the long-range head in steps of its host: MACE or NequIP.

Steps with and without the head take turns in one process: energy with forces, with stress, and a
training step from a batch on the host to new weights. Structures and labels are random. Whichever
of MACE and NequIP is installed is measured; they cannot share an environment. Writes the table
and, as JSON, all that was found.

    python -m nox -s bench -- --head                    # both hosts, on the CPU
    python -m nox -s bench -- --head --device cuda      # rows of GPUs
    python benchmarks/head_share.py --rows gas          # one host, some rows
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
from head_frames import make_frames
from speed_report import describe_machine, find_versions
from timing import Call, alternate

from sog_longrange.testing.operations import Operations

HOSTS = {"mace": "head_mace", "nequip": "head_nequip"}
WARM = 4  # calls that do not count: TorchScript compiles in the first ones


@dataclass(frozen=True)
class Row:
    """A batch and the model that it is given to.

    Parameters
    ----------
    model : one of the `MODELS` of a host.
    kind : of the structures, see :func:`head_frames.make_frames`.
    count, n_atoms : number of structures, and of atoms of each.
    """

    model: str
    kind: str
    count: int
    n_atoms: int

    @property
    def title(self) -> str:
        """Name in tables."""
        count = f"{self.count} x " if self.count > 1 else ""
        return f"{count}{self.n_atoms:,}"


GAS = Row("gas", "gas", 4, 64)
ROWS = {
    "cpu": (Row("large", "water", 1, 24), Row("large", "water", 1, 96), GAS),
    "cuda": (
        *(Row("large", "water", 1, n) for n in (192, 1536)),
        *(Row("large", "water", *own) for own in ((8, 192), (32, 24))),
        GAS,
    ),
}
"""Those of CPUs are smaller: a step of the large model takes them seconds."""


@dataclass
class Record:
    """One task of one row; times in ms, quartiles of the shares of single rounds.

    The share of the time on processors, of all threads, says more where a machine is busy.
    """

    model: str
    backbone: str
    title: str
    n_atoms: int
    task: str
    bare: float
    with_head: float
    share: float
    quartiles: tuple[float, float]
    processor_share: float
    repetitions: int
    operations: tuple[int, int]
    host_reads: tuple[int, int]


def find_host() -> ModuleType:
    """Steps of the host framework that is installed.

    Raises
    ------
    SystemExit
        If none is.
    """
    for package, module in HOSTS.items():
        if importlib.util.find_spec(package) is not None:
            return importlib.import_module(module)
    raise SystemExit(f"head_share.py: none of {', '.join(HOSTS)} is installed here.")


def measure(bare: Call, with_head: Call, options: argparse.Namespace) -> dict:
    """Times and counts of a step without and with the head.

    Returns
    -------
    dict
        Fields of a :class:`Record`.
    """
    calls = {"bare": bare, "with head": with_head}
    for call in calls.values():
        for _ in range(WARM):
            call()
    found = alternate(calls, options.device, options.repetitions, options.max_seconds)
    walls, processors = ([[own[i] for own in found[key]] for key in calls] for i in (0, 1))
    shares = [after / before - 1.0 for before, after in zip(*walls, strict=True)]
    counted = [_count(call) for call in calls.values()]
    return {
        "bare": 1e3 * statistics.median(walls[0]),
        "with_head": 1e3 * statistics.median(walls[1]),
        "share": _share(*walls),
        "quartiles": _quartiles(shares),
        "processor_share": _share(*processors),
        "repetitions": len(shares),
        "operations": tuple(own.total for own in counted),
        "host_reads": tuple(own.host_reads for own in counted),
    }


def _share(before: list[float], after: list[float]) -> float:
    return statistics.median(after) / statistics.median(before) - 1.0


def _count(call: Call) -> Operations:
    with Operations() as counted:
        call()
    return counted


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def run(host: ModuleType, options: argparse.Namespace) -> Iterator[Record]:
    """Measure all rows, with a progress bar."""
    from tqdm import tqdm

    rows = [row for row in ROWS[options.device] if row.model in options.rows]
    places = [(row, backbone) for row in rows for backbone in host.backbones()]
    with tqdm(places, unit="row") as bar:
        for row, backbone in bar:
            bar.set_description(f"{host.LABEL} {row.model}, {backbone}, {row.title} atoms")
            for record in measure_row(host, row, backbone, options):
                bar.set_postfix_str(f"{record.task} {record.share:+.0%}")
                yield record


def measure_row(
    host: ModuleType, row: Row, backbone: str, options: argparse.Namespace
) -> Iterator[Record]:
    """Measure all tasks of a row."""
    frames = make_frames(row.kind, row.count, row.n_atoms)
    bare, with_head = (
        host.make_calls(row.model, frames, options.device, head=head, backbone=backbone)
        for head in (False, True)
    )
    place = (row.model, backbone, row.title, row.count * row.n_atoms)
    for task in bare:
        yield Record(*place, task, **measure(bare[task], with_head[task], options))


COLUMNS: dict[str, Callable[[dict], str]] = {
    "atoms": lambda own: own["title"],
    "backbone": lambda own: own["backbone"],
    "step": lambda own: own["task"],
    "bare, ms": lambda own: f"{own['bare']:.3g}",
    "with the head, ms": lambda own: f"{own['with_head']:.3g}",
    "**share**": lambda own: f"**{_percent(own['share'])}**",
    "quartiles": lambda own: " to ".join(map(_percent, own["quartiles"])),
    "of processor time": lambda own: _percent(own["processor_share"]),
    "operations": lambda own: " / ".join(f"{n:,}" for n in own["operations"]),
    "host reads": lambda own: " / ".join(map(str, own["host_reads"])),
}


def _percent(share: float) -> str:
    return f"{100.0 * share:+.0f} %"


def markdown(results: dict) -> str:
    """Tables, one for each model."""
    machine = results["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} thread(s)"
    lines = [f"# Share of the head in {results['host']}", "", f"{where}; without / with the head."]
    for model, title in results["models"].items():
        records = [own for own in results["records"] if own["model"] == model]
        if records:
            lines += ["", f"## {title[0].upper()}{title[1:]}", ""]
            lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
            lines += [
                f"| {' | '.join(show(own) for show in COLUMNS.values())} |" for own in records
            ]
    return "\n".join(lines)


def collect(host: ModuleType, options: argparse.Namespace, records: list[Record]) -> dict:
    """All that was found and how, ready for JSON."""
    return {
        "host": host.LABEL,
        "models": host.TITLES,
        "options": {**vars(options), "out": str(options.out)},
        "machine": describe_machine(options.device),
        "versions": find_versions(),
        "records": [asdict(record) for record in records],
    }


def write(results: dict, folder: Path) -> str:
    """Write a JSON file and the tables, named by the host, and return the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    name, text = results["host"].lower(), markdown(results)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / f"{name}.md").write_text(text + "\n")
    return text


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=tuple(ROWS), default="cpu")
    add("--rows", nargs="+", choices=("large", "gas"), default=["large", "gas"])
    add("--threads", type=int, default=os.cpu_count())
    add("--repetitions", type=int, default=31)
    add("--max-seconds", type=float, default=30.0, help="of one step of one row, about")
    add("--out", type=Path, default=Path("benchmark_output/head"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    options = parse_arguments(arguments)
    # Hosts warn of deprecations of their own; they would tear the progress bar.
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    host, records = find_host(), []
    try:
        for record in run(host, options):
            records.append(record)
            write(collect(host, options, records), options.out)
    except KeyboardInterrupt:
        print("interrupted; writing what there is", file=sys.stderr)
    print(f"\n{write(collect(host, options, records), options.out)}\nfiles in {options.out}")


if __name__ == "__main__":
    main()
