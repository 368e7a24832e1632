"""The benchmark of systems: jobs that run once, what they measure, and the tables."""

import importlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from ase.neighborlist import neighbor_list

from sog_longrange import Ewald, LongRangeEnergy
from sog_longrange.units import COULOMB_CONSTANT

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
TRAIN = "open('{folder}/model', 'a').write('trained '); open('{data}/runs', 'a').write('.')"
MEASURE = """import json
text = open('{folder}/model').read()
errors = {{'test': {{'forces': 2.0}}}}
json.dump({{'text': text, 'errors': errors}}, open('{folder}/measured.json', 'w'))"""


@pytest.fixture
def load(monkeypatch):
    """Import a script, whose imports are next to it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def new_job(load, tmp_path):
    """A job whose training and measuring are one line each, and its data."""
    (tmp_path / "train.xyz").write_text("frames")

    def python(code):
        return lambda folder, *_: [sys.executable, "-c", code.format(folder=folder, data=tmp_path)]

    def build(train=TRAIN, finish="", measure=MEASURE, **options):
        names = {"system": "fake", "column": "sog", "host": "mace", "seed": 1}
        values = {**names, "code": "a", "measuring": "a", "epochs": 2, "minutes": 1.0, **options}
        return load("jobs").Job(
            **values,
            train=python(train),
            finish=python(finish),
            measure=python(measure),
            data=tmp_path,
            inputs=(tmp_path / "train.xyz",),
            model=lambda folder: folder / "model",
            output=tmp_path / "output",
        )

    return build


def runs(tmp_path):
    return len((tmp_path / "runs").read_text())


def test_a_job_runs_once_until_its_data_its_options_or_the_code_change(load, new_job, tmp_path):
    jobs = load("jobs")
    job = new_job()
    assert jobs.run_all([job], 2) == jobs.run_all([new_job()], 2) == {}
    assert runs(tmp_path) == 1
    result = job.result()
    assert (result["errors"], result["epochs_done"]) == ({"test": {"forces": 2.0}}, 2)
    assert not result["stopped"]
    for other in (new_job(TRAIN + "  # other"), new_job(code="b"), new_job(seed=2)):
        assert not other.is_done()
    (tmp_path / "train.xyz").write_text("other frames")
    load("jobs").hash_files.cache_clear()
    assert not new_job().is_done()


def test_what_other_code_measured_is_measured_again_without_training(load, new_job, tmp_path):
    jobs = load("jobs")
    jobs.run_all([new_job()], 1)
    again = new_job(measuring="b", measure=MEASURE.replace("2.0", "3.0"))
    jobs.run_all([again], 1)
    assert again.result()["errors"]["test"]["forces"] == 3.0
    assert runs(tmp_path) == 1


def test_an_interrupted_job_is_stopped_cleaned_and_run_again(load, new_job, monkeypatch):
    jobs = load("jobs")
    job = new_job("import time; open('{folder}/half', 'w'); time.sleep(60)")

    def interrupt(seconds):
        if (job.folder / "half").exists():
            raise KeyboardInterrupt
        wait(0.01)

    wait = time.sleep
    monkeypatch.setattr(jobs.time, "sleep", interrupt)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        jobs.run_all([job], 1)
    assert time.monotonic() - started < 30.0
    assert job.result() is None
    monkeypatch.setattr(jobs.time, "sleep", wait)
    done = new_job()
    (job.folder).rename(done.folder)
    jobs.run_all([done], 1)
    assert done.result()["text"] == "trained "
    assert not (done.folder / "half").exists()


def test_a_job_at_its_limit_is_stopped_and_its_best_model_measured(load, new_job):
    jobs = load("jobs")
    endless = "open('{folder}/best', 'w')\nwhile True: pass"
    finish = "open('{folder}/model', 'w').write('best')"
    job = new_job(endless, finish, minutes=0.2 / 60)
    assert jobs.run_all([job], 1) == {}
    result = job.result()
    assert (result["stopped"], result["text"], result["epochs_done"]) == (True, "best", 0)
    assert result["core_seconds"] >= 0.2
    assert new_job(endless, finish, minutes=0.1 / 60).is_done()
    assert not new_job(endless, finish, minutes=1.0).is_done()


def test_a_failing_job_does_not_stop_the_others(load, new_job):
    failed = load("jobs").run_all([new_job("raise ValueError('no such option')"), new_job()], 1)
    assert list(failed) == ["fake sog 1"]
    assert "no such option" in failed["fake sog 1"]
    assert new_job().is_done()


def test_results_of_other_code_are_shown_with_their_commit_and_never_mixed(load, new_job):
    jobs, collect = load("jobs"), load("collect")
    jobs.run_all([new_job(), new_job(column="sr"), new_job(seed=2)], 2)
    changed = [new_job(code="b", seed=seed) for seed in (1, 2)]
    results = collect.collect([new_job(column="sr"), *changed])
    cells = collect.table(results, "forces", "sr").splitlines()[-1].split("|")[3:5]
    assert cells[0].strip() == "2.0"
    assert cells[1].strip() == f"2.0 ± 0.0 [{jobs.commit()}]"
    jobs.run_all(changed[:1], 1)
    results = collect.collect(changed)
    assert [(row["seed"], row["stale"]) for row in results.rows] == [(1, False)]
    assert results.missing == ["fake sog 2"]


def test_of_two_other_codes_that_made_as_much_the_newest_is_shown(load, new_job):
    jobs, collect = load("jobs"), load("collect")
    for number, (seed, code) in enumerate(((1, "a"), (2, "b"), (3, "b"))):
        jobs.run_all([job := new_job(code=code, seed=seed)], 1)
        os.utime(job.folder / jobs.RESULT, (number, number))
    tie = collect.collect([new_job(code="c", seed=seed) for seed in (1, 2)])
    assert [(row["seed"], row["code"]) for row in tie.rows] == [(2, "b")]
    most = collect.collect([new_job(code="c", seed=seed) for seed in (1, 2, 3)])
    assert [row["seed"] for row in most.rows] == [2, 3]


def test_results_of_an_earlier_pass_count_and_are_not_run_again(load, new_job, tmp_path):
    jobs, collect = load("jobs"), load("collect")
    jobs.run_all([new_job()], 1)
    kept = {"system", "column", "host", "seed", "commit", "data", "options", "code", "errors"}
    kept |= {"stopped", "minutes"}
    row = {key: value for key, value in new_job().result().items() if key in kept}
    shutil.rmtree(tmp_path / "output")
    assert not new_job().is_done()
    again = new_job(earlier=[row])
    assert jobs.run_all([again], 1) == {}
    assert runs(tmp_path) == 1
    assert collect.collect([again]).rows == [row | {"stale": False}]
    other, second = new_job(code="b", earlier=[row]), new_job(seed=2, earlier=[row])
    assert not other.is_done()
    assert not second.is_done()
    assert collect.collect([other]).rows == [row | {"stale": True}]
    assert collect.collect([second]).missing == ["fake sog 2"]


def test_worse_is_more_than_five_percent_and_two_standard_errors(load):
    is_worse = load("collect").is_worse
    assert is_worse({1: 1.06}, {1: 1.0})
    assert not is_worse({1: 1.04}, {1: 1.0})
    assert is_worse({1: 1.1, 2: 2.2}, {1: 1.0, 2: 2.0})
    assert not is_worse({1: 1.3, 2: 1.0}, {1: 1.0, 2: 1.0})
    assert is_worse({1: 1.0}, {2: 1.0}) is None


def test_code_is_what_it_does(load, monkeypatch, tmp_path):
    jobs = load("jobs")
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    path, sums = tmp_path / "own.py", []
    for text in ('"""Text."""\nx = 1\n', '"""Other."""\nx  =  1  # one\n', "x = 2\n"):
        path.write_text(text)
        jobs.hash_code.cache_clear()
        sums.append(jobs.hash_code((path,)))
    assert sums[0] == sums[1] != sums[2]
    assert jobs.hash_code((), ("torch",)) != jobs.hash_code(())


def two_molecules(gap, charge=0.4):
    atoms = Atoms("N2O2", [(0, 0, 0), (1.1, 0, 0), (gap, 0, 0), (gap + 1.2, 0, 0)], cell=[30] * 3)
    atoms.pbc = True
    atoms.info["REF_energy"] = -charge / gap
    pull = np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 0], [-1.0, 0, 0]])
    atoms.arrays["REF_forces"] = charge / gap**2 * pull
    atoms.arrays["true_charges"] = np.array([charge, 0, 0, -charge])
    return atoms


def test_net_forces_see_no_error_inside_a_molecule(load):
    measures = load("measures")
    frame = two_molecules(5.0)
    parts = [measures.fragments(frame)]
    assert parts[0].tolist() == [0, 0, 1, 1]
    wrong = frame.arrays["REF_forces"] + np.array([[0.3, 0, 0], [-0.3, 0, 0], [0] * 3, [0] * 3])
    exact = measures.labels([frame])
    found = measures.errors(measures.Found(exact.energies, [wrong]), exact, parts)
    assert found["net_force"] == pytest.approx(0.0, abs=1e-9)
    assert found["forces"] == pytest.approx(1e3 * np.sqrt(2 * 0.3**2 / 12))
    pull = 0.4 / 25.0
    assert measures.zero(exact, parts)["net_force"] == pytest.approx(1e3 * pull / np.sqrt(3.0))
    training = [two_molecules(gap) for gap in (3.0, 4.0, 3.5)]
    copied = measures.copied([frame], training, parts)
    assert copied["net_force"] == pytest.approx(1e3 * (0.4 / 16.0 - pull) / np.sqrt(3.0))


def test_the_mixture_is_labelled_exactly(load, monkeypatch):
    made = load("systems.gases")
    monkeypatch.setattr(made, "REACH", 12.0)
    atoms = made.mixture(np.random.default_rng(0))
    moved, step = [], 1e-4
    for sign in (1, -1):
        other = atoms.copy()
        other.positions[3, 1] += sign * step
        moved.append(made.label_mixture(other).info["REF_energy"])
    slope = (moved[0] - moved[1]) / (2 * step)
    assert -slope == pytest.approx(atoms.arrays["REF_forces"][3, 1], rel=1e-5)
    # Neither the split of the Coulomb sum nor the reach of 1/r^6 decides the energy.
    energies = []
    for width, reach in ((1.0, 12.0), (1.1, 16.0)):
        monkeypatch.setattr(made, "WIDTH", width)
        monkeypatch.setattr(made, "REACH", reach)
        energies.append(made.label_mixture(atoms.copy()).info["REF_energy"])
    assert energies[0] == pytest.approx(energies[1], abs=2e-3)


@pytest.mark.slow
def test_a_tiny_model_is_trained_measured_and_collected_once(load, tmp_path, capsys):
    data, output = tmp_path / "data" / "syn_decay_p1", tmp_path / "output"
    data.mkdir(parents=True)
    for name, gaps in {"train": (3, 4, 5, 6), "val": (4,), "test_interp": (4,)}.items():
        write(data / f"{name}.xyz", [two_molecules(gap) for gap in gaps])
    write(data / "test_extrap.xyz", [two_molecules(gap) for gap in (10, 11)])
    arguments = [
        "decay_p1",
        "decay_p4",
        f"--data={data.parent}",
        f"--output={output}",
        "--epochs=2",
        "--seeds=1",
    ]
    load("systems.command").main([*arguments, "--model", "none"])
    (row,) = json.loads((output / "mace.json").read_text())
    assert (row["system"], row["column"], row["seed"], row["epochs_done"]) == (
        *("decay_p1", "none", 1),
        2,
    )
    assert row["errors"]["test_extrap"]["frames"] == 2
    assert {"true_charges", "law"} <= row["learned"].keys()
    assert row["net_charges"]["test_extrap"].keys() == {"N2", "O2"}
    log = (output / "mace/decay_p1/none" / f"1-{row['key'][:8]}" / "train.log").stat()
    load("systems.command").main([*arguments, "--model", "none"])
    (again,) = (output / "mace/decay_p1/none").iterdir()
    assert (again / "train.log").stat().st_mtime_ns == log.st_mtime_ns
    printed = capsys.readouterr().out
    assert "decay_p4 is left out: no syn_decay_p4/train.xyz in" in printed
    assert "0 of 1 jobs are left" in printed


def rows(system, **figures):
    """Results of one seed of all columns, by column."""
    base = {"system": system, "host": "mace", "seed": 1, "commit": "abc", "stale": False}
    base |= {"epochs": 2, "epochs_done": 2, "stopped": False, "minutes": 10.0, "seconds": 3.0}
    base |= {"core_seconds": 2.0, "parameters": 7, "baselines": {}, "learned": {}}
    return [base | {"column": column} | own for column, own in figures.items()]


def silver(forces, anion=None):
    errors = {"forces": forces, "energy": 1.0}
    result = {"errors": {"train": errors, "test": errors, "curve": errors}}
    openings = {"cation": 0.8, "anion": anion}
    return result | {"probe": {"openings": openings, "truth": {"cation": 0.8, "anion": -0.2}}}


def test_the_page_ranks_models_and_judges_their_answers(load, tmp_path):
    page, collect = load("systems.page"), load("collect")
    found = rows("ag3", sr=silver(100.0, 0.8), les=silver(50.0, -0.3), sog=silver(50.2, -0.19))
    results = collect.Results(found, ["ag3 sog 2"])
    page.write(
        results, "mace", tmp_path, "the command", {"water": "no data"}, {"ag3": {"gap": 1.0}}
    )
    text = (tmp_path / "evidence" / "systems.md").read_text()
    assert "| ag3 | GFN1-xTB | 1 | 100 | 50.0 | 50.2 | 3 / 1.5 / 1.5 |" in text
    assert "**3.00** / **1.50** / **1.50**" in text
    assert "-0.200 | 0.800 ✗ | -0.300 ✓ | -0.190 ✓ |" in text
    assert "`water`: no data" in text
    assert "| gap 1 |" in text
    assert len(json.loads((tmp_path / "evidence" / "systems.json").read_text())) == 3
    assert (tmp_path / "figures" / "systems.png").stat().st_size > 10000


def test_labels_that_do_not_show_the_effect_are_refused(load, tmp_path, capsys):
    command, system = load("systems.command"), load("systems.system")
    small = system.System(
        *("fake", ("test",), 1, ()), effects=lambda _: [system.Effect("shift, Å", 0.01, 0.02)]
    )
    with pytest.raises(command.MissingDataError, match="do not show shift"):
        command.look_at_labels("fake", small, tmp_path, tmp_path)
    assert "fake, labels: shift, Å 0.01, below 0.02: NOT SHOWN" in capsys.readouterr().out


def test_charge_structure_of_one_wave(load):
    structure = load("systems.structure")
    cell = np.array([8.0, 9.0, 12.0])
    first = structure.shells(cell)
    assert [len(own) for own in first] == [1, 1, 1]
    assert first[0] == pytest.approx(np.array([[0.0, 0.0, 2.0 * np.pi / 12.0]]))
    atoms = Atoms("NaCl", [(0, 0, 0), (0, 0, 6.0)], cell=cell, pbc=True)
    (found,) = structure.charge_structure([atoms], [np.array([1.0, -1.0])])
    assert found == pytest.approx([2.0, 0.0, 0.0], abs=1e-12)


@pytest.mark.slow
def test_exact_worlds_are_those_of_the_package_and_forces_are_slopes(load):
    exact, solutions = load("systems.exact"), load("systems.solutions")
    rng = np.random.default_rng(0)
    ions = Atoms("Na5Cl5", rng.random((10, 3)) * [11, 12, 13], cell=[11, 12, 13], pbc=True)
    found = exact.label(exact.World({"Na": 1.0, "Cl": -1.0}, {}), ions)
    part = LongRangeEnergy(Ewald(1.0), tolerance=1e-12, backend="dense").double()
    cell, pbc = torch.tensor(ions.cell.array)[None], torch.tensor(ions.pbc)[None]
    charges = torch.tensor(found.arrays["true_charges"])[:, None]
    energy = float(part(charges, torch.tensor(ions.positions), cell, pbc).energy.sum())
    i, j, r = (torch.tensor(own) for own in neighbor_list("ijd", ions, 9.0))
    pairs = charges[i, 0] * charges[j, 0] * torch.erfc(r / 2**0.5) / r
    energy += 0.5 * COULOMB_CONSTANT * float(pairs.sum())
    assert found.info["REF_energy"] == pytest.approx(energy, abs=1e-4)
    world, water = solutions.world(), solutions.start(1, 0.0, rng)
    forces, step = exact.label(world, water).arrays["REF_forces"], 1e-4
    for atom, axis in ((0, 1), (1, 0), (len(water) - 1, 2)):
        moved = [water.copy(), water.copy()]
        for own, sign in zip(moved, (1, -1), strict=True):
            own.positions[atom, axis] += sign * step
        above, below = (exact.label(world, own).info["REF_energy"] for own in moved)
        assert forces[atom, axis] == pytest.approx((below - above) / (2.0 * step), abs=1e-4)
