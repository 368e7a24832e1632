"""The page of evidence: tables and a figure of all systems, from the results of jobs.

Written: evidence/systems.md and evidence/systems.json (what the tables are made of), and
figures/systems.png.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import collect
import numpy as np
from collect import Results, is_worse, show

from . import infrared, structure
from .checks import checklist
from .registry import CHECKS, SYSTEMS
from .system import Answer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("sr", "les", "sog")
KEPT = (
    *("system", "column", "host", "seed", "commit", "stale", "epochs", "epochs_done", "stopped"),
    *("minutes", "core_seconds", "parameters", "errors", "baselines", "probe", "learned"),
    *("net_charges", "dynamics", "data", "options", "code"),
)
TOP = """# The papers' systems

Short range (`sr`, bare MACE), LES (`les`: its kernel, Gaussians of 1 Å, free charges, and the
total charge as an input where `auto` makes it one) and this package by its recommended preset
(`sog`) on the same frames, with the same backbone, epochs and seeds. Labels are of the method
that the table names. xTB and exact sums make the physics of a system, not the DFT energies of
the papers, so that published figures stand apart. Budgets are small, at most 10 core minutes a
model (dipeptides 60): they rank models and do not show how good any of them can be.

Made by

```bash
{command}
```

of {commits}.

`--earlier docs/evidence/systems.json` keeps what is here and trains the rest, as more seeds."""
RANKS = """Force RMSE, geometric mean over the tests of a system, mean and standard deviation over
seeds. A model within 1 % of a better one shares its rank."""


def systems_of(results: Results, columns: tuple[str, ...] = COLUMNS) -> list[str]:
    """Systems that columns have results of, in order."""
    there = {(row["system"], row["column"]) for row in results.rows}
    return [own for own in SYSTEMS if all((own, column) in there for column in columns)]


def merit(results: Results, system: str, column: str) -> dict[int, float]:
    """Geometric mean over tests of the force error in meV/Å, by seed."""
    tests = SYSTEMS[system].tests

    def figure(row: dict) -> float | None:
        errors = [row["errors"].get(own, {}).get("forces") for own in tests]
        return None if None in errors else float(np.exp(np.mean(np.log(errors))))

    return results.values(system, column, figure)


def ranks(values: dict[str, float], margin: float = 1.01) -> dict[str, float]:
    """Rank of each column; those within a margin of the next better one share theirs."""
    order = sorted(values, key=values.__getitem__)
    groups: list[list[str]] = []
    for own in order:
        if groups and values[own] <= margin * values[groups[-1][0]]:
            groups[-1].append(own)
        else:
            groups.append([own])
    found, before = {}, 0
    for group in groups:
        found |= dict.fromkeys(group, before + (len(group) + 1) / 2)
        before += len(group)
    return found


def table(head: list[str], lines: list[list[str]]) -> str:
    """Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(own) + " |" for own in rows)


def system_table(effects: dict[str, dict[str, float]]) -> str:
    """What physics says of each system, and what its labels show."""
    lines = []
    for name, own in SYSTEMS.items():
        shown = "; ".join(f"{what} {value:.3g}" for what, value in effects.get(name, {}).items())
        lines.append([name, own.title, own.labels, ", ".join(own.tests), own.physics, shown])
    head = ["system", "what it is", "labels", "tests", "what must come out", "what the labels show"]
    return f"## Systems\n\n{table(head, lines)}"


def rank_table(results: Results) -> str:
    """Force errors and ranks of all systems, and mean ranks."""
    lines, total = [], []
    for system in systems_of(results):
        values = {own: merit(results, system, own) for own in COLUMNS}
        means = {own: float(np.mean(list(v.values()))) for own, v in values.items()}
        own_ranks = ranks(means)
        total.append([own_ranks[own] for own in COLUMNS])
        worse = {own: is_worse(values[own], values["sr"]) for own in COLUMNS}
        cells = [show(values[own]) + (" worse" if worse[own] else "") for own in COLUMNS]
        seeds = str(min(len(own) for own in values.values()))
        places = " / ".join(f"{own_ranks[own]:g}" for own in COLUMNS)
        lines.append([system, SYSTEMS[system].labels, seeds, *cells, places])
    if not lines:
        return ""
    mean = " / ".join(f"**{own:.2f}**" for own in np.mean(total, axis=0))
    lines.append([f"**mean rank, {len(total)} systems**", "", "", "", "", "", mean])
    head = ["system", "labels", "seeds", *(f"{own}, meV/Å" for own in COLUMNS), " / ".join(COLUMNS)]
    return f"## Ranks\n\n{RANKS}\n\n{table(head, lines)}"


