"""What models must show, line by line: measured figure, limit, pass or fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from collect import Results, is_worse, look_up, show

from .system import Answer

AUTO = ("sog",)


@dataclass(frozen=True)
class Check:
    """One line: a figure of a system by columns, the best of which counts, and its limit.

    Parameters
    ----------
    system : its name.
    path : keys of the figure in the result, or a function of the result.
    limit : of the figure; of its ratio to `other` if that is given.
    columns : models that may pass.
    other : column, or keys of a baseline in the same result; "" for none.
    least : whether the figure must be at least the limit.
    what : its words in the table; the path by default.
    """

    system: str
    path: str | Callable
    limit: float = 1.0
    columns: tuple[str, ...] = AUTO
    other: str = ""
    least: bool = False
    what: str = ""

    def figure(self, results: Results, column: str) -> float | None:
        """Mean figure of a column, over the other where there is one."""
        values = results.values(self.system, column, self.path)
        if "/" in self.other:
            path, baseline = self.path, self.other
            ratio = lambda own: _ratio(look_up(own, path), look_up(own, baseline))  # noqa: E731
            values = results.values(self.system, column, ratio)
        elif self.other:
            other = results.values(self.system, self.other, self.path)
            common = values.keys() & other.keys()
            total = sum(other[seed] for seed in common)
            return sum(values[seed] for seed in common) / total if total else None
        return float(np.mean(list(values.values()))) if values else None

    def line(self, results: Results) -> str:
        """The row of the table."""
        found = {own: self.figure(results, own) for own in self.columns}
        known = {own: value for own, value in found.items() if value is not None}
        text = ", ".join(f"{own} {show({0: value})}" for own, value in known.items())
        sign = -1.0 if self.least else 1.0
        passed = [sign * value <= sign * self.limit for value in known.values()]
        verdict = ("pass" if any(passed) else "FAIL") if known else "not measured"
        return self._row(text, f"{'≥' if self.least else '≤'} {self.limit:g}", verdict)

    def _row(self, text: str, limit: str, verdict: str) -> str:
        path = self.path if isinstance(self.path, str) else ""
        what = self.what or path.removeprefix("errors/")
        over = f" / {self.other.removeprefix('baselines/')}" if self.other else ""
        model = " or ".join(self.columns)
        return f"| {self.system} | {model} | {what}{over} | {limit} | {text or '–'} | {verdict} |"


@dataclass(frozen=True)
class NotWorse(Check):
    """A figure of each column that is not worse than that of the other, by the rule."""

    other: str = "sr"

    def line(self, results: Results) -> str:
        """The row of the table."""
        other = results.values(self.system, self.other, self.path)
        known = {c: results.values(self.system, c, self.path) for c in self.columns}
        verdicts = {c: is_worse(values, other) for c, values in known.items()}
        measured = [own for own in verdicts.values() if own is not None]
        text = ", ".join(
            f"{c} {show(values)} against {show(other)}"
            for c, values in known.items()
            if verdicts[c] is not None
        )
        verdict = ("FAIL" if all(measured) else "pass") if measured else "not measured"
        return self._row(text, "not worse", verdict)


@dataclass(frozen=True)
class Near(Check):
    """A figure that must be a number, within a margin.

    Parameters
    ----------
    margin : largest distance from `limit`.
    """

    margin: float = 0.0

    def line(self, results: Results) -> str:
        """The row of the table."""
        found = {own: self.figure(results, own) for own in self.columns}
        known = {own: value for own, value in found.items() if value is not None}
        text = ", ".join(f"{own} {show({0: value})}" for own, value in known.items())
        passed = [abs(value - self.limit) <= self.margin for value in known.values()]
        verdict = ("pass" if any(passed) else "FAIL") if known else "not measured"
        return self._row(text, f"{self.limit:g} ± {self.margin:g}", verdict)


def _ratio(own: float | None, other: float | None) -> float | None:
    return None if own is None or not other else own / other


def largest_charge(*splits: str) -> Callable[[dict], float | None]:
    """Largest net charge of any fragment, in e."""

    def figure(result: dict) -> float | None:
        kinds = [own for split in splits for own in _net_charges(result, split).values()]
        return max((abs(own[end]) for own in kinds for end in ("min", "max")), default=None)

    return figure


def off_whole(split: str, **whole: int) -> Callable[[dict], float | None]:
    """Largest distance of net charges from whole ones, by formula; their common sign is free."""

    def figure(result: dict) -> float | None:
        kinds = _net_charges(result, split)
        if not kinds.keys() >= whole.keys():
            return None
        pairs = [(kinds[own][end], q) for own, q in whole.items() for end in ("min", "max")]
        return min(max(abs(sign * found - q) for found, q in pairs) for sign in (1, -1))

    return figure


def _net_charges(result: dict, split: str) -> dict[str, dict[str, float]]:
    return result.get("net_charges", {}).get(split, {})


def one_sign(result: dict) -> float | None:
    """1 where latent dispersion coefficients of all elements have one sign, else 0."""
    found = look_up(result, "learned/dispersion/one_sign")
    return None if found is None else float(found)


def worst_shell(found: str, truth: str) -> Callable[[dict], float | None]:
    """Largest relative distance of structure factors from the exact ones, over the shells.

    Parameters
    ----------
    found, truth : keys of both in the result.
    """

    def figure(result: dict) -> float | None:
        own, exact = look_up(result, found), look_up(result, truth)
        return max(abs(own[k] / exact[k] - 1.0) for k in exact) if own and exact else None

    return figure


def worst_error(*paths: str) -> Callable[[dict], float | None]:
    """Largest block error of structure factors, over the shells and the runs.

    Parameters
    ----------
    paths : keys of the errors in the result.
    """

    def figure(result: dict) -> float | None:
        found = [look_up(result, own) for own in paths]
        return max(max(own.values()) for own in found) if all(found) else None

    return figure


def drift(result: dict) -> float | None:
    """Size of the drift of the energy, in meV/atom/ps."""
    found = look_up(result, "dynamics/energy/drift")
    return None if found is None else abs(found)


def of_structure(system: str, motion: bool) -> tuple[Check, ...]:
    """Structure factors at the smallest k: within 10 % of the exact ones, and known to 5 %.

    Parameters
    ----------
    system : its name.
    motion : whether they are those of true charges along the model's dynamics; else of the
        model's charges on exact snapshots.
    """
    if motion:
        paths = "dynamics/model/structure", "dynamics/truth/structure"
        errors = "dynamics/model/block_error", "dynamics/truth/block_error"
        words = known = "of the model's dynamics"
    else:
        paths = "probe/structure/latent", "probe/structure/truth"
        errors = ("probe/structure/ratio_error",)
        words, known = "of predicted charges", "over the exact one of the same frames"
    return (
        Check(system, worst_shell(*paths), 0.10, what=f"S(k) {words} off the exact one, 3 shells"),
        Check(system, worst_error(*errors), 0.05, what=f"block error of S(k) {known}"),
    )


def of_motion(system: str) -> tuple[Check, ...]:
    """Conservation of energy in float64: its fluctuation falls with the square of the step."""
    what = "power of the step by which the energy fluctuates"
    return (
        Near(system, "dynamics/energy/power", 2.0, what=what, margin=0.2),
        Check(system, drift, 0.1, what="drift of the energy, meV/atom/ps"),
    )


@dataclass(frozen=True)
class AnswerCheck(Check):
    """A physical answer of each column, which must have the sign and about the size of the labels.

    Parameters
    ----------
    answer : what is asked.
    """

    answer: Answer | None = None

    def line(self, results: Results) -> str:
        """The row of the table; every column is told, those that may pass decide."""
        truth: dict[int, float] = {}
        texts, right = [], []
        for column in dict.fromkeys(row["column"] for row in results.rows):
            found = results.values(self.system, column, self.answer.found)
            if not found:
                continue
            truth = results.values(self.system, column, self.answer.truth)
            good = [self.answer.is_right(found[seed], truth[seed]) for seed in found]
            texts.append(f"{column} {show(found)} ({sum(good)} of {len(good)} right)")
            right += [all(good)] if column in self.columns else []
        verdict = ("pass" if any(right) else "FAIL") if right else "not measured"
        limit = f"{show(truth) if truth else '–'}, sign and factor {self.answer.factor:g}"
        return self._row(", ".join(texts), limit, verdict)


def of_answers(system: str, answers: tuple[Answer, ...]) -> tuple[Check, ...]:
    """The lines of a system's physical answers."""
    return tuple(AnswerCheck(system, own.found, what=own.what, answer=own) for own in answers)


def checklist(results: Results, checks: tuple[Check, ...]) -> str:
    """All lines as a Markdown table."""
    head = ["| system | model | figure | limit | measured | |", "|---|---|---|---|---|---|"]
    there = {row["system"] for row in results.rows}
    lines = [own.line(results) for own in checks if own.system in there]
    return "\n".join(["### Acceptance", "", *head, *lines]) if lines else ""
