"""Born charges of models against known ones: how the dipole follows each atom.

Fixed charges are their own Born charges; those of xTB are slopes of its dipole. No model was
trained on either.
"""

from __future__ import annotations

import learned
import numpy as np
from ase import Atoms

from .system import Answer

BORN = "REF_born"  # array of frames: nine numbers for each atom, first index that of the dipole
FIXED = "true_charges"


def known(frame: Atoms) -> np.ndarray:
    """Exact Born charges in e, shape (n_atoms, 3, 3)."""
    if BORN in frame.arrays:
        return frame.arrays[BORN].reshape(-1, 3, 3)
    return frame.arrays[FIXED][:, None, None] * np.eye(3)


def compare(model, frames: list[Atoms]) -> dict:
    """Born charges by the latent charges of a model; empty where it has none.

    Parameters
    ----------
    model : of a host.
    frames : with exact ones; a backward pass for each atom of each of them.

    Returns
    -------
    dict
        `r2` and `slope` over all components, `rmse` in e, by element the mean of the diagonal
        (`model`, `truth`, in e). The common sign of all charges is free.
    """
    if model.long_range is None:
        return {}
    calculator = model.calculator()
    found = np.concatenate([calculator.get_born_charges(own).values for own in frames])
    truth = np.concatenate([known(own) for own in frames])
    return agreement(truth, found, np.concatenate([own.numbers for own in frames]), frames[0])


def agreement(truth: np.ndarray, found: np.ndarray, numbers: np.ndarray, one: Atoms) -> dict:
    """The figures of :func:`compare`."""
    found = learned.turned(truth, found)
    names = dict(zip(one.numbers.tolist(), one.get_chemical_symbols(), strict=True))
    means = {
        name: {
            who: float(np.einsum("jaa->ja", own)[numbers == number].mean())
            for who, own in (("model", found), ("truth", truth))
        }
        for number, name in names.items()
    }
    rmse = float(np.sqrt(np.mean((found - truth) ** 2)))
    return {**learned.fit(truth, found)._asdict(), "rmse": rmse, "elements": means}


def answer(element: str, where: str) -> Answer:
    """Mean Born charge of an element."""
    path = f"probe/born/elements/{element}"
    what = f"Born charge of {element} in {where}, e"
    return Answer(what, f"{path}/model", f"{path}/truth", factor=1.1)
