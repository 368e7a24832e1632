"""Tables, figure and surroundings of the speed benchmark."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

import sog_longrange

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "numba",
    "finufft",
    "cufinufft",
    "pytorch-finufft",
    "torch-pme",
    "nvalchemi-toolkit-ops",
    "warp-lang",
    "les",
)
YARDSTICK = "auto"  # what all others are divided by
FITTED_FROM = 10_000  # atoms from which a power law is fitted
# Okabe and Ito's palette, for all kinds of colour vision.
OURS = ("#000000", "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#E69F00")
PEERS = ("#999999", "#CC79A7", "#E69F00", "#009E73", "#0072B2", "#D55E00")
MARKERS = "osD^vP"


def describe_machine(device: str) -> dict[str, object]:
    """Processor, threads and, if it is used, the GPU."""
    lines = Path("/proc/cpuinfo")
    names = lines.read_text().splitlines() if lines.exists() else []
    models = [line.split(":", 1)[1].strip() for line in names if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "system": platform.system(),
        "python": platform.python_version(),
    }


def find_versions() -> dict[str, str | None]:
    """Versions of everything that could matter; None if it is not installed."""
    versions = {package: _find_version(package) for package in PACKAGES}
    return {"sog-longrange": sog_longrange.__version__, **versions}


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def fit_exponents(records: list[dict]) -> list[dict]:
    """Powers of the number of atoms that the medians grow with, by least squares of logarithms."""
    curves: dict[tuple, list[tuple[int, float]]] = {}
    for record in records:
        single = record["system"].isdigit() and record["n_atoms"] >= FITTED_FROM
        if single and record["median"] is not None:
            curve = (record["task"], record["min_width"], record["candidate"])
            curves.setdefault(curve, []).append((record["n_atoms"], record["median"]))
    fitted = []
    for (task, width, key), points in curves.items():
        if len(points) > 1:
            power = float(np.polyfit(*np.log(np.array(points)).T, 1)[0])
            place = {"task": task, "min_width": width, "candidate": key}
            fitted.append({**place, "exponent": power, "sizes": [n for n, _ in points]})
    return fitted


def compare_auto(records: list[dict], ours: list[str]) -> list[dict]:
    """Time of the chosen backend over that of the fastest, in each place that has both.

    Parameters
    ----------
    records : of all candidates.
    ours : candidates of this package; `YARDSTICK` is the one that chooses.

    Returns
    -------
    list of dict
        With `ratio` and `best`, the name of the fastest.
    """
    rows: dict[tuple, dict[str, float]] = {}
    for record in records:
        if record["median"] is not None and record["candidate"] in ours:
            place = record["task"], record["min_width"], record["title"]
            rows.setdefault(place, {})[record["candidate"]] = record["median"]
    found = []
    for (task, width, title), medians in rows.items():
        chosen = medians.pop(YARDSTICK, None)
        if chosen is None or not medians:
            continue
        best = min(medians, key=lambda key: medians[key])
        place = {"task": task, "min_width": width, "title": title}
        found.append({**place, "ratio": chosen / medians[best], "best": best})
    return found


def write_json(results: dict, folder: Path) -> None:
    """Write speed.json, which holds all that was found."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "speed.json").write_text(json.dumps(results, indent=2) + "\n")


def write(results: dict, folder: Path) -> str:
    """Write the tables speed.md and the figure speed.png and return the tables."""
    text = markdown(results)
    (folder / "speed.md").write_text(text + "\n")
    if results["records"]:
        plot(results, folder / "speed.png")
    return text


def markdown(results: dict) -> str:
    """All tables and what is needed to read them."""
    machine, options = results["machine"], results["options"]
    lines = [
        "# Speed",
        "",
        f"{machine['cpu']}, {machine['threads']} threads"
        + (f", {machine['gpu']}" if machine["gpu"] else "")
        + f"; {options['dtype']}, {options['channels']} channel(s). All candidates took turns in "
        f"one process. **Bold**: this package. Settings and versions are in speed.json.",
    ]
    lines += _auto_summary(results)
    lines += _error_table(results)
    for task, width in _places(results["records"]):
        chosen = _select(results["records"], task, width)
        title = f"{task}, min_width {width:g} Å"
        lines += ["", f"## {title[0].upper()}{title[1:]}: median in ms", ""]
        lines += _table(results, chosen, _milliseconds, _auto_column(results, task, width))
        lines += _exponent_row(results, task, width)
        lines += _ratio_table(results, chosen)
        lines += _count_table(results, chosen)
    if results["memory"]:
        lines += _memory_tables(results)
    return "\n".join([*lines, *_reasons(results)])