def answer_table(results: Results) -> str:
    """Physical answers by the labels and by each model."""
    lines = []
    for name, system in SYSTEMS.items():
        for own in system.answers:
            cells, truth = [], {}
            for column in COLUMNS:
                found = results.values(name, column, own.found)
                known = results.values(name, column, own.truth)
                truth = known or truth
                right = all(own.is_right(found[seed], known[seed]) for seed in found)
                cells.append(show(found) + (" ✓" if right else " ✗") if found else "–")
            if truth:
                lines.append([name, own.what, show(truth), *cells, f"{own.factor:g}"])
    head = ["system", "quantity", "labels", *COLUMNS, "factor"]
    text = (
        "✓: right sign, and size within the factor, by all seeds. –: the model has no such "
        "quantity (short range has no charges)."
    )
    return f"## Physical answers\n\n{text}\n\n{table(head, lines)}" if lines else ""


ERRORS = """RMSE over all frames of a test, mean ± standard deviation over seeds. worse: than by
short range, by more than 5 % and two standard errors. zero: of a model that predicts no force;
copy: of one that predicts the forces of the farthest trained frame. The commit is that of the code
that trained `les` and `sog`; `sr` has none of ours."""


def error_table(results: Results) -> str:
    """Energies and forces of all tests, then net forces and stresses where there are any."""
    lines = []
    for system in (own for own in SYSTEMS if own in collect.names(results, "system")):
        made = {r["column"]: r["commit"] for r in results.rows if r["system"] == system}
        commits = ", ".join(dict.fromkeys(made[own] for own in COLUMNS[1:] if own in made))
        for test in SYSTEMS[system].tests:
            paths = [f"errors/{test}/{what}" for what in ("energy", "forces")]
            cells = [
                collect.judged(results, system, own, path, "sr")
                for path in paths
                for own in COLUMNS
            ]
            if set(cells) != {collect.NOTHING}:
                row = next(own for own in results.rows if own["system"] == system)
                cells += [*collect.baselines(row, test, "forces"), commits]
                lines.append([f"{SYSTEMS[system].title} (`{system}`)", test, *cells])
    columns = [f"{what}: {own}" for what in ("energy, meV", "force, meV/Å") for own in COLUMNS]
    head = ["system", "test", *columns, *collect.BASELINES, "commit"]
    tests = [
        row | {"errors": {k: v for k, v in row["errors"].items() if k != "train"}}
        for row in results.rows
        if row["column"] in COLUMNS
    ]
    others = [
        collect.table(Results(tests, []), own, "sr").replace("###", "##", 1)
        for own in ("net_force", "stress")
    ]
    parts = [f"## Errors\n\n{ERRORS}\n\n{table(head, lines)}", *others]
    return "\n\n".join(own for own in parts if own)


LEARNED = {
    "learned/true_charges/r2": "charges, R²",
    "learned/mbis_charges/r2": "MBIS charges, R²",
    "learned/dipole/r2": "dipoles, R²",
    "probe/born/r2": "Born charges, R²",
    "probe/born/rmse": "Born charges, RMSE, e",
    "learned/dispersion/r2": "sqrt(C6) by element, R²",
    "learned/law/largest_error": "law over 4 to 12 Å, largest relative error",
}


def learned_table(results: Results) -> str:
    """What heads learned without being told."""
    lines = []
    for name in SYSTEMS:
        for path, words in LEARNED.items():
            found = [results.values(name, own, path) for own in COLUMNS[1:]]
            if any(found):
                lines.append([name, words, *(show(own) if own else "–" for own in found)])
    text = "Quantities that no model was trained on, by the latent charges of the first test."
    head = ["system", "quantity", *COLUMNS[1:]]
    return f"## Learned charges and laws\n\n{text}\n\n{table(head, lines)}" if lines else ""


def share(results: Results, system: str, column: str) -> str:
    """Core time of a training over that of the bare model, in percent more."""
    own, bare = (results.values(system, name, _seconds) for name in (column, "sr"))
    common = own.keys() & bare.keys()
    if column == "sr" or not common:
        return ""
    ratio = sum(own[seed] for seed in common) / sum(bare[seed] for seed in common)
    return f", {100.0 * (ratio - 1.0):+.0f} %"


def _seconds(row: dict) -> float | None:
    return row["core_seconds"] / row["epochs_done"] if row["epochs_done"] else None


