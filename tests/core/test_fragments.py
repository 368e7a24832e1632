"""Fragments of structures, their charges and those of elements, and the preset that fits."""

import itertools
import re

import numpy as np
import pytest

pytest.importorskip("ase", reason="ASE is not installed in this environment")

import ase.io
import ase.neighborlist
import torch
from ase import Atoms
from ase.build import bulk, fcc100, molecule, surface

from sog_longrange import ConfigError, InputError
from sog_longrange.ase_support import (
    FragmentCharges,
    choose_preset,
    find_fragments,
    formal_charges,
    fragment_charges,
    spread,
)
from sog_longrange.ase_support.data_summary import formula
from sog_longrange.ase_support.formal_charges import _search, element_charges
from sog_longrange.ase_support.fragments import open_axes
from sog_longrange.ase_support.presets import main
from sog_longrange.presets import CHARGE_STATES, NONE, PRESETS


def ammonium():
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    return Atoms("NH4", [[0, 0, 0], *(0.6 * corners)])


def methylammonium():
    atoms = molecule("C2H6")
    atoms.numbers[0] = 7
    return atoms


def acetate():
    atoms = molecule("CH3COOH")
    oxygens = [i for i in range(len(atoms)) if atoms.numbers[i] == 8]
    hydrogens = [i for i in range(len(atoms)) if atoms.numbers[i] == 1]
    del atoms[min(hydrogens, key=lambda i: min(atoms.get_distances(i, oxygens)))]
    return atoms


def apart(*parts, distance=6.0):
    """Structures side by side along x, open."""
    joined = Atoms()
    for index, part in enumerate(parts):
        moved = part.copy()
        moved.positions += [distance * index, 0.0, 0.0]
        joined += moved
    return joined


def mgo_slab(gold=True):
    slab = surface(bulk("MgO", "rocksalt", a=4.21, cubic=True), (0, 0, 1), 2, vacuum=8.0)
    slab = slab.repeat((2, 2, 1))
    slab.pbc = True
    if gold:
        top = slab.positions[:, 2].max()
        slab += Atoms("Au2", [[2.0, 2.0, top + 2.3], [2.0, 4.5, top + 2.3]])
    return slab


def charges_of(*frames, totals=None):
    """Charges by formula, those of elements, and why there are none."""
    found = formal_charges(frames, totals)
    charges = found.charges and {formula(kind): q for kind, q in found.charges.items()}
    return charges, found.element_charges, found.reason


def names(fragments):
    return [formula(fragment.composition) for fragment in fragments]


def test_molecules_are_found_across_periodic_boundaries():
    dimer = apart(molecule("H2O"), molecule("H2O"), distance=4.0)
    dimer.cell, dimer.pbc = np.diag([8.0, 7.0, 6.0]), True
    dimer.positions += 0.3 * np.random.default_rng(0).normal(size=3)
    for shift in ([0, 0, 0], [3.9, 6.9, 5.9]):
        moved = dimer.copy()
        moved.positions += shift
        moved.wrap()
        fragments = find_fragments(moved)
        assert names(fragments) == ["H2O", "H2O"]
        assert sorted(i for fragment in fragments for i in fragment.atoms) == list(range(6))
        assert not any(fragment.is_network for fragment in fragments)


@pytest.mark.parametrize(
    ("stretched", "oxygens", "expected"),
    [
        (1.0, 2.6, ["H2O", "H2O"]),
        (1.25, 2.6, ["H2O", "H2O"]),
        (1.35, 2.6, ["H3O", "HO"]),
        (1.45, 9.0, ["H2O", "H2O"]),
        (1.46, 9.0, ["H", "H2O", "HO"]),
    ],
)
def test_a_stretched_hydrogen_stays_with_its_nearest_partner(stretched, oxygens, expected):
    first = [[0.0, 0.0, 0.0], [stretched, 0.0, 0.0], [-0.24, 0.93, 0.0]]
    second = [[oxygens, 0.0, 0.0], *([oxygens + 0.6, 0.0, z] for z in (0.76, -0.76))]
    assert sorted(names(find_fragments(Atoms("OHHOHH", [*first, *second])))) == expected


