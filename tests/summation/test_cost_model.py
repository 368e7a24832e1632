"""The model of time: its terms, its coefficients and the script that fits them."""

import argparse
import importlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sog_longrange.summation import cost_coefficients, cost_model
from sog_longrange.summation.cost_coefficients import COEFFICIENTS, MACHINES
from sog_longrange.summation.cost_terms import Size, table_key, terms
from sog_longrange.summation.resolution import Resolution

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KINDS = ("dense", "mesh", "finufft", "pairs")


@pytest.fixture(scope="module")
def fitting():
    """The script, whose imports are next to it."""
    pytest.importorskip("scipy", reason="SciPy is not installed.")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("fit_costs")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def with_finufft(monkeypatch):
    monkeypatch.setattr(cost_model, "_has_finufft", lambda device: True)


def size_of(device="cpu", dtype=torch.float64, compiled=True, n_atoms=500):
    return Size(n_atoms, 2, (20.0, 18.0, 22.0), Resolution.of(1.0, 1e-4), dtype, compiled, device)


def timings_on(fitting, machine, *options):
    """Timings of a synthetic machine, which takes exactly what its coefficients say."""
    arguments = fitting.parse_arguments(["--quick", *options])
    candidates = [fitting.Candidate(kind, "none") for kind in KINDS]
    compiled = [kind for kind in KINDS if fitting.is_compiled(kind, "cpu")]
    candidates += [fitting.Candidate(kind, "auto") for kind in compiled]

    def clock(place, sizes):
        return {own: time_on(machine, own.kind, size) for own, size in sizes.items()}

    found = fitting.measure(fitting.make_places(arguments), candidates, clock, most=math.inf)
    return [timing for own in found for timing in own]


def time_on(machine, kind, size):
    own = machine[table_key(kind, size)]
    return sum(own[name] * count for name, count in terms(kind, size).items())


def other_machine():
    """Coefficients that are not those of the package, none of them zero."""
    machine, factor = {}, 0.3
    for key, table in COEFFICIENTS.items():
        machine[key] = {}
        for name, value in table.items():
            factor = 0.3 + 3.0 * ((factor * 7.13) % 1.0)
            smallest = 1.0 if name == "overhead" else 1e-6
            machine[key][name] = factor * max(value, smallest)
    return machine


def test_the_fit_recovers_a_synthetic_machine(fitting, with_finufft):
    machine = other_machine()
    fitted = fitting.fit(timings_on(fitting, machine), COEFFICIENTS)
    assert set(fitted) == {key for key in COEFFICIENTS if key[2] == "cpu"}
    for key, table in fitted.items():
        assert table == pytest.approx(machine[key], rel=0.01), key


def test_the_right_coefficients_lose_nothing_and_others_do(fitting, with_finufft):
    machine = other_machine()
    timings = timings_on(fitting, machine)
    assert fitting.losses(timings, machine)[-1][0] == 1.0
    for quantiles in fitting.quality(timings, machine).values():
        assert quantiles == pytest.approx([1.0] * 5)
    slow = {key: {n: 100.0 * x for n, x in own.items()} for key, own in machine.items()}
    wrong = {key: own if key[0] == "dense" else slow[key] for key, own in machine.items()}
    assert fitting.losses(timings, wrong)[-1][0] > 2.0
    assert "auto over the fastest: median" in fitting.report("wrong", timings, wrong)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sums_are_timed_with_an_engine_where_it_has_a_part_in_them(fitting, monkeypatch, device):
    monkeypatch.setattr(fitting, "find_engine", lambda *_: SimpleNamespace(name="triton"))
    candidates = fitting.make_candidates(device)
    sizes = [size_of(device, compiled=own.engine != "none") for own in candidates]
    keys = [table_key(own.kind, size) for own, size in zip(candidates, sizes, strict=True)]
    assert len(set(keys)) == len(keys)
    assert {key[0] for key in keys} == set(KINDS)
    assert {key[2] for key in keys} == {device}
    assert {"torch", "triton" if device == "cuda" else "numba"} == {key[1] for key in keys}


