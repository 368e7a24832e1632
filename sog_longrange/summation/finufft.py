"""Adjoint sums by the FINUFFT library, cuFINUFFT on CUDA: any accuracy down to 1e-12."""

from __future__ import annotations

import math
import weakref
from collections import deque
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sog_longrange.geometry import box_shapes
from sog_longrange.hosts import load_library
from sog_longrange.validation import Structures, layout_of

from .blocks import blocks, running_sum
from .interaction import Interaction, Potentials
from .modes import FlatBackend, periodic_sum
from .multipoles import Multipoles, monomials, order_of, phase_gradient
from .rows import centred_rows

_MAX_IDLE = 32
_ONE_THREAD = 4096
_FLOOR = {torch.float32: 1e-6, torch.float64: 1e-14}


def finufft_sum(
    interaction: Interaction, sources: Multipoles, part: Structures, *, field: bool = False
) -> Potentials:
    """Sum over periodic images by FINUFFT, self-interaction included.

    Parameters
    ----------
    interaction : Interaction
    sources : Multipoles
    part : Structures
        Periodic along all axes, with reduced cells.
    field : bool
        Whether the field of charges is wanted, too.

    Returns
    -------
    Potentials
        Of the energy 1/(2V) sum_k Khat(k) |S(k)|^2.

    Raises
    ------
    MissingLibraryError
        If the library is not installed.
    SizeError
        If the modes fit into no memory.
    InputError
        If positions are so large that they overflow.

    References
    ----------
    Barnett, Magland, af Klinteberg, arXiv:1808.06736; Shih et al., arXiv:2102.08463.
    """
    resolution = interaction.resolution(sources.order)
    layout = layout_of(part)
    lengths = layout.lengths
    shapes = box_shapes(lengths, resolution.cutoff)
    backend = FinufftBackend(shapes, part.batch, layout.starts, resolution.accuracy)
    rows = centred_rows(tuple(shapes))
    return periodic_sum(interaction, sources, part, [(backend, rows)], lengths, field=field)


