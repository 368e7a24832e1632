"""SOGMACE models for metatomic, through which many engines take models in TorchScript.

Imported only where metatomic is installed, and without ``from __future__ import annotations``,
which the compiler of TorchScript cannot read in classes.
"""

import math
from typing import Dict, List, Optional  # noqa: UP035 (metatomic compares with these)

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelEvaluationOptions,
    ModelMetadata,
    ModelOutput,
    NeighborListOptions,
    System,
    load_atomistic_model,
    register_autograd_neighbors,
)
from torch import Tensor, nn

from .scripted import ScriptedSOGMACE

REFERENCES = ["Ji, Liang, Xu, arXiv:2502.04668", "Batatia et al., arXiv:2206.07697 (MACE)"]


class MetatomicSOGMACE(nn.Module):
    """A SOGMACE model with the interface of metatomic.

    Parameters
    ----------
    model : ScriptedSOGMACE
    """

    def __init__(self, model: ScriptedSOGMACE) -> None:
        super().__init__()
        self.model = model
        self.takes_total_charge: bool = model.takes_total_charge
        self.neighbors = NeighborListOptions(
            cutoff=model.r_max, full_list=True, strict=True, requestor="sog_mace"
        )

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:  # noqa: UP006
        """Return which neighbours the engine has to find."""
        return [self.neighbors]

    def requested_inputs(self) -> Dict[str, ModelOutput]:  # noqa: UP006
        """Return what else the engine has to give: the total charge, where it matters."""
        if not self.takes_total_charge:
            return {}
        return {"charge": ModelOutput(unit="e", sample_kind="system")}

    def forward(
        self,
        systems: List[System],  # noqa: UP006
        outputs: Dict[str, ModelOutput],  # noqa: UP006
        selected_atoms: Optional[Labels] = None,  # noqa: UP045
    ) -> Dict[str, TensorMap]:  # noqa: UP006
        """Evaluate structures; see `metatomic.torch.ModelInterface`.

        Parameters
        ----------
        systems : list of System
            In Å, with the neighbours that were asked for.
        outputs : dict of str to ModelOutput
            What is wanted: "energy" of structures or atoms, "charge" of atoms.
        selected_atoms : Labels, optional
            Must be all atoms.

        Returns
        -------
        dict of str to TensorMap
            In eV and e.

        Raises
        ------
        ValueError
            If some atoms are left out.
        """
        count = sum([len(system) for system in systems])
        if selected_atoms is not None and len(selected_atoms) != count:
            raise ValueError(
                "`selected_atoms` must be all atoms, because all charges interact: run the engine "
                "on one rank."
            )
        per_atom = "energy" in outputs and outputs["energy"].sample_kind == "atom"
        energies: List[Tensor] = []  # noqa: UP006
        charges: List[Tensor] = []  # noqa: UP006
        places: List[Tensor] = []  # noqa: UP006
        for index, system in enumerate(systems):
            out = self.evaluate(system, per_atom)
            energies.append(out["atomic_energies"] if per_atom else out["energy"].reshape(1))
            charges.append(out["charges"][:, 0])
            atoms = torch.arange(len(system), device=system.positions.device)
            places.append(torch.stack([torch.full_like(atoms, index), atoms], 1))
        atoms = Labels(["system", "atom"], torch.cat(places).to(torch.int32))
        numbers = torch.arange(len(systems), device=places[0].device)[:, None]
        structures = Labels(["system"], numbers.to(torch.int32))
        results: Dict[str, TensorMap] = {}  # noqa: UP006
        if "energy" in outputs:
            samples = atoms if per_atom else structures
            results["energy"] = self.pack("energy", torch.cat(energies), samples)
        if "charge" in outputs:
            results["charge"] = self.pack("charge", torch.cat(charges).detach(), atoms)
        return results

    def evaluate(self, system: System, per_atom: bool) -> Dict[str, Tensor]:  # noqa: UP006
        """Evaluate one structure.

        Parameters
        ----------
        system : System
        per_atom : bool
            Whether energies of single atoms are wanted.

        Returns
        -------
        dict
            That of :meth:`ScriptedSOGMACE.forward`.
        """
        pairs = system.get_neighbor_list(self.neighbors).samples
        edges = [pairs.column("first_atom"), pairs.column("second_atom")]
        shifts = [pairs.column("cell_shift_" + axis) for axis in ["a", "b", "c"]]
        total_charge = 0.0
        if self.takes_total_charge:
            total_charge = float(system.get_data("charge").block().values.sum())
        return self.model(
            system.positions,
            system.cell,
            system.pbc,
            system.types.to(torch.int64),
            torch.stack(edges).to(torch.int64),
            torch.stack(shifts, 1).to(system.positions),
            total_charge,
            per_atom,
        )

    def pack(self, name: str, values: Tensor, samples: Labels) -> TensorMap:
        """Give numbers the form of metatomic's outputs.

        Parameters
        ----------
        name : str
            Of the only property.
        values : Tensor, shape (n_samples,)
        samples : Labels

        Returns
        -------
        TensorMap
        """
        zero = torch.zeros([1, 1], dtype=torch.int32, device=values.device)
        block = TensorBlock(
            values=values[:, None],
            samples=samples,
            components=torch.jit.annotate(List[Labels], []),  # noqa: UP006
            properties=Labels([name], zero),
        )
        return TensorMap(keys=Labels(["_"], zero), blocks=[block])