def test_gpus_are_fitted_to_larger_structures(fitting):
    here, there = (fitting.parse_arguments(["--device", own]) for own in ("cpu", "cuda"))
    assert max(there.sizes) > max(here.sizes)
    assert there.most > here.most
    assert fitting.parse_arguments(["--device=cuda", "--sizes", "8"]).sizes == [8]


def test_a_term_that_no_structure_has_keeps_its_coefficient(fitting):
    machine = other_machine()
    timings = timings_on(fitting, machine, "--sizes", "8", "64", "500")
    before = {key: own | {"pages": 123.0} for key, own in COEFFICIENTS.items()}
    key = ("mesh", "torch", "cpu", "float64")
    fitted = fitting.fit(timings, before)[key]
    assert fitted["pages"] == 123.0
    assert fitted["touched"] == pytest.approx(machine[key]["touched"], rel=0.01)


def test_the_clock_times_every_sum(fitting):
    place = fitting.Place(8, 1.5, 1e-3, 1, "float64")
    candidates = [fitting.Candidate(kind, "none") for kind in ("dense", "mesh", "pairs")]
    ((*timings,),) = fitting.measure([place], candidates, fitting.Stopwatch("cpu", 0.0))
    assert [own.candidate for own in timings] == candidates
    assert all(0.0 < own.ms < 1e5 for own in timings)


def test_the_smallest_timings_of_several_files_are_kept(fitting, tmp_path):
    timings = timings_on(fitting, other_machine(), "--sizes", "8", "--channels", "1")
    slower = [own._replace(ms=(2.0 - i % 2) * own.ms) for i, own in enumerate(timings)]
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for path, own in zip(files, (slower, timings), strict=True):
        fitting.save(own, path)
    assert fitting.load(files, "cpu") == fitting.load(files[::-1], "cpu") == timings
    assert fitting.load(files[:1], "cpu") == slower


def test_float32_is_asked_for_what_it_can_keep(fitting):
    axes = {"sizes": [8], "min_widths": [1.0], "tolerances": [1e-3, 1e-7], "channels": [1]}
    places = fitting.make_places(argparse.Namespace(dtypes=["float32", "float64"], **axes))
    kept = [(own.dtype, own.tolerance) for own in places]
    assert kept == [("float32", 1e-3), ("float64", 1e-3), ("float64", 1e-7)]


def test_the_coefficients_are_as_the_script_wrote_them(fitting, tmp_path):
    path = tmp_path / "written.py"
    fitting.write_module(path, MACHINES, COEFFICIENTS)
    text = path.read_text(encoding="utf-8")
    assert text == Path(cost_coefficients.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, "padded"])
def test_every_sum_has_a_coefficient_for_each_term(kind, compiled, dtype):
    size = size_of(dtype=dtype, compiled=compiled)
    table = COEFFICIENTS[table_key(kind, size)]
    assert set(table) == set(terms(kind, size))
    assert min(table.values()) >= 0.0
    assert cost_model.predict_time(kind, size) >= 0.0


def test_a_choice_costs_the_sum_of_its_terms(with_finufft):
    size = size_of()
    for kind, cost in cost_model.choose_backend(size).costs.items():
        table = COEFFICIENTS[table_key(kind, size)]
        assert cost == pytest.approx(time_on(COEFFICIENTS, kind, size))
        assert cost_model.predict_time(kind, size) == pytest.approx(cost - table["overhead"])


def test_a_device_has_coefficients_of_its_own_or_those_of_cpus(monkeypatch):
    key = ("mesh", "triton", "cuda", "float64")
    monkeypatch.delitem(COEFFICIENTS, key, raising=False)
    cpu = COEFFICIENTS["mesh", "numba", "cpu", "float64"]
    for device in ("cuda", "xpu"):
        assert cost_model.coefficients("mesh", size_of(device)) == cpu
    own = {name: 2.0 * value for name, value in cpu.items()}
    monkeypatch.setitem(COEFFICIENTS, key, own)
    assert cost_model.coefficients("mesh", size_of("cuda")) == own
    assert cost_model.coefficients("mesh", size_of("cpu")) == cpu