def _places(records: list[dict]) -> list[tuple[str, float]]:
    return list(dict.fromkeys((record["task"], record["min_width"]) for record in records))


def _select(rows: Iterable[dict], task: str, width: float) -> list[dict]:
    return [row for row in rows if (row["task"], row["min_width"]) == (task, width)]


def _heading(results: dict, key: str) -> str:
    candidate = results["candidates"][key]
    return f"**{candidate['label']}**" if candidate["ours"] else candidate["label"]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


Column = tuple[str, dict[str, str]]  # heading, and cells by the title of the row


def _table(
    results: dict,
    rows: list[dict],
    show: Callable[[dict], str],
    last: Column | None = None,
    keys: list[str] | None = None,
) -> list[str]:
    """Systems down, candidates across, and perhaps a last column."""
    keys = list(results["candidates"]) if keys is None else keys
    heads = ["atoms", *(_heading(results, key) for key in keys)]
    cells = {(row["title"], row["candidate"]): show(row) for row in rows}
    body = []
    for title in dict.fromkeys(row["title"] for row in rows):
        body.append([title, *(cells.get((title, key), "-") for key in keys)])
        if last is not None:
            body[-1].append(last[1].get(title, "-"))
    if last is not None:
        heads.append(last[0])
    return [_row(heads), "|---" * len(heads) + "|", *map(_row, body)]


def _auto_column(results: dict, task: str, width: float) -> Column | None:
    """The chosen backend over the fastest one, which is named."""
    rows = _select(results["auto"], task, width)
    labels = {key: own["label"] for key, own in results["candidates"].items()}
    cells = {own["title"]: f"{own['ratio']:.2f} ({labels[own['best']]})" for own in rows}
    return (f"{labels[YARDSTICK]} / best of ours", cells) if cells else None


def _auto_summary(results: dict) -> list[str]:
    """Where the choice of the backend costs most."""
    if not results["auto"]:
        return []
    own = max(results["auto"], key=lambda row: row["ratio"])
    place = f"{own['task']}, min_width {own['min_width']:g} Å, {own['title']} atoms"
    text = f"takes at most {own['ratio']:.2f} times as long as the best of our backends: {place}."
    return ["", f"{_heading(results, YARDSTICK)} {text}"]


def _count_table(results: dict, rows: list[dict]) -> list[str]:
    """Operations and host reads of our candidates."""
    counted = [row for row in rows if row["operations"] is not None]
    if not counted:
        return []
    keys = [key for key, own in results["candidates"].items() if own["ours"]]

    def show(row: dict) -> str:
        return f"{row['operations']:,} / {row['host_reads']}"

    title = "Operations / host reads:"
    return ["", title, "", *_table(results, counted, show, keys=keys)]


def _milliseconds(record: dict) -> str:
    return "-" if record["median"] is None else _digits(1e3 * record["median"])


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def _exponent_row(results: dict, task: str, width: float) -> list[str]:
    fitted = _select(results["exponents"], task, width)
    if not fitted:
        return []
    powers = {row["candidate"]: f"{row['exponent']:.2f}" for row in fitted}
    cells = (powers.get(key, "-") for key in results["candidates"])
    more = ["-"] * bool(_auto_column(results, task, width))
    return [_row([f"exponent from {FITTED_FROM:,}", *cells, *more])]


def _ratio_table(results: dict, rows: list[dict]) -> list[str]:
    """Medians of all others over those of the yardstick."""
    own = {
        row["title"]: row["median"]
        for row in rows
        if row["candidate"] == YARDSTICK and row["median"] is not None
    }
    if not own:
        return []

    def ratio(row: dict) -> str:
        if row["median"] is None or row["title"] not in own:
            return "-"
        return _digits(row["median"] / own[row["title"]])

    title = f"Ratio to {_heading(results, YARDSTICK)}:"
    return ["", title, "", *_table(results, rows, ratio)]


