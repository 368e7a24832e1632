"""Fields that the adapter adds to NequIP's data. Packaged with models: importing registers them."""

from __future__ import annotations

from typing import Final

# From the module, not from `nequip.data`, all of which would have to be packaged.
from nequip.data._key_registry import register_fields

LATENT_CHARGES_KEY: Final[str] = "latent_charges"
LATENT_DIPOLES_KEY: Final[str] = "latent_dipoles"
LATENT_VECTORS_KEY: Final[str] = "latent_vectors"
LONG_RANGE_ENERGY_KEY: Final[str] = "long_range_energy"
LONG_RANGE_ATOMIC_ENERGY_KEY: Final[str] = "long_range_atomic_energy"
EXTERNAL_FIELD_KEY: Final[str] = "external_field"
FIELD_ENERGY_KEY: Final[str] = "field_energy"
CHARGE_STATE_ENERGY_KEY: Final[str] = "charge_state_energy"

WHOLE_CHARGE: Final[str] = "sog_whole_charge"
"""Whether total charges must be integers, in the metadata of a compiled model."""

register_fields(
    graph_fields=[
        LONG_RANGE_ENERGY_KEY,
        EXTERNAL_FIELD_KEY,
        FIELD_ENERGY_KEY,
        CHARGE_STATE_ENERGY_KEY,
    ],
    node_fields=[
        LATENT_CHARGES_KEY,
        LATENT_DIPOLES_KEY,
        LATENT_VECTORS_KEY,
        LONG_RANGE_ATOMIC_ENERGY_KEY,
    ],
)
