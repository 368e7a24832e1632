"""The systems of the accuracy benchmark: data, network and budget of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import accuracy_data as made
import learned
import surface_energy
from mace_options import DIMERS, GAS, LIQUID, PEPTIDES, SURFACE
from measures import BOND
from torch import Tensor

SEEDS = (1, 2, 3)
MODEL = "training_module.model"


@dataclass(frozen=True)
class System:
    """One data set and how all models are trained on it.

    Parameters
    ----------
    folder : name of the published or synthetic set, or of what is made.
    tests : files that are tested.
    epochs : of all models.
    mace, nequip : options of the host that all models are told; None where it has no row.
    valid : file of the validation frames.
    minutes : time limit of each training.
    seeds : of the trainings, where not given.
    make : writes the data, given a folder, what finds other sets, and the seed.
    by_seed : whether the data depend on the seed.
    bond : longest bond over the sum of the covalent radii, for net forces on fragments; 0 for none.
    copies : whether to compare with the forces of the farthest training frame.
    law : law of decay that the data obey, where it is known and to be compared with.
    probe : figures of its own, from an ASE calculator.
    """

    folder: str
    tests: tuple[str, ...]
    epochs: int
    mace: tuple[str, ...] | None
    nequip: tuple[str, ...] | None = None
    valid: str = "val"
    minutes: float = 10.0
    seeds: tuple[int, ...] = SEEDS
    make: Callable[[Path, made.Find, int], None] | None = None
    by_seed: bool = False
    bond: float = 0.0
    copies: bool = False
    law: Callable[[Tensor], Tensor] | None = None
    probe: Callable[..., dict[str, float]] | None = None


def elements(*numbers: int) -> str:
    """Option: isolated atoms have no energy."""
    return "--E0s={" + ",".join(f"{number}:0.0" for number in numbers) + "}"


def dimer(name: str, epochs: int = 700, *options: str, nequip: tuple[str, ...] | None = None):
    """A curve whose farthest separations are tested."""
    told = (*DIMERS, *options)
    return System(
        f"dimers_bfdb/{name}", ("test",), epochs, told, nequip, "train", bond=BOND, copies=True
    )


def decay(name: str, epochs: int, law: Callable[[Tensor], Tensor]) -> System:
    """Two rigid fragments, whose bonds are longer than those of their elements."""
    tests, told = ("test_interp", "test_extrap"), (*DIMERS, "--batch_size=4")
    return System(f"syn_decay_{name}", tests, epochs, told, bond=1.8, law=law)


GAS_TESTS = ("test", "test_triclinic", "test_large")
NEQUIP_GAS = ("cutoff_radius=5.0", "batch_size=4", "energy_weight=1.0")
NEQUIP_DIMERS = ("batch_size=2", "energy_weight=100.0", f"{MODEL}.num_features=32")
MANY = (*DIMERS, "--batch_size=4", "--eval_interval=2")
SYSTEMS = {
    "dimers_cc": dimer("CC", nequip=NEQUIP_DIMERS),
    # The ion polarises its partner well beyond 4.5 Å, and the charges must see that.
    "dimers_cp": dimer("CP", 500, "--r_max=6.0"),
    **{f"dimers_{name}": dimer(name.upper()) for name in ("pp", "ca", "pa", "aa")},
    "dimers_all": System(
        "dimers_all",
        tuple(f"test_{name}" for name in made.DIMERS),
        200,
        (*MANY, "--valid_batch_size=20"),
        valid="train",
        make=made.join_dimers,
        bond=BOND,
        copies=True,
    ),
    "decay_p1": decay("p1", 120, learned.coulomb),
    "decay_yuk": decay("yuk", 200, learned.yukawa),
    "decay_p4": decay("p4", 200, learned.fourth_power),
    "decay_p6": decay("p6", 200, learned.sixth_power),
    "coulomb_gas": System("syn_coulomb_gas", GAS_TESTS, 30, GAS, NEQUIP_GAS),
    "multivalent_gas": System(
        "syn_multivalent_gas", GAS_TESTS[:2], 40, (*GAS, elements(8, 11, 12, 17))
    ),
    # Forces hold the response of the charges to the geometry.
    "envq": System("syn_envq", GAS_TESTS[:2], 40, GAS),
    "wca_control": System("syn_wca_control", ("test",), 40, GAS),
    "mixture": System(
        "mixture",
        ("test",),
        40,
        (*GAS, elements(9, 10, 11, 17, 18, 19)),
        make=made.make_mixture,
    ),
    "ecemc": System(
        "ecemc",
        ("test",),
        20,
        (
            *LIQUID,
            "--r_max=4.0",
            "--batch_size=4",
            "--loss=stress",
            "--stress_key=REF_stress",
            "--stress_weight=100",
        ),
        bond=BOND,
    ),
    "water": System(
        "water",
        ("test",),
        30,
        (*LIQUID, "--E0s=average"),
        seeds=(1, 2, 3, 4, 5),
        make=made.fold_water,
        by_seed=True,
        bond=BOND,
    ),
    "dipeptides": System("dipeptides_spice", ("test",), 120, PEPTIDES, minutes=60.0, seeds=(1,)),
    "surface": System(
        "surface",
        ("val",),
        350,
        SURFACE,
        make=made.make_surface,
        probe=surface_energy.surface_energies,
    ),
    "ammonium_chloride": System(
        "ammonium_chloride",
        ("test_inside", "test_beyond"),
        100,
        (*MANY, "--r_max=5.0"),
        make=made.make_ammonium_chloride,
        bond=BOND,
    ),
}
