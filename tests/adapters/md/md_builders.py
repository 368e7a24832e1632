"""Files of small models, and structures, that the tests of MD engines share."""

from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from mace_builders import make_sogmace

from sog_longrange import SOGConfig

ROOT = Path(__file__).parents[3]
PRECISE = SOGConfig(tolerance=1e-8)


def save_model(path, config=PRECISE, **options):
    """Write a small untrained SOGMACE of H and O in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = make_sogmace(config, **options)
        if model.long_range.states is not None:  # Their energy starts at zero.
            for weights in model.long_range.states.parameters():
                torch.nn.init.normal_(weights, std=0.3)
        torch.save(model, path)
    finally:
        torch.set_default_dtype(before)
    return path


def water(repeats, spacing=3.1, seed=1):
    """A cubic box of water molecules on a grid, turned at random: 3 repeats^3 atoms."""
    rng = np.random.default_rng(seed)
    box = Atoms(cell=[repeats * spacing] * 3, pbc=True)
    for index in np.ndindex(repeats, repeats, repeats):
        one = molecule("H2O")
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.translate((np.array(index) + 0.5) * spacing - one.positions.mean(0))
        box += one
    box.positions += rng.normal(scale=0.02, size=box.positions.shape)
    return box


def blocks_of(page, language):
    """Blocks of code in one language on a page about engines."""
    text = (ROOT / "docs" / "engines" / page).read_text(encoding="utf-8")
    return [part.split("```")[0] for part in text.split(f"```{language}\n")[1:]]
