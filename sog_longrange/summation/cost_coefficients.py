"""Coefficients of the cost model, written by benchmarks/fit_costs.py.

Times of an energy and force evaluation, in ms for each unit of the terms that
:func:`~sog_longrange.summation.cost_terms.terms` counts:

overhead
    an evaluation, of however little
touched
    points touched by sources: atoms x channels x points of the window
points
    points of the mesh, for FINUFFT half of the modes, x channels
modes
    modes at which the kernel is evaluated
pages
    points of the mesh x channels beyond two million, where arrays are in fresh memory
products
    atoms x modes x channels; of pairs, pairs x channels
phases, sources
    phase factors of the atoms in the plane of two axes; x channels
pairs
    pairs of atoms
"""

from __future__ import annotations

MACHINES: dict[str, str] = {
    "cpu": "two cores of a server",
}
"""Where the coefficients of each type of device were measured."""

COEFFICIENTS: dict[tuple[str, str, str, str], dict[str, float]] = {
    ("dense", "torch", "cpu", "float32"): {
        "overhead": 1.5,
        "products": 2.6e-07,
        "phases": 1.2e-05,
        "sources": 0.0,
        "modes": 0.00015,
    },
    ("dense", "torch", "cpu", "float64"): {
        "overhead": 1.5,
        "products": 5.2e-07,
        "phases": 2.4e-05,
        "sources": 0.0,
        "modes": 0.0003,
    },
    ("finufft", "numba", "cpu", "float32"): {
        "overhead": 2.0,
        "touched": 1.2e-05,
        "points": 0.00015,
        "modes": 0.0,
    },
    ("finufft", "numba", "cpu", "float64"): {
        "overhead": 2.35,
        "touched": 2.04e-05,
        "points": 0.000255,
        "modes": 0.0,
    },
    ("finufft", "torch", "cpu", "float32"): {
        "overhead": 2.0,
        "touched": 1.2e-05,
        "points": 0.00015,
        "modes": 0.0,
    },
    ("finufft", "torch", "cpu", "float64"): {
        "overhead": 2.35,
        "touched": 2.04e-05,
        "points": 0.000255,
        "modes": 0.0,
    },
    ("mesh", "numba", "cpu", "float32"): {
        "overhead": 1.55,
        "touched": 1.7e-06,
        "points": 7e-06,
        "modes": 0.0,
        "pages": 1.5e-05,
    },
    ("mesh", "numba", "cpu", "float64"): {
        "overhead": 1.58,
        "touched": 2.89e-06,
        "points": 1.19e-05,
        "modes": 0.0,
        "pages": 2.55e-05,
    },
    ("mesh", "torch", "cpu", "float32"): {
        "overhead": 2.1,
        "touched": 8e-06,
        "points": 1.5e-05,
        "modes": 0.0,
        "pages": 1.5e-05,
    },
    ("mesh", "torch", "cpu", "float64"): {
        "overhead": 2.52,
        "touched": 1.36e-05,
        "points": 2.55e-05,
        "modes": 0.0,
        "pages": 2.55e-05,
    },
    ("pairs", "torch", "cpu", "float32"): {
        "overhead": 0.0,
        "pairs": 0.0,
        "products": 0.00017,
    },
    ("pairs", "torch", "cpu", "float64"): {
        "overhead": 0.0,
        "pairs": 0.0,
        "products": 0.00017,
    },
}
"""Coefficients by sum, engine, type of the device and dtype."""
