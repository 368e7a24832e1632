"""Charges that flow along the edges of NequIP's and Allegro's graphs."""

import pytest
import torch
from ase import Atoms
from ase.build import molecule
from nequip.data import AtomicDataDict
from nequip.data.transforms import NeighborListPruneTransform
from nequip_builders import (
    BASES,
    R_MAX,
    TYPES,
    acetaldehyde,
    build,
    crystal,
    evaluate,
    in_vacuum,
    to_data,
)

from sog_longrange import ConfigError
from sog_nequip.parts import long_range_parts

every_base = pytest.mark.parametrize("base", BASES)
HOW = {"charge_constraint": "none", "engine": "none"}
FLOWS = HOW | {"readout": "flows", "num_channels": 2}
IONS = HOW | {"readout": "ions", "element_charges": "H=1,O=-1.5,C=0.25"}
OWN = {"H": 1.0, "O": -1.5, "C": 0.25}
CUTOFFS = {"H": 2.0, "C": {"H": 3.0, "C": 3.5, "O": 1.7}}


def two_fragments(distance):
    atoms = acetaldehyde()
    other = molecule("CH3OH")
    other.positions[:, 0] += atoms.positions[:, 0].max() - other.positions[:, 0].min() + distance
    return atoms + other, len(atoms)


@every_base
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_fragments_keep_their_charge_at_any_distance(base, dtype):
    exact = 1e-6 if dtype == "float32" else 1e-13
    for sog, own in ((FLOWS, dict.fromkeys(OWN, 0.0)), (IONS, OWN)):
        model = build(base, sog=sog, model_dtype=dtype).eval()
        # Molecules keep theirs in contact too, but for the shares of short hydrogen bonds.
        for distance, tolerance in ((R_MAX + 0.01, exact), (30.0, exact), (1.5, 1e-6)):
            atoms, first = two_fragments(distance)
            charges = evaluate(model, atoms)["latent_charges"].detach()
            for part in (slice(0, first), slice(first, None)):
                given = sum(own[symbol] for symbol in atoms.get_chemical_symbols()[part])
                assert float(charges[part, 0].sum()) == pytest.approx(given, abs=tolerance)
            changes = charges[:, 0] - torch.tensor([own[s] for s in atoms.get_chemical_symbols()])
            assert float(changes.abs().max()) > 1e-4


@every_base
def test_charges_of_elements_are_those_of_single_atoms(base):
    model = build(base, sog=IONS).eval()
    ions = Atoms("HOC", [[0, 0, 0], [9, 0, 0], [0, 8, 0]])
    charges = evaluate(model, ions)["latent_charges"][:, 0]
    torch.testing.assert_close(charges, torch.tensor([1.0, -1.5, 0.25]), atol=1e-14, rtol=0.0)


@every_base
def test_batches_need_no_order(base):
    model = build(base, sog=IONS).eval()
    batch = AtomicDataDict.batched_from_list([to_data(crystal()), to_data(in_vacuum())])
    order = torch.randperm(batch["pos"].shape[0], generator=torch.Generator().manual_seed(3))
    mixed = dict(batch) | {key: batch[key][order] for key in ("pos", "batch", "atom_types")}
    mixed["edge_index"] = order.argsort()[batch["edge_index"]]
    expected, found = model(dict(batch)), model(mixed)
    torch.testing.assert_close(found["total_energy"], expected["total_energy"])
    for key in ("forces", "latent_charges"):
        torch.testing.assert_close(found[key], expected[key][order], atol=1e-10, rtol=1e-10)


@every_base
def test_cutoffs_of_types_end_flows_too(base):
    """Also where the way from one type to another has another cutoff than that back."""
    model = build(base, sog=FLOWS, per_edge_type_cutoff=CUTOFFS).eval()
    (part,) = long_range_parts(model)
    prune = NeighborListPruneTransform(R_MAX, CUTOFFS, TYPES)
    expected = [[2.0, 2.0, 2.0], [2.0, 3.5, 1.7], [2.0, 1.7, R_MAX]]
    torch.testing.assert_close(part.reaches * R_MAX, torch.tensor(expected))
    for pair, reach in (("HC", 2.0), ("CO", 1.7), ("OH", 2.0), ("CC", 3.5)):
        charges = []
        for distance in (0.6 * reach, reach - 1e-3, reach + 1e-3, reach + 0.2):
            triple = Atoms(pair + "H", [[0, 0, 0], [distance, 0, 0], [-0.9, 0, 0]])
            out = model(prune(to_data(triple)))
            charges.append(float(out["latent_charges"][1, 0].detach()))
            total = out["latent_charges"].detach().sum(0)
            torch.testing.assert_close(total, torch.zeros(2), atol=1e-13, rtol=0.0)
        assert abs(charges[0]) > 1e-6, pair
        assert abs(charges[1]) < 0.01 * abs(charges[0])
        assert charges[2:] == [0.0, 0.0]


def test_graphs_have_both_orders_of_each_edge():
    for atoms in (crystal(), acetaldehyde(), in_vacuum()):
        data = to_data(atoms)
        edges = torch.cat([data["edge_index"].T.double(), data["edge_cell_shift"]], 1)
        back = torch.cat([edges[:, [1, 0]], -edges[:, 2:]], 1)
        found, expected = (sorted(x.tolist()) for x in (edges, back + 0.0))
        assert found == expected


def test_ions_need_types_that_are_chemical_symbols():
    with pytest.raises(ConfigError, match=r"`readout` must be 'atoms' or 'flows'.*'ions' with Hw"):
        build(type_names=["Hw", "C", "O"], per_type_energy_shifts=None, sog={"readout": "ions"})
