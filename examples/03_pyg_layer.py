"""A hand-written network of PyTorch Geometric with a long-range layer inside.

The network has two message-passing layers. Between them a `LongRangeLayer` gives each ion
the potential and the field of all others, however far away; workbench/charge_network.py
is all there is to write. The same network with a third convolution instead is trained beside it.

    python examples/03_pyg_layer.py      # a few minutes on one core

Writes results.json and errors.png into --output.
"""

from __future__ import annotations

from functools import partial

from workbench import pyg_training
from workbench.charge_network import ChargeNetwork


def main() -> None:
    """Make the data, train, test and draw."""
    makers = {
        "cutoff only": partial(ChargeNetwork, num_charges=0),
        "long-range layer": partial(ChargeNetwork, num_charges=4),
    }
    pyg_training.compare(__doc__, makers, pyg_training.Plan(epochs=15), "demo_output/pyg_layer")


if __name__ == "__main__":
    main()
