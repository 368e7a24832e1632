"""Exported models against the calculator of the model they are of."""

import io
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
import torch
from ase.stress import voigt_6_to_full_3x3_stress
from ase.units import Bohr, Hartree
from mace_builders import make_sogmace, open_molecule, water_box
from md_builders import save_model, water

from sog_longrange import ConfigError, HostError, SOGConfig
from sog_mace import SOGMACECalculator
from sog_mace.cli.export import build_parser, main
from sog_mace.export import FORMATS, check_file, evaluate, export, open_file, quiet
from sog_mace.gromacs import GromacsSOGMACE
from sog_mace.scripted import ScriptedSOGMACE

PAGE = (Path(__file__).parents[3] / "docs" / "engines" / "export.md").read_text("utf-8")
FRAMES = {"triclinic": water_box(), "24": water(2), "192": water(4), "open": open_molecule()}
OPTIONS = {
    "ewald": {"kernel": "ewald", "charge_constraint": "none"},
    "charged": {
        "kernel": "coulomb+dispersion",
        "num_channels": 2,
        "charge_constraint": "total",
        "charge_embedding": 3,
    },
    "dipoles": {"kernel": "yukawa", "latent_dipoles": True},
    "ions": {"readout": "ions", "element_charges": "H=0.4,O=-0.8", "charge_constraint": "total"},
}


pytest.importorskip("metatomic", reason="metatomic-torch is not installed")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "plain.model")


@pytest.fixture(scope="module")
def model(model_file):
    return torch.load(model_file, weights_only=False)


@pytest.fixture(scope="module")
def files(model_file, tmp_path_factory):
    """A file in each format, as the command writes them."""
    folder = tmp_path_factory.mktemp("exported")
    paths = {kind: folder / f"{kind}.pt" for kind in FORMATS}
    for kind, path in paths.items():
        main([str(model_file), str(path), "--format", kind])
    assert sorted(folder.iterdir()) == sorted(paths.values())
    return paths


def calculator(model):
    return SOGMACECalculator(models=[model], device="cpu", default_dtype="float64")


def check(out, atoms, calc):
    """Compare energy, forces and stress to 1e-6, charges to rounding."""
    assert abs(float(out["energy"]) - calc.get_potential_energy(atoms)) < 1e-6
    assert np.abs(out["forces"].numpy() - calc.get_forces(atoms)).max() < 1e-6
    if "charges" in out:
        own = calc.results["latent_charges"]
        assert np.abs(out["charges"].numpy() - own[:, : out["charges"].shape[1]]).max() < 1e-10
    if "virial" in out and atoms.pbc.all():
        stress = voigt_6_to_full_3x3_stress(calc.get_stress(atoms))
        ours = -out["virial"].numpy() / atoms.get_volume()
        assert np.abs(ours - stress).max() < 1e-6 * np.abs(stress).max()


@pytest.mark.parametrize("kind", FORMATS)
def test_files_give_what_the_calculator_gives(files, model, kind):
    exported, calc = open_file(files[kind], kind), calculator(model)
    for atoms in FRAMES.values():
        check(evaluate(exported, atoms, 4.0), atoms, calc)


def test_energies_of_atoms_are_those_of_the_calculator(files, model):
    exported, calc = open_file(files["torchscript"], "torchscript"), calculator(model)
    for atoms in FRAMES.values():
        out = evaluate(exported, atoms, 4.0, per_atom=True)
        calc.calculate(atoms)
        assert np.abs(out["atomic_energies"].numpy() - calc.results["energies"]).max() < 1e-9
        plain = evaluate(exported, atoms, 4.0)["atomic_energies"]
        assert float(plain.sum()) == pytest.approx(calc.results["energy"], abs=1e-9)


