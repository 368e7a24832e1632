"""Builders for the `model` section of a NequIP config."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from e3nn.o3._irreps import Irreps
from hydra.utils import get_method
from nequip.data import AtomicDataDict
from nequip.model import model_builder
from nequip.model.utils import fresh_model_builder_context
from nequip.nn import SequentialGraphNetwork, graph_model
from nequip.utils import dtype_to_name
from torch import nn

from sog_longrange import ConfigError, HostError, SOGConfig
from sog_longrange.errors import explain
from sog_longrange.hosts import VECTORS, explain_old_models, feature_slices
from sog_longrange.presets import NONE, apply_preset, describe_options

from .nn import LongRange
from .sites import HostGraph
from .vectors import LatentVectors

EXPECTED = "a NequIP or Allegro model"
COMPARED = (
    graph_model.MODEL_DTYPE_KEY,
    graph_model.TYPE_NAMES_KEY,
    graph_model.R_MAX_KEY,
    graph_model.PER_EDGE_TYPE_CUTOFF_KEY,
)
logger = logging.getLogger(__name__)

HostModule = Any  # A module of NequIP's, whose fields have irreps.


@model_builder
def SOGModel(  # noqa: N802
    base: str,
    sog: Mapping[str, Any] | None = None,
    boundary: str = "data",
    largest_cell: list[Any] | None = None,
    warm_up: bool = False,
    preset: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a NequIP or Allegro model with a long-range energy.

    Parameters
    ----------
    base : str
        Builder of the short-range model, such as "nequip.model.NequIPGNNModel" or
        "allegro.model.AllegroModel".
    sog : dict, optional
        Options of :class:`~sog_longrange.SOGConfig`, which win over those of the preset, and
        perhaps `preset`.
    boundary, largest_cell
        See :class:`~sog_nequip.nn.LongRange`.
    warm_up : bool
        Start without the long-range energy; :class:`~sog_nequip.train.WarmUp` must be among
        the callbacks of the trainer and adds it step by step.
    preset : str, optional
        Options by the kind of matter, by the name of one of
        :data:`~sog_longrange.presets.PRESETS`. The command ``sog_preset`` finds the one that fits
        a file of structures: when a model is built there are no data yet.
    **kwargs
        Arguments of the builder of the short-range model.

    Returns
    -------
    Module

    Raises
    ------
    ConfigError
        If an option is unknown or has a wrong value.
    HostError
        If the short-range model cannot take a long-range part.

    References
    ----------
    Ji, Liang, Xu, arXiv:2502.04668; Cheng, arXiv:2408.15165.
    """
    graph = _graph_of(kwargs)
    model = get_method(base)(**kwargs)
    options = _read_options(sog, preset, model, graph.r_max)
    return attach(model, options, boundary, largest_cell, warm_up, graph)


@model_builder
def SOGModelFromSaved(  # noqa: N802
    model: Mapping[str, Any],
    r_max: float,
    type_names: Sequence[str],
    sog: Mapping[str, Any] | None = None,
    boundary: str = "data",
    largest_cell: list[Any] | None = None,
    warm_up: bool = True,
    per_edge_type_cutoff: Mapping[str, Any] | None = None,
    preset: str | None = None,
) -> nn.Module:
    """Give a trained short-range model a long range, for fine-tuning.

    Training starts at exactly the trained model.

    Parameters
    ----------
    model : dict
        Config of the trained model, with `_target_` "nequip.model.ModelFromCheckpoint" or
        "nequip.model.ModelFromPackage".
    r_max, type_names, per_edge_type_cutoff
        As the model was trained with.
    sog, boundary, largest_cell, warm_up, preset
        As for :func:`SOGModel`.

    Returns
    -------
    Module

    Raises
    ------
    ConfigError
        If an option is unknown or has a wrong value.
    HostError
        If the trained model was trained with something else, or cannot take a long-range part.
    """
    config = dict(model)
    with fresh_model_builder_context(), explain_old_models("the trained model"):
        saved = get_method(config.pop("_target_"))(**config)
    if isinstance(saved, nn.ModuleDict):
        if len(saved) != 1:
            raise HostError(explain("model", "a file with one model", f"{sorted(saved)}"))
        (saved,) = saved.values()
    own = {"r_max": r_max, "type_names": type_names, "per_edge_type_cutoff": per_edge_type_cutoff}
    _check_same(saved, own)
    saved.requires_grad_(True).train()
    options = _read_options(sog, preset, saved, float(r_max))
    return attach(saved, options, boundary, largest_cell, warm_up, _graph_of(own))


