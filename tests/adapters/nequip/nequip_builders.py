"""Small NequIP and Allegro models and structures for the tests of the adapter."""

import copy

import numpy as np
import torch
from ase.build import bulk, molecule
from hydra.utils import get_method
from nequip.data import compute_neighborlist_, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform

from sog_nequip.calculator import SOGNequIPCalculator
from sog_nequip.parts import long_range_parts

TYPES = ["H", "C", "O"]
R_MAX = 3.5
COMMON = {
    "seed": 1,
    "model_dtype": "float64",
    "type_names": TYPES,
    "r_max": R_MAX,
    "l_max": 1,
    "avg_num_neighbors": 10.0,
    "per_type_energy_shifts": {"H": 1.0, "C": 2.0, "O": 3.0},
}
NEQUIP = COMMON | {
    "base": "nequip.model.NequIPGNNModel",
    "num_layers": 2,
    "num_features": 8,
    "radial_mlp_width": 8,
}
ALLEGRO = COMMON | {
    "base": "allegro.model.AllegroModel",
    "num_layers": 1,
    "num_scalar_features": 16,
    "num_tensor_features": 4,
    "radial_chemical_embed": {
        "_target_": "allegro.nn.TwoBodyBesselScalarEmbed",
        "num_bessels": 8,
    },
}
BASES = {"nequip": NEQUIP, "allegro": ALLEGRO}


def build(base="nequip", **changes):
    """A long-range model; `bare=True` for the same without a long range."""
    config = copy.deepcopy(BASES[base]) | changes
    if config.pop("bare", False):
        target = config.pop("base")
        return get_method(target)(**config)
    return get_method("sog_nequip.model.SOGModel")(**config)


def type_mapper():
    return ChemicalSpeciesToAtomTypeMapper(
        model_type_names=TYPES, chemical_species_to_atom_type_map={t: t for t in TYPES}
    )


def to_data(atoms):
    return compute_neighborlist_(type_mapper()(from_ase(atoms)), r_max=R_MAX)


def evaluate(model, atoms):
    return model(to_data(atoms))


def crystal():
    atoms = bulk("C", "diamond", a=3.57) * (2, 1, 1)
    atoms.set_chemical_symbols(["C", "O", "H", "C"])
    atoms.rattle(0.1, seed=1)
    cell = atoms.cell.array.copy()
    cell[0] += [0.3, 0.2, -0.1]
    atoms.set_cell(cell, scale_atoms=True)
    return atoms


def left_handed():
    atoms = crystal()
    atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    return atoms


def slab():
    atoms = crystal()
    atoms.pbc = [True, True, False]
    return atoms


def acetaldehyde():
    atoms = molecule("CH3CHO")
    atoms.rattle(0.05, seed=2)
    return atoms


def in_vacuum():
    atoms = acetaldehyde()
    atoms.center(5.0)
    return atoms


STRUCTURES = {
    "triclinic": crystal,
    "left-handed": left_handed,
    "slab": slab,
    "zero cell": acetaldehyde,
    "vacuum cell": in_vacuum,
}


def float64_default():
    torch.set_default_dtype(torch.float64)
    return np.random.default_rng(0)


def charged(base="nequip", seed=2, **sog):
    """A model with charge states and random weights throughout, as after training."""
    model = build(base, sog={"tolerance": 1e-7, "charge_embedding": 4} | sog).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in long_range_parts(model):
            for parameter in part.long_range.states.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def calculator_of(model):
    """ASE calculator of a model that is not compiled."""
    transforms = [type_mapper(), NeighborListTransform(r_max=R_MAX)]
    return SOGNequIPCalculator(model.eval(), "cpu", transforms=transforms)
