"""Laws of decay between two rigid fragments: 1/r, Yukawa, 1/r^4 and 1/r^6.

A head whose kernel is learned finds the law; at separations beyond training that is the force.
"""

from __future__ import annotations

from collections.abc import Callable

import learned
from mace_options import DIMERS
from torch import Tensor

from .checks import OR_DISPERSIVE, Check, NotWorse
from .system import System


def decay(name: str, epochs: int, law: Callable[[Tensor], Tensor], kernel: str = "") -> System:
    """Two rigid fragments, whose bonds are longer than those of their elements.

    The preset of dispersion is told the kernel, if there is one.
    """
    tests = ("test_interp", "test_extrap")
    # Energies of charges are large: with the weight of dimers they would be all of the loss.
    weight = () if kernel else ("--energy_weight=300",)
    told = (*DIMERS, "--batch_size=4", *weight)
    return System(
        f"syn_decay_{name}",
        tests,
        epochs,
        told,
        bond=1.8,
        law=law,
        matching={"dispersive": (f"--sog_kernel={kernel}",)} if kernel else {},
        labels="exact sums",
        physics="The law is learned and extrapolated.",
    )


SYSTEMS = {
    "decay_p1": decay("p1", 200, learned.coulomb),
    "decay_yuk": decay("yuk", 300, learned.yukawa),
    "decay_p4": decay("p4", 200, learned.fourth_power, "dispersion(exponent=4)"),
    "decay_p6": decay("p6", 200, learned.sixth_power, "dispersion"),
}
FAR = "errors/test_extrap/"
ZERO_NET = "baselines/test_extrap/zero/net_force"
CHECKS = (
    Check("decay_p1", FAR + "forces", 2.5),
    Check("decay_yuk", FAR + "forces", 1.0),
    Check("decay_p4", FAR + "net_force", 0.5, OR_DISPERSIVE, ZERO_NET),
    Check("decay_p6", FAR + "net_force", 0.8, OR_DISPERSIVE, ZERO_NET),
    NotWorse("decay_p4", FAR + "forces", columns=OR_DISPERSIVE),
    NotWorse("decay_p6", FAR + "forces", columns=OR_DISPERSIVE),
    NotWorse("decay_p4", FAR + "forces", columns=("sog",)),
    NotWorse("decay_p6", FAR + "forces", columns=("sog",)),
)
