"""The whole long-range part of a model in TorchScript."""

import torch
from torch import Tensor, nn

from sog_longrange.errors import ConfigError, explain
from sog_longrange.fixed_mesh import FixedMeshEnergy
from sog_longrange.geometry import shorten
from sog_longrange.long_range import SOGLongRange
from sog_longrange.validation import WHOLE

from .dense import ScriptedDense
from .mesh import ScriptedMesh
from .near import ScriptedNear
from .pairs import ScriptedPairs, ScriptedSelf
from .traced import trace_latent


class ScriptedLongRange(nn.Module):
    """What a model adds to the energy of its host, for one structure, ready for `torch.jit.script`.

    Structures are periodic along all axes, which takes a time that grows as N log N, or along
    none, in which all pairs are summed. Energies equal those of the model to its tolerance. First
    derivatives, of autograd, are those of the energy as computed.

    Parameters
    ----------
    long_range : SOGLongRange
        Its parameters must require no gradient. It is not changed.
    num_vectors : int
        Number of vectors of each atom; without use unless `latent_dipoles` is set.

    Raises
    ------
    ConfigError
        If the energy is one of ranks or of a fixed mesh, or keeps self-interaction.
    HostError
        If there are latent dipoles and the kernel is no sum of Gaussians.

    Attributes
    ----------
    takes_total_charge : bool
        Whether the total charge matters; it must be zero otherwise.
    takes_species : bool
        Whether the elements of the atoms matter.
    """

    def __init__(self, long_range: SOGLongRange, num_vectors: int = 0) -> None:
        super().__init__()
        config, energy = long_range.config, long_range.energy
        if isinstance(energy, FixedMeshEnergy) or energy.process_group is not None:
            raise ConfigError(explain("energy", "one of a single rank, not fixed", repr(energy)))
        if not energy.remove_self:
            raise ConfigError(explain("remove_self", "True in an exported model", "False"))
        like = long_range.readout.weight.detach()
        self.takes_total_charge: bool = config.needs_total_charge
        self.takes_sites: bool = config.needs_sites
        self.whole: float = 2.0 if config.fractional_charge else WHOLE
        order = 1 if config.latent_dipoles else 0
        kernel = energy.kernel.snapshot()
        what = config.num_channels, order, like
        self.latent = trace_latent(long_range, num_vectors, like)
        resolution = energy.interaction().resolution(order)
        self.mesh = ScriptedMesh(kernel, resolution, *what)
        self.dense = ScriptedDense(kernel, resolution, *what)
        self.pairs = ScriptedPairs(kernel, *what)
        self.own = ScriptedSelf(kernel, *what)
        self.near = ScriptedNear(kernel, config.num_channels, long_range.near, like)

    def forward(
        self,
        features: Tensor,
        vectors: Tensor,
        positions: Tensor,
        cell: Tensor,
        pbc: Tensor,
        total_charge: float,
        per_atom: bool,
        edge_index: Tensor | None = None,
        distances: Tensor | None = None,
        species: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Evaluate one structure.

        Parameters
        ----------
        features : Tensor, shape (n_atoms, n_features)
            As of :class:`~sog_longrange.SOGLongRange`.
        vectors : Tensor, shape (n_atoms, 3, num_vectors)
        positions : Tensor, shape (n_atoms, 3), in Å
        cell : Tensor, shape (3, 3), in Å
            Not read in open structures.
        pbc : Tensor, shape (3,), bool
            All true or all false.
        total_charge : float
            In e.
        per_atom : bool
            Whether energies of the atoms are wanted, for which the sum is done once more.
        edge_index : Tensor, shape (2, n_edges), int64, optional
            Pairs of neighbours, each in both orders. Needed, as what follows, where the readout is
            one of :class:`~sog_longrange.charges.flows.FlowingCharges`.
        distances : Tensor, shape (n_edges,), in Å, optional
        species : Tensor, shape (n_atoms,), int64, optional
            As of :class:`~sog_longrange.charges.sites.Sites`.

        Returns
        -------
        energy : Tensor, shape (), in eV
        atomic_energies : Tensor, shape (n_atoms,), in eV
            Sum to the energy, and so do their derivatives; those of single atoms mean nothing.
            Where they are not wanted, all atoms have the same part of the interaction.
        charges : Tensor, shape (n_atoms, n_channels), in e
        dipoles : Tensor, shape (n_atoms, 3, n_channels or 0), in e Å

        Raises
        ------
        ValueError
            If a structure is periodic along some axes only, or what is needed was not given.
        """
        periodic = bool(pbc.all())
        if bool(pbc.any()) and not periodic:
            raise ValueError(
                "`pbc` must be all true or all false in an exported model, which has no slabs and "
                "wires. Run these with Python, by sog_mace.SOGMACECalculator or sog_lammps."
            )
        charge = torch.tensor([total_charge], dtype=positions.dtype, device=positions.device)
        self.check_charge(total_charge)
        if edge_index is None or distances is None or species is None:
            if self.takes_sites:
                raise ValueError("`edge_index`, `distances` and `species` must be given.")
            edge_index = torch.zeros([2, 0], dtype=torch.int64, device=positions.device)
            distances = positions.new_zeros([0])
            species = torch.zeros([positions.shape[0]], dtype=torch.int64, device=positions.device)
        charges, dipoles, states = self.latent(
            features, vectors, charge, edge_index, distances, species
        )
        energy = self.interact(charges, dipoles, positions, cell, periodic).to(positions)
        near = self.near(charges, edge_index, distances)
        energy = energy + near.sum()
        shares = torch.zeros_like(states)
        if per_atom:
            shares = near.detach() + self.share(charges, dipoles, positions, cell, periodic)
        shares = shares + (energy - shares.sum()) / positions.shape[0]
        return energy + states.sum(), states + shares, charges, dipoles

    def check_charge(self, total_charge: float) -> None:
        """Raise an error unless a total charge is one that the model takes.

        Parameters
        ----------
        total_charge : float
            In e.
        """
        if not self.takes_total_charge and total_charge != 0.0:
            raise ValueError("`total_charge` must be 0 for this model, which takes none.")
        if abs(total_charge - float(round(total_charge))) > self.whole:
            raise ValueError("`total_charge` must be a whole number of e.")

    def interact(
        self, charges: Tensor, dipoles: Tensor, positions: Tensor, cell: Tensor, periodic: bool
    ) -> Tensor:
        """Energy of charges and dipoles.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        dipoles : Tensor, shape (n_atoms, 3, n_channels or 0), in e Å
        positions : Tensor, shape (n_atoms, 3), in Å
        cell : Tensor, shape (3, 3), in Å
        periodic : bool

        Returns
        -------
        Tensor, shape (), float64, in eV
        """
        if not periodic:
            energy: Tensor = self.pairs(charges, dipoles, positions)
            return energy
        rows: list[list[float]] = cell.detach().double().cpu().tolist()
        short = torch.tensor(shorten(rows), dtype=cell.dtype, device=cell.device) @ cell
        if self.dense.is_faster(positions.shape[0], short):
            whole: Tensor = self.dense(charges, dipoles, positions, short)
        else:
            whole = self.mesh(charges, dipoles, positions, short)
        own: Tensor = self.own(charges, dipoles)
        return whole - own

    def share(
        self, charges: Tensor, dipoles: Tensor, positions: Tensor, cell: Tensor, periodic: bool
    ) -> Tensor:
        """Half the work on the sources of each atom, without a graph.

        Parameters
        ----------
        charges, dipoles, positions, cell, periodic
            As of :meth:`interact`.

        Returns
        -------
        Tensor, shape (n_atoms,), in eV

        Raises
        ------
        ValueError
            Where gradients are disabled.
        """
        if not torch.is_grad_enabled():
            raise ValueError("`per_atom` must be false where gradients are disabled, got true.")
        q = charges.detach().requires_grad_(True)
        mu = dipoles.detach().requires_grad_(True)
        energy = self.interact(q, mu, positions.detach(), cell.detach(), periodic)
        slopes = torch.autograd.grad([energy], [q, mu], allow_unused=True)
        shares = torch.zeros_like(positions[:, 0])
        for sources, slope in zip([q, mu], slopes):  # noqa: B905 (no `strict` in TorchScript)
            if slope is not None:
                shares = shares + 0.5 * (sources.detach() * slope).flatten(1).sum(1)
        return shares