@pytest.mark.parametrize("name", OPTIONS)
def test_models_of_all_kinds(name):
    model = make_sogmace(SOGConfig(tolerance=1e-8, **OPTIONS[name]))
    for own in (model.long_range.states or torch.nn.Module()).parameters():
        own.data += 0.3 * torch.randn_like(own)
    with quiet():
        exported = torch.jit.script(ScriptedSOGMACE(model).eval())
    calc = calculator(model)
    for atoms in (water_box(), open_molecule(), water(3)):
        if model.long_range.config.needs_total_charge:
            atoms.info["charge"] = 1.0
        check(evaluate(exported, atoms, 4.0), atoms, calc)


def test_ase_runs_the_file_of_metatomic(files, model):
    metatomic_ase = pytest.importorskip("metatomic_ase", reason="metatomic-ase is not installed")
    path = str(files["metatomic"])
    theirs = metatomic_ase.MetatomicCalculator(path, device="cpu", check_consistency=True)
    calc = calculator(model)
    for atoms in (FRAMES["triclinic"], FRAMES["open"]):
        atoms = atoms.copy()
        calc.calculate(atoms)
        atoms.calc = theirs
        assert atoms.get_potential_energy() == pytest.approx(calc.results["energy"], abs=1e-6)
        assert np.abs(atoms.get_forces() - calc.results["forces"]).max() < 1e-6
        assert np.abs(atoms.get_potential_energies() - calc.results["energies"]).max() < 1e-6
    box = FRAMES["triclinic"].copy()
    box.calc = theirs
    stress = calc.get_stress(FRAMES["triclinic"])
    assert np.abs(box.get_stress() - stress).max() < 1e-6 * np.abs(stress).max()


def test_metatomic_takes_the_total_charge(tmp_path):
    metatomic_ase = pytest.importorskip("metatomic_ase", reason="metatomic-ase is not installed")
    model = make_sogmace(SOGConfig(tolerance=1e-8, charge_constraint="total"))
    export(model, tmp_path / "charged.pt", "metatomic")
    path = str(tmp_path / "charged.pt")
    atoms = open_molecule()
    energies = []
    for charge in (0.0, 1.0):
        atoms.info["charge"] = charge
        atoms.calc = metatomic_ase.MetatomicCalculator(path, device="cpu")
        energies.append(atoms.get_potential_energy())
        expected = calculator(model).get_potential_energy(atoms)
        assert energies[-1] == pytest.approx(expected, abs=1e-6)
    assert abs(energies[1] - energies[0]) > 1e-3


def test_a_model_in_single_precision_out_of_one_in_double(model, tmp_path):
    export(model, tmp_path / "single.pt", dtype=torch.float32)
    exported = open_file(tmp_path / "single.pt", "torchscript")
    out = evaluate(exported, FRAMES["24"], 4.0, torch.float32)
    assert out["forces"].dtype == torch.float32
    expected = calculator(model).get_forces(FRAMES["24"])
    assert np.abs(out["forces"].numpy() - expected).max() < 1e-4
    assert next(model.parameters()).dtype == torch.float64


# metatomic-ase divides the virial of a molecule by a volume of zero.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_commands_and_code_of_the_page_work(files, model_file, tmp_path, monkeypatch, capsys):
    pytest.importorskip("metatomic_ase", reason="metatomic-ase is not installed")
    monkeypatch.chdir(tmp_path)
    (commands,) = re.findall(r"```bash\n(sog_mace_export.*?)```", PAGE, re.DOTALL)
    for line in commands.splitlines():
        args = build_parser().parse_args(shlex.split(line)[1:])
        assert args.model == "my.model"
        Path(args.output).write_bytes(files[args.format].read_bytes())
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    torch.set_default_dtype(torch.float32)
    for code in blocks:
        exec(compile(code, "export.md", "exec"), {})  # noqa: S102
    assert "['H', 'O'] float64 False" in capsys.readouterr().out