def test_a_cell_along_open_axes_does_not_matter(monkeypatch):
    seen = []
    find = ase.neighborlist.neighbor_list
    monkeypatch.setattr(
        ase.neighborlist,
        "neighbor_list",
        lambda q, a, c: seen.append(a.cell.copy()) or find(q, a, c),
    )
    dimer = apart(molecule("H2O"), molecule("H2O"), distance=4.0)
    for pbc in (False, [True, True, False]):
        dimer.cell, dimer.pbc = np.diag([8.0, 8.0, 500.0]), pbc
        assert names(find_fragments(dimer)) == ["H2O", "H2O"]
    assert [np.diag(cell).tolist() for cell in seen] == [[0.0] * 3, [8.0, 8.0, 0.0]]
    assert dimer.cell[2, 2] == 500.0


def test_a_crystal_of_nonmetals_is_a_network_and_a_long_molecule_is_none():
    (diamond,) = find_fragments(bulk("C", "diamond", a=3.57))
    assert diamond.is_network
    assert diamond.lewis is None
    ring = molecule("C6H6")
    ring.cell, ring.pbc = np.diag([12.0] * 3), True
    assert [fragment.is_network for fragment in find_fragments(ring)] == [False]


def test_metals_do_not_bond_and_halogens_not_beside_them():
    assert names(find_fragments(bulk("NaCl", "rocksalt", a=5.64))) == ["Na", "Cl"]
    assert names(find_fragments(molecule("Cl2"))) == ["Cl2"]
    beside = molecule("Cl2") + Atoms("Na", [[5.0, 0, 0]])
    assert names(find_fragments(beside)) == ["Cl", "Cl", "Na"]
    assert names(find_fragments(fcc100("Au", (1, 1, 3)))) == ["Au"] * 3


@pytest.mark.parametrize(
    ("atoms", "expected"),
    [
        (bulk("NaCl", "rocksalt", a=5.64), 0),
        (mgo_slab(), 1),
        (fcc100("Au", (1, 1, 3), vacuum=None), 1),
        (molecule("H2O"), 3),
        (molecule("H2O", vacuum=6.0, pbc=True), 3),
        (molecule("H2O", vacuum=2.0, pbc=True), 0),
    ],
)
def test_axes_are_open_where_there_is_a_gap(atoms, expected):
    assert open_axes(atoms) == expected


def test_a_gap_is_measured_across_the_layer_also_in_an_oblique_cell():
    cell = [[3.0, 0, 0], [0, 3.0, 0], [30.0, 0, 7.5]]
    assert open_axes(Atoms("H", cell=cell, pbc=True)) == 0
    assert open_axes(Atoms("H", cell=[*cell[:2], [30.0, 0, 8.5]], pbc=True)) == 1


def test_ions_of_a_salt():
    salt = apart(ammonium(), Atoms("Cl"))
    charges, elements, reason = charges_of(salt)
    assert charges == {"H4N": 1, "Cl": -1}
    # The shortest vector with n_N + 4 n_H = 1 is parallel to (1, 4).
    assert elements == pytest.approx({"H": 4 / 17, "N": 1 / 17, "Cl": -1.0}, abs=1e-4)
    assert reason == ""
    charges, elements, _ = charges_of(apart(methylammonium(), acetate()))
    assert charges == {"CH6N": 1, "C2H3O2": -1}
    assert elements["C"] + 6 * elements["H"] + elements["N"] == pytest.approx(1.0, abs=1e-3)
    assert 2 * elements["C"] + 3 * elements["H"] + 2 * elements["O"] == pytest.approx(-1, abs=1e-3)


