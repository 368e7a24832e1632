"""Models with and without a long range on the same systems: backbone, seeds and budget alike.

Each model is one job, which is trained, measured and kept: it is run again only where its data,
its options or the code have changed. Without names all systems are run. The tables show what
is there, and the commit of what other code made.

    python -m nox -s systems -- --quick                     # a subset, made from nothing
    python -m nox -s systems -- --data DIR                  # all systems, three seeds
    python -m nox -s systems -- dimers_cc water --model sr sog --seeds 1 --data DIR
    python -m nox -s systems -- dimers_cp --model sog "dip=--sog_latent_dipoles=True" --data DIR
    python -m nox -s systems -- --collect --data DIR        # tables alone
    python -m nox -s systems -- --seeds 2 --earlier docs/evidence/systems.json --data DIR
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType

import collect
import jobs
from workbench.training import TrainingError

from . import checks, dynamics, page
from .registry import CHECKS, HOMES, QUICK, SYSTEMS
from .system import System

HERE = Path(__file__).resolve().parent
PROBES = tuple(HERE / f"{name}.py" for name in ("measure", "structure", "born"))
MEASURING = (*PROBES, HERE.parent / "measures.py", HERE.parent / "learned.py")
RUN = HERE.parent / "run_systems.py"
DEFAULT_COLUMNS = ("sr", "les", "sog")


class MissingDataError(Exception):
    """A set is in no folder of data, or its labels do not show what is asked of models."""


@dataclass
class Plan:
    """All jobs that were asked for, and why others are left out.

    Parameters
    ----------
    jobs : to be run or collected.
    skipped : reasons, by system.
    """

    jobs: list[jobs.Job] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, folder = parser.add_argument, os.environ.get("SOG_DATA")
    add("systems", nargs="*", metavar="system", help=", ".join(SYSTEMS))
    add("--host", choices=("mace", "nequip"), default="mace")
    add("--model", nargs="+", default=DEFAULT_COLUMNS, help="names, or NAME=options of the head")
    add("--seeds", type=int, nargs="+", help="default: 1 2 3; the folds of water, 1 of dipeptides")
    add("--data", type=Path, default=folder, help="folder of the data sets (default: SOG_DATA)")
    add("--more-data", type=Path, help="folder of sets that --data lacks")
    add("--output", type=Path, default=Path("benchmark_output/systems"))
    add(
        "--minutes",
        type=float,
        help="core minutes after which a training is stopped (10; dipeptides 60)",
    )
    add("--jobs", type=int, default=2, help="jobs at a time, a core each (default: 2)")
    add(
        "--quick",
        action="store_true",
        help=f"one seed, half of the epochs; without names {', '.join(QUICK)}",
    )
    add("--epochs", type=int, help="of all models, to try what runs")
    add(
        "--earlier",
        type=rows_of,
        default=(),
        help="results of an earlier pass, the .json of a page: what they hold is not run again",
    )
    add("--collect", action="store_true", help="write the tables without running anything")
    add(
        "--md",
        type=float,
        nargs="?",
        const=dynamics.PICOSECONDS,
        metavar="PS",
        help="molecular dynamics of the first seed's models where there are exact snapshots: an "
        "hour or two of a core for 20 ps of each",
    )
    add(
        "--page", type=Path, help="folder of the documentation, where to write the page of evidence"
    )
    args = parser.parse_args(argv)
    if unknown := set(args.systems) - set(SYSTEMS):
        parser.error(f"unknown system {sorted(unknown)}: choose from {', '.join(SYSTEMS)}")
    args.output = args.output.resolve()
    return args


def rows_of(path: str) -> list[dict]:
    """Results of an earlier pass."""
    try:
        rows = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be read: {error}") from error
    if not (isinstance(rows, list) and all(isinstance(own, dict) for own in rows)):
        raise argparse.ArgumentTypeError(f"{path} must be a list of results")
    return rows


def columns(host: ModuleType, words: list[str]) -> dict[str, tuple[str, ...] | None]:
    """Options of the head by column; None for the model without one."""
    chosen: dict[str, tuple[str, ...] | None] = {}
    for word in words:
        name, sign, options = word.partition("=")
        if not sign and name not in host.COLUMNS:
            raise SystemExit(f"unknown column {name}: {', '.join(host.COLUMNS)}, or NAME=options")
        told = tuple(options.split()) if sign else host.COLUMNS[name]
        chosen[name] = None if name == host.BARE else told
    return chosen


def find(folders: list[Path], name: str) -> Path:
    """Folder of a set, in the first folder that has it."""
    for folder in folders:
        if (folder / name / "train.xyz").exists():
            return (folder / name).resolve()
    searched = " nor ".join(map(str, folders)) or "any folder: give --data or set SOG_DATA"
    raise MissingDataError(f"no {name}/train.xyz in {searched}")


def data_of(system: System, seed: int, args: argparse.Namespace) -> Path:
    """Folder with the frames of a system, made if need be."""
    folders = [Path(own) for own in (args.data, args.more_data) if own]
    if system.make is None:
        return find(folders, system.folder)
    name = f"{system.folder}-{seed}" if system.by_seed else system.folder
    folder, stamp = args.output / "data" / name, str(system.recipe)
    written = folder / "made_by"
    if not written.exists() or written.read_text() != stamp:
        if args.collect:
            raise MissingDataError(f"its frames are not made yet in {folder}")
        print(f"  making {folder}")
        system.make(folder, partial(find, folders), seed)
        written.write_text(stamp)
    return folder


def look_at_labels(name: str, system: System, folder: Path, output: Path) -> None:
    """Print what the labels show, and refuse those that do not show it."""
    if system.effects is None:
        return
    told = output / "effects" / f"{name}.json"
    found = system.effects(folder)
    for own in found:
        verdict = "" if own.is_shown else f", below {own.least:g}: NOT SHOWN"
        print(f"  {name}, labels: {own.what} {own.value:.4g}{verdict}")
    told.parent.mkdir(parents=True, exist_ok=True)
    jobs.write_json(told, {own.what: own.value for own in found})
    if hidden := [own.what for own in found if not own.is_shown]:
        raise MissingDataError(f"the labels do not show {', '.join(hidden)}")


def plan(args: argparse.Namespace) -> Plan:
    """All jobs, seed by seed, so that one seed of everything comes first."""
    host, result = importlib.import_module(f"systems.{args.host}_host"), Plan()
    chosen = columns(host, args.model)
    rounds: dict[int, list[jobs.Job]] = {}
    for name in args.systems or (QUICK if args.quick else SYSTEMS):
        system = SYSTEMS[name]
        if getattr(system, host.NAME) is None:
            result.skipped[name] = f"has no options for {host.NAME}"
            continue
        seeds = args.seeds or (system.seeds[:1] if args.quick else system.seeds)
        try:
            data = {seed: data_of(system, seed, args) for seed in seeds}
            look_at_labels(name, system, data[seeds[0]], args.output)
        except MissingDataError as reason:
            result.skipped[name] = str(reason)
            continue
        for number, seed in enumerate(seeds):
            new = [make_job(host, name, own, chosen, seed, data[seed], args) for own in chosen]
            rounds.setdefault(number, []).extend(new)
    result.jobs = [job for number in sorted(rounds) for job in rounds[number]]
    return result


def make_job(
    host: ModuleType,
    name: str,
    column: str,
    chosen: dict[str, tuple[str, ...] | None],
    seed: int,
    data: Path,
    args: argparse.Namespace,
) -> jobs.Job:
    """One model of one system."""
    system, head = SYSTEMS[name], chosen[column]
    epochs = args.epochs or (system.epochs // 2 if args.quick else system.epochs)
    if head is not None and host.NAME == "mace":
        head = (*head, *system.heads)
    train = partial(host.train(system, head, epochs, seed), data)
    files = dict.fromkeys(("train", system.valid, *system.tests))
    return jobs.Job(
        system=name,
        column=column,
        host=host.NAME,
        seed=seed,
        train=train,
        finish=lambda folder: host.finish(train(folder), folder),
        measure=lambda folder: [sys.executable, str(RUN), "--measure", str(folder)],
        data=data,
        inputs=tuple(data / f"{file}.xyz" for file in files),
        code=jobs.hash_code(() if head is None else host.CODE, host.LIBRARIES),
        measuring=jobs.hash_code((*MEASURING, HOMES[name], HERE / f"{host.NAME}_host.py")),
        epochs=epochs,
        model=host.model_file,
        output=args.output,
        minutes=args.minutes or system.minutes,
        pattern=host.PATTERN,
        earlier=args.earlier,
    )


def told(args: argparse.Namespace) -> str:
    """The command that makes the same results."""
    words = [*args.systems, "--model", *args.model] if args.systems else ["--model", *args.model]
    words += ["--seeds", *map(str, args.seeds)] if args.seeds else []
    words += ["--md", f"{args.md:g}"] if args.md else []
    return f"python -m nox -s systems -- {' '.join(words)} --data path/to/data --page docs"


def main(argv: list[str] | None = None) -> None:
    """Run what is left to do, and write the tables."""
    args = parse_arguments(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what runs, as Ctrl-C does
    todo = plan(args)
    for name, reason in todo.skipped.items():
        print(f"  {name} is left out: {reason}")
    failed = {}
    if not args.collect:
        left = [job for job in todo.jobs if not job.is_done()]
        print(f"  {len(left)} of {len(todo.jobs)} jobs are left to do, {args.jobs} at a time")
        try:
            failed = jobs.run_all(left, args.jobs)
        except TrainingError as error:
            raise SystemExit(str(error)) from error
        if args.md:
            dynamics.run_left(todo.jobs, RUN, args.md)
    results = collect.collect(todo.jobs)
    dynamics.add(results.rows, todo.jobs)
    parts = [collect.tables(results, importlib.import_module(f"systems.{args.host}_host").BARE)]
    parts.append(checks.checklist(results, CHECKS[args.host]))
    parts += [f"{name} is left out: {reason}." for name, reason in todo.skipped.items()]
    if results.missing:
        parts.append(f"Not there yet: {', '.join(results.missing)}.")
    text = "\n\n".join(part for part in parts if part)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / f"{args.host}.json").write_text(json.dumps(results.rows, indent=1) + "\n")
    (args.output / f"{args.host}.md").write_text(text + "\n")
    print(f"\n{text}\n\n{args.output / args.host}.md and .json are written")
    if args.page:
        found = {
            path.stem: jobs.read_json(path) for path in (args.output / "effects").glob("*.json")
        }
        page.write(results, args.host, args.page, told(args), todo.skipped, found)
    if failed:
        raise SystemExit(f"{len(failed)} jobs failed: {', '.join(failed)}")
