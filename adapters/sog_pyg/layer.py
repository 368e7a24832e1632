"""The long-range part as a layer, in PyG's own manner."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from sog_longrange import (
    ConfigError,
    InputError,
    LongRangeEnergy,
    SOGConfig,
    SOGLongRange,
)
from sog_longrange.charges.build import Readout
from sog_longrange.charges.sites import Sites
from sog_longrange.errors import explain
from sog_longrange.presets import NONE, apply_preset
from sog_longrange.validation import Structures, check_shape, check_shapes, check_tensor

from .batching import Boundary, fit_boundary
from .readout import LazyReadout, build_lazy
from .sites import Graph, find_sites, places_of

OUTPUTS = ("energy", "features")
NUM_CHARGES = 4
SIZES = {"num_channels": "num_charges", "hidden_size": "hidden_channels"}
"""Options that have a name of PyG's manner."""


class LongRangeLayer(nn.Module):
    r"""Long-range message passing between all nodes, at near-linear cost.

    Each node is given a few latent charges :math:`q_{jp}`, a learned function of its features.
    They act on each other over any distance, through periodic boundaries where there are
    any, through the kernel K:

    .. math::
        \phi_{ip} = \sum_{j \neq i} K(|r_i - r_j|) \, q_{jp}, \qquad
        K(r) = \sum_l a_l \, e^{-r^2 / 2 s_l^2},

    whose amplitudes and widths are learned too. It is 1/r at initialisation, the potential of
    electric charges.

    With ``output="energy"`` the module returns their energy, which is added to the output of
    a model. With ``output="features"`` it returns at each node the potential
    :math:`\phi` (invariant) and the field :math:`-\nabla \phi` (vectors), for the layers of a
    network that come after it. Both can be differentiated twice, as training on forces needs.

    Parameters
    ----------
    in_channels : int
        Number of features of each node; -1 takes that of the first input.
    num_charges : int, optional
        Number of latent charges of each node; 4, or as many as the preset says.
    hidden_channels : int
        Width of the perceptron that is added to the linear map from features to charges;
        0 leaves it out.
    output : {"energy", "features"}
        What is returned.
    preset : str
        Options by the kind of matter, by the name of one of
        :data:`~sog_longrange.presets.PRESETS`; options that are given win. The command
        ``sog_preset`` finds the one that fits a file of structures.
    cutoff : float, in Å, optional
        Of the edges, or a shorter one: where charges that flow along them stop
        (``readout="flows"`` and ``"ions"``), and where dispersion begins.
    elements : sequence of int
        Atomic numbers that come, for ``readout="ions"``; with ``readout="flows"`` charge of
        nonmetals flows along bonds then; with the kernel "dispersion" its values begin at those
        of free atoms.
    **options
        Any other option of :class:`sog_longrange.SOGConfig`; among them `kernel`
        ("coulomb", "power_law(exponent=6)", ...; :func:`sog_longrange.list_kernels` has all),
        `min_width` in Å, below which the kernel is smoothed, `charge_constraint` ("auto",
        "none", "neutral", "total"), `tolerance`, `readout` ("atoms", "flows", "ions"), which
        lets charges flow along edges, and `charge_embedding`, which makes charge states differ
        and needs `in_channels` and ``output="energy"``.

    Raises
    ------
    ConfigError
        If an option is unknown or out of range.

    Notes
    -----
    Shapes, with B graphs, N nodes, F = `in_channels` and C = `num_charges`:

    - **x** [N, F], **pos** [N, 3] in Å, **batch** [N], sorted
    - **cell** [3, 3], [1, 3, 3] or [B, 3, 3] in Å, rows are lattice vectors
    - **pbc** [3], [1, 3] or [B, 3], bool: along which lattice vectors a graph repeats
    - **energy** [B, 1] in eV, or **potential** [N, C] in eV/e and **field** [N, 3, C] in
      eV/(e Å)

    References
    ----------
    Ji, Liang, Xu, arXiv:2502.04668; Cheng, arXiv:2408.15165; as layers of a network: Kosmala
    et al., arXiv:2303.04791.

    Examples
    --------
    >>> import torch
    >>> from sog_pyg import LongRangeLayer
    >>> x, pos = torch.randn(10, 64), 5 * torch.rand(10, 3)
    >>> cell, pbc = 8 * torch.eye(3), torch.tensor([True, True, True])
    >>> LongRangeLayer(num_charges=4)(x, pos, cell=cell, pbc=pbc).shape
    torch.Size([1, 1])
    >>> layer = LongRangeLayer(num_charges=4, output="features")
    >>> potential, field = layer(x, pos, cell=cell, pbc=pbc)
    >>> potential.shape, field.shape
    (torch.Size([10, 4]), torch.Size([10, 3, 4]))
    """

    places: Tensor | None

    def __init__(
        self,
        in_channels: int = -1,
        num_charges: int | None = None,
        hidden_channels: int = 32,
        output: str = "energy",
        preset: str = NONE,
        cutoff: float | None = None,
        elements: Sequence[int] = (),
        **options: Any,
    ) -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise ConfigError(explain("output", "one of " + ", ".join(OUTPUTS), repr(output)))
        sizes = {"hidden_size": hidden_channels}
        if num_charges is not None:
            sizes["num_channels"] = num_charges
        for twice, name in SIZES.items():
            if twice in options:
                raise ConfigError(explain(twice, f"given as `{name}`", repr(options[twice])))
        chosen = apply_preset(preset, sizes | options, cutoff=cutoff)
        config = SOGConfig.from_dict({"num_channels": NUM_CHARGES} | chosen)
        if output == "features" and config.far_channels:
            expected = "'energy' where neighbours are left to the model, as in dispersion"
            raise ConfigError(explain("output", expected, repr(output)))
        if config.charge_embedding > 0:
            _check_charge_states(output, in_channels)
        self.output = output
        places = places_of(elements) if len(elements) > 0 else None
        self.register_buffer("places", places, persistent=False)
        self.cutoff = cutoff
        self._new_readout = partial(build_lazy, config, in_channels, cutoff, tuple(elements))
        readout = self._new_readout()
        self.part = SOGLongRange(readout.layer_sizes, config, readout, cutoff=cutoff)

    @property
    def readout(self) -> LazyReadout | Readout:
        """What turns features into latent charges."""
        return self.part.readout

    @property
    def in_channels(self) -> int:
        """Number of features of each node; -1 until the first input."""
        readout = self.readout
        if isinstance(readout, LazyReadout):
            return readout.in_channels
        return int(readout.layer_sizes[0])

    @property
    def num_charges(self) -> int:
        """Number of latent charges of each node."""
        return self.readout.num_channels

    def reset_parameters(self) -> None:
        """Draw new weights, and begin again with the initial kernel."""
        readout = self.readout
        if isinstance(readout, LazyReadout):
            readout.reset_parameters()
        else:
            readout.load_state_dict(self._new_readout().state_dict())
        self.part.energy.load_state_dict(self.part.config.build_energy().state_dict())
        self.part.gate.fill_(1.0)
        if self.part.states is not None:
            self.part.states.reset_parameters()

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        batch: Tensor | None = None,
        cell: Tensor | None = None,
        pbc: Tensor | None = None,
        batch_size: int | None = None,
        total_charge: Tensor | None = None,
        edge_index: Tensor | None = None,
        edge_weight: Tensor | None = None,
        z: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Evaluate a batch of graphs.

        Parameters
        ----------
        x : Tensor, shape [num_nodes, in_channels]
            Features that do not change when the graph is rotated.
        pos : Tensor, shape [num_nodes, 3], in Å
            Any periodic image of each node.
        batch : Tensor, shape [num_nodes], sorted, optional
            Graph of each node; left out, there is one.
        cell : Tensor, shape [3, 3], [1, 3, 3] or [batch_size, 3, 3], in Å, optional
            Rows are lattice vectors. Those of axes that are not periodic are never read.
        pbc : Tensor, shape [3], [1, 3] or [batch_size, 3], bool, optional
            Required with `cell`: what is periodic is never guessed.
        batch_size : int, optional
            Number of graphs, if some at the end may be empty.
        total_charge : Tensor, shape [batch_size], in e, optional
            For ``charge_constraint="total"`` and `charge_embedding`.
        edge_index : Tensor, shape [2, num_edges], optional
            Edges that charges flow along, with both directions of each; for ``readout="flows"``
            and ``"ions"``.
        edge_weight : Tensor, shape [num_edges], in Å, optional
            Their lengths, made of `pos`. Required with `cell`, and found from `pos` without one.
        z : Tensor, shape [num_nodes], optional
            Atomic numbers, where the layer has `elements`.

        Returns
        -------
        Tensor, shape [batch_size, 1], in eV
            The energy, for ``output="energy"``.
        tuple of Tensor, shapes [num_nodes, C] in eV/e and [num_nodes, 3, C] in eV/(e Å)
            Potential and field, for ``output="features"``.

        Raises
        ------
        InputError, InputTypeError, BoundaryError, SizeError
            If an argument is malformed or not finite; see
            :meth:`sog_longrange.LongRangeEnergy.forward`.
        """
        boundary = self._fit(x, pos, batch, cell, pbc, batch_size)
        sites = self._sites(pos, batch, boundary, Graph(edge_index, edge_weight, z))
        if self.output == "features":
            return self._features(x, pos, batch, boundary, total_charge, sites)
        given = boundary.batch_size, total_charge
        out = self.part(x, pos, *boundary[:2], batch, *given, sites=sites)
        return out.energy[:, None]

    def _features(
        self,
        x: Tensor,
        pos: Tensor,
        batch: Tensor | None,
        boundary: Boundary,
        total_charge: Tensor | None,
        sites: Sites | None,
    ) -> tuple[Tensor, Tensor]:
        charges, structures = self._charges(x, pos, batch, boundary, total_charge, sites)
        energy = cast(LongRangeEnergy, self.part.energy)
        _, potential, field = energy.potentials(charges, structures, field=True)
        return potential, cast(Tensor, field)

    def charges(
        self,
        x: Tensor,
        pos: Tensor,
        batch: Tensor | None = None,
        cell: Tensor | None = None,
        pbc: Tensor | None = None,
        batch_size: int | None = None,
        total_charge: Tensor | None = None,
        edge_index: Tensor | None = None,
        edge_weight: Tensor | None = None,
        z: Tensor | None = None,
    ) -> Tensor:
        """Read the latent charges of all nodes.

        Parameters
        ----------
        x, pos, batch, cell, pbc, batch_size, total_charge, edge_index, edge_weight, z
            As in :meth:`forward`.

        Returns
        -------
        Tensor, shape [num_nodes, C], in e

        Raises
        ------
        InputError, InputTypeError
            As :meth:`forward`.
        """
        boundary = self._fit(x, pos, batch, cell, pbc, batch_size)
        sites = self._sites(pos, batch, boundary, Graph(edge_index, edge_weight, z))
        return self._charges(x, pos, batch, boundary, total_charge, sites)[0]

    def _charges(
        self,
        x: Tensor,
        pos: Tensor,
        batch: Tensor | None,
        boundary: Boundary,
        total_charge: Tensor | None,
        sites: Sites | None,
    ) -> tuple[Tensor, Structures]:
        cell, pbc, batch_size = boundary
        values = not self.part.energy.traced
        shapes = check_shapes(pos, cell, pbc, batch, batch_size, values=values)
        return self.part.look_at_charges(x, shapes, total_charge, sites)

    def _sites(
        self, pos: Tensor, batch: Tensor | None, boundary: Boundary, graph: Graph
    ) -> Sites | None:
        """Edges and elements; None for readouts that do not look at them."""
        if not self.part.config.needs_sites:
            return None
        return find_sites(graph, pos, batch, boundary.cell, self.cutoff, self.places)

    def _fit(
        self,
        x: Tensor,
        pos: Tensor,
        batch: Tensor | None,
        cell: Tensor | None,
        pbc: Tensor | None,
        batch_size: int | None,
    ) -> Boundary:
        """Check what the core would name differently, and take the width of the first input."""
        check_tensor("x", x)
        check_tensor("pos", pos)
        check_shape("pos", pos, (None, 3), "[num_nodes, 3]")
        check_shape("x", x, (len(pos), None), f"[num_nodes={len(pos)}, in_channels]")
        if x.shape[1] == 0:
            raise InputError(explain("x", "of at least one channel", "none"))
        readout = self.readout
        if isinstance(readout, LazyReadout) and readout.is_open:
            readout.fit(x)
        return fit_boundary(cell, pbc, batch, batch_size)

    def __repr__(self) -> str:
        """Name, channels, kernel and output."""
        kernel = self.part.config.kernel
        return (
            f"{type(self).__name__}({self.in_channels}, {self.num_charges}, "
            f"kernel={kernel!r}, output={self.output!r})"
        )


def _check_charge_states(output: str, in_channels: int) -> None:
    """Refuse charge states whose energy would be lost, or whose size is not known."""
    if output != "energy":
        expected = "'energy' with charge_embedding, whose energy is not among the features"
        remedy = "Add a sog_longrange.ChargeEmbedding to x instead."
        raise ConfigError(explain("output", expected, repr(output), remedy))
    if in_channels < 1:
        expected = "the number of features with charge_embedding"
        raise ConfigError(explain("in_channels", expected, str(in_channels)))