def _error_table(results: dict) -> list[str]:
    """Largest errors over the systems that have a reference."""
    rows = results["errors"]
    if not rows:
        return []
    largest = max(int(title.split(" ")[0].replace(",", "")) for title in (r["title"] for r in rows))
    lines = [
        "",
        "## Largest relative l2 error",
        "",
        "Against the dense float64 sum of the same kernel, over all systems of up to "
        f"{largest:,} atoms. The loss gradient, with respect to the charges, holds second "
        "derivatives.",
        "",
        _row(["candidate", "kernel", "min_width, Å", "forces", "energy", "loss gradient"]),
        "|---" * 6 + "|",
    ]
    columns = ("forces", "energy", "loss gradient")
    cases: dict[tuple, list[dict]] = {}
    for row in rows:
        cases.setdefault((row["candidate"], row["kernel"], row["min_width"]), []).append(row)
    for (key, kernel, width), own in sorted(cases.items(), key=_error_order(results)):
        found = [[row[name] for row in own if name in row] for name in columns]
        cells = [f"{max(values):.1e}" if values else "-" for values in found]
        lines.append(_row([_heading(results, key), kernel, f"{width:g}", *cells]))
    return lines


def _error_order(results: dict) -> Callable[[tuple], tuple]:
    """Kernel by kernel, and within one as the candidates are listed."""
    keys = list(results["candidates"])
    return lambda item: (item[0][1], keys.index(item[0][0]), item[0][2])


def _memory_tables(results: dict) -> list[str]:
    lines = []
    for task, width in _places(results["memory"]):
        lines += ["", f"## Peak memory of {task}, min_width {width:g} Å: GiB", ""]
        rows = _select(results["memory"], task, width)
        lines += _table(
            results, rows, lambda row: "-" if row["gib"] is None else f"{row['gib']:.2f}"
        )
    return lines


def _reasons(results: dict) -> Iterator[str]:
    """Why cells are empty, each reason once."""
    found: dict[tuple[str, str], list[str]] = {}
    for record in results["records"]:
        if record["median"] is None:
            place = f"{record['title']} ({record['task']}, {record['min_width']:g} Å)"
            found.setdefault((record["candidate"], record["reason"]), []).append(place)
    left_out = results["options"]["left_out"]
    if found or left_out:
        yield from ("", "## Not measured", "")
    for key, reason in left_out.items():
        yield f"- {key}: {reason}."
    for (key, reason), places in found.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        yield f"- {_heading(results, key)}: {reason}. At {places[0]}{more}."


def plot(results: dict, path: Path) -> None:
    """Medians against atoms, one panel for each task and width."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    tasks, widths = (list(dict.fromkeys(x)) for x in zip(*_places(results["records"]), strict=True))
    size = (4.2 * len(tasks), 3.4 * len(widths) + 0.9)
    figure, axes = plt.subplots(
        len(widths), len(tasks), figsize=size, squeeze=False, sharex=True, layout="constrained"
    )
    for row, width in zip(axes, widths, strict=True):
        for axis, task in zip(row, tasks, strict=True):
            _plot_panel(axis, results, _select(results["records"], task, width))
            axis.set_title(f"{task}, min_width {width:g} Å", fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("atoms")
    for axis in axes[:, 0]:
        axis.set_ylabel("median time, ms")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _plot_panel(axis: object, results: dict, records: list[dict]) -> None:
    single = [row for row in records if row["system"].isdigit()]
    for key, style in _styles(results["candidates"]):
        points = [
            (row["n_atoms"], 1e3 * row["median"])
            for row in single
            if row["candidate"] == key and row["median"] is not None
        ]
        # Empty curves stay in the legend, which is the same for all panels.
        axis.plot(*(zip(*points, strict=True) if points else ([], [])), **style)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.grid(visible=True, which="major", color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _styles(candidates: dict[str, dict]) -> Iterator[tuple[str, dict]]:
    """Solid lines for our backends, thinner dashed ones for peers."""
    counts = {True: 0, False: 0}
    for key, candidate in candidates.items():
        ours = candidate["ours"]
        index, palette = counts[ours], OURS if ours else PEERS
        counts[ours] += 1
        yield (
            key,
            {
                "label": candidate["label"] + (" (ours)" if ours else ""),
                "color": palette[index % len(palette)],
                "linestyle": "-" if ours else "--",
                "linewidth": 1.8 if ours else 1.1,
                "marker": MARKERS[index % len(MARKERS)],
                "markersize": 4,
                "markerfacecolor": palette[index % len(palette)] if ours else "white",
            },
        )
