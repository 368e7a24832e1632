"""What the demos of two models do alike: train them, end with results, say what went wrong."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from . import training


def train(jobs: list[training.Job], host: ModuleType, reuse: bool) -> dict[str, float]:
    """Train models at the same time; seconds that each took.

    Parameters
    ----------
    jobs : one for each model.
    host : module with `model_file(folder)`.
    reuse : whether models that are all there are taken as they are.
    """
    if reuse and all(host.model_file(job.folder).exists() for job in jobs):
        print("  reusing the models that are there")
        return {}
    for job in jobs:
        print(f"  {job.label}: {Path(job.command[0]).name}, log in {job.log}")
    training.train_together(jobs)
    return {job.label: round(job.seconds, 1) for job in jobs}


def finish(results: dict[str, Any], folder: Path, start: float) -> None:
    """Write results, and say what files there are and how long it took since `start`."""
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    for path in sorted([*folder.glob("*.png"), folder / "results.json"]):
        print(f"  {path}")
    print(f"Done in {(time.monotonic() - start) / 60:.1f} minutes.")


def guard(
    run: Callable[[argparse.Namespace], None],
    args: argparse.Namespace,
    *expected: type[Exception],
) -> int:
    """Run a demo; a readable message instead of a traceback for expected errors.

    Returns
    -------
    int, the exit status.
    """
    try:
        run(args)
    except (training.TrainingError, RuntimeError, *expected) as error:
        print(f"\nError: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    return 0
