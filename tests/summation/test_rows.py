"""Rows of modes that are kept between evaluations."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sog_longrange.summation import rows
from sog_longrange.summation.rows import sphere_rows


def test_rows_of_many_cells_are_kept_by_several_threads(monkeypatch):
    monkeypatch.setattr(rows, "_KEPT", 3)
    monkeypatch.setattr(rows, "_SPHERES", type(rows._SPHERES)())
    cells = [edge * np.eye(3)[None] for edge in np.linspace(4.0, 6.0, 7)]
    expected = [len(sphere_rows(cell, 3.0).graphs) for cell in cells]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(
                pool.map(lambda i: len(sphere_rows(cells[i % 7], 3.0).graphs), range(2000))
            )
    finally:
        sys.setswitchinterval(interval)
    assert found == [expected[i % 7] for i in range(2000)]
    assert len(rows._SPHERES) <= 3
