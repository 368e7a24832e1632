"""Trainings that are run once: a queue of jobs, cached by a hash of data, options and code.

A job trains one model and measures it. Its folder is named after a hash of what decides the
result, and holds `result.json` once all is done; then it is never run again. What was
interrupted is cleaned and run again; what was trained but measured by other code is measured
again. A job that reaches its time limit is stopped, and the best model it has is measured.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from workbench import training

ROOT = Path(__file__).resolve().parents[1]
JOB, TRAINED, MEASURED, RESULT = "job.json", "trained.json", "measured.json", "result.json"
PAUSE = 0.2  # s, between looks at what runs


@dataclass(frozen=True)
class Job:
    """One model: what trains it, and what decides how it comes out.

    Parameters
    ----------
    system, column, host, seed : what is trained, how, by which framework; names of folders.
    train : command that trains in a folder.
    finish : command that makes the best that a stopped training left its model, given the folder;
        None where that needs no command, or there is nothing.
    measure : command that writes `measured.json` into a folder.
    data : folder of the data files.
    inputs : data files that decide the result.
    code : hash of the code that trains, see :func:`hash_code`.
    measuring : hash of the code that measures.
    epochs : number of epochs.
    model : file of the model, given the folder.
    output : folder of all results.
    minutes : core minutes after which the training is stopped; minutes where the operating system
        does not tell those of a running command.
    pattern : what the log holds after each epoch.
    earlier : results of an earlier pass, which count as those of this one do.
    """

    system: str
    column: str
    host: str
    seed: int
    train: Callable[[Path], list[str]]
    finish: Callable[[Path], list[str] | None]
    measure: Callable[[Path], list[str]]
    data: Path
    inputs: tuple[Path, ...]
    code: str
    measuring: str
    epochs: int
    model: Callable[[Path], Path]
    output: Path
    minutes: float
    pattern: Any = training.EPOCH
    earlier: Sequence[dict[str, Any]] = ()

    @property
    def label(self) -> str:
        """Name on progress bars."""
        return f"{self.system} {self.column} {self.seed}"

    @property
    def parent(self) -> Path:
        """Folder of all runs of this system by this column."""
        return self.output / self.host / self.system / self.column

    @property
    def folder(self) -> Path:
        """Folder of this run."""
        return self.folder_of(self.identity["key"])

    def folder_of(self, key: str) -> Path:
        """Folder of a run of this system by this column and seed, of any key."""
        return self.parent / f"{self.seed}-{key[:8]}"

    @cached_property
    def identity(self) -> dict[str, str]:
        """Hashes of data, options and code, and of all together."""
        program, *options = self.train(Path("/folder"))
        told = [Path(program).name, *(text.replace(str(self.data), "/data") for text in options)]
        parts = {
            "data": hash_files(self.inputs),
            "options": hash_text(json.dumps([self.host, self.seed, *told])),
            "code": self.code,
        }
        return parts | {"key": hash_text(json.dumps(parts))}

    def result(self) -> dict[str, Any] | None:
        """What was measured, if that is still valid."""
        found = read_json(self.folder / RESULT), self._earlier("data", "options", "code")
        return next((own for own in found if own and not self.cut_short(own)), None)

    def _earlier(self, *parts: str) -> dict[str, Any] | None:
        """Result of an earlier pass, of which parts of the identity are the same.

        Its model is gone: what it measured is not measured again by other code.
        """
        names = {"system": self.system, "column": self.column, "host": self.host}
        wanted = {**names, "seed": self.seed, **{part: self.identity[part] for part in parts}}
        same = (own for own in self.earlier if all(own.get(k) == v for k, v in wanted.items()))
        return next(same, None)

    def cut_short(self, found: dict[str, Any]) -> bool:
        """Whether a training was stopped by a shorter limit than that of this job."""
        return found["stopped"] and found["minutes"] < self.minutes

    def is_done(self) -> bool:
        """Whether there is nothing to do."""
        found = self.result()
        return found is not None and found.get("measuring", self.measuring) == self.measuring

    def older_result(self) -> dict[str, Any] | None:
        """The newest result of the same data, options and seed by other code.

        `made` is when, in seconds, and 0 in results of an earlier pass.
        """
        wanted, results = self.identity, []
        for path in self.parent.glob(f"{self.seed}-*/{RESULT}"):
            found = read_json(path)
            if found and all(found[part] == wanted[part] for part in ("data", "options")):
                results.append(found | {"made": path.stat().st_mtime})
        if results:
            return max(results, key=lambda own: own["made"])
        earlier = self._earlier("data", "options")
        return earlier and earlier | {"made": 0.0}


def read_json(path: Path) -> dict[str, Any] | None:
    """Content of a file, None if there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is whole or not there."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def hash_text(text: str) -> str:
    """sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache
def hash_files(paths: tuple[Path, ...]) -> str:
    """sha256 of the names and contents of files."""
    sums = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]
    return hash_text(json.dumps(sums))


@lru_cache
def hash_code(sources: tuple[Path, ...], libraries: tuple[str, ...] = ()) -> str:
    """sha256 of Python code without comments and docstrings, and of versions of libraries.

    Parameters
    ----------
    sources : files, or folders with all their modules.
    libraries : names of distributions.
    """
    files = [
        path
        for source in sources
        for path in (sorted(source.rglob("*.py")) if source.is_dir() else [source])
    ]
    parts = [[str(path.relative_to(ROOT)), _meaning(path)] for path in files]
    return hash_text(json.dumps([parts, [f"{name} {version(name)}" for name in libraries]]))


def _meaning(path: Path) -> str:
    """Code without comments, layout and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            body[0] = ast.Pass()  # a docstring
    return ast.dump(tree)


