"""SOGMACE on the domains of an engine against the ASE calculator, which has all atoms."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from domain_worker import CASES, OWNERS, RANKS, SIZES, STRUCTURES, make_model
from domains import make_domain
from mace import modules
from mace_builders import make_mace, water_box

from sog_longrange import HostError, InputError, InputTypeError, NotFiniteError, SOGConfig
from sog_mace import SOGMACE, SOGMACECalculator
from sog_mace.domain import SOGMACEDomainModel

WORKER = Path(__file__).with_name("domain_worker.py")
SECONDS = 240.0
"""Time after which processes that wait for each other are ended."""

QUIET = SOGConfig(num_channels=2, backend="mesh", engine="none")
FEW = {"num_bessel": 4, "radial_MLP": [8]}


def make_calculator(model, **options):
    return SOGMACECalculator(models=[model], device="cpu", **options)


def reference(calculator, atoms):
    """What the calculator says, in the form of the results of all domains together."""
    atoms = atoms.copy()
    atoms.calc = calculator
    calculator.calculate(atoms, ["energy", "forces", "stress"])
    found = calculator.results
    return {
        "energy": found["energy"],
        "forces": found["forces"],
        "virial": -atoms.get_stress(voigt=False) * atoms.get_volume(),
        "atomic_energies": found["energies"],
        "charges": found["charges"],
        "latent_charges": found["latent_charges"],
        "long_range_energy": found["long_range_energy"],
    }


def compare(found, expected, own, tolerance=1e-9):
    """Results of one rank with the atoms `own` against those of all."""
    for name, value in expected.items():
        value = np.asarray(value)
        here = value[own] if len(value.shape) > 0 and name != "virial" else value
        scale = max(1.0, float(np.abs(value).max()))
        torch.testing.assert_close(
            torch.as_tensor(found[name], dtype=torch.float64),
            torch.as_tensor(here, dtype=torch.float64),
            atol=tolerance * scale,
            rtol=0.0,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def compare_one_rank(calculator, atoms, tolerance=1e-9):
    model = calculator.domain_model()
    domain, halo = make_domain(atoms, np.zeros(len(atoms), int), 0, model.cutoff)
    found = model.evaluate(domain, halo)._asdict()
    assert found["latent_charges"].dtype == torch.float64
    compare(found, reference(calculator, atoms), np.arange(len(atoms)), tolerance)
    return halo


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_ghosts_of_any_number_of_layers_are_images_of_own_atoms(layers):
    calculator = make_calculator(SOGMACE(make_mace(layers=layers, **FEW), QUIET))
    halo = compare_one_rank(calculator, water_box())
    kinds = [kind for kind, *_ in halo.calls]
    assert kinds == ["forward"] * (layers - 1) + ["reverse"] * layers


@pytest.mark.parametrize("readout", ["atoms", "flows"])
def test_dispersion_beyond_the_cutoff_between_domains(readout):
    options = {"kernel": "coulomb+dispersion", "num_channels": 2, "latent_dipoles": True}
    config = SOGConfig(readout=readout, backend="mesh", engine="none", **options)
    halo = compare_one_rank(make_calculator(SOGMACE(make_mace(**FEW), config)), water_box())
    exchanges = 1 + (readout == "flows")
    kinds = [kind for kind, *_ in halo.calls]
    assert kinds == ["forward"] * (1 + exchanges) + ["reverse"] * (2 + exchanges)


@pytest.mark.parametrize("readout", ["flows", "ions"])
def test_charges_that_flow_between_domains(readout):
    config = SOGConfig(readout=readout, backend="mesh", engine="none", latent_dipoles=True)
    calculator = make_calculator(SOGMACE(make_mace(**FEW), config))
    halo = compare_one_rank(calculator, water_box())
    kinds = [kind for kind, *_ in halo.calls]
    assert kinds == ["forward", "forward", "reverse", "reverse", "reverse"]
    # One side of a proton halfway is told by its owner what the other side asks for.
    z = [0.6, -0.58, 0.9, -1.83, -2.2]
    positions = [[0.9 * (i in (2, 4)), 0.0, height] for i, height in enumerate(z)]
    compare_one_rank(calculator, Atoms("OHHOH", positions, cell=[7.0, 7.5, 8.0], pbc=True))


BLOCKS = sorted(set(modules.interaction_classes) - {"RealAgnosticResidualInteractionBlock"})


@pytest.mark.parametrize("name", BLOCKS)
def test_every_kind_of_layer(name):
    block = modules.interaction_classes[name]
    options = {"interaction_cls": block, "interaction_cls_first": block, **FEW}
    compare_one_rank(make_calculator(SOGMACE(make_mace(**options), QUIET)), water_box())


@pytest.mark.parametrize(
    "options",
    [
        {"pair_repulsion": True},
        {"cls": modules.MACE, "pair_repulsion": True},
        {"max_l": 2},
        {"distance_transform": "Agnesi", "apply_cutoff": False},
    ],
    ids=["ZBL", "plain", "l2", "transform"],
)
def test_options_of_the_host(options):
    compare_one_rank(make_calculator(SOGMACE(make_mace(**FEW, **options), QUIET)), water_box())


@pytest.mark.parametrize("head", ["one", "two"])
def test_the_head_is_that_of_the_calculator(head):
    energies = np.array([[-1.0, -2.0], [-3.0, -1.5]])
    mace = make_mace(heads=("one", "two"), atomic_energies=energies, **FEW)
    compare_one_rank(make_calculator(SOGMACE(mace, QUIET), head=head), water_box())


def test_single_precision():
    model = SOGMACE(make_mace(**FEW), QUIET).float()
    halo = compare_one_rank(make_calculator(model), water_box(), tolerance=2e-5)
    assert [dtype for *_, dtype in halo.calls] == [torch.float32] * 2 + [torch.float64]


def test_atoms_without_pairs():
    far = Atoms("HO", [[0.5, 0.5, 0.5], [5.5, 5.0, 6.0]], cell=[11.0, 10.0, 12.0], pbc=True)
    compare_one_rank(make_calculator(SOGMACE(make_mace(**FEW), QUIET)), far)


def test_a_second_evaluation_and_the_calculator_do_not_notice_each_other():
    calculator = make_calculator(SOGMACE(make_mace(**FEW), QUIET))
    before = reference(calculator, water_box())
    compare_one_rank(calculator, water_box(1))
    compare_one_rank(calculator, water_box())
    assert reference(calculator, water_box())["energy"] == before["energy"]
    assert calculator.models[0].long_range.energy.process_group is None


class Ranks:
    """Stands for the group of several ranks where nothing is exchanged."""

    def size(self):
        return 2


def with_embeddings():
    specs = {"total_charge": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4}}
    return make_mace(embedding_specs=specs, **FEW)


@pytest.mark.parametrize(
    ("make", "group", "message"),
    [
        (lambda: make_mace(cls=Other, **FEW), None, "is a Other"),
        (with_embeddings, None, "embedding_specs"),
        (lambda: make_mace(**FEW), Ranks(), "backend='dense'"),
    ],
    ids=["class", "embeddings", "backend"],
)
def test_models_that_are_not_evaluated_so_are_named(make, group, message):
    model = SOGMACE(make(), SOGConfig(backend="dense"))
    with pytest.raises(HostError, match=f'{message}.*"gathered"'):
        SOGMACEDomainModel(model, group=group)


class Other(modules.ScaleShiftMACE):
    """A class of somebody else."""


def test_committees_compiled_models_and_other_units_are_named():
    models = [SOGMACE(make_mace(layers=1, **FEW), QUIET) for _ in range(2)]
    with pytest.raises(HostError, match='a committee.*"gathered"'):
        SOGMACECalculator(models=models, device="cpu").domain_model()
    with pytest.raises(HostError, match='other units.*"gathered"'):
        make_calculator(models[0], energy_units_to_eV=27.2).domain_model()
    calculator = make_calculator(models[0])
    calculator.models = [models[1]]
    with pytest.raises(HostError, match='a compiled one.*"gathered"'):
        calculator.domain_model()


@pytest.fixture(scope="module")
def small():
    """A model, and the domain of a single rank."""
    torch.set_default_dtype(torch.float64)
    model = make_calculator(make_model("total")).domain_model()
    atoms = STRUCTURES["triclinic"]
    return model, *make_domain(atoms, np.zeros(len(atoms), int), 0, model.cutoff)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: {"num_own": 10_000}, InputError, "num_own"),
        (lambda x: {"positions": x.positions[1:]}, InputError, "positions.*shape"),
        (lambda x: {"positions": x.positions.long()}, InputTypeError, "positions.*float"),
        (lambda x: {"cell": x.cell / 0.0}, NotFiniteError, "cell"),
        (lambda x: {"vectors": x.vectors[1:]}, InputError, "pairs.*shape"),
        (lambda x: {"vectors": 1e-9 * x.vectors}, InputError, "own atom .* apart"),
        (lambda x: {"pairs": x.pairs.flip(0)}, InputError, "pairs"),
        (lambda x: {"numbers": x.numbers + 5}, InputError, r"numbers.*\[6, 13\]"),
        (lambda x: {"total_charge": None}, InputError, "total_charge"),
        (lambda x: {"total_charge": 0.5}, InputError, "whole number"),
    ],
)
def test_malformed_domains_are_named(small, change, error, message):
    model, domain, halo = small
    with pytest.raises(error, match=message):
        model.evaluate(domain._replace(**change(domain)), halo)


def test_energies_that_are_not_finite_are_no_result():
    mace = make_mace(**FEW)
    mace.scale_shift.scale.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="`energy and virial` must be finite"):
        compare_one_rank(make_calculator(SOGMACE(mace, QUIET)), water_box())


def test_a_total_charge_that_a_neutral_model_contradicts_is_said_once():
    model = make_calculator(make_model("neutral")).domain_model()
    atoms = STRUCTURES["triclinic"]
    domain, halo = make_domain(atoms, np.zeros(len(atoms), int), 0, model.cutoff)
    with pytest.warns(UserWarning, match="total charge 1 e of the domains is ignored"):
        model.evaluate(domain, halo)
    model.evaluate(domain, halo)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank found in every case."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join(filter(None, [str(WORKER.parent), *sys.path]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        processes = []
        for rank in range(RANKS):
            log = stack.enter_context(open(folder / f"{rank}.log", "w", encoding="utf-8"))
            command = [sys.executable, str(WORKER), str(folder), str(rank)]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        wait_for_all(processes)
    logs = "\n".join((folder / f"{rank}.log").read_text() for rank in range(RANKS))
    assert [process.returncode for process in processes] == [0] * RANKS, logs
    return [torch.load(folder / f"rank_{rank}.pt") for rank in range(RANKS)]


def wait_for_all(processes):
    """End all processes if one takes too long, or as soon as one has failed."""
    deadline = time.monotonic() + SECONDS
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline or any(process.returncode for process in processes):
            for process in processes:
                process.kill()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def references():
    """What the calculator says, by model and structure."""
    torch.set_default_dtype(torch.float64)
    known = {}

    def find(config, structure):
        key = config, structure
        if key not in known:
            known[key] = reference(make_calculator(make_model(config)), STRUCTURES[structure])
        return known[key]

    return find


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The total charge 1 e in atoms.info is ignored")
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_domains_together_are_what_the_calculator_says(results, references, case):
    config, structure, owners = case
    ranks = OWNERS[owners](STRUCTURES[structure])
    expected = references(config, structure)
    for rank in range(SIZES.get(owners, RANKS)):
        compare(results[rank][case], expected, np.flatnonzero(ranks == rank))
        assert results[rank][case]["calls"] == results[0][case]["calls"]


@pytest.mark.slow
def test_no_rank_waits_for_one_whose_domain_is_malformed(results):
    first, *others = [found["refused"] for found in results]
    assert "`positions` must be finite" in first[0]
    assert "`numbers` must be" in first[1]
    assert all(["1 other rank" in text for text in own] == [True, True] for own in others)
