"""Long-range models through NequIP's compilers."""

import os
import shutil
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from nequip.data import AtomicDataDict
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.model.modify_utils import modify
from nequip.nn.compile import DictInputOutputWrapper
from nequip.scripts._compile_utils import COMPILE_TARGET_DICT
from nequip.utils.aot import aot_export_model
from nequip.utils.aoti_metadata import (
    NEQUIP_AOTI_INPUTS_KEY,
    NEQUIP_AOTI_OUTPUTS_KEY,
    serialize_aoti_keys,
)
from nequip.utils.global_state import TF32_KEY
from nequip.utils.test import set_irreps_debug
from nequip.utils.unittests.utils import compare_output_and_gradients
from nequip_builders import (
    BASES,
    R_MAX,
    TYPES,
    acetaldehyde,
    build,
    charged,
    crystal,
    evaluate,
    in_vacuum,
    slab,
    to_data,
)

from sog_longrange import HostError, InputError
from sog_nequip.calculator import SOGNequIPCalculator
from sog_nequip.registry import ASE_TARGET, BATCH_TARGET

SOG = {"num_channels": 2, "tolerance": 1e-7}
IONS = SOG | {"readout": "ions", "element_charges": "H=0.5,O=-1"}
LARGEST = [11.0, 7.0, 7.0]
CHARGED = {"charge_constraint": "total", "tolerance": 1e-7}
FIELD = np.array([0.1, -0.2, 0.3])
every_base = pytest.mark.parametrize("base", BASES)
slow, full = pytest.mark.slow, pytest.mark.full
# A compilation takes half a minute or more: all but one of each kind are for `nox -s full`.
BOTH = ["nequip", pytest.param("allegro", marks=full)]


@pytest.fixture(autouse=True, scope="module")
def without_checks_that_tracers_cannot_follow():
    set_irreps_debug(False)
    yield
    set_irreps_debug(True)


def export(model, target, folder, atoms=None):
    """What `nequip-compile` does, without a saved model."""
    settings = COMPILE_TARGET_DICT[target]
    dynamic = {key: torch.export.Dim.DYNAMIC for key in ("graph", "node", "edge")}
    data = to_data(crystal() * (2, 2, 1) if atoms is None else atoms)
    data = settings["data_settings"](AtomicDataDict.with_batch_(data))
    path = str(folder / f"{target}.nequip.pt2")
    aot_export_model(
        model=model.eval(),
        device="cpu",
        input_fields=settings["input"],
        output_fields=settings["output"],
        data=data,
        batch_map=settings["batch_map_settings"](dynamic),
        output_path=path,
        # As for users, who compile with many: sums are written otherwise then.
        inductor_configs={
            "aot_inductor.metadata": metadata_of(model, settings),
            "cpp.threads": 2,
        },
    )
    package = torch._inductor.aoti_load_package(path)
    return path, DictInputOutputWrapper(package, settings["input"], settings["output"])


def metadata_of(model, settings):
    return model.metadata | {
        TF32_KEY: "0",
        NEQUIP_AOTI_INPUTS_KEY: serialize_aoti_keys(settings["input"]),
        NEQUIP_AOTI_OUTPUTS_KEY: serialize_aoti_keys(settings["output"]),
    }


def assert_same(compiled, model, atoms, tolerance=1e-9):
    expected, found = evaluate(model, atoms), compiled(to_data(atoms))
    for key, value in found.items():
        is_open = key == "stress" and not atoms.cell.rank  # NaN, since there is no volume
        torch.testing.assert_close(
            value, expected[key], atol=tolerance, rtol=tolerance, equal_nan=is_open
        )


def scaled(factor):
    atoms = crystal() * (2, 2, 1)
    atoms.set_cell(atoms.cell.array * factor, scale_atoms=True)
    return atoms


