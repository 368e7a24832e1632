"""Energies, forces and stress of any model, from one data object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from sog_longrange import DerivativeError, HostError, InputError
from sog_longrange.errors import explain
from sog_longrange.geometry import apply_strain, virial_to_stress
from sog_longrange.options import as_number

from .batching import fit_boundary, take

Model = Callable[..., Tensor]


class EnergyForcesStress(NamedTuple):
    """Energies of a batch and their derivatives.

    Attributes
    ----------
    energy : Tensor, shape [batch_size], in eV
    forces : Tensor, shape [num_nodes, 3], in eV/Å
        -dE / d pos.
    stress : Tensor, shape [batch_size, 3, 3], in eV/Å^3, or None
        dE / d strain over the volume of the data's own cell, positive under tension, whatever
        axes are periodic. NaN for structures whose cell has no volume, as where a row is zero:
        leave them out of a loss, as by ``stress[~stress.isnan()]``. None for data without cells.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor | None


def energy_forces_stress(
    model: Model, data: Data, *, create_graph: bool = False
) -> EnergyForcesStress:
    """Evaluate a model and differentiate its energy.

    Parameters
    ----------
    model : callable
        Called as ``model(z, pos, batch, cell, pbc, batch_size)``, with
        ``total_charge=data.total_charge`` if the data have one; returns one energy for each
        graph. A :class:`~sog_pyg.WithLongRange` is such a model.
    data : Data or Batch
        With `z` and `pos`, and `cell` and `pbc` if something is periodic, see
        :class:`~sog_pyg.StoreBoundary`. Not changed.
    create_graph : bool
        Whether results can be differentiated further, for a loss of forces or stress.

    Returns
    -------
    EnergyForcesStress
        Part of the autograd graph only with `create_graph`.

    Raises
    ------
    DerivativeError
        If `create_graph` is asked of a compiled model: PyTorch cannot differentiate compiled
        code twice.
    HostError
        If the model does not return one energy for each graph.
    InputError, InputTypeError
        If the data are malformed or lack `z` or `pos`.
    """
    if create_graph:
        _refuse_compiled(model)
    pos, z = take(data, "pos"), take(data, "z")
    with torch.inference_mode(False), torch.enable_grad():
        # What was made in inference mode can be differentiated as a copy only.
        data = data.clone() if pos.is_inference() or z.is_inference() else data
        batch = data.get("batch")
        batch_size = data.num_graphs if batch is not None else 1
        cell, pbc, _ = fit_boundary(data.get("cell"), data.get("pbc"), batch, batch_size)
        pos = data.pos.detach().requires_grad_()
        strain = None
        moved, own = pos, cell
        if cell is not None:
            strain = pos.new_zeros(batch_size, 3, 3).requires_grad_()
            moved, cell = apply_strain(pos, cell, strain, batch)
        charge = _total_charge(model, data, batch_size)
        more = {} if charge is None else {"total_charge": charge}
        energy = model(data.z, moved, batch, cell, pbc, batch_size, **more)
        if energy.numel() != batch_size:
            expected = f"one energy for each of {batch_size} graphs"
            raise HostError(explain("model", expected, f"shape {list(energy.shape)}"))
        inputs = (pos,) if strain is None else (pos, strain)
        slopes = torch.autograd.grad(
            energy.sum(), inputs, create_graph=create_graph, materialize_grads=True
        )
    energy = energy.reshape(-1) if create_graph else energy.detach().reshape(-1)
    stress = None if own is None else virial_to_stress(slopes[1], own)
    return EnergyForcesStress(energy, -slopes[0], stress)


def _total_charge(model: Any, data: Data, batch_size: int) -> Tensor | None:
    """One number for each graph, if the data have any and the model does not ignore them."""
    given = data.get("total_charge")
    part = getattr(getattr(model, "long_range", None), "part", None)
    config: Any = None if part is None else part.config
    # What is left to "auto" is looked at by the core, which refuses charges that would be ignored.
    ignores = config is not None and not config.needs_total_charge
    if given is None or (ignores and config.charge_constraint != "auto"):
        return None
    if isinstance(given, Tensor) and given.numel() == batch_size:
        return given.reshape(-1)  # The core looks at the values.
    listed = given if isinstance(given, list | tuple | np.ndarray) else [given]
    numbers = [as_number(value) for value in listed]
    if len(numbers) != batch_size or None in numbers:
        expected = f"one finite number in e for each of {batch_size} graphs"
        remedy = "Give every graph its total_charge before graphs are batched, such as 0.0."
        raise InputError(explain("data.total_charge", expected, repr(given), remedy))
    return torch.tensor(numbers, dtype=data.pos.dtype, device=data.pos.device)


def _refuse_compiled(model: Any) -> None:
    parts = list(model.modules()) if isinstance(model, nn.Module) else [model]
    for part in parts:
        compiled = getattr(part, "_compiled_call_impl", None) is not None
        if compiled or hasattr(part, "_orig_mod") or hasattr(part, "_torchdynamo_orig_callable"):
            raise DerivativeError(
                "PyTorch cannot differentiate compiled code twice, which a loss of forces or "
                f"stress needs, and `{type(part).__name__}` is compiled. Train the model as it "
                "was before torch.compile, and compile it afterwards, for inference."
            )
