"""What the ASE calculators of the adapters share: charge and field in, what follows from them out.

`Atoms` are those of ASE, which is not imported here.
"""

from .calculator import RESULTS, ChargesInASE, explain_no_stress, explain_no_volume
from .data_summary import DataSummary
from .decay import Decay, measure_decay
from .files import open_calculator
from .formal_charges import formal_charges, spread
from .fragment_charges import FragmentCharges
from .fragments import find_fragments
from .presets import choose_preset, explain_choice
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
    "DataSummary",
    "Decay",
    "FragmentCharges",
    "add_periodic_field",
    "born_charges_of_atoms",
    "charge_results",
    "check_atoms",
    "check_elements",
    "check_results",
    "choose_preset",
    "dipole_of_atoms",
    "dipoles_of_frames",
    "explain_choice",
    "explain_no_stress",
    "explain_no_volume",
    "external_field",
    "find_fragments",
    "formal_charges",
    "given_charge",
    "has_volume",
    "ignored_charge",
    "is_info_changed",
    "keep_info",
    "measure_decay",
    "open_calculator",
    "periodic_field",
    "spread",
    "total_charge",
]
