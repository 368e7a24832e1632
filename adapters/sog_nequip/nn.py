"""The module that adds the long-range energy to a NequIP or Allegro model."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from e3nn.o3._irreps import Irreps
from e3nn.util.jit import compile_mode
from nequip.data import AtomicDataDict
from nequip.nn import GraphModuleMixin, scatter
from nequip.nn.model_modifier_utils import model_modifier
from torch import Tensor, nn

from sog_longrange import (
    ConfigError,
    FixedMeshEnergy,
    HostError,
    ModelOutput,
    SOGConfig,
    SOGLongRange,
)
from sog_longrange.errors import explain
from sog_longrange.hosts import (
    SCALARS,
    count_columns,
    feature_slices,
    flatten_vectors,
    unflatten_vectors,
)
from sog_longrange.model_output import Energies
from sog_longrange.validation import is_traced

from .boundary import check_boundary, check_host, lattice_rows, take_periodicity
from .keys import (
    CHARGE_STATE_ENERGY_KEY,
    EXTERNAL_FIELD_KEY,
    FIELD_ENERGY_KEY,
    LATENT_CHARGES_KEY,
    LATENT_DIPOLES_KEY,
    LATENT_VECTORS_KEY,
    LONG_RANGE_ATOMIC_ENERGY_KEY,
    LONG_RANGE_ENERGY_KEY,
    WHOLE_CHARGE,
)
from .sites import HostGraph, find_sites
from .vectors import count_vectors

Data = dict[str, Tensor]


@compile_mode("unsupported")
class LongRange(GraphModuleMixin, nn.Module):
    """Latent charges from the scalar features of a model, and their long-range energy.

    Its place is behind the module that sums atomic to total energies, and adds to both, so that
    atomic energies still sum to the total one wherever the model runs. The sum is done in
    the precision of the positions, which is float64 in NequIP whatever the model's.

    Parameters
    ----------
    config : SOGConfig
        Options of the long-range part.
    irreps_in : dict
        Irreps of the fields that come in.
    edge_norm : Module, optional
        Normalises sums over edges; needed where features belong to edges, as in Allegro.
    boundary : {"data", "periodic", "open"}
        Whether structures are periodic as the field `pbc` of the data says, or all of them
        are, or none.
    largest_cell : list of 3 floats or of 3 rows, in Å, optional
        Longest lattice vectors that a model compiled for C++ will be used for, see
        :meth:`sog_use_mesh`.
    graph : HostGraph, optional
        What the graph of the model is made for; needed where charges flow along its edges.

    Raises
    ------
    ConfigError
        If an option has an unknown value, or charges flow and there is no graph.
    HostError
        If no scalar features come in, or no vectors for latent dipoles.
    """

    reaches: Tensor | None
    is_sog_long_range = True  # Classes of packaged models are not those of this process.

    def __init__(
        self,
        config: SOGConfig,
        irreps_in: dict[str, Any],
        edge_norm: nn.Module | None = None,
        boundary: str = "data",
        largest_cell: list[Any] | None = None,
        graph: HostGraph | None = None,
    ) -> None:
        super().__init__()
        check_boundary(boundary)
        self.boundary = boundary
        self.largest_cell = None if largest_cell is None else lattice_rows(largest_cell)
        self.field = _feature_field(irreps_in)
        self.edge_norm: Any = edge_norm
        if self.field == AtomicDataDict.EDGE_FEATURES_KEY and edge_norm is None:
            raise ConfigError(explain("edge_norm", "given for features of edges", "None"))
        irreps = Irreps(irreps_in[self.field])
        self.scalars = feature_slices(irreps, *SCALARS)
        if not self.scalars:
            raise HostError(explain(self.field, "features with scalars (0e)", str(irreps)))
        self.long_range = SOGLongRange(
            [count_columns(self.scalars)],
            config,
            num_vectors=count_vectors(config, irreps_in),
            cutoff=None if graph is None else graph.r_max,
            atomic_numbers=() if graph is None else graph.atomic_numbers(config),
        )
        self.register_buffer("reaches", None if graph is None else graph.reaches(), False)
        self.long_range.energy.to(torch.float64)
        self.is_opening = False
        self._nequip_custom_ops_libs: tuple[str, ...] = ("sog_longrange",)
        self._init_fields(irreps_in, config)

    def _init_fields(self, irreps_in: dict[str, Any], config: SOGConfig) -> None:
        energies = [AtomicDataDict.PER_ATOM_ENERGY_KEY, AtomicDataDict.TOTAL_ENERGY_KEY]
        GraphModuleMixin._init_irreps(
            self,
            irreps_in=irreps_in,
            required_irreps_in=[self.field, *energies],
            irreps_out={
                LATENT_CHARGES_KEY: Irreps([(config.num_channels, (0, 1))]),
                LONG_RANGE_ENERGY_KEY: Irreps("0e"),
                LONG_RANGE_ATOMIC_ENERGY_KEY: Irreps("0e"),
                FIELD_ENERGY_KEY: Irreps("0e"),
                CHARGE_STATE_ENERGY_KEY: Irreps("0e"),
                LATENT_DIPOLES_KEY: Irreps([(config.num_channels, (1, -1))]),
            },
        )

    @property
    def extra_inputs(self) -> dict[str, Irreps | None]:
        """Fields that are used and that NequIP would not pass on by itself, with irreps."""
        fields = {AtomicDataDict.PBC_KEY: None, EXTERNAL_FIELD_KEY: Irreps("1o")}
        config = self.long_range.config
        if config.needs_total_charge or config.charge_constraint == "auto":
            fields[AtomicDataDict.TOTAL_CHARGE_KEY] = None
        return fields

    def forward(self, data: Data) -> Data:
        """Add the long-range energy to a batch.

        Parameters
        ----------
        data : dict
            Fields of a batch, behind the sum of atomic energies. With `external_field`
            (n_graphs, 3) in V/Å, the charges of the first channel are in that uniform
            electric field; :func:`sog_longrange.field_energy` describes its origin. Once
            compiled, energies are NaN in fields along periodic axes, where the origin matters.

        Returns
        -------
        dict
            With `latent_charges` (n_atoms, n_channels) in e, `long_range_energy`
            (n_graphs, 1) and `long_range_atomic_energy` (n_atoms, 1) in eV. Also with
            `charge_state_energy` (n_graphs, 1), which is zero without the option
            `charge_embedding`, and in a field with `field_energy` (n_graphs, 1) in eV, which
            are no part of the former but of the total and atomic energies, and
            `latent_dipoles` (n_atoms, 3 n_channels) in e Å, one channel after another, which are
            zero without the option.

        Raises
        ------
        HostError
            If the host passes too little for the long-range energy.
        InputError, BoundaryError
            If a structure is malformed, or its boundary is not what was configured.
        """
        check_host(data)
        if self.training and not is_traced():
            self._check_gate()
        out = self._evaluate(data)
        data |= _names(out)
        _add(data, AtomicDataDict.TOTAL_ENERGY_KEY, out.energy[:, None])
        _add(data, AtomicDataDict.PER_ATOM_ENERGY_KEY, out.atomic_energies[:, None])
        return data

    def _evaluate(self, data: Data) -> ModelOutput:
        """Results of the long-range part, atoms in the order of the data."""
        n_graphs = AtomicDataDict.num_frames(data)
        cell, total_charge, batch, field = (
            data.get(key)
            for key in (
                AtomicDataDict.CELL_KEY,
                AtomicDataDict.TOTAL_CHARGE_KEY,
                AtomicDataDict.BATCH_KEY,
                EXTERNAL_FIELD_KEY,
            )
        )
        self._check_total_charge(total_charge)
        features, positions = self._features(data), data[AtomicDataDict.POSITIONS_KEY]
        vectors = self._vectors(data)
        pbc, contradicted = take_periodicity(data, self.boundary, n_graphs)
        order = _order(batch)
        sites = None
        if self.long_range.config.needs_sites:
            sites = find_sites(data, self.reaches, order)
        if batch is not None and order is not None:
            features, positions, batch = features[order], positions[order], batch[order]
            vectors = None if vectors is None else vectors[order]
        out: ModelOutput = self.long_range(
            features,
            positions,
            None if cell is None else cell.view(-1, 3, 3),
            pbc,
            batch,
            n_graphs,
            None if total_charge is None else total_charge.view(-1),
            vectors,
            None if field is None else field.to(positions),
            sites=sites,
        )
        if contradicted is not None:
            out = _without_energies(out, contradicted)
        return out if order is None else out.reorder(order.argsort())

    def _check_gate(self) -> None:
        """Refuse to train while nothing would ever open the gate further."""
        remedy = "Nothing goes on with it (`warm_up: true`): add `- _target_: "
        remedy += "sog_nequip.train.WarmUp` to the callbacks of the trainer."
        message = self.long_range.explain_gate(remedy)
        if message and not self.is_opening:
            raise HostError(message)

    def _check_total_charge(self, total_charge: Tensor | None) -> None:
        if total_charge is None and self.long_range.config.needs_total_charge:
            raise HostError(
                "charge_embedding and charge_constraint: total need the total charge of each "
                f"structure as the field `{AtomicDataDict.TOTAL_CHARGE_KEY}`: in training by "
                "`key_mapping` of the data, in ASE by atoms.info['charge']. Compile with --target "
                "sog_ase_charge."
            )

    def _vectors(self, data: Data) -> Tensor | None:
        """Vectors (n_atoms, 3, n_vectors) that latent dipoles are made from; None without these."""
        if not self.long_range.config.latent_dipoles:
            return None
        return unflatten_vectors(data[LATENT_VECTORS_KEY])

    def _features(self, data: Data) -> Tensor:
        """Scalar features of atoms; those of edges are summed first."""
        features = torch.cat([data[self.field][:, s] for s in self.scalars], dim=1)
        if self.edge_norm is None:
            return features
        types = data[AtomicDataDict.ATOM_TYPE_KEY]
        centers = data[AtomicDataDict.EDGE_INDEX_KEY][0]
        summed = scatter(features, centers, dim=0, dim_size=AtomicDataDict.num_nodes(data))
        fields = {AtomicDataDict.NODE_FEATURES_KEY: summed, AtomicDataDict.ATOM_TYPE_KEY: types}
        normed: Tensor = self.edge_norm(fields)[AtomicDataDict.NODE_FEATURES_KEY]
        return normed

    def fix_mesh(self) -> None:
        """Prepare for export to C++; see :meth:`sog_use_mesh`."""
        self._check_not_fixed()
        if self.largest_cell is None:
            raise HostError(
                "The mesh of a model that runs without Python has a fixed size, and no largest "
                "cell is known. Train with `largest_cell: [a, b, c]` (Å) in the model's config, "
                "or package the model and run `nequip-package modify in.nequip.zip "
                "out.nequip.zip --modifier sog_largest_cell 'lengths=[a, b, c]'`."
            )
        if self.boundary == "open":
            raise HostError(explain("boundary", "'periodic' for a fixed mesh", "'open'"))
        self.boundary = "periodic"
        self.long_range.fix_mesh(torch.tensor(self.largest_cell, dtype=torch.float64))
        self._nequip_custom_ops_libs = ()

    def set_boundary(self, boundary: str) -> None:
        """Change the boundary; see :meth:`sog_periodic` and :meth:`sog_open`."""
        self._check_not_fixed()
        self.boundary = boundary

    def set_largest_cell(self, rows: list[list[float]]) -> None:
        """Record the largest cell; see :meth:`sog_largest_cell`."""
        self._check_not_fixed()
        self.largest_cell = rows

    def _check_not_fixed(self) -> None:
        """Refuse to change what a fixed mesh was made for."""
        if isinstance(self.long_range.energy, FixedMeshEnergy):
            raise HostError("The mesh is fixed already: let `sog_use_mesh` be the last modifier.")

    def _get_metadata_contributions(self) -> dict[str, str]:
        """Return what the file of a compiled model says about its long-range part."""
        remedy = "It is from a step before the end of the warm-up: train longer, or with fewer "
        remedy += "steps of WarmUp."
        message = self.long_range.explain_gate(remedy)
        if message:
            warnings.warn(message, stacklevel=2)
        found = {"sog_boundary": self.boundary, "sog_gate": str(float(self.long_range.gate))}
        found[WHOLE_CHARGE] = str(not self.long_range.config.fractional_charge)
        if self.largest_cell is not None:
            found["sog_largest_cell"] = str(self.largest_cell)
        return found

    @model_modifier(persistent=True)
    @classmethod
    def sog_periodic(cls, model: nn.Module) -> nn.Module:
        """Take all structures as periodic, where the host does not say.

        If it says otherwise, that is an error, or in a compiled model an energy of NaN.
        """
        return _for_each(cls, model, lambda part: part.set_boundary("periodic"))

    @model_modifier(persistent=True)
    @classmethod
    def sog_open(cls, model: nn.Module) -> nn.Module:
        """Take all structures as non-periodic, where the host does not say.

        If it says otherwise, that is an error, or in a compiled model an energy of NaN.
        """
        return _for_each(cls, model, lambda part: part.set_boundary("open"))

    @model_modifier(persistent=True)
    @classmethod
    def sog_largest_cell(cls, model: nn.Module, lengths: list[Any]) -> nn.Module:
        """Record the longest lattice vectors that a model compiled for C++ will be used for.

        Parameters
        ----------
        model : Module
        lengths : list of 3 floats or of 3 rows, in Å
            Allow for the fluctuations of a simulation at constant pressure.
        """
        rows = lattice_rows(lengths)
        return _for_each(cls, model, lambda part: part.set_largest_cell(rows))

    @model_modifier(persistent=False)
    @classmethod
    def sog_use_mesh(cls, model: nn.Module) -> nn.Module:
        """Sum on a mesh of fixed size in plain tensor operations, for `pair_nequip`.

        For periodic structures with lattice vectors no longer than those recorded by
        `largest_cell`; energies and forces are NaN for longer ones.
        """
        return _for_each(cls, model, cls.fix_mesh)


def _for_each(cls: type, model: nn.Module, change: Any) -> nn.Module:
    for module in model.modules():
        if isinstance(module, cls):
            change(module)
    return model


def _without_energies(out: ModelOutput, contradicted: Tensor) -> ModelOutput:
    """NaN where the data contradict the boundary, because no graph can raise."""
    # Factors, so that forces are NaN too.
    lost = torch.where(contradicted, torch.nan, 1.0).to(out.energy)
    own = out.parts.long_range
    nan = Energies(own.energy * lost, own.atomic_energies * lost.prod())
    parts = out.parts._replace(long_range=nan)
    energies = out.energy * lost, out.atomic_energies * lost.prod()
    return out._replace(energy=energies[0], atomic_energies=energies[1], parts=parts)


def _order(batch: Tensor | None) -> Tensor | None:
    """Sort atoms by structure, which NequIP does not ask for; None if they are sorted."""
    if batch is None or not (is_traced() or bool((batch.diff() < 0).any())):
        return None
    return batch.argsort(stable=True)


def _names(out: ModelOutput) -> Data:
    """Give the results of the long-range part the names of NequIP's fields."""
    long_range, state, in_field = out.parts
    data = {
        LATENT_CHARGES_KEY: out.charges,
        LONG_RANGE_ENERGY_KEY: long_range.energy[:, None],
        LONG_RANGE_ATOMIC_ENERGY_KEY: long_range.atomic_energies[:, None],
        # Compile targets have these outputs, of every model.
        CHARGE_STATE_ENERGY_KEY: torch.zeros_like(long_range.energy[:, None]),
        LATENT_DIPOLES_KEY: torch.zeros_like(out.charges).repeat(1, 3)
        if out.dipoles is None
        else flatten_vectors(out.dipoles),
    }
    if state is not None:
        data[CHARGE_STATE_ENERGY_KEY] = state.energy[:, None]
    if in_field is not None:
        data[FIELD_ENERGY_KEY] = in_field.energy[:, None]
    return data


def _add(data: Data, field: str, energy: Tensor) -> None:
    data[field] = data[field] + energy.to(data[field].dtype)


def _feature_field(irreps_in: dict[str, Any]) -> str:
    """Where the last features are: Allegro keeps them on edges, NequIP on atoms."""
    fields = (AtomicDataDict.NODE_FEATURES_KEY, AtomicDataDict.EDGE_FEATURES_KEY)
    for field in fields:
        if field in irreps_in:
            return str(field)
    raise HostError(explain("model", f"with one of {fields}", str(sorted(irreps_in))))