def test_ipi_runs_the_file_of_metatomic(files, model, tmp_path, monkeypatch):
    ipi = pytest.importorskip("ipi.pes.metatomic", reason="ipi is not installed")
    monkeypatch.chdir(tmp_path)
    atoms = water(2)
    ase.io.write("water.xyz", atoms)
    Path("my_metatomic.pt").write_bytes(files["metatomic"].read_bytes())
    (options,) = re.findall(r"<parameters> \{(.*?)\} </parameters>", PAGE)
    given = dict(word.strip().split(": ") for word in options.split(","))
    driver = ipi.MetatomicDriver(**given, device="cpu")
    energy, forces, *_ = driver(atoms.cell.array.T / Bohr, atoms.positions / Bohr)
    calc = calculator(model)
    assert energy * Hartree == pytest.approx(calc.get_potential_energy(atoms), abs=1e-5)
    assert np.abs(forces * Hartree / Bohr - calc.get_forces(atoms)).max() < 1e-5


def test_the_command_says_what_it_wrote(model_file, tmp_path, capsys):
    path = tmp_path / "model.pt"
    main([str(model_file), str(path)])
    said = capsys.readouterr().out
    assert f"{path}: torchscript file of a model of H O" in said
    assert f"pair_coeff * * {path} H O" in said
    with pytest.raises(SystemExit, match=r"sog_mace_export: .*folder that exists"):
        main([str(model_file), str(tmp_path / "nowhere" / "model.pt")])
    heads = save_model(tmp_path / "heads.model", heads=("a", "b"))
    with pytest.raises(SystemExit, match=r"single head, got a, b. Choose one by sog_mace_select"):
        main([str(heads), str(tmp_path / "heads.pt")])
    assert not (tmp_path / "heads.pt").exists()


def test_a_file_that_is_not_that_of_the_model_is_found(files, model):
    other = make_sogmace(SOGConfig(kernel="yukawa", tolerance=1e-8))
    model.requires_grad_(True)
    check_file(files["torchscript"], "torchscript", model, "float64")
    assert all(own.requires_grad for own in model.parameters()), "training may go on"
    with pytest.raises(HostError, match="the exported model` must be within .* of the model's"):
        check_file(files["torchscript"], "torchscript", other, "float64")
    with pytest.raises(ConfigError, match="`kind` must be one of torchscript, metatomic, gromacs"):
        export(model, "nowhere.pt", "onnx")


def test_structures_that_it_cannot_do_are_refused(files):
    exported = open_file(files["torchscript"], "torchscript")
    slab, carbon = water_box(), open_molecule()
    slab.pbc = [True, True, False]
    carbon.numbers[0] = 6
    with pytest.raises(Exception, match="no slabs and wires"):
        evaluate(exported, slab, 4.0)
    with pytest.raises(Exception, match="of elements that the model knows: H O"):
        evaluate(exported, carbon, 4.0)


def test_a_file_says_what_engines_need(files):
    exported = open_file(files["torchscript"], "torchscript")
    assert exported.r_max == 4.0
    assert (exported.symbols, exported.numbers) == (["H", "O"], [1, 8])
    assert (exported.dtype, exported.takes_total_charge) == ("float64", False)
    copy = io.BytesIO()
    torch.jit.save(exported, copy)
    copy.seek(0)
    again = torch.jit.load(copy)
    energies = [float(evaluate(x, water_box(), 4.0)["energy"]) for x in (exported, again)]
    assert energies[0] == pytest.approx(energies[1], abs=1e-12)


def test_gromacs_may_give_any_image_of_an_atom_in_single_precision(files):
    exported = open_file(files["gromacs"], "gromacs").model
    atoms = water_box()
    moved = atoms.copy()
    moved.positions[2] += atoms.cell.array[0] - 2 * atoms.cell.array[1]
    energies = []
    for own in (atoms, moved):
        box = torch.from_numpy(own.cell.array / 10).float()
        positions = torch.from_numpy(own.positions / 10).float()
        numbers = torch.from_numpy(own.numbers).int()
        energy = exported(positions, numbers, box, torch.ones(3, dtype=torch.bool))
        energies.append(float(energy.detach()))
    assert energies[0] == pytest.approx(energies[1], rel=1e-6)


def test_gromacs_has_no_place_for_total_charges():
    with pytest.raises(HostError, match="without charge_constraint='total'"):
        GromacsSOGMACE(SimpleNamespace(takes_total_charge=True))