def test_crystals_have_usual_oxidation_states():
    assert charges_of(bulk("NaCl", "rocksalt", a=5.64))[:2] == (
        {"Na": 1, "Cl": -1},
        {"Na": 1.0, "Cl": -1.0},
    )
    titania = Atoms("TiO2", [[0, 0, 0], [2.0, 0, 0], [0, 2.0, 0]], cell=[4.0] * 3, pbc=True)
    assert charges_of(titania)[0] == {"Ti": 4, "O": -2}
    sesquioxide = Atoms("Ti2O3", 3.0 * np.arange(15).reshape(5, 3))
    assert charges_of(sesquioxide)[0] == {"Ti": 3, "O": -2}
    assert charges_of(mgo_slab())[0] == {"Mg": 2, "O": -2, "Au": 0}


def test_total_charges_decide_where_bonds_do_not():
    places = [[1.3 * i, 0, 0] for i in range(10)]
    chain = Atoms("C10H3", [*places, [-1.06, 0, 0], [12.76, 0, 0], [11.7, 1.1, 0]])
    charges, elements, reason = charges_of(chain, totals=[1.0])
    assert charges == {"C10H3": 1}
    assert charges_of(chain, totals=[-1.0])[0] == {"C10H3": -1}
    assert charges_of(chain)[0] == {"C10H3": 0}, "a radical, by its total charge of zero"
    two = apart(chain, molecule("CH3"), distance=20.0)
    assert charges_of(two)[::2] == (
        None,
        "several sets of charges of fragments sum to the total charges",
    )


def test_the_sign_of_two_unknown_ions_is_that_of_the_total_charges():
    two = apart(molecule("CH3"), molecule("CH3"), Atoms("Cl"))
    assert charges_of(two, totals=[1.0])[0] == {"CH3": 1, "Cl": -1}


@pytest.mark.parametrize(
    ("frames", "totals", "reason"),
    [
        ([], None, "there is no structure of several atoms"),
        ([Atoms("Na"), Atoms("Cl")], None, "there is no structure of several atoms"),
        ([molecule("H2O")], [0.5], "total charges are not whole"),
        ([molecule("H2O")], [1.0], "no whole charges .* sum to the total charge"),
        ([apart(Atoms("O"), Atoms("F"), Atoms("F"))], None, "unlikely charge of O"),
        ([apart(Atoms("Na"), Atoms("Cl")), apart(Atoms("Na"), Atoms("O"))], None, "of O, 0"),
    ],
)
def test_where_charges_are_not_known_the_reason_is_told(frames, totals, reason):
    summary = formal_charges(frames, totals)
    assert summary.charges is None
    assert summary.element_charges is None
    assert re.search(reason, summary.reason)
    assert summary.reason in summary.describe()


def test_ions_that_do_not_sum_to_total_charges_have_their_usual_ones():
    whole, taken = bulk("NaCl", "rocksalt", a=5.64, cubic=True), Atoms("NaCl2", 3.0 * np.eye(3))
    for frames, totals in (([whole, taken], [0.0, 1.0]), ([whole, whole[1:]], None)):
        summary = formal_charges(frames, totals)
        assert summary.charges is None
        assert summary.element_charges == {"Na": 1.0, "Cl": -1.0}
        choice = choose_preset(summary)
        assert choice.preset.options["element_charges"] == "Cl=-1,Na=1"
        assert "usual charges, though" in choice.why
    # A molecule, atoms without a usual charge or with a large one, and anions alone.
    for other in (molecule("H2O"), Atoms("C"), Atoms("O")):
        assert formal_charges([apart(Atoms("Na"), other)], [3.0]).element_charges is None
    assert formal_charges([taken[1:]], [0.0]).element_charges is None


def test_alloys_are_neutral_and_do_not_speak_for_compounds():
    alloy, oxide = fcc100("Al", (1, 1, 3)), Atoms("Al2O3", 3.0 * np.arange(15).reshape(5, 3))
    assert charges_of(alloy)[0] == {"Al": 0}
    assert charges_of(alloy, oxide)[0] == {"Al": 3, "O": -2}


