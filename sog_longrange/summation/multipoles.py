"""Sums over point multipoles: spreading and interpolation, each the other's derivative.

A source of order n at an atom is a number W_a for each derivative d^a, |a| <= n, of the phase
factor there: charges have order 0, charges with dipoles order 1. With phases theta,

    spread       S = sum_j sum_a W_ja d^a exp(-i m.theta_j)
    interpolate  d^a phi at theta_j, |a| <= n, of phi(theta) = sum_m psi_m exp(i m.theta)

are adjoint to each other, and the derivative of either in theta is the other one order up:

    <G, spread(W)>       d/dW = interpolate(G),   d/dtheta_c = sum_a W_a  d^(a + c) phi[G]
    <G, interpolate(psi)>  d/dpsi = spread(G),    d/dtheta_c = sum_a G_a  d^(a + c) phi[psi]

So the functions below hold all derivatives of each other, and autograd keeps nothing larger
than the sources and the grid. Cotangents of spectra are those of the inner product in which
spreading and interpolation are adjoint; a backend that stores half of the modes gives each its
mirror image in :meth:`Backend.correlate` only.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import Function


class Multipoles(NamedTuple):
    """Charges and dipoles at the atoms.

    Attributes
    ----------
    charges : Tensor, shape (n_atoms, n_channels), in e
    dipoles : Tensor, shape (n_atoms, 3, n_channels), in e Å, or None
    """

    charges: Tensor
    dipoles: Tensor | None = None

    @property
    def order(self) -> int:
        """Highest order of the sources: 0 for charges, 1 with dipoles."""
        return 0 if self.dipoles is None else 1

    def memory_factor(self, field: bool) -> int:
        """How many times the memory of an energy of charges is taken, with or without a field."""
        return 2 if field or self.order > 0 else 1

    def at(self, atoms: Tensor) -> Multipoles:
        """Return the sources of some of the atoms."""
        return Multipoles(
            self.charges[atoms], None if self.dipoles is None else self.dipoles[atoms]
        )

    def work(self, potential: Tensor, field: Tensor | None) -> Tensor:
        """Return q phi - mu.F of each atom in a potential and a field; (n_atoms,), in eV."""
        of_channels = self.charges * potential
        # A sum over a single channel is a view.
        of_charges = of_channels[:, 0] if of_channels.shape[1] == 1 else of_channels.sum(-1)
        if self.dipoles is None or field is None:
            return of_charges
        return of_charges - (self.dipoles * field).sum((1, 2))

    def in_phase_space(self, reciprocal: Tensor, batch: Tensor) -> Tensor:
        """Return sources for the derivatives in the phases theta = B r.

        Parameters
        ----------
        reciprocal : Tensor, shape (n_graphs, 3, 3), in 1/Å
        batch : Tensor, shape (n_atoms,)

        Returns
        -------
        Tensor, shape (n_atoms, 1 or 4, n_channels)
        """
        charges = self.charges[:, None]
        if self.dipoles is None:
            return charges
        dipoles = torch.einsum("ncp,nkc->nkp", self.dipoles, reciprocal[batch])
        return torch.cat((charges, dipoles), 1)


@lru_cache(maxsize=16)
def monomials(order: int) -> tuple[tuple[int, int, int], ...]:
    """List the derivatives along x, y and z up to an order, those of lower orders first.

    Parameters
    ----------
    order : int

    Returns
    -------
    tuple of 3-tuples of int
        1, 4, 10 or 20 of them for the orders 0, 1, 2 and 3.
    """
    return tuple(
        (a, b, degree - a - b)
        for degree in range(order + 1)
        for a in range(degree, -1, -1)
        for b in range(degree - a, -1, -1)
    )


@lru_cache(maxsize=64)
def order_of(count: int) -> int:
    """Find the order of sources by their number for each atom.

    Parameters
    ----------
    count : int
    """
    order = 0
    while len(monomials(order)) < count:
        order += 1
    return order


@lru_cache(maxsize=16)
def raised(order: int) -> tuple[tuple[int, ...], ...]:
    """Places of the derivatives, one order higher along each axis, of those up to an order.

    Parameters
    ----------
    order : int

    Returns
    -------
    tuple of 3 tuples of int
        Indices into the monomials of the next order.
    """
    places = {own: place for place, own in enumerate(monomials(order + 1))}
    return tuple(
        tuple(places[a + x, b + y, c + z] for a, b, c in monomials(order))
        for x, y, z in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    )


def phase_gradient(weights: Tensor, derivatives: Tensor) -> Tensor:
    """Gradient of sum_a W_a d^a phi in the phases, from the derivatives of the next order.

    Parameters
    ----------
    weights : Tensor, shape (n_atoms, n_sources, n_channels)
    derivatives : Tensor, shape (n_atoms, n_derivatives, n_channels)
        At least those of the next order.

    Returns
    -------
    Tensor, shape (n_atoms, 3)
    """
    count = weights.shape[1]
    if count == 1:
        return (weights * derivatives[:, 1:4]).sum(-1)
    # Stacked views: an index would be made on the host, and its copy would wait for the device.
    columns = derivatives.unbind(1)
    higher = torch.stack([columns[place] for own in raised(order_of(count)) for place in own], 1)
    gradient: Tensor = (weights[:, None] * higher.unflatten(1, (3, count))).sum((2, 3))
    return gradient


class Backend(Protocol):
    """The adjoint sums over the modes of a batch; no argument requires a gradient.

    Densities, spectra and tables have shapes of the backend's own choice.

    Attributes
    ----------
    batch : Tensor, shape (n_atoms,)
    num_graphs : int
    has_grid : bool
        Whether atoms meet the modes on a grid; otherwise a density is its own spectrum.
    """

    batch: Tensor
    num_graphs: int
    has_grid: bool

    def set_phases(self, phases: Tensor) -> None:
        """Take the phases of all atoms, shape (n_atoms, 3)."""
        ...

    def spread(self, sources: Tensor) -> Tensor:
        """Density of sources (n_atoms, n_sources, n_channels)."""
        ...

    def transform(self, density: Tensor) -> Tensor:
        """Spectrum of a density."""
        ...

    def invert(self, spectrum: Tensor) -> Tensor:
        """Adjoint of :meth:`transform`: the potential on the grid."""
        ...

    def interpolate(self, field: Tensor, order: int) -> Tensor:
        """Phase derivatives up to an order; (n_atoms, n_derivatives, n_channels)."""
        ...

    def interpolate_gradient(self, field: Tensor, weights: Tensor) -> Tensor:
        """Gradient in the phases of sum_a W_a d^a phi, with W as in `spread`; (n_atoms, 3)."""
        ...

    def convolve(self, table: Tensor, spectrum: Tensor) -> Tensor:
        """Multiply the spectrum by the kernel: sum_q T_pq S_q where channels are coupled."""
        ...

    def correlate(self, first: Tensor, second: Tensor, table: Tensor) -> Tensor:
        """Differentiate <first, T second> in T, in `table`'s shape."""
        ...

    def per_table(self, per_graph: Tensor) -> Tensor:
        """Expand one number per structure to the shape of the table."""
        ...