def save(model: ScriptedSOGMACE, path: str) -> None:
    """Write a file for metatomic.

    Parameters
    ----------
    model : ScriptedSOGMACE
        In evaluation mode.
    path : str
    """
    energy = ModelOutput(unit="eV", sample_kind="atom", description="total energy")
    charge = ModelOutput(
        unit="e", sample_kind="atom", description="latent charges of the first channel"
    )
    capabilities = ModelCapabilities(
        outputs={"energy": energy, "charge": charge},
        atomic_types=model.numbers,
        interaction_range=math.inf,
        length_unit="angstrom",
        supported_devices=["cuda", "cpu"],
        dtype=model.dtype,
    )
    metadata = ModelMetadata(
        name="SOGMACE",
        description="MACE with the long-range energy of latent charges",
        references={"model": REFERENCES},
    )
    AtomisticModel(MetatomicSOGMACE(model).eval(), metadata, capabilities).save(path)


class MetatomicFile:
    """A file of metatomic's that evaluates as :meth:`ScriptedSOGMACE.evaluate` does.

    Parameters
    ----------
    path : str
    """

    def __init__(self, path: str) -> None:
        self.model = load_atomistic_model(path)

    def evaluate(
        self,
        positions: Tensor,
        cell: Tensor,
        pbc: Tensor,
        numbers: Tensor,
        edge_index: Tensor,
        unit_shifts: Tensor,
        total_charge: float = 0.0,
    ) -> Dict[str, Tensor]:  # noqa: UP006
        """Evaluate energy, forces and charges.

        Parameters
        ----------
        positions, cell, pbc, numbers, edge_index, unit_shifts, total_charge
            As of :meth:`ScriptedSOGMACE.evaluate`.

        Returns
        -------
        dict
        """
        places = positions.detach().requires_grad_()
        system = System(numbers.to(torch.int32), places, cell, pbc)
        samples = torch.cat((edge_index.T, unit_shifts.long()), 1).to(torch.int32)
        names = ["first_atom", "second_atom", "cell_shift_a", "cell_shift_b", "cell_shift_c"]
        first, second = edge_index
        vectors = (positions[second] - positions[first] + unit_shifts @ cell)[..., None]
        zero = torch.zeros(1, 1, dtype=torch.int32)
        components = [Labels(["xyz"], torch.arange(3, dtype=torch.int32)[:, None])]
        block = TensorBlock(vectors, Labels(names, samples), components, Labels("distance", zero))
        (options,) = self.model.requested_neighbor_lists()
        register_autograd_neighbors(system, block)
        system.add_neighbor_list(options, block)
        if "charge" in self.model.requested_inputs(use_new_names=True):
            charge = TensorBlock(
                positions.new_tensor([[total_charge]]),
                Labels("system", zero),
                [],
                Labels("charge", zero),
            )
            system.add_data("charge", TensorMap(Labels("_", zero), [charge]))
        wanted = {
            "energy": ModelOutput(unit="eV", sample_kind="system"),
            "charge": ModelOutput(unit="e", sample_kind="atom"),
        }
        out = self.model(
            [system], ModelEvaluationOptions(length_unit="angstrom", outputs=wanted), True
        )
        energy = out["energy"].block().values.sum()
        (slope,) = torch.autograd.grad(energy, places)
        charges = out["charge"].block().values
        return {"energy": energy.detach(), "forces": -slope, "charges": charges}
