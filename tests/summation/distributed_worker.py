"""One process of `test_distributed.py`: python distributed_worker.py FOLDER RANK."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from references import dipoles_of, perturbed, random_structure, sum_of_gaussians
from torch.autograd import grad

from sog_longrange import (
    LongRangeEnergy,
    SOGConfig,
    SOGLongRange,
    coulomb,
    potential_and_field,
)
from sog_longrange.summation.distributed import accumulate, replicate
from sog_longrange.testing import join

LAST = 2
"""Rank of the last of three processes; a group of the first two exists as well."""


def make_batch():
    """A right-handed structure of five atoms and a left-handed one of four."""
    return join([random_structure(2, 5, 2, edge=5.0), random_structure(3, 4, 2, edge=5.0)])


def make_model(engine, remove_self, group):
    kernel = sum_of_gaussians(coulomb(), num_channels=2, num_gaussians=2, max_width=2.5)
    options = {"backend": "mesh", "engine": engine, "process_group": group}
    kernel = perturbed(kernel, 0.2)
    return LongRangeEnergy(kernel, tolerance=1e-3, remove_self=remove_self, **options)


def evaluate(model, atoms, order):
    """All that one rank finds for its atoms, by name."""
    charges, positions, cell, pbc, batch, num_graphs = make_batch()
    dipoles = dipoles_of(charges)[atoms] if order else None
    charges, positions, batch = charges[atoms], positions[atoms], batch[atoms]
    strain = torch.zeros_like(cell)
    leaves = {"charges": charges, "positions": positions, "cell": cell, "strain": strain}
    leaves |= {"dipoles": dipoles} if order else {}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    leaves |= dict(model.kernel.named_parameters())

    own_strain = replicate(strain, model.process_group)[batch]
    strained = positions + torch.einsum("na,nab->nb", positions, own_strain)
    geometry = (strained, cell + cell @ strain, pbc, batch, num_graphs)
    output = model(charges, *geometry, dipoles=dipoles)
    # A network on each rank reads potential and field, which are those of all atoms.
    inside = potential_and_field(model, torch.tanh(output.potential), *geometry, dipoles=dipoles)
    per_graph = output.energy.new_zeros(num_graphs).index_add(0, batch, output.atomic_energies)
    found = {
        "energy": output.energy,
        "potential": output.potential,
        "atomic_energies": output.atomic_energies,
        "inner_potential": inside.potential,
        "inner_field": inside.field,
        "sums_of_atomic_energies": accumulate(per_graph, model.process_group),
    }
    found |= {"field": output.field} if order else {}
    # Weights, because gradients must not mix up the structures.
    scalar = (output.energy * torch.tensor([1.0, -0.7]).to(cell)).sum()
    found |= gradients("energy", scalar, leaves, create_graph=True)
    for name, loss in losses(found).items():
        found |= gradients(name, loss, leaves, retain_graph=True)
    return {name: value.detach() for name, value in found.items()}


SIZES = (3, 2)
STEP = 1e-3


def make_module(constraint, embedding, group):
    """A model in which nothing is zero, or equal for all atoms, because it has just been made."""
    torch.manual_seed(0)
    options = {"charge_constraint": constraint, "charge_embedding": embedding}
    options |= {"num_gaussians": 2, "max_width": 2.5, "tolerance": 1e-3}
    config = SOGConfig(num_channels=2, backend="mesh", engine="none", **options)
    module = SOGLongRange(SIZES, config).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    module.energy.process_group = group
    return module


def evaluate_module(module, atoms):
    """What charges of features, with constraints over the atoms of all ranks, lead to."""
    _, positions, cell, pbc, batch, num_graphs = make_batch()
    features = torch.randn(len(positions), sum(SIZES), generator=torch.Generator().manual_seed(5))
    own = {"features": features.to(cell)[atoms], "positions": positions[atoms], "cell": cell}
    leaves = own | {"total_charge": torch.tensor([1.0, -2.0]).to(cell)}
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}

    def call(features, positions, cell, total):
        return module(features, positions, cell, pbc, batch[atoms], num_graphs, total)

    out = call(*leaves.values())
    group = module.energy.process_group
    per_graph = cell.new_zeros(num_graphs, 3)
    columns = torch.cat([out.charges, out.atomic_energies[:, None]], 1)
    per_graph = accumulate(per_graph.index_add(0, batch[atoms], columns), group)
    weights = torch.tensor([1.0, -0.7]).to(cell)
    found = {"energy": out.energy, "charges": out.charges, "sums": per_graph}
    scalar = (out.energy * weights).sum()
    found |= gradients("energy", scalar, leaves, create_graph=True, allow_unused=True)
    loss = (found["energy/positions"] + 0.1).square().sum()
    loss = loss + (found["energy/features"] - 0.2).square().sum() + out.energy.square().sum()
    found |= gradients("module_loss", loss, leaves, allow_unused=True)
    found |= steps(lambda *x: (call(*x).energy * weights).sum(), leaves, atoms)
    return {name: value.detach() for name, value in found.items()}


def steps(energy, leaves, atoms):
    """Derivatives in a number of the first atom, which one rank has, by differences."""
    has_it, found = bool(atoms[0]), {}
    for name in ("features", "positions"):
        ends = []
        for sign in (1.0, -1.0):
            changed = {key: leaf.detach().clone() for key, leaf in leaves.items()}
            if has_it:
                changed[name][0, 0] += sign * STEP
            ends.append(energy(*changed.values()))
        found[f"step/{name}"] = (ends[0] - ends[1]) / (2.0 * STEP)
    return found


def gradients(name, scalar, leaves, **options):
    values = grad(scalar, tuple(leaves.values()), **options)
    named = zip(leaves, values, strict=True)
    return {f"{name}/{leaf}": value for leaf, value in named if value is not None}


def losses(found):
    """Squared errors against arbitrary references; replicated ones first, then local ones."""
    values = {
        "energy_loss": (found["energy"] - 0.3).square().sum(),
        "virial_loss": (found["energy/strain"] + 0.2).square().sum(),
        "amplitude_loss": (found["energy/log_amplitudes"] - 0.1).square().sum(),
        "width_loss": (found["energy/raw_widths"] - 0.1).square().sum(),
        "force_loss": (found["energy/positions"] + 0.1).square().sum(),
        "charge_loss": (found["energy/charges"] - 0.4).square().sum(),
        "potential_loss": (found["potential"] + 0.3).square().sum(),
        "atomic_loss": (found["atomic_energies"] - 0.2).square().sum(),
        "network_loss": (found["inner_potential"] * 0.1).sin().sum()
        + (found["inner_field"] * 0.1).cos().sum(),
    }
    if "field" in found:
        values["field_loss"] = (found["field"] - 0.2).square().sum()
    parts = ("energy_loss", "virial_loss", "force_loss")
    return values | {"training_loss": sum(values[part] for part in parts)}


def run(cases, rank, groups):
    """Results of a rank by case; without owners, the last rank has all atoms to itself."""
    results = {}
    for case, owners in cases.items():
        if owners is None and rank == LAST:
            every_atom = torch.ones(len(make_batch()[0]), dtype=torch.bool)
            results[case] = evaluate_case(case[1:], every_atom, None)
        elif owners is not None and rank <= max(owners):
            atoms = torch.tensor(owners) == rank
            results[case] = evaluate_case(case[1:], atoms, groups[max(owners)])
    return results


def evaluate_case(options, atoms, group):
    kind, *options = options
    if kind == "module":
        return evaluate_module(make_module(*options, group), atoms)
    *options, order = options
    return evaluate(make_model(kind, *options, group), atoms, order)


def main(folder, rank):
    torch.set_num_threads(1)
    cases = torch.load(folder / "cases.pt")
    store = dist.FileStore(str(folder / "store"), LAST + 1)
    options = {"rank": rank, "world_size": LAST + 1, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", store=store, **options)
    groups = {1: dist.new_group([0, 1]), LAST: dist.group.WORLD}
    torch.save(run(cases, rank, groups), folder / f"rank_{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
