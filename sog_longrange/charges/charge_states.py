"""Energy of the charge state of a structure, which short-range models do not know."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sog_longrange.errors import ConfigError, explain
from sog_longrange.geometry import at_atoms, sum_over_atoms
from sog_longrange.summation.distributed import accumulate, replicate
from sog_longrange.validation import check_float, check_like, check_shape, check_tensor


class ChargeStateOutput(NamedTuple):
    """Energy that structures have because of their total charge.

    Attributes
    ----------
    energy : Tensor, shape (n_graphs,), in eV
        Zero for neutral structures. Twice differentiable.
    atomic_energies : Tensor, shape (n_atoms,), in eV
        Sum to `energy`.
    """

    energy: Tensor
    atomic_energies: Tensor


class ChargeStates(nn.Module):
    r"""What the total charge Q of a structure does besides the interaction of its charges.

    Q becomes an input of the invariant features, by a :class:`ChargeEmbedding`, and it costs
    energy. The atoms share it by weights that sum to one, and each share costs what an
    electronegativity and a hardness say:

    .. math::
        E = \sum_i \chi_i Q_i + \eta_i Q_i^2, \qquad
        Q_i = Q \, \frac{e^{t_i}}{\sum_j e^{t_j}},

    where :math:`t_i, \chi_i, \eta_i` are a perceptron of the features of atom i with Q in them, so
    that cations and anions differ in all three. An ionisation energy so is a mean over the
    atoms that hold the charge and does not grow with the number of all atoms, while N
    molecules that share N charges have N times the energy of one as far as their features are
    equal: the embedding makes them depend on the whole Q. The energy is zero for all
    structures at the start, with a gradient where there is charge, and for neutral
    structures always.

    Parameters
    ----------
    num_features : int
        Number of invariant features of each atom.
    hidden_size : int
        Number of functions of the charge, and width of the perceptron, at least 1.

    Raises
    ------
    ConfigError
        If a size is out of range.

    References
    ----------
    Unke et al., Nat. Commun. 12 (2021) 7273 (SpookyNet), for a charge shared by attention;
    Rappe, Goddard, J. Phys. Chem. 95 (1991) 3358, for electronegativity and hardness.
    """

    def __init__(self, num_features: int, hidden_size: int = 16) -> None:
        super().__init__()
        check_charge_embedding(hidden_size, least=1)
        self.embedding = ChargeEmbedding(num_features, hidden_size)
        self.perceptron = nn.Sequential(
            nn.Linear(num_features, hidden_size), nn.SiLU(), nn.Linear(hidden_size, 3)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights; those that the energy starts at zero with are zero."""
        self.embedding.reset_parameters()
        for layer in (self.perceptron[0], self.perceptron[2]):
            layer.reset_parameters()  # type: ignore[operator]
        nn.init.zeros_(self.perceptron[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.perceptron[2].bias)  # type: ignore[arg-type]

    def forward(
        self,
        features: Tensor,
        total_charge: Tensor,
        batch: Tensor,
        group: dist.ProcessGroup | None = None,
    ) -> ChargeStateOutput:
        """Evaluate the energy of the charge states of a batch.

        Parameters
        ----------
        features : Tensor, shape (n_atoms, num_features)
            With the charge in them, as `embedding` returns them.
        total_charge : Tensor, shape (n_graphs,), in e
            Its dtype is that of the energies; see
            :func:`~sog_longrange.source_checks.check_total_charge`.
        batch : Tensor, shape (n_atoms,)
        group : ProcessGroup, optional
            Ranks over which the atoms of each structure are spread.

        Returns
        -------
        ChargeStateOutput

        Raises
        ------
        InputError, InputTypeError
            If features or charges have another shape or dtype than the weights.
        """
        width = self.embedding.output.out_features
        check_float("features", features)
        check_shape("features", features, (None, width), f"(n_atoms, {width})")
        check_like("features", features, self.embedding.output.weight, "the weights")
        check_tensor("total_charge", total_charge)
        check_shape("total_charge", total_charge, (None,), "(n_graphs,)")
        columns = self.perceptron(features).type_as(total_charge)
        weight, electronegativity, hardness = columns.unbind(1)
        num_graphs = total_charge.shape[0]
        weights = _softmax(weight, batch, num_graphs, group)
        share = at_atoms(replicate(total_charge, group), batch) * weights
        energies = electronegativity * share + hardness * share**2
        total = accumulate(sum_over_atoms(energies, batch, num_graphs), group)
        return ChargeStateOutput(total, energies)


def check_charge_embedding(charge_embedding: int, least: int = 0) -> None:
    """Raise `ConfigError` unless charge states can have this size.

    Parameters
    ----------
    charge_embedding : int
    least : int
        Smallest size allowed.
    """
    if charge_embedding < least:
        raise ConfigError(explain("charge_embedding", f"at least {least}", str(charge_embedding)))


def _softmax(
    values: Tensor, batch: Tensor, num_graphs: int, group: dist.ProcessGroup | None
) -> Tensor:
    """Positive weights of atoms that sum to one in each structure."""
    # Any constant per structure cancels; the largest value keeps the exponentials finite.
    highest = values.new_full((num_graphs,), torch.finfo(values.dtype).min)
    highest = highest.scatter_reduce(0, batch, values.detach(), "amax")
    if group is not None:
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
    weights = (values - at_atoms(highest, batch)).exp()
    sums = accumulate(sum_over_atoms(weights, batch, num_graphs), group)
    return weights / at_atoms(replicate(sums, group), batch)


class ChargeEmbedding(nn.Module):
    """Let invariant features depend on the total charge of each structure.

    Every atom of a structure of charge Q gets W tanh(w Q + v Q^2) added to its features:
    smooth, bounded, and zero for neutral structures. W starts at zero, so that a model starts
    as the one without the embedding; its gradient is alive wherever there is charge.

    Parameters
    ----------
    num_features : int
        Number of invariant features of each atom.
    hidden_size : int
        Number of functions of the charge, at least 1.

    Raises
    ------
    ConfigError
        If a size is out of range.

    References
    ----------
    Unke et al., Nat. Commun. 12 (2021) 7273 (SpookyNet), for electronic charge as an input.
    """

    def __init__(self, num_features: int, hidden_size: int = 16) -> None:
        super().__init__()
        if num_features < 1:
            raise ConfigError(explain("num_features", "at least 1", str(num_features)))
        if hidden_size < 1:
            raise ConfigError(explain("hidden_size", "at least 1", str(hidden_size)))
        self.hidden = nn.Linear(2, hidden_size, bias=False)
        self.output = nn.Linear(hidden_size, num_features, bias=False)
        nn.init.zeros_(self.output.weight)

    def reset_parameters(self) -> None:
        """Start again as nothing."""
        self.hidden.reset_parameters()
        nn.init.zeros_(self.output.weight)

    def forward(
        self,
        features: Tensor,
        total_charge: Tensor,
        batch: Tensor,
        group: dist.ProcessGroup | None = None,
    ) -> Tensor:
        """Features with the charge of each atom's structure in them.

        Parameters
        ----------
        features : Tensor, shape (n_atoms, num_features)
        total_charge : Tensor, shape (n_graphs,), in e
            See :func:`~sog_longrange.source_checks.check_total_charge`.
        batch : Tensor, shape (n_atoms,)
        group : ProcessGroup, optional
            Ranks over which the atoms of each structure are spread.

        Returns
        -------
        Tensor, shape (n_atoms, num_features)

        Raises
        ------
        InputError, InputTypeError
            If features or charges have another shape or dtype than the embedding.
        """
        width = self.output.out_features
        check_float("features", features)
        check_shape("features", features, (None, width), f"(n_atoms, {width})")
        check_like("features", features, self.output.weight, "the embedding's weights")
        check_tensor("total_charge", total_charge)
        check_shape("total_charge", total_charge, (None,), "(n_graphs,)")
        charge = replicate(total_charge, group).type_as(features)
        hidden = torch.tanh(self.hidden(torch.stack([charge, charge**2], 1)))
        shifts: Tensor = self.output(hidden)
        return features + at_atoms(shifts, batch)
