"""Atoms spread over the ranks of a process group, against one process that has them all."""

import contextlib
import importlib.util
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from references import relative_error

from sog_longrange import ConfigError, Ewald, LongRangeEnergy, SOGConfig, SOGLongRange

WORKER = Path(__file__).with_name("distributed_worker.py")
SECONDS = 120.0
"""Time after which processes that wait for each other are ended."""

# Rank of each atom: the first five are of the first structure, the last four of the second.
OWNERS = {
    "two_ranks": [0, 1, 0, 0, 0, 1, 1, 0, 1],
    "two_ranks_one_without_a_structure": [0, 0, 0, 0, 0, 1, 0, 1, 1],
    "two_ranks_one_without_atoms": [1, 1, 1, 1, 1, 1, 1, 1, 1],
    "three_ranks": [2, 0, 0, 1, 0, 2, 1, 2, 2],
    "three_ranks_one_without_a_structure": [1, 0, 2, 2, 1, 1, 2, 1, 2],
    "three_ranks_one_without_atoms": [2, 0, 0, 2, 0, 0, 2, 2, 0],
}
# Engine, remove_self, and whether there are dipoles.
OPTIONS = (("none", True, 0), ("none", False, 1), ("numba", False, 0), ("numba", True, 1))
OPTIONS = OPTIONS if importlib.util.find_spec("numba") else OPTIONS[:2]

# Charge constraint and charge embedding of whole models.
MODULES = (("module", "neutral", 0), ("module", "total", 0), ("module", "none", 3))
MODULES = (*MODULES, ("module", "total", 3))

LOCAL = (
    *("potential", "field", "atomic_energies", "charges", "dipoles", "positions", "features"),
    *("inner_potential", "inner_field"),
)
"""Results of which each rank has the rows of its own atoms; all others are equal on all."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the first, second and third rank found in every case."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = {(None, *options): None for options in (*OPTIONS, *MODULES)}
    for name, options in itertools.product(OWNERS, (*OPTIONS, *MODULES)):
        cases[(name, *options)] = OWNERS[name]
    torch.save(cases, folder / "cases.pt")
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(start_worker(folder, rank)) for rank in range(3)]
        wait_for_all(processes)
    errors = [(folder / f"rank_{rank}.log").read_text() for rank in range(3)]
    assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(errors)
    return [torch.load(folder / f"rank_{rank}.pt") for rank in range(3)]


def start_worker(folder, rank):
    path = os.pathsep.join([str(WORKER.parent.parent), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER), str(folder), str(rank)]
    with open(folder / f"rank_{rank}.log", "w", encoding="utf-8") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def wait_for_all(processes):
    """End all processes if one takes too long, or as soon as one has failed."""
    deadline = time.monotonic() + SECONDS
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline or any(process.returncode for process in processes):
            for process in processes:
                process.kill()
        time.sleep(0.05)


def find_errors(results, owners, options, names):
    """Relative errors above 1e-10, by name and rank."""
    expected, owner = results[2][(None, *options)], torch.tensor(OWNERS[owners])
    errors = {}
    for name, rank in itertools.product(filter(names, expected), range(max(owner) + 1)):
        found = results[rank][(owners, *options)][name]
        if name.split("/")[-1] in LOCAL:
            own = found
            found = expected[name].clone()
            found[owner == rank] = own
        errors[(name, rank)] = relative_error(found, expected[name])
    assert errors
    return {key: error for key, error in errors.items() if not error < 1e-10}


CORE_CASES = {"two_ranks_one_without_a_structure", "three_ranks", "three_ranks_one_without_atoms"}
each_distribution = pytest.mark.parametrize(
    "owners",
    [
        pytest.param(name, marks=pytest.mark.slow if name in CORE_CASES else pytest.mark.full)
        for name in OWNERS
    ],
)
each_option = pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda o: f"{o[0]}-{'no_self' if o[1] else 'self'}-order{o[2]}"
)


@each_distribution
@each_option
def test_energies_and_potentials_equal_those_of_one_process(results, owners, options):
    assert find_errors(results, owners, options, lambda name: "/" not in name) == {}


@each_distribution
@each_option
def test_energies_are_equal_on_all_ranks_to_the_last_bit(results, owners, options):
    ranks = results[: max(OWNERS[owners]) + 1]
    first, *others = [found[(owners, *options)]["energy"] for found in ranks]
    assert all(torch.equal(first, other) for other in others)


@each_distribution
@each_option
def test_forces_virials_and_gradients_equal_those_of_one_process(results, owners, options):
    assert find_errors(results, owners, options, lambda name: name.startswith("energy/")) == {}


@each_distribution
@each_option
def test_gradients_of_losses_equal_those_of_one_process(results, owners, options):
    assert find_errors(results, owners, options, lambda name: "_loss/" in name) == {}


each_module = pytest.mark.parametrize("options", MODULES, ids=lambda o: f"{o[1]}-embedding{o[2]}")


@each_distribution
@each_module
def test_charges_with_sums_over_all_ranks_equal_those_of_one_process(results, owners, options):
    assert find_errors(results, owners, options, lambda name: not name.startswith("step/")) == {}


@each_distribution
@each_module
def test_sums_of_charges_and_atomic_energies_are_those_wanted(results, owners, options):
    _, constraint, _ = options
    found = results[0][(owners, *options)]
    torch.testing.assert_close(found["sums"][:, 2], found["energy"])
    if constraint != "none":
        wanted = torch.tensor(
            [[1.0, 0.0], [-2.0, 0.0]] if constraint == "total" else [[0.0] * 2] * 2
        )
        torch.testing.assert_close(found["sums"][:, :2], wanted.double())


@each_distribution
@each_module
def test_derivatives_over_ranks_are_those_of_finite_differences(results, owners, options):
    ranks = [found[(owners, *options)] for found in results[: max(OWNERS[owners]) + 1]]
    for name in ("features", "positions"):
        exact = ranks[OWNERS[owners][0]][f"energy/{name}"][0, 0]
        for found in ranks:
            torch.testing.assert_close(found[f"step/{name}"], exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["dense", "finufft"])
def test_only_the_mesh_takes_a_process_group(backend):
    if backend == "finufft":
        pytest.importorskip("finufft", reason="FINUFFT is not installed.")
    group = dist.ProcessGroupGloo(dist.HashStore(), 0, 1)
    with pytest.raises(ConfigError, match="process group"):
        LongRangeEnergy(Ewald(1.0), backend=backend, process_group=group)


def test_external_fields_on_the_atoms_of_one_rank_are_refused():
    module = SOGLongRange([2], SOGConfig())
    inputs = torch.randn(3, 2), torch.rand(3, 3), 5.0 * torch.eye(3), torch.tensor([True] * 3)
    module.energy.process_group = dist.ProcessGroupGloo(dist.HashStore(), 0, 1)
    field = torch.tensor([0.0, 0.0, 0.1])
    module(*inputs, external_field=0.0 * field, skips_zero_field=True)
    with pytest.raises(ConfigError, match="`external_field` must be None"):
        module(*inputs, external_field=field)


def test_a_single_rank_is_the_same_as_no_ranks():
    module = SOGLongRange([2], SOGConfig(charge_constraint="neutral"))
    inputs = torch.randn(3, 2), torch.rand(3, 3), 5.0 * torch.eye(3), torch.tensor([True] * 3)
    alone = module(*inputs).energy
    module.energy.process_group = dist.ProcessGroupGloo(dist.HashStore(), 0, 1)
    torch.testing.assert_close(module(*inputs).energy, alone)
