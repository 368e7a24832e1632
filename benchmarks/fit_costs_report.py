"""The module of coefficients that the fit of the cost model writes."""

from __future__ import annotations

from pathlib import Path

HEAD = '''"""Coefficients of the cost model, written by benchmarks/fit_costs.py.

Times of an energy and force evaluation, in ms for each unit of the terms that
:func:`~sog_longrange.summation.cost_terms.terms` counts:

{}"""

from __future__ import annotations

'''
TERMS = {
    "overhead": "an evaluation, of however little",
    "touched": "points touched by sources: atoms x channels x points of the window",
    "points": "points of the mesh, for FINUFFT half of the modes, x channels",
    "modes": "modes at which the kernel is evaluated",
    "pages": "points of the mesh x channels beyond two million, where arrays are in fresh memory",
    "products": "atoms x modes x channels; of pairs, pairs x channels",
    "rows": "rows of modes, those that differ along one axis alone",
    "phases": "phase factors of the atoms in the plane of two axes",
    "pairs": "pairs of atoms",
}
MACHINES = '''MACHINES: dict[str, str] = {{
{}}}
"""Where the coefficients of each type of device were measured."""

'''
TABLES = '''COEFFICIENTS: dict[tuple[str, str, str, str], dict[str, float]] = {{
{}}}
"""Coefficients by sum, engine, type of the device and dtype."""
'''


def write_module(
    path: Path,
    machines: dict[str, str],
    tables: dict[tuple[str, str, str, str], dict[str, float]],
) -> None:
    """Write a module of coefficients in the format of the package.

    Parameters
    ----------
    path : file.
    machines : description for each type of device.
    tables : coefficients, in ms, by sum, engine, type of the device and dtype.
    """
    lines = [f"    {_quoted(device)}: {_quoted(own)},\n" for device, own in machines.items()]
    used = {name for table in tables.values() for name in table}
    terms = [f"{name}\n    {text}\n" for name, text in TERMS.items() if name in used]
    text = HEAD.format("".join(terms)) + MACHINES.format("".join(lines))
    text += TABLES.format("".join(_entry(key, tables[key]) for key in sorted(tables)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _entry(key: tuple[str, str, str, str], table: dict[str, float]) -> str:
    head = ", ".join(map(_quoted, key))
    terms = "".join(f"        {_quoted(name)}: {value!r},\n" for name, value in table.items())
    return f"    ({head}): {{\n{terms}    }},\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
