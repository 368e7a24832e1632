"""Results of jobs as tables: mean and spread over seeds, and what is worse than a model without.

A cell holds results of one code only: where the present code has none, those of the other code that
made most of them, the newest of several, with the commit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jobs import Job

MARGIN = 1.05  # worse: by more than this factor, and by more than two standard errors
QUANTITIES = {
    "forces": "Force RMSE, meV/Å",
    "energy": "Energy RMSE, meV a structure",
    "net_force": "RMSE of net forces on fragments, meV/Å",
    "stress": "Stress RMSE, meV/Å³",
}
BASELINES = ("zero", "copy")
NOTHING = "–"


@dataclass(frozen=True)
class Results:
    """What is there.

    Parameters
    ----------
    rows : results of jobs, each with `stale`, true where other code made it.
    missing : labels of the jobs without a result.
    """

    rows: list[dict]
    missing: list[str]

    def values(self, system: str, column: str, path: str | Callable) -> dict[int, float]:
        """A figure by seed.

        Parameters
        ----------
        system, column : of the jobs.
        path : keys of the result, joined by /, or a function of it.
        """
        chosen = (r for r in self.rows if (r["system"], r["column"]) == (system, column))
        figures = {own["seed"]: look_up(own, path) for own in chosen}
        return {seed: value for seed, value in figures.items() if value is not None}

    def commit(self, system: str, column: str) -> str:
        """The commit that made stale results, empty where they are of the present code."""
        stale = (
            own["commit"]
            for own in self.rows
            if (own["system"], own["column"]) == (system, column) and own["stale"]
        )
        return next(stale, "")


def look_up(result: dict, path: str | Callable) -> float | None:
    """One figure of a result, None if it is not there."""
    if callable(path):
        return path(result)
    step = lambda own, key: own.get(key) if isinstance(own, dict) else None  # noqa: E731
    return reduce(step, path.split("/"), result)


def collect(jobs: Iterable[Job]) -> Results:
    """Results of jobs, each system and column by one code."""
    groups: dict[tuple[str, str], list[tuple[Job, dict | None, dict | None]]] = {}
    for job in jobs:
        old = job.older_result()
        groups.setdefault((job.system, job.column), []).append((job, job.result(), old))
    rows, missing = [], []
    for group in groups.values():
        stale = not any(new for _, new, _ in group)
        code = _other_code([old for _, _, old in group if old]) if stale else ""
        for job, new, old in group:
            found = old if stale and old and old["code"] == code else new
            if found is None:
                missing.append(job.label)
            else:
                own = {key: value for key, value in found.items() if key != "made"}
                rows.append(own | {"stale": stale})
    return Results(rows, missing)


def _other_code(found: list[dict]) -> str:
    """Code that made most of some results, of several the one that made the newest."""
    counts = Counter(own["code"] for own in found)
    newest = {own["code"]: own["made"] for own in sorted(found, key=lambda own: own["made"])}
    return max(counts, key=lambda code: (counts[code], newest[code]), default="")


def is_worse(own: dict[int, float], other: dict[int, float]) -> bool | None:
    """Whether errors are larger by more than 5 % and two standard errors, over common seeds.

    The standard error is that of the differences, which are paired by seed; zero for one seed.
    None if there is no common seed.
    """
    seeds = sorted(set(own) & set(other))
    if not seeds:
        return None
    a, b = (np.array([values[seed] for seed in seeds]) for values in (own, other))
    spread = np.std(a - b, ddof=1) / math.sqrt(len(seeds)) if len(seeds) > 1 else 0.0
    return bool(a.mean() > MARGIN * b.mean() and a.mean() - b.mean() > 2.0 * spread)


def show(values: dict[int, float]) -> str:
    """Mean ± standard deviation over seeds, to three figures."""
    numbers = np.array(list(values.values()))
    mean = numbers.mean()
    digits = max(0, 2 - math.floor(math.log10(abs(mean)))) if mean else 0
    digits = min(digits, 1) if abs(mean) >= 1.0 else min(digits, 8)
    text = f"{mean:.{digits}f}"
    return text if len(numbers) == 1 else f"{text} ± {np.std(numbers, ddof=1):.{digits}f}"


def cell(results: Results, system: str, column: str, path: str, bare: str) -> str:
    """One figure with its spread, marked if worse or stale."""
    text, commit = judged(results, system, column, path, bare), results.commit(system, column)
    return text + (f" [{commit}]" if commit and text != NOTHING else "")


def judged(results: Results, system: str, column: str, path: str, bare: str) -> str:
    """One figure with its spread, marked if worse."""
    values = results.values(system, column, path)
    if not values:
        return NOTHING
    worse = column != bare and is_worse(values, results.values(system, bare, path))
    return show(values) + (" worse" if worse else "")


def baselines(row: dict, split: str, quantity: str) -> list[str]:
    """Errors of what needs no model, empty where there are none."""
    found = (look_up(row, f"baselines/{split}/{own}/{quantity}") for own in BASELINES)
    return ["" if value is None else show({0: value}) for value in found]


def names(results: Results, key: str) -> list[str]:
    """Systems or columns, in order."""
    return list(dict.fromkeys(row[key] for row in results.rows))


def table(results: Results, quantity: str, bare: str) -> str:
    """One quantity of all systems and tests, empty where none has it."""
    columns, lines = names(results, "column"), []
    for system in names(results, "system"):
        rows = [row for row in results.rows if row["system"] == system]
        splits = dict.fromkeys(s for row in rows for s, e in row["errors"].items() if quantity in e)
        for split in splits:
            cells = [
                cell(results, system, own, f"errors/{split}/{quantity}", bare) for own in columns
            ]
            cells += baselines(rows[0], split, quantity)
            lines.append(f"| {system} | {split} | " + " | ".join(cells) + " |")
    if not lines:
        return ""
    head = ["system", "frames", *columns, *BASELINES]
    top = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([f"### {QUANTITIES[quantity]}", "", *top, *lines])


def costs(results: Results) -> str:
    """Size, time and what was cut short, by system and column."""
    lines = []
    for system in names(results, "system"):
        for column in names(results, "column"):
            rows = [r for r in results.rows if (r["system"], r["column"]) == (system, column)]
            if not rows:
                continue
            core = show({r["seed"]: r["core_seconds"] for r in rows})
            epochs = ", ".join(f"{r['epochs_done']}/{r['epochs']}" for r in rows)
            stopped = any(r["stopped"] for r in rows)
            epochs += f", stopped after {rows[0]['minutes']:g} minutes" if stopped else ""
            seeds = ", ".join(str(r["seed"]) for r in rows)
            cells = [system, column, str(rows[0]["parameters"]), core, epochs, seeds]
            commits = ", ".join(dict.fromkeys(r["commit"] for r in rows))
            lines.append("| " + " | ".join([*cells, commits]) + " |")
    head = ["system", "model", "parameters", "core seconds", "epochs", "seeds", "commit"]
    top = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join(["### Cost", "", *top, *lines]) if lines else ""


def tables(results: Results, bare: str) -> str:
    """All tables as Markdown."""
    parts = [table(results, quantity, bare) for quantity in QUANTITIES]
    legend = (
        "Mean ± standard deviation over seeds. worse: than the first column by more than 5 % and "
        "two standard errors. [commit]: of other code than the present. zero: predicts no force; "
        "copy: the forces of the farthest training frame."
    )
    return "\n\n".join(part for part in (*parts, costs(results), legend) if part)