@full
@every_base
def test_train_time_compilation_gives_the_same_outputs_and_gradients(base):
    """The body of NequIP's own test, which skips CPUs."""
    eager, compiled = build(base, sog=SOG), build(base, sog=SOG, compile_mode="compile")
    batch = AtomicDataDict.batched_from_list([to_data(crystal()), to_data(crystal() * (2, 1, 1))])
    compare_output_and_gradients(eager, compiled, batch, tol=1e-11)


@slow
@pytest.mark.parametrize("base", BOTH)
def test_train_time_compilation_gives_the_gradients_of_a_force_and_stress_loss(base):
    eager, compiled = (
        build(base, sog=IONS, **mode).train() for mode in ({}, {"compile_mode": "compile"})
    )
    batch = AtomicDataDict.batched_from_list(
        [to_data(crystal()), to_data(crystal() * (2, 1, 1)), to_data(in_vacuum())]
    )
    gradients = []
    for model in (eager, compiled):
        out = model(dict(batch))
        loss = sum(out[key].square().sum() for key in ("total_energy", "forces", "stress"))
        gradients.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    assert len(compiled._compiled_cache[0]) == 1
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            scale = float(one.abs().max()) + 1e-300
            torch.testing.assert_close(other / scale, one / scale, atol=1e-10, rtol=1e-10)


@full
def test_train_time_compilation_takes_fields_of_open_structures():
    eager, compiled = build(sog=CHARGED), build(sog=CHARGED, compile_mode="compile")
    batch = AtomicDataDict.batched_from_list([to_data(acetaldehyde()), to_data(in_vacuum())])
    batch["charge"] = torch.tensor([[1], [-1]])
    batch["external_field"] = torch.tensor(np.stack([FIELD, 2 * FIELD]))
    compare_output_and_gradients(eager, compiled, batch, tol=1e-11)
    assert (eager(dict(batch))["field_energy"].abs() > 1e-4).all()


@pytest.fixture(scope="module", params=BOTH)
def with_boundary(request, tmp_path_factory):
    """A model with flows compiled for the target with the boundary among its inputs."""
    model = build(request.param, sog=IONS)
    return model, *export(model, ASE_TARGET, tmp_path_factory.mktemp("ase"))


@slow
@pytest.mark.parametrize("factor", [1.0, 1.3, 3.0])
def test_the_ase_target_equals_the_model_in_any_cell(with_boundary, factor):
    model, _, compiled = with_boundary
    assert_same(compiled, model, scaled(factor))


@slow
@pytest.mark.parametrize("make", [in_vacuum, acetaldehyde, slab])
def test_the_ase_target_equals_the_model_for_molecules_and_slabs(with_boundary, make):
    model, _, compiled = with_boundary
    assert_same(compiled, model, make())


@slow
def test_the_calculator_opens_the_ase_target(with_boundary):
    model, path, _ = with_boundary
    calculator = SOGNequIPCalculator.from_compiled_model(
        path, chemical_species_to_atom_type_map=True
    )
    for atoms in (crystal(), in_vacuum()):
        atoms.calc = calculator
        out = evaluate(model, atoms)
        assert atoms.get_potential_energy() == pytest.approx(out["total_energy"].item(), abs=1e-9)
        results = calculator.results
        total = results["long_range_energy"] + results["short_range_energy"]
        assert total == pytest.approx(results["energy"], abs=1e-9)
        assert results["long_range_energies"].sum() == pytest.approx(results["long_range_energy"])
        charges = out["latent_charges"].detach().numpy()
        assert atoms.get_charges() == pytest.approx(charges[:, 0], abs=1e-10)
        assert results["latent_charges"] == pytest.approx(charges, abs=1e-10)


def test_nequips_own_targets_need_to_be_told_the_boundary(tmp_path):
    for target in ("ase", "pair_nequip"):
        with pytest.raises(HostError, match=r"sog_use_mesh.*sog_open"):
            export(build(sog=SOG), target, tmp_path)


