"""Dipeptides by density functional theory: forces, and dipoles that were never trained."""

from __future__ import annotations

from mace_options import PEPTIDES

from .checks import Check
from .system import System

SYSTEMS = {
    "dipeptides": System(
        "dipeptides_spice",
        ("test",),
        120,
        PEPTIDES,
        minutes=60.0,
        seeds=(1,),
        labels="DFT, published",
        title="dipeptides",
        physics="Dipoles without being trained.",
    ),
}
CHECKS = (
    Check("dipeptides", "errors/test/forces", 75.0),
    Check("dipeptides", "learned/dipole/r2", 0.99, least=True),
)