def attach(
    model: HostModule,
    config: SOGConfig,
    boundary: str = "data",
    largest_cell: list[Any] | None = None,
    warm_up: bool = False,
    graph: HostGraph | None = None,
) -> HostModule:
    """Put a long-range part behind the sum of atomic energies of a model, in place.

    Parameters
    ----------
    model : Module
        Short-range model, or the `GraphModel` around one.
    config : SOGConfig
    boundary, largest_cell, warm_up
        As for :func:`SOGModel`.
    graph
        See :class:`~sog_nequip.nn.LongRange`.

    Returns
    -------
    Module
        The short-range model, without a `GraphModel` around it.

    Raises
    ------
    HostError
        If the model is not built as NequIP's and Allegro's are, or has a long-range part.
    """
    outer: HostModule = model.model if getattr(model, "is_graph_model", False) else model
    network, total = _find_sum(outer)
    if config.latent_dipoles:
        _insert_vectors(network)
    before = network._modules[total]
    long_range = LongRange(
        config,
        before.irreps_out,
        edge_norm=_edge_norm(network),
        boundary=boundary,
        largest_cell=largest_cell,
        graph=graph,
    )
    if warm_up:
        long_range.long_range.gate.zero_()
    if list(network._modules)[-1] == total:
        network.append("long_range", long_range)
    else:
        network.insert("long_range", long_range, after=total)
    for part in (network, outer):
        part.irreps_in.update(long_range.extra_inputs)
        part.irreps_out.update(long_range.irreps_out)
    return outer


def _graph_of(own: Mapping[str, Any]) -> HostGraph:
    """Read what the graph is made for off arguments of the short-range model."""
    return HostGraph(own["r_max"], own["type_names"], own.get("per_edge_type_cutoff"))


def _find_sum(outer: HostModule) -> tuple[HostModule, str]:
    """Find the network inside a model, and the name of what sums its atomic energies."""
    network: HostModule = getattr(outer, "func", None)
    # Packaged models have classes of their own, of the same name.
    if type(network).__name__ != SequentialGraphNetwork.__name__:
        raise HostError(explain("model", EXPECTED, type(outer).__name__))
    if any(hasattr(module, "is_sog_long_range") for module in network):
        remedy = "To train it on, use its ModelFromCheckpoint or ModelFromPackage itself."
        raise HostError(explain("model", "without a long-range part", "one with it", remedy))
    found = [
        name
        for name, module in network.named_children()
        if getattr(module, "out_field", None) == AtomicDataDict.TOTAL_ENERGY_KEY
    ]
    if len(found) != 1:
        got = f"{len(found)} modules that write {AtomicDataDict.TOTAL_ENERGY_KEY}"
        raise HostError(explain("model", EXPECTED, got))
    return network, found[0]


def _insert_vectors(network: HostModule) -> None:
    """Let the last layer with vectors hand them on, for latent dipoles."""
    layers = _layers_with_vectors(network)
    if not layers:
        raise HostError(
            "Latent dipoles are made from vectors (features of l = 1), and no layer of this model "
            "gives atoms any. NequIP models have them with two or more layers and l_max of at "
            "least 1; Allegro models keep them on edges. Leave latent_dipoles out."
        )
    name, layer = layers[-1]
    network.insert("latent_vectors", LatentVectors(layer.irreps_out), after=name)


def _layers_with_vectors(network: HostModule) -> list[tuple[str, HostModule]]:
    """Layers that give atoms vectors (1o), by name."""
    features = AtomicDataDict.NODE_FEATURES_KEY
    return [
        (name, module)
        for name, module in network.named_children()
        if feature_slices(Irreps(str(module.irreps_out.get(features) or "")), *VECTORS)
    ]


def _read_options(
    sog: Mapping[str, Any] | None, preset: str | None, model: HostModule, cutoff: float
) -> SOGConfig:
    """Options of a long-range part, by a preset where there is one."""
    given = dict(sog or {})
    name = given.pop("preset", preset or NONE)
    if preset not in (None, name):
        expected = f"{preset!r}, as the argument of this name, or left out"
        raise ConfigError(explain("sog.preset", expected, repr(name)))
    outer: HostModule = model.model if getattr(model, "is_graph_model", False) else model
    has_vectors = bool(_layers_with_vectors(_find_sum(outer)[0]))
    options = apply_preset(name, given, has_vectors=has_vectors, cutoff=cutoff)
    if name != NONE:
        logger.info("Preset %s: %s", name, describe_options(options, given))
    return SOGConfig.from_dict(options)


def _edge_norm(network: HostModule) -> nn.Module | None:
    """How an Allegro model normalises sums over edges; NequIP's sums are no modules of these."""
    norms = [module.norm_module for module in network if hasattr(module, "norm_module")]
    return copy.deepcopy(norms[0]) if norms else None


def _check_same(saved: HostModule, own: Mapping[str, Any]) -> None:
    """Check that the config repeats what the saved model was trained with."""
    dtype = dtype_to_name(torch.get_default_dtype())  # That of the model which is being built.
    wanted = graph_model._model_metadata_from_config({"model_dtype": dtype, **own})
    for key in COMPARED:
        trained, given = saved.metadata.get(key), wanted.get(key)
        if key == graph_model.R_MAX_KEY:
            trained, given = float(trained), float(given)
        if trained != given:
            raise HostError(explain(key, f"{trained}, as in the trained model", str(given)))