def brute_force(conditions, costs):
    """All solutions of the lowest cost, by trying everything."""
    kinds = list(costs)
    tried = []
    for values in itertools.product(*(costs[kind] for kind in kinds)):
        known = dict(zip(kinds, values, strict=True))
        sums = [(sum(n * known[kind] for kind, n in parts), total) for parts, total in conditions]
        if all(own == total for own, total in sums):
            tried.append((sum(costs[kind][q] for kind, q in known.items()), known))
    best = min((cost for cost, _ in tried), default=None)
    return [known for cost, known in tried if cost == best]


@pytest.mark.parametrize("seed", range(12))
def test_the_search_finds_what_trying_everything_finds(seed):
    rng = np.random.default_rng(seed)
    kinds = [((z, 1),) for z in range(1, 6)]
    costs = {
        kind: {int(q): int(rng.integers(0, 4)) for q in rng.choice(range(-3, 4), 3, replace=False)}
        for kind in kinds
    }
    conditions = []
    truth = {kind: int(rng.choice(list(costs[kind]))) for kind in kinds}
    for _ in range(int(rng.integers(1, 4))):
        chosen = rng.choice(5, 2 + int(rng.integers(2)), replace=False)
        parts = tuple((kinds[i], int(rng.integers(1, 4))) for i in sorted(chosen))
        conditions.append((parts, sum(n * truth[kind] for kind, n in parts)))
    found, is_complete = _search(conditions, costs)
    expected = brute_force(conditions, costs)
    assert is_complete

    def order(solutions):
        return sorted(tuple(x[kind] for kind in kinds) for x in solutions)

    assert order(found) == order(expected)


def test_charges_of_elements_need_not_exist():
    # CH, CH2 and C2H3 of charges 1, 0 and 0: the sum of the first two is not the third.
    kinds = {((1, 1), (6, 1)): 1, ((1, 2), (6, 1)): 0, ((1, 3), (6, 2)): 0}
    charges, reason = element_charges(kinds)
    assert charges is None
    assert "no charges of elements" in reason
    assert element_charges({((1, 2), (8, 1)): 0}) == ({}, "")
    # Ammonium, ammonia and ethane: H of +1 and C of -3 within molecules.
    kinds = {((1, 4), (7, 1)): 1, ((1, 3), (7, 1)): 0, ((1, 6), (6, 2)): 0}
    charges, reason = element_charges(kinds)
    assert charges is None
    assert "too large for" in reason
    # Titania alone, and beside water, which oxygen of -2 would tear apart.
    oxide = {((22, 1),): 4, ((8, 1),): -2}
    assert element_charges(oxide) == ({"Ti": 4.0, "O": -2.0}, "")
    charges, reason = element_charges(oxide | {((1, 2), (8, 1)): 0})
    assert charges is None
    assert reason.endswith("too large for O")


def test_sampling_is_even_and_bounded():
    assert spread(3, 10) == [0, 1, 2]
    assert spread(101, 5) == [0, 25, 50, 75, 100]
    assert spread(0) == []
    assert formal_charges([molecule("H2O")] * 200).frames == 64
    assert formal_charges([Atoms("H"), molecule("H2O")]).frames == 1


GAS = apart(Atoms("Na"), Atoms("Cl"), Atoms("Ar"))
WATER = apart(molecule("H2O"), molecule("H2O"))
SALT = apart(ammonium(), Atoms("Cl"))


