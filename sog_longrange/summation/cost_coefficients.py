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
    "cpu": "AMD EPYC, 2 threads, torch 2.13.0+cpu, numba 0.68.1, finufft 2.5.1",
}
"""Where the coefficients of each type of device were measured."""

COEFFICIENTS: dict[tuple[str, str, str, str], dict[str, float]] = {
    ("dense", "numba", "cpu", "float32"): {
        "overhead": 0.984,
        "products": 2.66e-07,
        "modes": 8.43e-05,
    },
    ("dense", "numba", "cpu", "float64"): {
        "overhead": 0.984,
        "products": 5.27e-07,
        "modes": 4.06e-05,
    },
    ("dense", "torch", "cpu", "float32"): {
        "overhead": 1.38,
        "products": 3.97e-06,
        "modes": 0.000461,
    },
    ("dense", "torch", "cpu", "float64"): {
        "overhead": 1.38,
        "products": 8.34e-06,
        "modes": 0.000817,
    },
    ("finufft", "numba", "cpu", "float32"): {
        "overhead": 1.44,
        "touched": 1.4e-06,
        "points": 0.000201,
        "modes": 4.96e-05,
    },
    ("finufft", "numba", "cpu", "float64"): {
        "overhead": 1.55,
        "touched": 6.85e-06,
        "points": 0.000203,
        "modes": 7.54e-05,
    },
    ("finufft", "torch", "cpu", "float32"): {
        "overhead": 1.8,
        "touched": 7.3e-07,
        "points": 0.000213,
        "modes": 0.000138,
    },
    ("finufft", "torch", "cpu", "float64"): {
        "overhead": 2.0,
        "touched": 6.34e-06,
        "points": 0.000207,
        "modes": 0.000275,
    },
    ("mesh", "numba", "cpu", "float32"): {
        "overhead": 1.2,
        "touched": 7.52e-07,
        "points": 6.46e-06,
        "modes": 8.14e-06,
        "pages": 1.27e-05,
    },
    ("mesh", "numba", "cpu", "float64"): {
        "overhead": 1.14,
        "touched": 9.96e-07,
        "points": 1.2e-05,
        "modes": 8.73e-06,
        "pages": 2.53e-05,
    },
    ("mesh", "torch", "cpu", "float32"): {
        "overhead": 2.28,
        "touched": 5.81e-06,
        "points": 1.77e-05,
        "modes": 8.69e-05,
        "pages": 0.000186,
    },
    ("mesh", "torch", "cpu", "float64"): {
        "overhead": 2.28,
        "touched": 6.83e-06,
        "points": 7.72e-07,
        "modes": 0.000191,
        "pages": 0.000544,
    },
    ("pairs", "torch", "cpu", "float32"): {
        "overhead": 0.831,
        "pairs": 6.54e-05,
        "products": 1.92e-05,
    },
    ("pairs", "torch", "cpu", "float64"): {
        "overhead": 0.847,
        "pairs": 0.000102,
        "products": 1.24e-05,
    },
}
"""Coefficients by sum, engine, type of the device and dtype."""
