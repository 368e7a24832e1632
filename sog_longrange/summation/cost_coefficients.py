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
pairs
    pairs of atoms
"""

from __future__ import annotations

MACHINES: dict[str, str] = {
    "cpu": "AMD EPYC, 1 thread, torch 2.13.0+cpu, numba 0.68.1, finufft 2.5.1, processor time",
}
"""Where the coefficients of each type of device were measured."""

COEFFICIENTS: dict[tuple[str, str, str, str], dict[str, float]] = {
    ("dense", "torch", "cpu", "float32"): {
        "overhead": 1.66,
        "products": 4.02e-07,
        "modes": 8.69e-05,
    },
    ("dense", "torch", "cpu", "float64"): {
        "overhead": 1.64,
        "products": 1.23e-06,
        "modes": 7.12e-05,
    },
    ("dense", "numba", "cpu", "float32"): {
        "overhead": 1.6,
        "products": 4.6e-07,
        "modes": 1e-05,
    },
    ("dense", "numba", "cpu", "float64"): {
        "overhead": 1.6,
        "products": 9e-07,
        "modes": 2e-05,
    },
    ("finufft", "numba", "cpu", "float32"): {
        "overhead": 1.93,
        "touched": 1.52e-06,
        "points": 0.000207,
        "modes": 7.2e-05,
    },
    ("finufft", "numba", "cpu", "float64"): {
        "overhead": 2.13,
        "touched": 5.42e-06,
        "points": 0.000193,
        "modes": 0.00014,
    },
    ("finufft", "torch", "cpu", "float32"): {
        "overhead": 2.18,
        "touched": 1.4e-06,
        "points": 0.000211,
        "modes": 8.71e-05,
    },
    ("finufft", "torch", "cpu", "float64"): {
        "overhead": 2.42,
        "touched": 5.36e-06,
        "points": 0.000198,
        "modes": 0.000212,
    },
    ("mesh", "numba", "cpu", "float32"): {
        "overhead": 1.73,
        "touched": 8.29e-07,
        "points": 1.09e-05,
        "modes": 8.4e-06,
        "pages": 6.4e-06,
    },
    ("mesh", "numba", "cpu", "float64"): {
        "overhead": 1.75,
        "touched": 1.12e-06,
        "points": 1.58e-05,
        "modes": 1.46e-05,
        "pages": 5.79e-06,
    },
    ("mesh", "torch", "cpu", "float32"): {
        "overhead": 2.54,
        "touched": 1.07e-05,
        "points": 9.9e-06,
        "modes": 6.23e-05,
        "pages": 1.59e-05,
    },
    ("mesh", "torch", "cpu", "float64"): {
        "overhead": 2.65,
        "touched": 1.13e-05,
        "points": 2.03e-05,
        "modes": 0.000107,
        "pages": 2.16e-05,
    },
    ("pairs", "torch", "cpu", "float32"): {
        "overhead": 0.902,
        "pairs": 0.000101,
        "products": 1.66e-05,
    },
    ("pairs", "torch", "cpu", "float64"): {
        "overhead": 0.856,
        "pairs": 0.000156,
        "products": 1.3e-05,
    },
}
"""Coefficients by sum, engine, type of the device and dtype."""