@slow
def test_compiled_energies_are_nan_where_the_data_contradict_the_boundary(tmp_path):
    model = modify(build(sog=SOG), [{"modifier": "sog_open"}])
    _, compiled = export(model, ASE_TARGET, tmp_path, in_vacuum())
    assert_same(compiled, build(sog=SOG).eval(), in_vacuum())
    out = compiled(to_data(crystal()))
    assert out["total_energy"].isnan().all()
    assert out["atomic_energy"].isnan().all()
    assert out["forces"].isnan().all()


@pytest.fixture(scope="module")
def batched(tmp_path_factory):
    """A model with flows compiled for batches with the boundary among its inputs."""
    model = build(sog=IONS).eval()
    return model, *export(model, BATCH_TARGET, tmp_path_factory.mktemp("batch"))


@slow
def test_the_batch_target_takes_periodic_and_open_structures(batched):
    model, _, compiled = batched
    atoms = [crystal(), in_vacuum(), scaled(1.3)]
    batch = AtomicDataDict.batched_from_list([to_data(a) for a in atoms])
    found, expected = compiled(dict(batch)), model(dict(batch))
    for key in ("total_energy", "forces", "latent_charges"):
        torch.testing.assert_close(found[key], expected[key], atol=1e-9, rtol=1e-9)


@slow
@pytest.mark.parametrize("atoms", [[crystal(), scaled(1.3)], [in_vacuum(), in_vacuum()]])
def test_torchsim_runs_the_batch_target(batched, atoms):
    torch_sim = pytest.importorskip("torch_sim", reason="torch-sim-atomistic is not installed")
    from sog_nequip.torchsim import SOGNequIPTorchSimCalc

    model, path, _ = batched
    calculator = SOGNequIPTorchSimCalc.from_compiled_model(
        path, chemical_species_to_atom_type_map=True, neighborlist_backend="matscipy"
    )
    out = calculator(torch_sim.io.atoms_to_state(atoms, "cpu", torch.float64))
    expected = [evaluate(model, a) for a in atoms]
    energies = torch.cat([one["total_energy"].view(1) for one in expected])
    torch.testing.assert_close(out["energy"], energies, atol=1e-9, rtol=1e-9)
    forces = torch.cat([one["forces"] for one in expected])
    torch.testing.assert_close(out["forces"], forces, atol=1e-9, rtol=1e-9)


@pytest.fixture(scope="module")
def charged_in_field(tmp_path_factory):
    """Calculators of a model and of the same compiled with total charge and field."""
    model = charged(**CHARGED)
    path, _ = export(model, "sog_ase_charge_field", tmp_path_factory.mktemp("charge"))
    types = {t: t for t in TYPES}
    mapper = ChemicalSpeciesToAtomTypeMapper(
        model_type_names=TYPES, chemical_species_to_atom_type_map=types
    )
    transforms = [mapper, NeighborListTransform(r_max=R_MAX)]
    eager = SOGNequIPCalculator(model, "cpu", transforms=transforms)
    return eager, SOGNequIPCalculator.from_compiled_model(
        path, chemical_species_to_atom_type_map=True
    )


def results_of(calculator, atoms):
    atoms.calc = calculator
    atoms.get_potential_energy()
    return calculator.results


@slow
@pytest.mark.parametrize("charge", [-1, 0, 1])
@pytest.mark.parametrize("make", [crystal, slab, acetaldehyde, in_vacuum])
def test_compiled_models_take_a_total_charge_and_a_field(charged_in_field, make, charge):
    eager, compiled = charged_in_field
    atoms = make()
    across = FIELD if not atoms.pbc.any() else 0.05 * np.cross(*atoms.cell.array[:2])
    atoms.info["charge"] = charge
    for field in [None] if atoms.pbc.all() else [None, across]:
        if field is not None:
            atoms.info["external_field"] = field
        expected, found = dict(results_of(eager, atoms)), results_of(compiled, atoms)
        assert found["charges"].sum() == pytest.approx(charge, abs=1e-9)
        assert (abs(expected["charge_state_energy"]) > 1e-4) == (charge != 0)
        if field is not None:
            assert abs(expected["field_energy"]) > 1e-4
        for key in set(expected) - {"stress"}:
            assert found[key] == pytest.approx(expected[key], abs=1e-8, rel=1e-8), key


