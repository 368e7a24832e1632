"""SOGMACE evaluated on the domains of an engine, each rank with its own atoms.

Ghosts get the features of their owners before each layer but the first, and gradients go back to
the owners, by MACE's own path for ghosts. The sum over all atoms is that of a process group.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from mace import modules
from torch import Tensor, nn
from torch.nn.functional import one_hot

from sog_longrange import FixedMeshEnergy, HostError, InputError, ModelOutput, NotFiniteError
from sog_longrange.ase_support import CHARGES_SUM_TO_ZERO
from sog_longrange.charges.electric import electric
from sog_longrange.domains import Domain, DomainResults, Halo, check_domain, check_on_all_ranks
from sog_longrange.errors import explain
from sog_longrange.validation import WHOLE

from .backbone import is_plain
from .domain_flows import DomainFlows
from .model import SOGMACE
from .readout import (
    has_component_order,
    invariant_features,
    vector_features,
)

_GATHERED: Final = 'Evaluate all atoms on one rank ("gathered"), which takes any model.'


class _Graph(NamedTuple):
    """What MACE is evaluated on: at least one atom and one pair, also where there is none.

    Attributes
    ----------
    batch : dict
        Input of MACE but for the exchange.
    vectors : Tensor, shape (at least n_pairs, 3)
        Leaf of `batch`: r_i - r_j of centres i and neighbours j.
    pairs : Tensor, shape (2, n_pairs), int64
        Within the cutoff, on the CPU.
    """

    batch: dict[str, Any]
    vectors: Tensor
    pairs: Tensor


class _Slopes(NamedTuple):
    """Derivatives of what is added to the energy of MACE.

    Those in vectors of pairs are None where no charge flows along them.
    """

    features: Tensor
    positions: Tensor
    cell: Tensor
    vectors: Tensor | None = None


class _Exchange:
    """Halo in the form that MACE calls; an atom that only stands in is kept out of it."""

    def __init__(self, halo: Halo, domain: Domain) -> None:
        self._halo, self._num_own, self._num_all = halo, domain.num_own, domain.numbers.shape[0]

    def forward_exchange(self, values: Tensor, out: Tensor, _width: int) -> None:
        """Fill the rows of ghosts from their owners."""
        own = values.detach()[: self._num_own]
        found = self._halo.forward(own.cpu().contiguous())
        out.copy_(found if self._num_own else values)

    def reverse_exchange(self, values: Tensor, out: Tensor, _width: int) -> None:
        """Add gradients of ghosts to those of their owners."""
        given = values if self._num_own else values.new_zeros(self._num_all, values.shape[1])
        found = self._halo.reverse(given.detach().cpu().contiguous())
        out.zero_()
        out[: self._num_own] = found.to(out)


class SOGMACEDomainModel:
    """A SOGMACE model on the domains of an engine; see :class:`~sog_longrange.domains.DomainModel`.

    Parameters
    ----------
    model : SOGMACE
        Not changed; its parameters are shared and take no gradients.
    head : int
        Index of the head of MACE that gives the energy.
    group : ProcessGroup, optional
        Of the ranks of the engine; None for a single one.

    Raises
    ------
    HostError
        If the model cannot be evaluated so.
    """

    def __init__(
        self, model: SOGMACE, head: int = 0, group: dist.ProcessGroup | None = None
    ) -> None:
        group = group if group is not None and group.size() > 1 else None
        _refuse(model, group)
        weight = next(model.parameters())
        self._dtype, self._device, self._group = weight.dtype, weight.device, group
        self._model = model
        self._head = torch.tensor([head], device=weight.device)
        self._long_range = copy.deepcopy(model.long_range).requires_grad_(False)
        if group is not None:
            self._long_range.energy.process_group = group
        self.cutoff = float(model.r_max)
        self.atomic_numbers: tuple[int, ...] = tuple(model.atomic_numbers.tolist())
        places = torch.full((max(self.atomic_numbers) + 1,), -1)
        places[list(self.atomic_numbers)] = torch.arange(len(self.atomic_numbers))
        self._places = places
        self._has_warned_of_charge = False

    def evaluate(self, domain: Domain, halo: Halo) -> DomainResults:
        """Evaluate one domain; collective over all ranks.

        Parameters
        ----------
        domain : Domain
        halo : Halo
            Called once for each layer but the first in both directions, and once for forces.

        Returns
        -------
        DomainResults

        Raises
        ------
        InputError, InputTypeError, NotFiniteError
            On all ranks, if the domain of one of them is malformed, or energies or forces are not
            finite; on one rank, if features of its atoms are not finite.
        """
        check_on_all_ranks(lambda: self._check(domain), self._group, self._device)
        graph = self._graph(domain)
        exchange = _Exchange(halo, domain)
        out = self._model.mace(
            graph.batch | {"lammps_class": exchange},
            training=True,
            compute_force=False,
            lammps_mliap=True,
        )
        energies, features = out["node_energy"], out["node_feats"]
        added, slopes = self._add(features.detach()[: domain.num_own], domain, graph, halo)
        # Two passes, so that all ranks enter collectives in one order, whatever atoms they have.
        weights = torch.ones_like(energies), torch.zeros_like(features)
        weights[0][domain.num_own :] = 0.0
        weights[1][: domain.num_own] = slopes.features
        (by_vectors,) = torch.autograd.grad((energies, features), graph.vectors, weights)
        if slopes.vectors is not None:
            by_vectors[: slopes.vectors.shape[0]] += slopes.vectors
        energies = energies.detach()[: domain.num_own].double()
        return self._collect(domain, halo, graph, by_vectors, energies, added, slopes)

    def _check(self, domain: Domain) -> None:
        check_domain(domain, self.atomic_numbers)
        if domain.total_charge is None and self._long_range.config.needs_total_charge:
            remedy = "It is an option of the engine, as `pair_style sog charge 0`."
            raise InputError(explain("total_charge", "given for this model", "None", remedy))

    def _graph(self, domain: Domain) -> _Graph:
        """Take what is within the cutoff, in the dtype and on the device of the model."""
        inside = domain.vectors.square().sum(1) < self.cutoff**2
        pairs, vectors = domain.pairs[:, inside], -domain.vectors[inside]
        numbers, num_own = domain.numbers, domain.num_own
        own_pairs = pairs
        if num_own == 0:
            numbers, num_own = torch.tensor(self.atomic_numbers[:1]), 1
        if pairs.shape[1] == 0:
            # Beyond the cutoff, where it adds nothing.
            pairs, vectors = torch.zeros(2, 1, dtype=torch.int64), torch.eye(3)[:1]
            vectors = 2.0 * self.cutoff * vectors
        leaf = vectors.to(self._device, self._dtype).requires_grad_()
        places = self._places[numbers].to(self._device)
        batch = {
            "vectors": leaf,
            "node_attrs": one_hot(places, len(self.atomic_numbers)).to(self._dtype),
            "edge_index": pairs.flip(0).to(self._device),
            "batch": torch.zeros(num_own, dtype=torch.int64, device=self._device),
            "head": self._head,
            "natoms": (num_own, numbers.shape[0] - num_own),
        }
        return _Graph(batch, leaf, own_pairs)

    def _add(
        self, features: Tensor, domain: Domain, graph: _Graph, halo: Halo
    ) -> tuple[ModelOutput, _Slopes]:
        """Evaluate the long-range part and its derivatives."""
        geometry = (x.to(features) for x in (domain.positions, domain.cell))
        leaves = [x.clone().requires_grad_() for x in (features, *geometry)]
        own, positions, cell = leaves
        vectors = None
        if self._long_range.config.latent_dipoles:
            order = has_component_order(self._model.mace)
            vectors = vector_features(own, self._model.vectors, order)
        flows = self._flows(domain, graph, halo)
        added: ModelOutput = self._long_range(
            invariant_features(own, self._model.invariants),
            positions,
            cell,
            torch.ones(3, dtype=torch.bool, device=self._device),
            total_charge=self._total_charge(domain, positions),
            vectors=vectors,
            sites=None if flows is None else flows.sites(),
        )
        energy = added.energy.sum()
        if flows is None:
            return added, _Slopes(*torch.autograd.grad(energy, leaves))
        return added, _Slopes(*flows.differentiate(energy, own, positions, cell))

    def _flows(self, domain: Domain, graph: _Graph, halo: Halo) -> DomainFlows | None:
        """Edges and species; None where they do not matter."""
        if not self._long_range.config.needs_sites:
            return None
        species = self._places[domain.numbers]
        vectors = graph.vectors[: graph.pairs.shape[1]]
        pairs = graph.pairs.to(self._device)
        return DomainFlows(halo, pairs, vectors, species.to(self._device))

    def _total_charge(self, domain: Domain, like: Tensor) -> Tensor | None:
        """Total charge for models that take one; others warn where it contradicts them."""
        config, charge = self._long_range.config, domain.total_charge
        if charge is not None and config.needs_total_charge:
            return like.new_tensor([charge])
        is_charged = charge is not None and abs(charge) > WHOLE
        if is_charged and config.charge_constraint != "none" and not self._has_warned_of_charge:
            self._has_warned_of_charge = True
            text = f"The total charge {charge:g} e of the domains is ignored: {CHARGES_SUM_TO_ZERO}"
            warnings.warn(text, stacklevel=3)
        return None

    def _collect(
        self,
        domain: Domain,
        halo: Halo,
        graph: _Graph,
        by_vectors: Tensor,
        energies: Tensor,
        added: ModelOutput,
        slopes: _Slopes,
    ) -> DomainResults:
        """Sum forces over images of atoms, energy and virial over all ranks."""
        (i, j), n_pairs = graph.pairs, graph.pairs.shape[1]
        pulls = by_vectors[:n_pairs].double().cpu()
        by_positions, by_cell = slopes.positions.double().cpu(), slopes.cell.double().cpu()
        forces = torch.zeros(domain.numbers.shape[0], 3, dtype=torch.float64)
        forces = halo.reverse(forces.index_add_(0, i, -pulls).index_add_(0, j, pulls))
        virial = -graph.vectors.detach()[:n_pairs].double().cpu().T @ pulls
        virial -= domain.positions.double().T @ by_positions
        sums = torch.cat([virial.reshape(-1).to(energies), energies.sum()[None]])
        if self._group is not None:
            dist.all_reduce(sums, group=self._group)
        sums = sums.cpu()
        if not bool(sums.isfinite().all()):
            got = "NaN or infinity, equal on all ranks"
            remedy = "Atoms are too close to each other, or the weights of the model have diverged."
            raise NotFiniteError(explain("energy and virial", "finite", got, remedy))
        virial = sums[:9].view(3, 3) - domain.cell.double().T @ by_cell
        charges, state = _as_result(added.charges), added.parts.charge_state
        return DomainResults(
            energy=float(sums[9]) + float(added.energy.detach()),
            forces=forces - by_positions,
            virial=0.5 * (virial + virial.T),
            atomic_energies=energies.cpu() + _as_result(added.atomic_energies),
            charges=electric(charges),
            latent_charges=charges,
            long_range_energy=float(added.parts.long_range.energy.detach()),
            charge_state_energy=0.0 if state is None else float(state.energy.detach()),
        )


def _as_result(values: Tensor) -> Tensor:
    return values.detach().double().cpu()


def refuse_calculator(
    models: list[SOGMACE], eager: list[SOGMACE], units: tuple[float, ...]
) -> None:
    """Refuse what a calculator does besides evaluating one model.

    Parameters
    ----------
    models, eager : list of SOGMACE
        Models as they are evaluated, and as they were before compilation.
    units : tuple of float
        Of energy and length, in eV and Å.

    Raises
    ------
    HostError
        Naming what is in the way.
    """
    if len(models) > 1:
        raise _not_so("a committee")
    if models[0] is not eager[0]:
        raise _not_so("a compiled one")
    if any(unit != 1.0 for unit in units):
        raise _not_so("one in other units than eV and Å")


def _refuse(model: SOGMACE, group: dist.ProcessGroup | None) -> None:
    """Raise `HostError` if a model cannot be evaluated on domains."""
    mace, energy = model.mace, model.long_range.energy
    if not is_plain(mace):
        raise _not_so("one that was converted to another backend")
    if type(mace) not in (modules.MACE, modules.ScaleShiftMACE):
        raise _not_so(f"one whose inner model is a {type(mace).__name__}")
    if isinstance(getattr(mace, "joint_embedding", None), nn.Module):
        raise _not_so("one whose inner model has embeddings of its own (embedding_specs)")
    if isinstance(energy, FixedMeshEnergy):
        raise _not_so("one with a fixed mesh")
    if group is not None and energy.backend not in ("auto", "mesh"):
        raise _not_so(f"one with backend={energy.backend!r}, which sums the atoms of one rank")


def _not_so(got: str) -> HostError:
    expected = "a single SOGMACE model of plain MACE, not compiled, where domains are evaluated"
    return HostError(explain("model", expected, got, _GATHERED))