class FinufftBackend(FlatBackend):
    """Adjoint sums by plans of FINUFFT, one for each structure.

    Two real fields travel in one complex transform.

    Parameters
    ----------
    shapes : list of 3-tuples of int
        Odd lengths of boxes of modes around k = 0, one box for each structure.
    batch : Tensor, shape (n_atoms,), sorted
    atom_starts : list of int
        Where the atoms of each structure begin, and where the last ones end.
    accuracy : float
        Relative accuracy asked of the library; rounding bounds it from below.
    """

    def __init__(
        self,
        shapes: list[tuple[int, int, int]],
        batch: Tensor,
        atom_starts: list[int],
        accuracy: float,
    ) -> None:
        super().__init__(running_sum([math.prod(shape) for shape in shapes]).tolist(), batch)
        self.shapes = shapes
        self.accuracy = accuracy
        self._modes = blocks(self.mode_starts)
        self._atoms = blocks(atom_starts)

    def set_phases(self, phases: Tensor) -> None:
        """Take the phases of all atoms, shape (n_atoms, 3)."""
        self.transforms = [
            None if atoms.start == atoms.stop else _Transform(phases[atoms], shape, self.accuracy)
            for atoms, shape in zip(self._atoms, self.shapes, strict=True)
        ]

    def spread(self, sources: Tensor) -> Tensor:
        """Structure factor sum_j sum_a W_ja d^a exp(-i m.theta_j)."""
        _, count, channels = sources.shape
        out = _complex(sources.new_zeros(channels, self.mode_starts[-1]))
        for g, transform in self._present():
            spectra = transform.spread(sources[self._atoms[g]].flatten(1).T)
            spectra = spectra.view(count, channels, *self.shapes[g])
            factors = self._factors(g, order_of(count), -1j, sources)
            total = sum((f * x for f, x in zip(factors[1:], spectra[1:], strict=True)), spectra[0])
            out[:, self._modes[g]] = total.flatten(1)
        return out

    def interpolate(self, field: Tensor, order: int) -> Tensor:
        """Phase derivatives of the potential at the atoms."""
        channels, count = len(field), len(monomials(order))
        out = field.real.new_empty(len(self.batch), count, channels)
        for g, transform in self._present():
            psi = field[:, self._modes[g]].view(channels, *self.shapes[g])
            spectra = torch.cat(
                [factor * psi for factor in self._factors(g, order, 1j, field.real)]
            )
            values = transform.interpolate(spectra).T
            out[self._atoms[g]] = values.unflatten(1, (count, channels))
        return out

    def interpolate_gradient(self, field: Tensor, weights: Tensor) -> Tensor:
        """Gradient in the phases of sum_a W_a d^a phi."""
        higher = self.interpolate(field, order_of(weights.shape[1]) + 1)
        return phase_gradient(weights, higher)

    def _factors(self, graph: int, order: int, unit: complex, like: Tensor) -> list[Tensor]:
        """Return what derivatives multiply the modes of a structure by."""
        axes = [torch.arange(-(n // 2), n // 2 + 1).to(like) for n in self.shapes[graph]]
        x, y, z = axes[0][:, None, None], axes[1][:, None], axes[2]
        one = torch.ones_like(x)
        return [
            one if a + b + c == 0 else unit ** (a + b + c) * (x**a * y**b * z**c)
            for a, b, c in monomials(order)
        ]

    def _present(self) -> list[tuple[int, _Transform]]:
        return [(g, t) for g, t in enumerate(self.transforms) if t is not None]


class _Transform:
    """Transforms of real fields between the atoms of one structure and its modes."""

    def __init__(self, phases: Tensor, shape: tuple[int, int, int], accuracy: float) -> None:
        accuracy = max(accuracy, _FLOOR[phases.dtype])
        few = len(phases) < _ONE_THREAD
        threads = 1 if few else torch.get_num_threads()
        key = PlanKey(shape, accuracy, phases.dtype, phases.device, threads)
        self.plans = _POOL.borrow(key)
        weakref.finalize(self, _POOL.give_back, key, self.plans)
        self.plans.set_points(phases)

    def spread(self, fields: Tensor) -> Tensor:
        """Spectra (n, *shape) of real fields (n, n_atoms)."""
        spectra = []
        for pair in fields.split(2):
            packed = torch.complex(pair[0], pair[1] if len(pair) > 1 else torch.zeros_like(pair[0]))
            both = self.plans.type_1(packed.contiguous())
            mirror = both.flip(0, 1, 2).conj()
            spectra.append(0.5 * (both + mirror))
            if len(pair) > 1:
                spectra.append(-0.5j * (both - mirror))
        return torch.stack(spectra)

    def interpolate(self, spectra: Tensor) -> Tensor:
        """Real fields (n, n_atoms) of spectra (n, *shape) with the symmetry of real fields."""
        fields: list[Tensor] = []
        for pair in spectra.split(2):
            packed = pair[0] + 1j * pair[1] if len(pair) > 1 else pair[0]
            both = self.plans.type_2(packed.contiguous())
            fields.extend((both.real, both.imag)[: len(pair)])
        return torch.stack(fields)


class PlanKey(NamedTuple):
    """What a plan is made for."""

    shape: tuple[int, int, int]
    accuracy: float
    dtype: torch.dtype
    device: torch.device
    threads: int

    @property
    def options(self) -> dict[str, Any]:
        """Arguments that all plans share."""
        name = "complex64" if self.dtype == torch.float32 else "complex128"
        return {"eps": self.accuracy, "dtype": name}


class _CPUPlans:
    """A sorted plan that serves both directions."""

    def __init__(self, key: PlanKey) -> None:
        options = {**key.options, "isign": -1, "nthreads": key.threads, "showwarn": 0}
        # The small upsampling halves the FFT but reaches only nine digits.
        options["upsampfac"] = 1.25 if key.accuracy > 1e-8 else 2.0
        self.plan = load_library("finufft", "finufft").Plan(1, key.shape, **options)

    def set_points(self, phases: Tensor) -> None:
        # The library reads the points until the next call: they must stay alive.
        self.points = phases.T.contiguous().numpy()
        self.plan.setpts(*self.points)

    def type_1(self, strengths: Tensor) -> Tensor:
        return torch.from_numpy(self.plan.execute(strengths.numpy()))

    def type_2(self, modes: Tensor) -> Tensor:
        return torch.from_numpy(self.plan.execute_adjoint(modes.resolve_conj().numpy()))


class _CUDAPlans:
    """One plan for each direction, on the device and stream of the tensors."""

    def __init__(self, key: PlanKey) -> None:
        options = {**key.options, "gpu_device_id": key.device.index or 0}
        plan = load_library("cufinufft", "cuda").Plan
        self.device = key.device
        self.forward = plan(1, key.shape, isign=-1, **options)
        self.backward = plan(2, key.shape, isign=1, **options)
        self.shape = key.shape

    def set_points(self, phases: Tensor) -> None:
        self.points = phases.T.contiguous()
        torch.cuda.current_stream(self.device).synchronize()
        self.forward.setpts(*self.points)
        self.backward.setpts(*self.points)

    def type_1(self, strengths: Tensor) -> Tensor:
        out = strengths.new_empty(self.shape)
        return self._execute(self.forward, strengths, out)

    def type_2(self, modes: Tensor) -> Tensor:
        out = modes.new_empty(self.points.shape[1])
        return self._execute(self.backward, modes.resolve_conj(), out)

    def _execute(self, plan: Any, source: Tensor, out: Tensor) -> Tensor:
        # The plans have the default stream, which need not be PyTorch's.
        torch.cuda.current_stream(self.device).synchronize()
        plan.execute(source, out=out)
        torch.cuda.synchronize(self.device)
        return out


class _Pool:
    """Plans that nobody uses, the latest few; planning costs more than a small transform.

    Plans come back when their transform is collected, perhaps in the middle of `borrow`:
    they wait in a queue, which needs no lock, until somebody borrows.
    """

    def __init__(self) -> None:
        self.idle: list[tuple[PlanKey, Any]] = []
        self.returned: deque[tuple[PlanKey, Any]] = deque()
        self.lock = Lock()

    def borrow(self, key: PlanKey) -> Any:
        with self.lock:
            while self.returned:
                self.idle.append(self.returned.popleft())
            del self.idle[: max(0, len(self.idle) - _MAX_IDLE)]
            for place, (own, plans) in enumerate(self.idle):
                if own == key:
                    del self.idle[place]
                    return plans
        return _CUDAPlans(key) if key.device.type == "cuda" else _CPUPlans(key)

    def give_back(self, key: PlanKey, plans: Any) -> None:
        plans.points = None
        self.returned.append((key, plans))


_POOL = _Pool()


def _complex(real: Tensor) -> Tensor:
    return torch.complex(real, torch.zeros_like(real))