def apply_function(function: type[Function], *args: object) -> Any:
    """Call `Function.apply`, which PyTorch leaves untyped.

    Parameters
    ----------
    function : type of Function
    *args : object
        Its arguments.

    Returns
    -------
    Any
        What its forward returns.
    """
    return function.apply(*args)


def spread(backend: Backend, sources: Tensor, phases: Tensor) -> Tensor:
    """Structure factor of sources at the phases that the backend has.

    Parameters
    ----------
    backend : Backend
    sources : Tensor, shape (n_atoms, n_sources, n_channels)
    phases : Tensor, shape (n_atoms, 3)

    Returns
    -------
    Tensor
        Differentiable to any order that the backend has.
    """
    density: Tensor = apply_function(_Spread, sources, phases, backend)
    return apply_function(_Transform, density, backend) if backend.has_grid else density


def interpolate(backend: Backend, spectrum: Tensor, phases: Tensor, order: int) -> Tensor:
    """Phase derivatives at the atoms of the potential with a spectrum.

    Parameters
    ----------
    backend : Backend
    spectrum : Tensor
    phases : Tensor, shape (n_atoms, 3)
    order : int

    Returns
    -------
    Tensor, shape (n_atoms, n_derivatives, n_channels)
        Differentiable to any order that the backend has.
    """
    field = apply_function(_Invert, spectrum, backend) if backend.has_grid else spectrum
    derivatives: Tensor = apply_function(_Interpolate, field, phases, backend, order)
    return derivatives


