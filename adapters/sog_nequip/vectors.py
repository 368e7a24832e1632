"""The vectors (1o) that latent dipoles are made from."""

from __future__ import annotations

from typing import Any

import torch
from e3nn.o3._irreps import Irreps
from e3nn.util.jit import compile_mode
from nequip.data import AtomicDataDict
from nequip.nn import GraphModuleMixin
from torch import Tensor, nn

from sog_longrange import HostError, SOGConfig
from sog_longrange.errors import explain
from sog_longrange.hosts import VECTORS, count_columns, feature_slices

from .keys import LATENT_VECTORS_KEY

Data = dict[str, Tensor]


@compile_mode("unsupported")
class LatentVectors(GraphModuleMixin, nn.Module):
    """Copies the vectors (1o) among the features of atoms to a field of their own.

    Its place is behind the last convolution whose features hold vectors: later ones are scalars.

    Parameters
    ----------
    irreps_in : dict
        Irreps of the fields that come in.
    """

    def __init__(self, irreps_in: dict[str, Any]) -> None:
        super().__init__()
        irreps = Irreps(str(irreps_in[AtomicDataDict.NODE_FEATURES_KEY]))
        self.vectors = feature_slices(irreps, *VECTORS)
        width = count_columns(self.vectors)
        GraphModuleMixin._init_irreps(
            self,
            irreps_in=irreps_in,
            irreps_out={LATENT_VECTORS_KEY: Irreps([(width // 3, (1, -1))])},
        )

    def forward(self, data: Data) -> Data:
        """Add the vectors to a batch.

        Parameters
        ----------
        data : dict
            Fields of a batch.

        Returns
        -------
        dict
            With `latent_vectors` (n_atoms, 3 n_vectors), one vector after another.
        """
        features = data[AtomicDataDict.NODE_FEATURES_KEY]
        data[LATENT_VECTORS_KEY] = torch.cat([features[:, s] for s in self.vectors], dim=1)
        return data


def count_vectors(config: SOGConfig, irreps_in: dict[str, Any]) -> int:
    """Count the vectors of each atom that latent dipoles are made from.

    Parameters
    ----------
    config : SOGConfig
    irreps_in : dict
        Irreps of the fields of the host model.

    Returns
    -------
    int
        0 without latent dipoles.

    Raises
    ------
    HostError
        If there are none.
    """
    if not config.latent_dipoles:
        return 0
    if LATENT_VECTORS_KEY not in irreps_in:
        expected = f"False where there is no field `{LATENT_VECTORS_KEY}`"
        raise HostError(explain("latent_dipoles", expected, "True"))
    return int(Irreps(str(irreps_in[LATENT_VECTORS_KEY])).dim) // 3