@slow
def test_compiled_models_refuse_what_they_do_not_take(charged_in_field):
    compiled = charged_in_field[1]
    atoms = crystal()
    with pytest.raises(InputError, match="`atoms.info` must be with 'charge'"):
        results_of(compiled, atoms)
    atoms.info["charge"] = 0.5
    with pytest.raises(InputError, match="whole number"):
        results_of(compiled, atoms)
    atoms.info = {"charge": 1, "external_field": FIELD}
    with pytest.raises(HostError, match="forces in a field along periodic axes"):
        results_of(compiled, atoms)
    with pytest.raises(HostError, match="Compiled models give no Born charges"):
        compiled.get_born_charges(crystal())


@full
def test_the_batch_target_takes_total_charges_and_fields(tmp_path):
    model = build("allegro", sog=CHARGED).eval()
    _, compiled = export(model, "sog_batch_charge_field", tmp_path)
    batch = AtomicDataDict.batched_from_list([to_data(a()) for a in (crystal, in_vacuum, slab)])
    batch["charge"] = torch.tensor([[1.0], [-1.0], [0.0]])
    batch["external_field"] = torch.zeros(3, 3)
    batch["external_field"][1] = torch.tensor(FIELD)
    found, expected = compiled(dict(batch)), model(dict(batch))
    energies = ("total_energy", "field_energy", "charge_state_energy")
    for key in (*energies, "forces", "latent_charges"):
        torch.testing.assert_close(found[key], expected[key], atol=1e-9, rtol=1e-9)
    assert expected["field_energy"][1].abs() > 1e-4


def test_targets_without_the_total_charge_are_refused_where_it_is_needed(tmp_path):
    with pytest.raises(HostError, match="--target sog_ase_charge"):
        export(build(sog=CHARGED), ASE_TARGET, tmp_path)


@pytest.mark.parametrize("charge", [torch.tensor([[2]]), torch.tensor([2])])
def test_data_to_compile_with_get_the_inputs_of_the_target(charge):
    settings = COMPILE_TARGET_DICT["sog_ase_charge_field"]["data_settings"]
    data = settings(AtomicDataDict.with_batch_(to_data(crystal()) | {"charge": charge}))
    assert torch.equal(data["charge"], torch.tensor([[2.0]], dtype=torch.float64))
    assert torch.equal(data["external_field"], torch.zeros(1, 3, dtype=torch.float64))


def test_pair_allegro_is_refused():
    model = build("allegro", sog=SOG, boundary="periodic")
    with pytest.raises(HostError, match="pair_allegro"):
        export(model, "pair_allegro", Path("."))


def test_a_fixed_mesh_needs_a_largest_cell_and_a_periodic_boundary():
    with pytest.raises(HostError, match="largest_cell"):
        modify(build(sog=SOG), [{"modifier": "sog_use_mesh"}])
    with pytest.raises(HostError, match="boundary"):
        modify(
            build(sog=SOG, largest_cell=LARGEST, boundary="open"), [{"modifier": "sog_use_mesh"}]
        )


def test_a_fixed_mesh_is_the_last_modifier():
    for modifier in (
        {"modifier": "sog_open"},
        {"modifier": "sog_periodic"},
        {"modifier": "sog_use_mesh"},
        {"modifier": "sog_largest_cell", "lengths": [99, 99, 99]},
    ):
        with pytest.raises(HostError, match="last modifier"):
            modify(fixed("nequip"), [modifier])


def fixed(base, sog=SOG):
    model = build(base, sog=sog)
    modify(model, [{"modifier": "sog_largest_cell", "lengths": LARGEST}])
    return modify(model, [{"modifier": "sog_use_mesh"}]).eval()


