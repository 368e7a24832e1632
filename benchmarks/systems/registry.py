"""All systems by name, and what they must show."""

from __future__ import annotations

from pathlib import Path

from . import (
    amides,
    chains,
    clusters,
    dimers,
    gases,
    interfaces,
    ionic_liquid,
    laws,
    liquids,
    mgo,
    peptides,
    salts,
    silver,
    solutions,
    surface,
)
from .checks import NotWorse, of_answers, of_motion
from .system import System

FAMILIES = (
    *(dimers, clusters, chains, silver, mgo),
    *(salts, solutions, ionic_liquid, interfaces, laws, gases, liquids, peptides, amides),
    surface,
)
SYSTEMS: dict[str, System] = {
    name: system for family in FAMILIES for name, system in family.SYSTEMS.items()
}
NEQUIP = {name: own for name, own in SYSTEMS.items() if own.nequip}
HOMES = {name: Path(str(family.__file__)) for family in FAMILIES for name in family.SYSTEMS}
CHECKS = {
    "mace": (
        *(check for family in FAMILIES for check in family.CHECKS),
        *(check for name, own in SYSTEMS.items() for check in of_answers(name, own.answers)),
        *(check for name, own in SYSTEMS.items() if own.motion for check in of_motion(name)),
    ),
    "nequip": (
        *gases.NEQUIP_CHECKS,
        *(NotWorse(name, f"errors/{own.tests[0]}/forces") for name, own in NEQUIP.items()),
        *(check for name, own in NEQUIP.items() for check in of_answers(name, own.answers)),
    ),
}
QUICK = ("ag3", "carbon_chains", "nacl_clusters", "molten_nacl", "surface")
"""What ``--quick`` runs without names: sets that are made from nothing in minutes."""