@lru_cache
def commit() -> str:
    """Commit of the code, with a + where files differ from it."""

    def git(*words: str) -> str:
        found = subprocess.run(  # noqa: S603
            ["git", *words],  # noqa: S607
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        return found.stdout.strip()

    changed = git("status", "--porcelain", "--", "sog_longrange", "adapters")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


def run_all(jobs: Iterable[Job], workers: int) -> dict[str, str]:
    """Do what is left to do of all jobs, some at a time.

    Parameters
    ----------
    jobs : to be done, in this order.
    workers : number of jobs at a time, one core each.

    Returns
    -------
    dict
        Why jobs failed, by label. Ctrl-C stops all commands.
    """
    waiting = deque(job for job in jobs if not job.is_done())
    running: dict[int, tuple[Job, Iterator[None]]] = {}
    failed: dict[str, str] = {}
    bar = training.new_bar("jobs", len(waiting), workers, unit="job")
    try:
        while waiting or running:
            for slot in range(workers):
                if slot not in running and waiting:
                    running[slot] = (job := waiting.popleft()), _work(job, slot)
                if slot in running and _has_ended(*running[slot], failed):
                    del running[slot]
                    bar.update()
            time.sleep(PAUSE)
    finally:
        for _, work in running.values():
            work.close()
        bar.close()
    return failed


def _has_ended(job: Job, work: Iterator[None], failed: dict[str, str]) -> bool:
    """Look at a job once; its failure does not stop the others."""
    try:
        next(work)
    except StopIteration:
        tqdm.write(f"  {job.label}: {job.folder / RESULT}")
        return True
    except training.TrainingError as error:
        failed[job.label] = str(error)
        tqdm.write(f"  {job.label} FAILED: {error}")
        return True
    return False


def _work(job: Job, slot: int) -> Iterator[None]:
    """Train and measure, a look at a time."""
    folder = job.folder
    trained = read_json(folder / TRAINED)
    if trained is None or job.cut_short(trained):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        trained = yield from _train(job, slot)
        write_json(folder / TRAINED, trained)
    (folder / RESULT).unlink(missing_ok=True)
    names = {"system": job.system, "column": job.column, "host": job.host, "seed": job.seed}
    about = {**names, **job.identity, "measuring": job.measuring, **trained}
    write_json(folder / JOB, about | {"data_folder": str(job.data.resolve())})
    command = training.Job(f"{job.label} measured", job.measure(folder), folder, 1)
    yield from _watch(command, slot, "measure.log")
    write_json(folder / RESULT, about | (read_json(folder / MEASURED) or {}))


def _train(job: Job, slot: int) -> Iterator[None]:
    """Train, at most as long as allowed."""
    command = training.Job(job.label, job.train(job.folder), job.folder, job.epochs, job.pattern)
    core_seconds = yield from _watch(command, slot, "train.log", 60.0 * job.minutes)
    stopped, done = command.process.returncode < 0, command.bar.n
    if stopped:
        finish = job.finish(job.folder)
        if finish is not None:
            last = training.Job(f"{job.label} finished", finish, job.folder, 1)
            yield from _watch(last, slot, "finish.log")
    if not job.model(job.folder).exists():
        raise training.TrainingError(
            f"no model after {command.seconds:.0f} s: see {command.log}"
            + (", or give it more --minutes" if stopped else "")
        )
    return {
        "commit": commit(),
        "epochs": job.epochs,
        "epochs_done": done if stopped else job.epochs,
        "stopped": stopped,
        "minutes": job.minutes,
        "seconds": round(command.seconds, 1),
        "core_seconds": round(core_seconds, 1),
    }


def _watch(
    command: training.Job, slot: int, log: str, limit: float = float("inf")
) -> Iterator[None]:
    """Run a command, stopped at a limit in core s; returns the core seconds that it took."""
    command.log_name, command.leave = log, False
    before = 0.0
    try:
        command.start(slot)
        while True:
            before = _reaped_seconds()
            if not command.advance():
                break
            if _seconds(command) > limit:
                command.seconds = time.monotonic() - command.started
                command.close()
                return _reaped_seconds() - before
            yield
        command.check()
        return _reaped_seconds() - before
    finally:
        command.close()


def _seconds(command: training.Job) -> float:
    """Core seconds that a running command took, seconds where only Linux would tell."""
    try:
        text = Path(f"/proc/{command.process.pid}/stat").read_text()
    except OSError:
        return time.monotonic() - command.started
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _reaped_seconds() -> float:
    """Core seconds of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