@pytest.mark.parametrize(
    ("frames", "name", "readout", "charges", "vectors"),
    [
        ([WATER], "molecular", "flows", None, True),
        ([bulk("C", "diamond", a=3.57)], "molecular", "flows", None, True),
        ([apart(molecule("NH3"), molecule("H2O"))], "molecular", "flows", None, True),
        ([bulk("NaCl", "rocksalt", a=5.64)], "ionic", "ions", "Na=1,Cl=-1", False),
        ([SALT], "ionic", "ions", "H=0.2353,N=0.0588,Cl=-1", True),
        ([apart(Atoms("O"), Atoms("F"), Atoms("F"))], "ionic", "atoms", None, False),
        ([apart(Atoms("O"), Atoms("F"), molecule("H2O"))], "ionic", "atoms", None, False),
        ([Atoms("Ar2", [[0, 0, 0], [0, 0, 2.4]])], "dispersive", "flows", None, False),
        ([GAS], "ionic", "ions", "Na=1,Cl=-1", False),
        ([mgo_slab()], "interface", "ions", "O=-2,Mg=2", False),
        ([mgo_slab(), bulk("MgO", "rocksalt", a=4.21)], "interface", "ions", "O=-2,Mg=2", False),
        ([mgo_slab() + Atoms("Na", [[0, 0, 3.0]])], "interface", "atoms", None, False),
    ],
)
def test_the_preset_that_fits(monkeypatch, frames, name, readout, charges, vectors):
    for key, own in (("ionic", "ions"), ("molecular", "flows"), ("interface", "ions")):
        monkeypatch.setitem(PRESETS[key].options, "readout", own)
    choice = choose_preset(formal_charges(frames))
    assert choice.name == name
    assert choice.preset.options["readout"] == readout
    assert choice.preset.options.get("element_charges") == charges
    assert bool(choice.preset.with_vectors) == vectors
    assert choice.why


STATES = {"charge_embedding": 32, "charge_constraint": "total"}


def test_charge_states_of_a_molecule_are_left_to_its_features():
    states = formal_charges([molecule("C6H6")] * 3, [-1.0, 0.0, 1.0])
    choice = choose_preset(states)
    assert choice.preset.options == {"readout": "atoms", **STATES}
    assert "no whole charges of fragments sum to the total charge" in choice.why
    assert "there are several total charges" in choice.why
    assert choice.preset.by_cutoff
    assert choice.preset.schedule == {"lr_factor": 3.0}
    assert not choose_preset(formal_charges([GAS])).preset.by_cutoff


def test_charge_states_are_told_by_total_charges():
    benzene, water = molecule("C6H6"), molecule("H2O")
    pair = apart(ammonium(), water)
    assert not formal_charges([benzene, benzene], [None, 1.0]).has_charge_states
    assert not formal_charges([benzene, water], [1.0, 1.0]).has_charge_states
    assert not formal_charges([pair, water], [1.0, 0.0]).has_charge_states
    assert formal_charges([benzene, water], [0.0, 1.0]).has_charge_states
    assert formal_charges([pair, water, pair], [1.0, 0.0, 0.0]).has_charge_states
    triangle = Atoms("Ag3", [[0.0, 0, 0], [2.7, 0, 0], [1.35, 2.3, 0]])
    silver = choose_preset(formal_charges([triangle, triangle], [-1.0, 1.0]))
    assert silver.preset.options == {**PRESETS["dispersive"].options, **STATES}
    neutral = choose_preset(formal_charges([triangle, triangle], [0.0, 0.0]))
    assert neutral.preset.options == PRESETS["dispersive"].options
    named = choose_preset(formal_charges([benzene] * 2, [0.0, 1.0]), "molecular")
    assert named.preset == PRESETS["molecular"]


