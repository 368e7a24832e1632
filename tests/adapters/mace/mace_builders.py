"""Small MACE models, structures and batches for the tests."""

import ase.build
import mace  # noqa: F401  (before e3nn)
import numpy as np
import torch
from ase import Atoms
from e3nn import o3
from mace import data, modules
from mace.tools import AtomicNumberTable, torch_geometric

from sog_longrange import SOGConfig
from sog_mace import SOGMACE
from sog_mace.cells import keep_input_cells
from sog_mace.charges import mark_given

ELEMENTS = (1, 8)
BLOCK = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
PRECISE = SOGConfig(num_channels=2, tolerance=1e-8)


def make_mace(cls=modules.ScaleShiftMACE, *, max_l=1, layers=2, heads=("Default",), **options):
    """A small random MACE in float64."""
    torch.manual_seed(0)
    irreps = (8 * o3.Irreps.spherical_harmonics(max_l)).sort().irreps.simplify()
    settings = {
        "r_max": 4.0,
        "num_bessel": 6,
        "num_polynomial_cutoff": 5,
        "max_ell": 2,
        "interaction_cls": BLOCK,
        "interaction_cls_first": BLOCK,
        "num_interactions": layers,
        "num_elements": len(ELEMENTS),
        "hidden_irreps": o3.Irreps(irreps),
        "MLP_irreps": o3.Irreps("8x0e"),
        "gate": torch.nn.functional.silu,
        "atomic_energies": np.array([[-1.0, -2.0] for _ in heads]),
        "avg_num_neighbors": 8.0,
        "atomic_numbers": list(ELEMENTS),
        "correlation": 2,
        "radial_type": "bessel",
        "heads": list(heads),
        "radial_MLP": [16, 16],
    }
    if cls is not modules.MACE:
        settings |= {"atomic_inter_scale": [1.3] * len(heads)}
        settings |= {"atomic_inter_shift": [0.1] * len(heads)}
    return cls(**(settings | options))


def make_sogmace(config=PRECISE, **options):
    """A small random SOGMACE in float64."""
    return SOGMACE(make_mace(**options), config)


def make_batch(frames, heads=("Default",), keep=keep_input_cells):
    """A MACE batch of structures, with the cells that they came with."""
    table = AtomicNumberTable(list(ELEMENTS))
    info_keys = {"total_charge": "charge", "external_field": "external_field"}
    keys = data.KeySpecification(info_keys=info_keys, arrays_keys={})
    configs = [
        data.config_from_atoms(frame, key_specification=keys, head_name=heads[-1])
        for frame in frames
    ]
    options = {"z_table": table, "cutoff": 4.0, "heads": list(heads)}
    with keep():
        items = [data.AtomicData.from_config(config, **options) for config in configs]
    loader = torch_geometric.dataloader.DataLoader(items, batch_size=len(items), shuffle=False)
    batch = next(iter(loader))
    if all("charge" in frame.info for frame in frames):
        mark_given(batch)
    return batch.to_dict()


def water_box(seed=0):
    """Three water molecules in a triclinic cell."""
    rng = np.random.default_rng(seed)
    cell = np.array([[6.1, 0.0, 0.0], [1.2, 5.7, 0.0], [0.5, -0.8, 6.6]])
    box = Atoms(cell=cell, pbc=True)
    for fraction in [(0.1, 0.1, 0.1), (0.6, 0.2, 0.55), (0.3, 0.65, 0.4)]:
        molecule = ase.build.molecule("H2O")
        molecule.rotate(rng.uniform(0, 360), rng.normal(size=3))
        molecule.translate(np.array(fraction) @ cell)
        box += molecule
    box.positions += 0.05 * rng.normal(size=box.positions.shape)
    return box


def left_handed_box(seed=3):
    """Three water molecules in a left-handed triclinic cell."""
    box = water_box(seed)
    box.set_cell(box.cell.array[[1, 0, 2]])
    return box


def open_molecule(seed=1):
    """A distorted molecule without boundaries."""
    molecule = ase.build.molecule("H2O2")
    rng = np.random.default_rng(seed)
    molecule.positions += 0.05 * rng.normal(size=molecule.positions.shape)
    return molecule


def mixed_frames():
    """Triclinic, open and left-handed structures."""
    return [water_box(), open_molecule(), left_handed_box()]