def cost_table(results: Results) -> str:
    """Parameters, core seconds, what the head costs, and trainings that were stopped."""
    lines = []
    for system in systems_of(results):
        cells = []
        for column in COLUMNS:
            seconds = results.values(system, column, "core_seconds")
            size = next(iter(results.values(system, column, "parameters").values()))
            cells.append(f"{size}; {show(seconds)} s{share(results, system, column)}")
        rows = [own for own in results.rows if own["system"] == system]
        stopped = sum(own["stopped"] for own in rows)
        epochs = str(SYSTEMS[system].epochs) + (f", {stopped} stopped" if stopped else "")
        lines.append([system, epochs, *cells])
    text = (
        "Parameters; core seconds of a training, its start of 15 to 25 s included; how much more "
        "an epoch costs than by the bare model."
    )
    return f"## Cost\n\n{text}\n\n{table(['system', 'epochs', *COLUMNS], lines)}" if lines else ""


def dynamics_table(results: Results) -> str:
    """Structure and conservation of energy by molecular dynamics."""
    lines = []
    for row in (own for own in results.rows if own.get("dynamics")):
        found = row["dynamics"]
        ratios = [
            f"{found['model']['structure'][k] / value:.2f} ± {_spread(found, k):.2f}"
            for k, value in found["truth"]["structure"].items()
        ]
        peaks = [
            f"{found[who]['peak']['distance']:.2f} Å, {found[who]['peak']['height']:.2f}"
            for who in ("truth", "model")
        ]
        energy = found["energy"]
        law = f"{energy['power']:.2f}; {energy['drift']:+.3f}"
        length = f"{found['picoseconds']:g}"
        cells = [" / ".join(ratios), *peaks, law, *densities(found)]
        lines.append([row["system"], row["column"], length, *cells])
    head = [
        "system",
        "model",
        "ps",
        "S(k) / exact at three k",
        "exact peak of g(r)",
        "peak",
        "energy",
        "exact density",
        "density",
    ]
    text = (
        "S(k): structure factor of true charges at the three smallest k, over that of "
        "the exact dynamics, with the errors of blocks. Peak: Na-Cl or O-O, distance "
        "and height. Energy: power of the time step by which its fluctuation falls (2 is right), "
        "and drift in meV/atom/ps, at constant energy in float64. Density: in kg/m³ with the "
        "errors of blocks, at the pressure of the exact force field at the density of its "
        "snapshots, which the exact run must find again (in brackets)."
    )
    return f"## Molecular dynamics\n\n{text}\n\n{table(head, lines)}" if lines else ""


def densities(found: dict) -> list[str]:
    """Density of the exact force field and of the model, in kg/m^3."""
    if "density" not in found:
        return ["", ""]
    exact, own = found["density"]["truth"], found["density"]["model"]
    texts = [f"{one['density']:.0f} ± {one['error']:.0f}" for one in (exact, own)]
    text = f"unstable, {own['density']:.0f} and on" if own.get("unstable") else texts[1]
    return [f"{texts[0]} ({exact['known']:.0f}) at {exact['pressure']:.1f} kbar", text]


def _spread(found: dict, k: str) -> float:
    """Error of a ratio of structure factors."""
    ratio = found["model"]["structure"][k] / found["truth"]["structure"][k]
    return ratio * float(np.hypot(*(found[who]["block_error"][k] for who in ("model", "truth"))))


def published_table() -> str:
    """Figures of the papers and their sources."""
    lines = [
        [name, own.figures, own.source]
        for name, system in SYSTEMS.items()
        for own in system.published
    ]
    text = "On other data, labels and budgets: not comparable line by line."
    return f"## Published\n\n{text}\n\n{table(['system', 'figures', 'source'], lines)}"


def write(
    results: Results,
    host: str,
    folder: Path,
    command: str,
    skipped: dict[str, str],
    effects: dict[str, dict[str, float]],
) -> None:
    """Write the page, its data and its figure.

    Parameters
    ----------
    results : of jobs.
    host : their host.
    folder : of the documentation.
    command : what made them.
    skipped : why systems are left out.
    effects : what labels show, by system.
    """
    (folder / "evidence").mkdir(parents=True, exist_ok=True)
    (folder / "figures").mkdir(exist_ok=True)
    kept = [{key: own[key] for key in KEPT if key in own} for own in results.rows]
    (folder / "evidence" / "systems.json").write_text(json.dumps(kept, indent=1) + "\n")
    commits = ", ".join(sorted({own["commit"] for own in results.rows})) or "no commit yet"
    parts = [TOP.format(command=command, commits=f"commit {commits}"), rank_table(results)]
    if draw(results, folder / "figures" / "systems.png"):
        words = "Force errors over those of short range, and physical answers over their labels"
        parts.append(f"![{words}](../figures/systems.png)")
    parts += [answer_table(results), error_table(results)]
    parts += [learned_table(results), dynamics_table(results)]
    if infrared.draw(results, "spcfw_water", folder / "figures" / "systems_infrared.png"):
        words = "Infrared absorption of water by the exact force field and by models"
        parts.append(f"![{words}](../figures/systems_infrared.png)")
    parts += [cost_table(results), published_table(), system_table(effects)]
    parts.append(checklist(results, CHECKS[host]))
    # Without the folders, which are those of one machine.
    left = [f"- `{name}`: {own.partition(' in ')[0]}." for name, own in skipped.items()]
    left += missing_lines(results.missing)
    parts.append("## Not there\n\n" + "\n".join(left) if left else "")
    text = "\n\n".join(own for own in parts if own)
    (folder / "evidence" / "systems.md").write_text(text + "\n")


