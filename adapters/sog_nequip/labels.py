"""What training looks at in a batch: labels, total charges, and atoms at one place."""

from __future__ import annotations

import warnings

import torch
from nequip.data import AtomicDataDict
from torch import Tensor

from sog_longrange import InputError
from sog_longrange.coincidence import Coincidence, coincident_atoms
from sog_longrange.errors import explain
from sog_longrange.geometry import own_volume
from sog_longrange.validation import check_structures


def check_stress_labels(batch: dict[str, Tensor], where: str) -> None:
    """Refuse to train on the stress of structures without a volume.

    Parameters
    ----------
    batch : dict
        Fields of a batch; NaN stands for a stress that is not known.
    where : str
        Name of the batch.

    Raises
    ------
    InputError
        If a structure has a stress label and no volume.
    """
    stress, cell = batch.get(AtomicDataDict.STRESS_KEY), batch.get(AtomicDataDict.CELL_KEY)
    if stress is None:
        return
    stress = stress.view(-1, 3, 3)
    cell = torch.zeros_like(stress) if cell is None else cell.view(-1, 3, 3)
    wrong = own_volume(cell).isnan() & ~stress.isnan().all(-1).all(-1)
    if bool(wrong.any()):
        index = int(wrong.nonzero()[0])
        atoms = batch.get(AtomicDataDict.BATCH_KEY)
        n = (
            len(batch[AtomicDataDict.POSITIONS_KEY])
            if atoms is None
            else int((atoms == index).sum())
        )
        remedy = "Make that label NaN, with ignore_nan for stress in loss and metrics."
        got = f"one of structure {index} ({n} atoms, cell {cell[index].tolist()}) of {where}"
        raise InputError(explain("stress", "NaN where the cell has no volume", got, remedy))


def check_neutral(batch: dict[str, Tensor], where: str) -> None:
    """Refuse charged structures where nothing was chosen for their charges.

    Parameters
    ----------
    batch : dict
        Fields of a batch.
    where : str
        Name of the batch.

    Raises
    ------
    InputError
        If a total charge is not zero.
    """
    charge = batch.get(AtomicDataDict.TOTAL_CHARGE_KEY)
    if charge is not None and bool(charge.any()):
        index = int(charge.reshape(-1).nonzero()[0])
        got = f"{float(charge.reshape(-1)[index]):g} of structure {index} of {where}"
        remedy = "Choose `charge_constraint: total` in `sog`, or `neutral` to ignore it."
        expected = "zero with `charge_constraint: auto`"
        raise InputError(explain(AtomicDataDict.TOTAL_CHARGE_KEY, expected, got, remedy))


def warn_of_odd_electrons(batch: dict[str, Tensor], where: str) -> bool:
    """Warn of a structure with an odd number of electrons, whose charges will sum to zero.

    Parameters
    ----------
    batch : dict
        Fields of a batch.
    where : str
        Name of the batch.

    Returns
    -------
    bool
        Whether there was one.
    """
    numbers = batch.get(AtomicDataDict.ATOMIC_NUMBERS_KEY)
    if numbers is None:
        return False
    numbers, count = numbers.reshape(-1), AtomicDataDict.num_frames(batch)
    atoms = batch.get(AtomicDataDict.BATCH_KEY, torch.zeros_like(numbers))
    odd = numbers.new_zeros(count).index_add(0, atoms, numbers) % 2
    if not bool(odd.any()):
        return False
    warnings.warn(
        f"Structure {int(odd.nonzero()[0])} of {where} has an odd number of electrons when "
        "neutral, and `charge_constraint: auto` makes its latent charges sum to zero. If it is "
        "an ion, give all frames total charges and choose `charge_constraint: total`; if it is a "
        "radical or a metal all is well.",
        stacklevel=2,
    )
    return True


def coincidence(data: dict[str, Tensor]) -> Coincidence | None:
    """Find two atoms of a batch at one place.

    Parameters
    ----------
    data : dict
        Fields of a batch.

    Returns
    -------
    Coincidence or None
        None if there are none, or the boundary is not known.
    """
    cell, pbc = data.get(AtomicDataDict.CELL_KEY), data.get(AtomicDataDict.PBC_KEY)
    if pbc is None:
        return None
    structures = check_structures(
        data[AtomicDataDict.POSITIONS_KEY],
        None if cell is None else cell.view(-1, 3, 3),
        pbc.view(-1, 3),
        data.get(AtomicDataDict.BATCH_KEY),
        AtomicDataDict.num_frames(data),
    )
    return coincident_atoms(structures)