def test_charges_of_single_neutral_molecules_are_the_defaults(tmp_path, capsys):
    frames = [molecule("NH3"), molecule("H2O")]
    choice = choose_preset(formal_charges(frames))
    assert choice.name == NONE
    assert choice.preset.options == choice.preset.with_vectors == {}
    assert choice.preset.schedule == {"kernel_lr_factor": 0.1}
    assert choice.why == "each structure is one neutral molecule"
    ase.io.write(path := str(tmp_path / "train.xyz"), frames, format="extxyz")
    main([path])
    told = capsys.readouterr().out
    assert "Preset: none, for single molecules" in told
    assert "MACE:   --sog_kernel_lr_factor=0.1\nNequIP: sog: {}\n" in told
    charged = choose_preset(formal_charges([*frames, methylammonium()], [0.0, 0.0, 1.0]))
    assert charged.preset == PRESETS["molecular"].joined(CHARGE_STATES)
    assert charged.why.startswith(
        "each structure is one molecule, whose charge is the total charge"
    )


def test_a_named_preset_gets_what_the_data_add_to_it():
    water, salt = formal_charges([WATER]), formal_charges([SALT])
    assert choose_preset(salt, "molecular").preset == PRESETS["molecular"]
    dispersive = choose_preset(salt, "dispersive").preset.options
    assert dispersive["readout"] == "ions"
    assert dispersive["element_charges"] == "H=0.2353,N=0.0588,Cl=-1"
    assert choose_preset(water, "dispersive").preset == PRESETS["dispersive"]
    ionic = choose_preset(salt, "ionic").preset.options
    assert ionic["element_charges"] == "H=0.2353,N=0.0588,Cl=-1"
    assert choose_preset(water, "ionic").preset == PRESETS["ionic"]
    assert choose_preset(water, "none").preset.options == {}
    with pytest.raises(ConfigError, match="Did you mean 'ionic'"):
        choose_preset(water, "ionc")


def test_neutral_atoms_among_ions_bring_dispersion():
    kernels = [
        choose_preset(formal_charges([frame])).preset.options.get("kernel", "coulomb")
        for frame in (GAS, bulk("NaCl", "rocksalt", a=5.64))
    ]
    assert kernels == ["coulomb+dispersion", "coulomb"]


def test_noble_gases_bond_with_fluorine_alone():
    kinds = [find_fragments(Atoms(name, [[0, 0, 0], [0, 0, 1.9]])) for name in ("XeF", "ArCl")]
    assert [len(fragments) for fragments in kinds] == [1, 2]


def test_the_command_prints_the_options_of_all_hosts(tmp_path, capsys):
    path = tmp_path / "salt.xyz"
    frame = SALT.copy()
    frame.info["net"] = 0
    ase.io.write(path, [frame, Atoms("Cl")])
    main([str(path), "--total_charge_key=net"])
    text = capsys.readouterr().out
    assert "1 frames (molecules or clusters) with H4N +1, Cl -1" in text
    assert "--sog_readout=ions --sog_element_charges=H=0.2353,N=0.0588,Cl=-1" in text
    assert 'element_charges: "H=0.2353,N=0.0588,Cl=-1", latent_dipoles: true}' in text
    assert "LongRangeLayer(kernel='coulomb+dispersion', num_charges=2, readout='ions'" in text
    assert "num_channels: 2" in text
    assert "only for models with vectors" in text
    assert "min_width: besides, a third of the cutoff" in text
    main([str(path), "--total_charge_key=net", "--cutoff=4.5"])
    assert "--sog_min_width=1.5" in capsys.readouterr().out


def test_the_command_ends_in_one_line_on_errors(tmp_path):
    with pytest.raises(SystemExit, match="sog_preset: `file` must be a file of structures"):
        main([str(tmp_path / "missing.xyz")])
    ase.io.write(tmp_path / "bad.xyz", Atoms("H2", [[0, 0, 0], [0, 0, 0.7]], info={"charge": "x"}))
    with pytest.raises(SystemExit, match=r'sog_preset: `atoms.info\["charge"\]` must be one'):
        main([str(tmp_path / "bad.xyz")])


def three_charges():
    """Two ions and two neutral molecules to which no charges of elements sum, with totals."""
    neutral = apart(molecule("H2"), molecule("NH3"))
    return [apart(ammonium(), acetate()), apart(ammonium(), molecule("NH3")), neutral], [0, 1, 0]