@every_base
@pytest.mark.parametrize("sog", [SOG, IONS], ids=["atoms", "ions"])
def test_the_fixed_mesh_equals_the_model_up_to_its_largest_cell(base, sog):
    model, mesh = build(base, sog=sog).eval(), fixed(base, sog)
    assert (
        mesh.metadata["sog_largest_cell"] == "[[11.0, 0.0, 0.0], [0.0, 7.0, 0.0], [0.0, 0.0, 7.0]]"
    )
    assert "nequip_custom_ops_libs" not in mesh.metadata
    assert_same(mesh, model, crystal() * (2, 2, 1), tolerance=2e-6)
    assert_same(mesh, model, crystal(), tolerance=2e-6)
    too_long = evaluate(mesh, crystal() * (4, 2, 1))
    assert all(too_long[key].isnan().all() for key in ("total_energy", "forces", "stress"))


PROGRAM = """
    #include <torch/csrc/inductor/aoti_package/model_package_loader.h>
    #include <torch/csrc/jit/serialization/pickle.h>
    #include <fstream>
    #include <iterator>
    int main(int, char** argv) {
        c10::InferenceMode guard;
        std::ifstream file(argv[2], std::ios::binary);
        std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
        const auto loaded = torch::jit::pickle_load(bytes);
        std::vector<at::Tensor> inputs;
        for (const auto& value : loaded.toListRef()) inputs.push_back(value.toTensor());
        torch::inductor::AOTIModelPackageLoader loader(argv[1]);
        auto written = torch::jit::pickle_save(c10::IValue(loader.run(inputs)));
        std::ofstream(argv[3], std::ios::binary).write(written.data(), written.size());
    }
"""


@pytest.fixture(scope="module")
def cpp_program(tmp_path_factory):
    """A program that evaluates a compiled model without Python."""
    compiler = shutil.which("g++")
    include, lib = (Path(torch.__file__).parent / name for name in ("include", "lib"))
    if compiler is None:
        pytest.skip("needs a C++ compiler (g++)")
    if not (include / "torch/csrc/inductor/aoti_package/model_package_loader.h").exists():
        pytest.skip("needs the headers of libtorch")
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "main.cpp").write_text(textwrap.dedent(PROGRAM))
    api = include / "torch/csrc/api/include"
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    libraries = ["-ltorch", "-ltorch_cpu", "-lc10"]
    command = [compiler, "-std=c++20", abi, f"-I{include}", f"-I{api}", "main.cpp", "-o", "main"]
    command += [f"-L{lib}", f"-Wl,-rpath,{lib}", "-Wl,--no-as-needed", *libraries]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "main"


@slow
@pytest.mark.parametrize("base", BOTH)
def test_the_pair_nequip_target_runs_in_cpp_without_python(base, cpp_program, tmp_path):
    mesh = fixed(base, IONS)
    path, _ = export(mesh, "pair_nequip", tmp_path)
    target = COMPILE_TARGET_DICT["pair_nequip"]
    for atoms in (crystal() * (2, 2, 1), scaled(0.9)):
        data = to_data(atoms)
        torch.save([data[key] for key in target["input"]], tmp_path / "inputs.pt")
        command = [str(cpp_program), path, "inputs.pt", "outputs.pt"]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        subprocess.run(command, cwd=tmp_path, check=True, env=clean)
        found = torch.load(tmp_path / "outputs.pt", weights_only=False)  # A list, of our own.
        expected = evaluate(mesh, atoms)
        for key, value in zip(target["output"], found, strict=True):
            torch.testing.assert_close(value, expected[key], atol=1e-8, rtol=1e-8)
        model = build(base, sog=IONS).eval()
        torch.testing.assert_close(found[1], evaluate(model, atoms)["forces"], atol=1e-5, rtol=1e-5)
