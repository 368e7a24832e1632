"""What the speed benchmark compares: our backends and every peer, at the same accuracy.

Each candidate builds a function from charges and positions to the energy of each structure,
in eV and without self-interaction. Nothing that depends on positions or cell is kept between
calls: in training every batch is new.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import speed_peers as peers
from speed_nufft import UPSAMPLING
from speed_peers import ACCURACY, Evaluation
from speed_systems import System
from torch import nn

from sog_longrange import Ewald, LongRangeEnergy, SumOfGaussians

TOLERANCE = 1e-4  # of this package; its measured error is in the tables

Build = Callable[[System, float], Evaluation]
Needs = Mapping[str, tuple[str, ...]]


def _needs(*modules: str) -> Needs:
    return {"cpu": modules, "cuda": modules}


@dataclass(frozen=True)
class Candidate:
    """One way to evaluate the energy.

    Parameters
    ----------
    label : name in tables.
    build : makes an evaluation for a system and the smallest width of the kernel.
    ours : whether it belongs to this package.
    kernel : "sum of Gaussians" or "smeared Coulomb".
    peers_kernel : the same with the smeared Coulomb kernel, which is checked but not timed.
    growth : power of the number of atoms that its time grows with, at least.
    untrainable : why it takes no part in training steps, if so.
    needs : modules that have to be there, by the type of the device; on others it runs only if
        it is asked for.
    settings : what was chosen to reach the accuracy.
    """

    label: str
    build: Build
    ours: bool = False
    kernel: str = "smeared Coulomb"
    peers_kernel: Build | None = None
    growth: float = 1.0
    untrainable: str = ""
    needs: Needs = field(default_factory=_needs)
    settings: dict[str, object] = field(default_factory=dict)

    def kernels(self) -> list[tuple[str, Build]]:
        """What is checked: the kernel that is timed and, of ours, also the peers'."""
        also = [("smeared Coulomb", self.peers_kernel)] if self.peers_kernel else []
        return [(self.kernel, self.build), *also]

    def missing(self, device: str) -> str:
        """Why it does not run on a device by itself; empty if it does."""
        if device not in self.needs:
            return f"by default on {' and '.join(self.needs)} alone"
        modules = [own for own in self.needs[device] if importlib.util.find_spec(own) is None]
        return f"{' and '.join(modules)} not installed" if modules else ""


def reference(system: System, width: float, kernel: str) -> Evaluation:
    """Dense sum to 1e-9, structure by structure; for systems in double precision."""
    return build_ours(system, width, "dense", kernel=kernel, tolerance=1e-9, loop=True)


def build_ours(
    system: System,
    width: float,
    backend: str,
    engine: str = "none",
    *,
    kernel: str = "sum of Gaussians",
    tolerance: float = TOLERANCE,
    loop: bool = False,
) -> Evaluation:
    """Our energy by one of our backends."""
    law = _make_kernel(kernel, width).to(system.cell)
    model = LongRangeEnergy(law, tolerance=tolerance, backend=backend, engine=engine)
    cell, pbc, batch = system.cell, system.pbc, system.batch
    if loop:
        return Evaluation(
            peers.looped(system, lambda q, r, c: model(q, r, c[None], pbc[:1]).energy[0]),
            tuple(law.parameters()),
        )
    graphs = len(system.counts)
    return Evaluation(
        lambda q, r: model(q, r, cell, pbc, batch, graphs).energy, tuple(law.parameters())
    )


def _make_kernel(kernel: str, width: float) -> nn.Module:
    if kernel == "sum of Gaussians":
        return SumOfGaussians(min_width=width)
    return Ewald(smearing=width)


def _ours(
    label: str, backend: str, engine: str = "none", growth: float = 1.0, needs: Needs | None = None
) -> Candidate:
    return Candidate(
        label,
        lambda system, width: build_ours(system, width, backend, engine),
        ours=True,
        kernel="sum of Gaussians",
        peers_kernel=lambda system, width: build_ours(
            system, width, backend, engine, kernel="smeared Coulomb"
        ),
        growth=growth,
        needs=_needs() if needs is None else needs,
        settings={"tolerance": TOLERANCE, "backend": backend, "engine": engine},
    )