def test_the_preset_tells_charges_of_fragments_where_elements_have_none():
    found = formal_charges(*three_charges())
    assert found.element_charges is None
    choice = choose_preset(found)
    assert choice.preset.options["readout"] == "atoms"
    assert choice.fragments.describe() == "C2H3O2 -1, H4N +1"
    assert choice.preset.by_cutoff
    assert "lr_factor" not in choice.preset.schedule
    assert choose_preset(formal_charges([apart(ammonium(), acetate())])).fragments is None
    assert choose_preset(formal_charges([bulk("NaCl", "rocksalt", a=5.64)])).fragments is None
    frames, totals = three_charges()
    for frame in frames:
        frame.cell, frame.pbc = np.diag([14.0, 7.0, 7.0]), True  # matter, which screens charges
    assert choose_preset(formal_charges(frames, totals)).fragments is None


def test_errors_of_charges_of_fragments_are_those_of_their_sums():
    (first, second, _), _ = three_charges()
    fragments = FragmentCharges({((1, 4), (7, 1)): 1, ((1, 3), (7, 1)): 0})
    frames = [first, bulk("C", "diamond", a=3.57), second]  # acetate and diamond are not known
    charges = torch.linspace(-1.0, 1.0, sum(map(len, frames)), dtype=torch.float64)
    charges.requires_grad_()
    error = fragments.mean_square_error(frames, charges)
    start = len(first) + 2
    sums = [charges[:5].sum() - 1, charges[start : start + 5].sum() - 1, charges[-4:].sum()]
    torch.testing.assert_close(error, torch.stack(sums).square().mean())
    (gradient,) = torch.autograd.grad(error, charges)
    expected = torch.zeros_like(charges)
    expected[:5], expected[start : start + 5], expected[-4:] = (2 * own / 3 for own in sums)
    torch.testing.assert_close(gradient, expected.detach())


def test_structures_whose_fragments_do_not_sum_to_their_charge_are_left_out():
    fragments = FragmentCharges({((1, 4), (7, 1)): 1, ((1, 3), (7, 1)): 0, ((11, 1),): 1})
    frames = [bulk("Na", "bcc", a=4.29), apart(ammonium(), molecule("NH3"))]
    charges = torch.full((10,), 0.1, dtype=torch.float64)
    without = fragments.mean_square_error(frames, charges)
    assert float(without) == pytest.approx((0.9**2 + 0.5**2 + 0.4**2) / 3.0)
    with_totals = fragments.mean_square_error(frames, charges, [0.0, 1.0])
    assert float(with_totals) == pytest.approx((0.5**2 + 0.4**2) / 2.0)
    assert float(fragments.mean_square_error(frames, charges, [0.0, 0.0])) == 0.0
    unknown = [apart(ammonium(), acetate())]
    held = fragments.mean_square_error(unknown, torch.zeros(12), [0.0])
    assert float(held) == 1.0


def test_fragments_of_a_structure_are_found_once_and_not_those_of_another(monkeypatch):
    frames, looked = three_charges()[0], []
    monkeypatch.setattr(
        fragment_charges,
        "find_fragments",
        lambda frame: looked.append(len(frame)) or find_fragments(frame),
    )
    fragments = FragmentCharges({((1, 4), (7, 1)): 1})
    for _ in range(2):
        fragments.mean_square_error(frames, torch.zeros(sum(map(len, frames))))
    assert looked == [len(frame) for frame in frames]
    frames[0].positions[0] += 9.0  # the ammonium has lost its nitrogen
    charges = torch.zeros(len(frames[0]))
    assert float(fragments.mean_square_error(frames[:1], charges)) == 0.0
    with pytest.raises(
        InputError, match="`charges` must be of shape .n_atoms,., a charge of each atom"
    ):
        fragments.mean_square_error(frames, torch.zeros(3))