def convolve(backend: Backend, table: Tensor, spectrum: Tensor) -> Tensor:
    """Multiply a spectrum by the kernel on the modes.

    Parameters
    ----------
    backend : Backend
    table : Tensor
    spectrum : Tensor

    Returns
    -------
    Tensor
        Differentiable to any order in both.
    """
    product: Tensor = apply_function(_Convolve, table, spectrum, backend)
    return product


def correlate(backend: Backend, first: Tensor, second: Tensor, table: Tensor) -> Tensor:
    """Differentiate <first, T second> in the table T.

    Parameters
    ----------
    backend : Backend
    first, second : Tensor
        Spectra.
    table : Tensor
        T; only its shape is used.

    Returns
    -------
    Tensor, shape of `table`
        Differentiable to any order in both spectra.
    """
    product: Tensor = apply_function(_Correlate, first, second, table.detach(), backend)
    return product


class _Spread(Function):
    @staticmethod
    def forward(ctx: Any, sources: Tensor, phases: Tensor, backend: Backend) -> Tensor:
        ctx.save_for_backward(sources, phases)
        ctx.backend = backend
        return backend.spread(sources)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sources, phases = ctx.saved_tensors
        count, wants_phases = sources.shape[1], ctx.needs_input_grad[1]
        order = order_of(count) + wants_phases
        found = apply_function(_Interpolate, grad, phases, ctx.backend, order)
        by_phases = phase_gradient(sources, found) if wants_phases else None
        return found[:, :count], by_phases, None


class _Interpolate(Function):
    @staticmethod
    def forward(ctx: Any, field: Tensor, phases: Tensor, backend: Backend, order: int) -> Tensor:
        ctx.save_for_backward(field, phases)
        ctx.backend, ctx.order = backend, order
        return backend.interpolate(field, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        field, phases = ctx.saved_tensors
        by_field = by_phases = None
        if ctx.needs_input_grad[0]:
            by_field = apply_function(_Spread, grad, phases, ctx.backend)
        if ctx.needs_input_grad[1]:
            by_phases = _gradient_of_interpolation(field, grad, phases, ctx.backend, ctx.order)
        return by_field, by_phases, None, None


def _gradient_of_interpolation(
    field: Tensor, grad: Tensor, phases: Tensor, backend: Backend, order: int
) -> Tensor:
    if not torch.is_grad_enabled():
        return backend.interpolate_gradient(field, grad)
    higher = apply_function(_Interpolate, field, phases, backend, order + 1)
    return phase_gradient(grad, higher)


class _Transform(Function):
    @staticmethod
    def forward(ctx: Any, density: Tensor, backend: Backend) -> Tensor:
        ctx.backend = backend
        return backend.transform(density)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return apply_function(_Invert, grad, ctx.backend), None


class _Invert(Function):
    @staticmethod
    def forward(ctx: Any, spectrum: Tensor, backend: Backend) -> Tensor:
        ctx.backend = backend
        return backend.invert(spectrum)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return apply_function(_Transform, grad, ctx.backend), None


class _Convolve(Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, spectrum: Tensor, backend: Backend) -> Tensor:
        ctx.save_for_backward(table, spectrum if ctx.needs_input_grad[0] else None)
        ctx.backend = backend
        return backend.convolve(table, spectrum)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, spectrum = ctx.saved_tensors
        by_table = None
        if ctx.needs_input_grad[0]:
            by_table = correlate(ctx.backend, spectrum, grad, table)
        by_spectrum = convolve(ctx.backend, table, grad) if ctx.needs_input_grad[1] else None
        return by_table, by_spectrum, None


class _Correlate(Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, table: Tensor, backend: Backend) -> Tensor:
        ctx.save_for_backward(first, second)
        ctx.backend = backend
        return backend.correlate(first, second, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        first, second = ctx.saved_tensors
        by_first = convolve(ctx.backend, grad, second) if ctx.needs_input_grad[0] else None
        by_second = convolve(ctx.backend, grad, first) if ctx.needs_input_grad[1] else None
        return by_first, by_second, None, None
