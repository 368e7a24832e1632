"""Where the invariant features and the vectors of each MACE layer lie in its output."""

from __future__ import annotations

import torch
from e3nn import o3
from mace import modules
from torch import Tensor

from sog_longrange.hosts import SCALARS, VECTORS, count_columns, feature_slices, unflatten_vectors


def invariant_slices(mace: modules.MACE) -> list[list[slice]]:
    """Positions of the scalars (0e) of each layer in ``node_feats``.

    The layers may have different irreps: the last one often keeps scalars only.

    Parameters
    ----------
    mace : MACE
        Model whose ``node_feats`` are the outputs of its products, one after another.

    Returns
    -------
    list of list of slice
        For each layer, the column ranges of its scalars.
    """
    return _slices(mace, SCALARS)


def vector_slices(mace: modules.MACE) -> list[slice]:
    """Positions of the vectors (1o) of all layers in ``node_feats``.

    Parameters
    ----------
    mace : MACE
        As for :func:`invariant_slices`.

    Returns
    -------
    list of slice
        Column ranges; none if no layer has vectors.
    """
    return [part for layer in _slices(mace, VECTORS) for part in layer]


def _slices(mace: modules.MACE, wanted: tuple[int, int]) -> list[list[slice]]:
    layers, offset = [], 0
    for product in mace.products:
        irreps = o3.Irreps(str(product.linear.irreps_out))
        own = feature_slices(irreps, *wanted)
        layers.append([slice(offset + part.start, offset + part.stop) for part in own])
        offset += irreps.dim
    return layers


def has_component_order(mace: modules.MACE) -> bool:
    """Tell whether vectors lie component by component in ``node_feats``, as cuEquivariance's do.

    Parameters
    ----------
    mace : MACE

    Returns
    -------
    bool
    """
    config = getattr(mace.products[0], "cueq_config", None)
    return bool(config is not None and config.enabled and config.layout_str == "ir_mul")


def vector_features(node_feats: Tensor, parts: list[slice], by_component: bool = False) -> Tensor:
    """Vectors of all layers, side by side.

    Parameters
    ----------
    node_feats : Tensor, shape (n_atoms, n_features)
    parts : list of slice
        From :func:`vector_slices`.
    by_component : bool
        See :func:`has_component_order`.

    Returns
    -------
    Tensor, shape (n_atoms, 3, num_vectors)
    """
    if by_component:
        return torch.cat([node_feats[:, part].unflatten(1, (3, -1)) for part in parts], dim=-1)
    columns = torch.cat([node_feats[:, part] for part in parts], dim=-1)
    return unflatten_vectors(columns)


def layer_sizes(layers: list[list[slice]]) -> list[int]:
    """Count the invariant features of each layer.

    Parameters
    ----------
    layers : list of list of slice
        From :func:`invariant_slices`.

    Returns
    -------
    list of int
    """
    return [count_columns(layer) for layer in layers]


def invariant_features(node_feats: Tensor, layers: list[list[slice]]) -> Tensor:
    """Invariant features of all layers, side by side.

    Parameters
    ----------
    node_feats : Tensor, shape (n_atoms, n_features)
    layers : list of list of slice
        From :func:`invariant_slices`.

    Returns
    -------
    Tensor, shape (n_atoms, sum(layer_sizes(layers)))
    """
    return torch.cat([node_feats[:, part] for layer in layers for part in layer], dim=-1)
