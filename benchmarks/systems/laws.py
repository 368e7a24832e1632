"""Laws of decay between two rigid fragments: 1/r, Yukawa, 1/r^4 and 1/r^6.

A head whose kernel is learned finds the law; at separations beyond training that is the force.
"""

from __future__ import annotations

from collections.abc import Callable

import learned
from mace_options import DIMERS
from torch import Tensor

from .checks import Check, NotWorse
from .system import System

# Energies of charges are large: with the weight of dimers they would be all of the loss.
OF_CHARGES = ("--energy_weight=300",)


def decay(
    name: str, words: str, epochs: int, law: Callable[[Tensor], Tensor], *options: str
) -> System:
    """Two rigid fragments, whose bonds are longer than those of their elements."""
    return System(
        f"syn_decay_{name}",
        ("test_interp", "test_extrap"),
        epochs,
        (*DIMERS, "--batch_size=4", *options),
        bond=1.8,
        law=law,
        labels="exact sums",
        title=f"two fragments, {words}",
        physics="The law is learned and extrapolated.",
    )


SYSTEMS = {
    "decay_p1": decay("p1", "1/r", 200, learned.coulomb, *OF_CHARGES),
    "decay_yuk": decay("yuk", "exp(-0.2 r)/r", 300, learned.yukawa, *OF_CHARGES),
    "decay_p4": decay("p4", "1/r⁴", 200, learned.fourth_power),
    "decay_p6": decay("p6", "1/r⁶", 200, learned.sixth_power),
}
FAR = "errors/test_extrap/"
ZERO_NET = "baselines/test_extrap/zero/net_force"
CHECKS = (
    Check("decay_p1", FAR + "forces", 2.5),
    Check("decay_yuk", FAR + "forces", 1.0),
    Check("decay_p4", FAR + "net_force", 0.5, other=ZERO_NET),
    Check("decay_p6", FAR + "net_force", 0.8, other=ZERO_NET),
    *(NotWorse(f"decay_{law}", FAR + "forces") for law in ("p1", "yuk", "p4", "p6")),
)
