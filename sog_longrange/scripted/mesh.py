"""Sum over periodic images on a grid that is chosen where the model runs."""

import numpy as np
import torch
from torch import Tensor, nn

from sog_longrange.geometry import box_wave_numbers, cell_volume, reciprocal_cell, wrapped_phases
from sog_longrange.kernels.kernel import Kernel
from sog_longrange.summation.grids import fast_length, points_needed
from sog_longrange.summation.resolution import Resolution
from sog_longrange.summation.windows import influence, make_window

from .traced import channel_terms, trace_fourier

MOST_POINTS: int = 512
"""Longest grid that an exported model knows, in points along one axis."""

CHUNK: int = 2**19
"""Numbers that atoms are spread in at a time, which stay in a cache."""


class ScriptedMesh(nn.Module):
    """Energy 1/(2V) sum_k Khat(k) |S(k)|^2 of one periodic structure, self-interaction included.

    The sum of :mod:`sog_longrange.summation.mesh` with its window, its factors and its grids, in
    operations that TorchScript differentiates. Cells are reduced, and grids follow the cell.

    Parameters
    ----------
    kernel : Kernel
    resolution : Resolution
        For the order of the sources.
    num_channels : int
    order : int
        Highest order of the sources: 1 with dipoles.
    like : Tensor
        Of the dtype and on the device of the positions.
    """

    polynomials: Tensor
    factors: Tensor

    def __init__(
        self, kernel: Kernel, resolution: Resolution, num_channels: int, order: int, like: Tensor
    ) -> None:
        super().__init__()
        window = make_window(resolution.window)
        self.fourier = trace_fourier(kernel, resolution.taper_start, like)
        self.terms = channel_terms(num_channels, len(kernel.zero_mode))
        self.cutoff: float = resolution.cutoff
        self.width: int = window.width
        self.shift: float = window.shift
        self.first: int = window.first
        self.order: int = order
        self.chunk: int = max(1, CHUNK // window.width**3)
        polynomials = [window.derivative(o).T for o in range(order + 1)]
        self.register_buffer("polynomials", torch.from_numpy(np.stack(polynomials)).to(like))
        self.lengths: list[int] = known_lengths(window.width)
        self.starts: list[int] = np.cumsum([0, *self.lengths]).tolist()
        factors = np.concatenate([influence(window.width, n) for n in self.lengths])
        self.register_buffer("factors", torch.from_numpy(factors).to(like))

    def forward(self, charges: Tensor, dipoles: Tensor, positions: Tensor, cell: Tensor) -> Tensor:
        """Evaluate the energy.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        dipoles : Tensor, shape (n_atoms, 3, n_channels or 0), in e Å
        positions : Tensor, shape (n_atoms, 3), in Å
        cell : Tensor, shape (3, 3), in Å

        Returns
        -------
        Tensor, shape (), float64, in eV
        """
        lattice = cell[None]
        reciprocal = reciprocal_cell(lattice)
        batch = torch.zeros([positions.shape[0]], dtype=torch.int64, device=positions.device)
        phases = wrapped_phases(positions, reciprocal, batch)
        places = self.choose_lengths(cell)
        shape = [self.lengths[place] for place in places]
        grid = self.spread(charges, dipoles, phases, reciprocal[0], shape)
        spectrum = torch.view_as_real(torch.fft.rfftn(grid, dim=[1, 2, 3])).flatten(1, 3)
        table = self.table(reciprocal[0], places)
        energy = torch.zeros([], dtype=torch.float64, device=cell.device)
        for p, q, kernel in self.terms:
            power = (spectrum[p] * spectrum[q]).sum(-1).double()
            part = 0.5 if p == q else 1.0
            energy = energy + part * torch.dot(table[kernel], power)
        return energy / cell_volume(lattice)[0].double()

    def choose_lengths(self, cell: Tensor) -> list[int]:
        """Choose which of the known lengths the grid has along each lattice vector.

        Parameters
        ----------
        cell : Tensor, shape (3, 3), in Å

        Returns
        -------
        list of 3 int
        """
        edges: list[float] = torch.linalg.vector_norm(cell.detach().double(), dim=1).cpu().tolist()
        places: list[int] = []
        for edge in edges:
            needed = points_needed(edge, self.cutoff, self.width)
            place = 0
            while place < len(self.lengths) and self.lengths[place] < needed:
                place += 1
            if place == len(self.lengths):
                raise ValueError(
                    "`cell` must have edges that need at most "
                    + str(self.lengths[-1])
                    + " grid points in an exported model, got one of "
                    + str(edge)
                    + " Å that needs "
                    + str(needed)
                    + ". Use a larger `tolerance`."
                )
            places.append(place)
        return places

    def spread(
        self, charges: Tensor, dipoles: Tensor, phases: Tensor, reciprocal: Tensor, shape: list[int]
    ) -> Tensor:
        """Density on the grid.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        dipoles : Tensor, shape (n_atoms, 3, n_channels or 0), in e Å
        phases : Tensor, shape (n_atoms, 3)
        reciprocal : Tensor, shape (3, 3), in 1/Å
        shape : list of 3 int
            Of the grid.

        Returns
        -------
        Tensor, shape (n_channels, *shape), in e
        """
        sizes = torch.tensor(shape, device=phases.device)
        scale = sizes.to(phases) / (2.0 * torch.pi)
        # From derivatives along Cartesian axes to those along the grid, in points.
        moments = torch.einsum("ncp,kc->nkp", dipoles, reciprocal) * scale[:, None]
        count = shape[0] * shape[1] * shape[2]
        grids = [phases.new_zeros([count]) for _ in range(charges.shape[1])]
        step = self.chunk if phases.device.type == "cpu" else max(1, phases.shape[0])
        for start in range(0, phases.shape[0], step):
            end = start + step
            u = phases[start:end] * scale + self.shift
            base = torch.floor(u.detach())
            points = self.points(base.long(), sizes)
            weights = [self.weights(u - base, order) for order in range(self.order + 1)]
            for p, grid in enumerate(grids):
                own = moments[start:end, :, p] if self.order > 0 else moments[start:end, :, 0:0]
                values = self.boxes(charges[start:end, p, None], own, weights).flatten()
                grid.scatter_add_(0, points, values)
        return torch.stack(grids).view(len(grids), shape[0], shape[1], shape[2])

    def points(self, base: Tensor, sizes: Tensor) -> Tensor:
        """Places in the flat grid of the points that atoms touch.

        Parameters
        ----------
        base : Tensor, shape (n_atoms, 3), int64
        sizes : Tensor, shape (3,), int64
            Of the grid.

        Returns
        -------
        Tensor, shape (n_atoms width^3,)
        """
        steps = torch.arange(self.first, self.first + self.width, device=base.device)
        x, y, z = torch.remainder(base[:, :, None] + steps, sizes[:, None]).unbind(1)
        rows = (x[:, :, None] * sizes[1] + y[:, None]).flatten(1)
        return (rows[:, :, None] * sizes[2] + z[:, None]).flatten()

    def boxes(self, charges: Tensor, moments: Tensor, weights: list[Tensor]) -> Tensor:
        """Return what each atom adds to the points that it touches.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, 1), in e
        moments : Tensor, shape (n_atoms, 3 or 0), in e
        weights : list of Tensor, shape (n_atoms, 3, width)
            For each order.

        Returns
        -------
        Tensor, shape (n_atoms, width^2, width), in e
        """
        x, y, z = weights[0].unbind(1)
        planes = (x[:, :, None] * y[:, None]).flatten(1)
        lines = charges * z
        if self.order == 0:
            return torch.bmm(planes[:, :, None], lines[:, None])
        d_x, d_y, d_z = (weights[1] * moments[:, :, None]).unbind(1)
        lines = lines + d_z
        tilted = (d_x[:, :, None] * y[:, None] + x[:, :, None] * d_y[:, None]).flatten(1)
        return torch.bmm(torch.stack([planes, tilted], 2), torch.stack([lines, z], 1))

    def weights(self, t: Tensor, order: int) -> Tensor:
        """Weights of the grid points that atoms touch, or their derivatives in points.

        Parameters
        ----------
        t : Tensor, shape (n_atoms, 3)
        order : int

        Returns
        -------
        Tensor, shape (n_atoms, 3, width)
        """
        powers = [torch.ones_like(t), t]
        while len(powers) < self.polynomials.shape[1]:
            powers.append(powers[-1] * t)
        return torch.stack(powers, -1) @ self.polynomials[order]

    def table(self, reciprocal: Tensor, places: list[int]) -> Tensor:
        """Kernel on the modes of the grid, times what undoes the window, for both halves.

        Parameters
        ----------
        reciprocal : Tensor, shape (3, 3), in 1/Å
        places : list of 3 int

        Returns
        -------
        Tensor, shape (n_kernels, n_modes), float64, in eV Å^3/e^2
        """
        modes: list[Tensor] = []
        factors: list[Tensor] = []
        for axis, place in enumerate(places):
            n, start = self.lengths[place], self.starts[place]
            count = n if axis < 2 else n // 2 + 1
            numbers = torch.arange(count, device=reciprocal.device)
            numbers = torch.where(2 * numbers < n, numbers, numbers - n) if axis < 2 else numbers
            own = self.factors[start : start + count]
            if axis == 2:
                # The mirror images of all modes but those of the first plane.
                own = torch.where(numbers > 0, 2.0 * own, own)
            modes.append(numbers.to(reciprocal))
            factors.append(own)
        k2 = box_wave_numbers(modes[0], modes[1], modes[2], reciprocal).flatten()
        weight = factors[0][:, None, None] * factors[1][:, None] * factors[2]
        table: Tensor = self.fourier(k2)
        return (table * weight.flatten()).double()


def known_lengths(width: int) -> list[int]:
    """Lengths of grids with fast transforms, for a window.

    Parameters
    ----------
    width : int
        Of the window, in grid points.

    Returns
    -------
    list of int
        Ascending, up to `MOST_POINTS`.
    """
    lengths = [fast_length(width + 1)]
    while lengths[-1] < MOST_POINTS:
        lengths.append(fast_length(lengths[-1] + 1))
    return lengths
