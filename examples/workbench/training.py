"""Train several models at once with their own commands, one core and one progress bar each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tqdm import tqdm

EPOCH = re.compile(
    r"Epoch (?P<epoch>\d+):.*?RMSE_E_per_atom=\s*(?P<energy>[\d.]+) meV, "
    r"RMSE_F=\s*(?P<forces>[\d.]+) meV"
)
ERRORS = "valid {energy} meV/atom {forces} meV/Å"
TAIL = 25  # lines of a failed command's log that are shown


class TrainingError(RuntimeError):
    """A training command was not found or failed."""


@dataclass
class Job:
    """One training command and where it stands.

    Parameters
    ----------
    label : name shown on the progress bar.
    command : program and arguments.
    folder : where its log and files go.
    epochs : number of epochs it will run.
    pattern : what its log holds after each epoch, with the group `epoch`, and `energy` and
        `forces` where the log tells validation errors.
    log_name : name of the file that holds everything the command printed.
    leave : whether the bar stays when the command has ended.
    """

    label: str
    command: list[str]
    folder: Path
    epochs: int
    pattern: re.Pattern[str] = EPOCH
    log_name: str = "train.log"
    leave: bool = True
    process: subprocess.Popen[bytes] | None = None
    bar: tqdm | None = None
    started: float = 0.0
    seconds: float = 0.0
    _reader: IO[str] | None = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        """File that holds everything the command printed."""
        return self.folder / self.log_name

    def start(self, position: int) -> None:
        """Start the command on one core, printing into its log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(  # noqa: S603
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **threads},
            )
        self._reader = self.log.open(encoding="utf-8", errors="replace")
        self.started = time.monotonic()
        self.bar = new_bar(self.label, self.epochs, position, leave=self.leave)

    def advance(self) -> bool:
        """Move the bar to the newest epoch in the log; False once the command has ended."""
        running = self.process.poll() is None
        found = list(self.pattern.finditer(self._reader.read()))
        if found:
            last = found[-1].groupdict()
            if "energy" in last:
                self.bar.set_postfix_str(ERRORS.format(**last), refresh=False)
            self.bar.update(int(last["epoch"]) + 1 - self.bar.n)
        if not running and not self.seconds:
            self.seconds = time.monotonic() - self.started
        return running

    def check(self) -> None:
        """Raise with the end of the log if the command failed."""
        if self.process.returncode:
            lines = self.log.read_text(errors="replace").splitlines()[-TAIL:]
            raise TrainingError(
                f"Training {self.label} failed (exit code {self.process.returncode}). "
                f"The end of {self.log}:\n\n" + "\n".join(lines)
            )

    def close(self) -> None:
        """Stop the command if it still runs, and release its bar and files."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()
        for resource in (self.bar, self._reader):
            if resource is not None:
                resource.close()


def new_bar(
    label: str, total: int, position: int, unit: str = "epoch", *, leave: bool = True
) -> tqdm:
    """A bar of epochs; redrawn rarely when the output is no terminal."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=f"  {label:9s}",
        unit=unit,
        leave=leave,
        position=position if terminal else None,
        mininterval=0.2 if terminal else 15.0,
        maxinterval=1.0 if terminal else 30.0,
        ncols=100,
    )


def find_command(name: str) -> str:
    """Path of an installed command, also when its environment is not activated.

    Parameters
    ----------
    name : name of the command.

    Returns
    -------
    str

    Raises
    ------
    TrainingError
        If it is not installed.
    """
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if found is None:
        raise TrainingError(
            f"The command `{name}` was not found beside {sys.executable} nor on PATH. "
            "Install it into this environment: pip install 'sog-longrange[HOST,demo]', "
            "where HOST is mace or nequip"
        )
    return found


def train_together(jobs: list[Job]) -> None:
    """Run all jobs at the same time until the last has ended.

    Parameters
    ----------
    jobs : what to run. Stopping this function, also by Ctrl-C, stops the commands.

    Raises
    ------
    TrainingError
        If one fails; the others are stopped.
    """
    try:
        for position, job in enumerate(jobs):
            job.start(position)
        while any([job.advance() for job in jobs]):
            time.sleep(0.5)
            for job in jobs:
                job.check()
        for job in jobs:
            job.advance()
            job.check()
    finally:
        for job in jobs:
            job.close()