def missing_lines(labels: list[str]) -> list[str]:
    """Seeds without a result, a line for each system.

    Parameters
    ----------
    labels : of jobs: system, model and seed.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for system, column, seed in (label.split() for label in labels):
        found.setdefault(system, {}).setdefault(column, []).append(seed)
    texts = {
        system: "; ".join(f"{column} {', '.join(seeds)}" for column, seeds in columns.items())
        for system, columns in found.items()
    }
    return [f"- `{system}`: no result of seeds {text}." for system, text in texts.items()]


def draw(results: Results, path: Path) -> bool:
    """Draw force errors over those of short range, and answers over the labels."""
    import matplotlib.pyplot as plt

    names = systems_of(results, ("sr", "sog"))
    if not names:
        return False
    answers = [
        (name, own)
        for name, system in SYSTEMS.items()
        for own in system.answers
        if _is_drawn(results, name, own)
    ]
    height = 0.22 * max(len(names), len(answers)) + 1.8
    figure, axes = plt.subplots(1, 2, figsize=(11.0, height), layout="constrained")
    _draw_errors(axes[0], results, names)
    _draw_answers(axes[1], results, answers)
    marks = [
        plt.Line2D([], [], color=color, marker=marker, ls="", ms=7, label=WORDS[column])
        for column, (color, marker) in STYLE.items()
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True


STYLE = {"sr": ("0.45", "s"), "les": ("tab:orange", "D"), "sog": ("tab:blue", "o")}
WORDS = {"sr": "short range", "les": "LES", "sog": "SOG (recommended preset)"}


def _is_drawn(results: Results, name: str, answer: Answer) -> bool:
    """Whether a model has the answer; of structure factors the first alone is drawn."""
    others = answer in structure.ANSWERS[1:]
    return not others and any(results.values(name, own, answer.found) for own in COLUMNS)


def _draw_errors(ax: Axes, results: Results, names: list[str]) -> None:
    """Ratios of force errors; left of the line a head helps."""
    ax.axvline(1.0, color=STYLE["sr"][0], lw=1.5)
    for column in ("les", "sog"):
        color, marker = STYLE[column]
        for row, name in enumerate(names):
            own, bare = (merit(results, name, which) for which in (column, "sr"))
            ratios = [own[seed] / bare[seed] for seed in own.keys() & bare.keys()]
            ax.plot(ratios, [row] * len(ratios), marker, color=color, ms=3, alpha=0.4)
            if ratios:
                ax.plot(np.mean(ratios), row, marker, color=color, ms=7)
    ax.set(xscale="log", ylim=(len(names) - 0.5, -0.6), title="better ← forces → worse")
    ax.set_xlabel("force RMSE / short range")
    ticks = [own for own in TICKS if ax.get_xlim()[0] <= own <= ax.get_xlim()[1]]
    ax.set_xticks(ticks, [f"{own:g}" for own in ticks])
    ax.set_xticks([], minor=True)
    ax.set_yticks(range(len(names)), names)
    ax.grid(axis="y", color="0.93")


TICKS = (0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def _draw_answers(ax: Axes, results: Results, answers: list[tuple[str, Answer]]) -> None:
    """Answers over those of the labels; the band is what counts as right."""
    for row, (name, answer) in enumerate(answers):
        ax.barh(row, answer.factor - 1.0 / answer.factor, 0.8, 1.0 / answer.factor, color="0.9")
        for column in COLUMNS:
            paths = answer.found, answer.truth
            found, known = (results.values(name, column, own) for own in paths)
            ratios = [np.clip(found[seed] / known[seed], -1.0, 3.0) for seed in found]
            color, marker = STYLE[column]
            ax.plot(ratios, [row] * len(ratios), marker, color=color, ms=6, alpha=0.8)
    ax.axvline(1.0, color="k", lw=1.5)
    ax.set(xlim=(-1.1, 3.1), ylim=(len(answers) - 0.5, -0.6), title="answers (band: right)")
    ax.set_xlabel("answer / labels")
    words = [f"{name}: {own.what.rpartition(',')[0]}" for name, own in answers]
    ax.set_yticks(range(len(answers)), words)
    ax.yaxis.tick_right()
