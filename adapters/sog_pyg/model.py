"""A model of PyG plus a long-range energy, by composition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sog_longrange import HostError, InputError, InputTypeError
from sog_longrange.errors import explain

from .batching import fit_boundary
from .latent import Latent, Seen, find_cutoff, find_latent
from .layer import LongRangeLayer

_Arguments = tuple[Tensor, Tensor, Tensor | None, Tensor | None, int]


class WithLongRange(nn.Module):
    """A model whose energy gets a long-range part, without editing the model.

    The model runs as it is. Latent charges are read from the node features that its output
    is made from, and their energy is added to its own. Forces must be derivatives of the sum:
    take them by :func:`~sog_pyg.energy_forces_stress`.

    Parameters
    ----------
    model : Module
        A SchNet, DimeNetPlusPlus or ViSNet; any other with `latent`.
    long_range : LongRangeLayer
        With ``output="energy"``.
    latent : callable, optional
        ``latent(model, z, pos, batch, cell, pbc)`` runs a model of your own and returns its
        energies [batch_size, 1] and its node features [num_nodes, F], which must not
        change when a structure is rotated. It must use `cell` and `pbc`, see
        :func:`~sog_pyg.periodic_edges`. Where charges flow along edges, it also returns the
        `edge_index` [2, num_edges] and lengths [num_edges] of the model's graph.

    Raises
    ------
    HostError
        If the model is built for something that is not an energy, its forces would miss
        the long range, or its graph ends before flows do.
    InputError, InputTypeError
        If the long-range part does not return an energy.

    Examples
    --------
    >>> import torch
    >>> from torch_geometric.nn import SchNet
    >>> from sog_pyg import PeriodicGraph, LongRangeLayer, WithLongRange
    >>> schnet = SchNet(hidden_channels=32, cutoff=4.0, interaction_graph=PeriodicGraph(4.0))
    >>> model = WithLongRange(schnet, LongRangeLayer(num_charges=4))
    >>> z, pos = torch.tensor([11, 17]), torch.tensor([[0.0, 0.0, 0.0], [2.8, 0.0, 0.0]])
    >>> model(z, pos, cell=5.6 * torch.eye(3), pbc=torch.tensor([True] * 3)).shape
    torch.Size([1, 1])
    """

    def __init__(
        self, model: nn.Module, long_range: LongRangeLayer, latent: Latent | None = None
    ) -> None:
        super().__init__()
        expected = 'a LongRangeLayer with output="energy"'
        if not isinstance(long_range, LongRangeLayer):
            raise InputTypeError(explain("long_range", expected, type(long_range).__name__))
        if long_range.output != "energy":
            raise InputError(explain("long_range", expected, repr(long_range.output)))
        self.latent = find_latent(model) if latent is None else latent
        self.model = model
        self.long_range = long_range
        self._check_cutoff()

    def reset_parameters(self) -> None:
        """Reset the model and the long-range part.

        Raises
        ------
        HostError
            If the model has no method of this name.
        """
        reset = getattr(self.model, "reset_parameters", None)
        if reset is None:
            expected = "a model with a method reset_parameters"
            raise HostError(explain("model", expected, type(self.model).__name__))
        reset()
        self.long_range.reset_parameters()

    def forward(
        self,
        z: Tensor,
        pos: Tensor,
        batch: Tensor | None = None,
        cell: Tensor | None = None,
        pbc: Tensor | None = None,
        batch_size: int | None = None,
        total_charge: Tensor | None = None,
    ) -> Tensor:
        """Evaluate the sum of both energies.

        Parameters
        ----------
        z : Tensor, shape [num_nodes]
            Atomic numbers, or whatever the model takes in their place; atomic numbers where
            elements have charges.
        pos, batch, cell, pbc, batch_size, total_charge
            As in :meth:`LongRangeLayer.forward`.

        Returns
        -------
        Tensor, shape [batch_size, 1], in eV

        Raises
        ------
        HostError
            If a structure is periodic and the model's own graph ends at the cell, or if
            the model returns no energy.
        InputError, InputTypeError, BoundaryError, SizeError
            As :meth:`LongRangeLayer.forward`.
        """
        seen, arguments = self._run(z, pos, batch, cell, pbc, batch_size)
        graph = total_charge, seen.edge_index, seen.edge_weight, z
        long_range = self.long_range(seen.features, *arguments, *graph)
        total: Tensor = _one_per_graph(seen.energy, arguments[-1]) + long_range
        return total

    def charges(
        self,
        z: Tensor,
        pos: Tensor,
        batch: Tensor | None = None,
        cell: Tensor | None = None,
        pbc: Tensor | None = None,
        batch_size: int | None = None,
        total_charge: Tensor | None = None,
    ) -> Tensor:
        """Read the latent charges of all nodes.

        Parameters
        ----------
        z, pos, batch, cell, pbc, batch_size, total_charge
            As in :meth:`forward`.

        Returns
        -------
        Tensor, shape [num_nodes, C], in e
            Their common sign is free, because charges act in pairs.

        Raises
        ------
        HostError, InputError, InputTypeError
            As :meth:`forward`.
        """
        seen, arguments = self._run(z, pos, batch, cell, pbc, batch_size)
        graph = total_charge, seen.edge_index, seen.edge_weight, z
        return self.long_range.charges(seen.features, *arguments, *graph)

    def _run(
        self,
        z: Tensor,
        pos: Tensor,
        batch: Tensor | None,
        cell: Tensor | None,
        pbc: Tensor | None,
        batch_size: int | None,
    ) -> tuple[Seen, _Arguments]:
        """Run the model; what was read from it, and what the long-range part is called with."""
        cell, pbc, batch_size = fit_boundary(cell, pbc, batch, batch_size)
        if batch is None:
            batch = torch.zeros(len(pos), dtype=torch.int64, device=pos.device)
        seen = Seen(*self.latent(self.model, z, pos, batch, cell, pbc))
        return seen, (pos, batch, cell, pbc, batch_size)

    def _check_cutoff(self) -> None:
        """Refuse flows that would go on where the graph ends."""
        reach, cutoff = self.long_range.cutoff, find_cutoff(self.model)
        if reach is not None and cutoff is not None and reach > cutoff:
            expected = f"at most that of the model, {cutoff} Å, where its graph ends"
            raise HostError(explain("long_range.cutoff", expected, f"{reach} Å"))

    def __repr__(self) -> str:
        """Both parts."""
        return f"{type(self).__name__}({self.model}, {self.long_range})"


def _one_per_graph(energy: Tensor, batch_size: int) -> Tensor:
    """Energies [batch_size, 1]; models leave out empty graphs at the end of a batch."""
    if energy.numel() > batch_size or energy.numel() != len(energy):
        expected = f"one energy for each of {batch_size} graphs"
        raise HostError(explain("model", expected, f"an output of shape {list(energy.shape)}"))
    missing = batch_size - len(energy)
    return torch.nn.functional.pad(energy.reshape(-1, 1), (0, 0, 0, missing))
