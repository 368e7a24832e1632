"""What a system of the benchmark is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ase import Atoms
from ase.io import read, write
from torch import Tensor

if TYPE_CHECKING:
    from .exact import World

SEEDS = (1, 2, 3)
Find = Callable[[str], Path]
Figure = str | Callable[[dict], float | None]


@dataclass(frozen=True)
class Effect:
    """What the labels show, looked at before anything is trained.

    Parameters
    ----------
    what : its name with the unit.
    value : what the labels say.
    least : smallest size that is worth training on.
    """

    what: str
    value: float
    least: float

    @property
    def is_shown(self) -> bool:
        """Whether the labels show the effect."""
        return abs(self.value) >= self.least


@dataclass(frozen=True)
class Answer:
    """A physical answer: what a model says, and what its labels say.

    Parameters
    ----------
    what : its name with the unit.
    found, truth : keys of the result of a job joined by /, or functions of it.
    factor : the answer is right if its sign is, and its size within this factor.
    """

    what: str
    found: Figure
    truth: Figure
    factor: float = 2.0

    def is_right(self, found: float, truth: float) -> bool:
        """Whether sign and size are those of the labels."""
        return bool(truth) and 1.0 / self.factor <= found / truth <= self.factor


@dataclass(frozen=True)
class Published:
    """A figure of a paper, whose data and budget are others.

    Parameters
    ----------
    figures : what it says.
    source : where it says so.
    """

    figures: str
    source: str


SPOOKYNET = "SpookyNet, Nat. Commun. 12, 7273 (2021), table 1"
"""Source of figures of the sets of Ko et al. (2021), by three kinds of model."""


@dataclass(frozen=True)
class Motion:
    """Molecular dynamics by a model.

    Parameters
    ----------
    kelvin : temperature.
    step : time step in fs; energy is looked at with it, 1.41 and 2 times it.
    pair : symbols of the atoms whose radial distribution is compared.
    world : the exact force field.
    density : whether to compare the density at constant pressure.
    infrared : whether to compare the infrared absorption.
    share : length of the run whose structure is compared, over that of all dynamics.
    """

    kelvin: float
    step: float
    pair: tuple[str, str]
    world: World
    density: bool = False
    infrared: bool = False
    share: float = 1.0


@dataclass(frozen=True)
class System:
    """One data set and how all models are trained on it.

    Parameters
    ----------
    folder : name of the published or synthetic set, or of what is made.
    tests : files that are tested.
    epochs : of all models.
    mace, nequip : options of the host that all models are told; None where it has no row.
    heads : options of MACE that all models with a head are told besides: what `auto` finds by
        itself, and others do not.
    valid : file of the validation frames.
    minutes : time limit of each training.
    final_rate : learning rate of the last epoch relative to the first, in MACE.
    seeds : of the trainings, where not given.
    make : writes the data, given a folder, what finds other sets, and the seed.
    recipe : raised when what `make` writes changes.
    effects : what the labels show, given the folder of the data.
    by_seed : whether the data depend on the seed.
    bond : longest bond over the sum of the covalent radii, for net forces on fragments; 0 for none.
    copies : whether to compare with the forces of the farthest training frame.
    law : law of decay that the data obey, where it is known and to be compared with.
    probe : figures of its own, from a model of the host and the folder of the data.
    answers : physical answers, of the errors and figures of a result.
    published : figures of the papers.
    title : what it is, in words.
    physics : what physics says.
    labels : what the labels are of.
    motion : molecular dynamics that is compared with exact snapshots.
    """

    folder: str
    tests: tuple[str, ...]
    epochs: int
    mace: tuple[str, ...] | None
    nequip: tuple[str, ...] | None = None
    heads: tuple[str, ...] = ()
    valid: str = "val"
    minutes: float = 10.0
    final_rate: float = 0.02
    seeds: tuple[int, ...] = SEEDS
    make: Callable[[Path, Find, int], None] | None = None
    recipe: int = 1
    effects: Callable[[Path], list[Effect]] | None = None
    by_seed: bool = False
    bond: float = 0.0
    copies: bool = False
    law: Callable[[Tensor], Tensor] | None = None
    probe: Callable[..., dict] | None = None
    answers: tuple[Answer, ...] = ()
    published: tuple[Published, ...] = ()
    title: str = ""
    physics: str = ""
    labels: str = ""
    motion: Motion | None = None


def elements(*numbers: int) -> str:
    """Option: isolated atoms have no energy."""
    return "--E0s={" + ",".join(f"{number}:0.0" for number in numbers) + "}"


def store(folder: Path, splits: dict[str, list[Atoms]]) -> None:
    """Write splits; that of training last, because it says that all are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(splits, key=lambda name: name == "train"):
        write(folder / f"{name}.xyz", splits[name], format="extxyz")


def frames_of(folder: Path, split: str) -> list[Atoms]:
    """Frames of a split without isolated atoms, which are no test."""
    frames = read(folder / f"{split}.xyz", ":")
    return [own for own in frames if own.info.get("config_type") != "IsolatedAtom"]