_FINUFFT: Needs = {"cpu": ("finufft",), "cuda": ("cufinufft",)}


def _composition(label: str, *modules: str, repaired: bool, untrainable: str = "") -> Candidate:
    return Candidate(
        label,
        lambda system, width: peers.build_composition(system, width, repaired=repaired),
        kernel="sum of Gaussians",
        untrainable=untrainable,
        needs={device: (*own, *modules) for device, own in _FINUFFT.items()},
        settings={"eps": ACCURACY, "upsampfac": UPSAMPLING, "k_max * min_width": peers.CUTOFF},
    )


def _les() -> Candidate:
    settings: dict[str, object] = {"k_max * sigma": peers.CUTOFF}
    if importlib.util.find_spec("les") is not None:
        return Candidate("les", peers.build_les, growth=2.0, settings=settings)
    settings["note"] = (
        "les is not installed; this is a dense evaluation of its published formula over half of "
        "reciprocal space, by plain autograd, structure by structure"
    )
    return Candidate(
        "les (dense stand-in)", peers.build_les_stand_in, growth=2.0, settings=settings
    )


def _splines() -> dict[str, object]:
    return {
        f"{dtype} order, mesh spacing / smearing".removeprefix("torch."): value
        for dtype, value in peers.SPLINES.items()
    }


CANDIDATES: dict[str, Candidate] = {
    "dense": _ours("dense", "dense", "auto", growth=2.0),
    "finufft": _ours("finufft", "finufft", "auto", needs=_FINUFFT),
    "mesh-torch": _ours("mesh (torch)", "mesh"),
    "mesh-numba": _ours("mesh (numba)", "mesh", "numba", needs={"cpu": ("numba",)}),
    "mesh-triton": _ours("mesh (triton)", "mesh", "triton", needs={"cuda": ("triton",)}),
    "auto": _ours("auto", "auto", "auto"),
    "les": _les(),
    "torch-pme": Candidate(
        "torch-pme PME",
        peers.build_torch_pme,
        needs=_needs("torchpme"),
        settings={
            "interpolation_nodes": peers.PME_NODES,
            "mesh_spacing / smearing": 2.0 * peers.PME_SPACING,
            "note": "reciprocal part alone; loops over structures",
        },
    ),
    "torch-pme-ewald": Candidate(
        "torch-pme Ewald",
        peers.build_torch_pme_ewald,
        growth=2.0,
        needs=_needs("torchpme"),
        settings={
            "lr_wavelength / smearing": math.pi / peers.EWALD_CUTOFF,
            "note": "reciprocal part alone; loops over structures",
        },
    ),
    "nvalchemi": Candidate(
        "nvalchemi PME",
        peers.build_nvalchemi,
        needs=_needs("warp", "nvalchemiops"),
        settings={
            **_splines(),
            "note": "reciprocal part alone; one thread on a CPU; loops over channels",
        },
    ),
    "nvalchemi-ewald": Candidate(
        "nvalchemi Ewald",
        peers.build_nvalchemi_ewald,
        growth=2.0,
        needs={"cuda": ("warp", "nvalchemiops")},  # on a CPU seconds for 200 atoms
        settings={
            "k_max * smearing": peers.BOX_CUTOFF,
            "note": "reciprocal part alone, over a box of modes; one thread on a CPU; loops over "
            "channels",
        },
    ),
    "pytorch-finufft": _composition(
        "pytorch-finufft",
        "pytorch_finufft",
        repaired=False,
        untrainable="second derivatives of pytorch-finufft are wrong without a warning",
    ),
    "pytorch-finufft-repaired": _composition("pytorch-finufft (repaired)", repaired=True),
}
