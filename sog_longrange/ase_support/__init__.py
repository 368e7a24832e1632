"""What the ASE calculators of the adapters share: charge and field in, what follows from them out.

`Atoms` are those of ASE, which is not imported here.
"""

from .calculator import RESULTS, ChargesInASE, explain_no_stress, explain_no_volume
from .files import open_calculator
from .results import (
    AtomicBornCharges,
    add_periodic_field,
    born_charges_of_atoms,
    charge_results,
    check_results,
    dipole_of_atoms,
    dipoles_of_frames,
)
from .structures import (
    CHARGES_SUM_TO_ZERO,
    EXTERNAL_FIELD,
    TOTAL_CHARGE,
    AtomsLike,
    check_atoms,
    check_elements,
    external_field,
    given_charge,
    has_volume,
    ignored_charge,
    is_info_changed,
    keep_info,
    periodic_field,
    total_charge,
)

__all__ = [
    "CHARGES_SUM_TO_ZERO",
    "EXTERNAL_FIELD",
    "RESULTS",
    "TOTAL_CHARGE",
    "AtomicBornCharges",
    "AtomsLike",
    "ChargesInASE",
    "add_periodic_field",
    "born_charges_of_atoms",
    "charge_results",
    "check_atoms",
    "check_elements",
    "check_results",
    "dipole_of_atoms",
    "dipoles_of_frames",
    "explain_no_stress",
    "explain_no_volume",
    "external_field",
    "given_charge",
    "has_volume",
    "ignored_charge",
    "is_info_changed",
    "keep_info",
    "open_calculator",
    "periodic_field",
    "total_charge",
]
