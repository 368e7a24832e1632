"""Typed, frozen options of the long-range part, the same for every host framework."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_type_hints

from .charges.charge_states import check_charge_embedding
from .charges.elements import format_element_charges, parse_element_charges
from .charges.readout import check_readout
from .energy import LongRangeEnergy
from .errors import ConfigError, explain
from .kernels.coupled import CoupledGaussians
from .kernels.gaussians import SumOfGaussians
from .kernels.kernel import Kernel
from .kernels.spec import KernelSpec, parse_kernels
from .options import check_choice, check_type, option

OF_SUMS = (
    *("zero_mode", "couple_channels", "num_gaussians", "min_width", "max_width"),
    *("learn_amplitudes", "learn_widths"),
)
"""Options of sums of Gaussians, of no use for other kernels."""

HOW = ("backend", "engine")
CHARGE_CONSTRAINTS = ("auto", "none", "neutral", "total")
READOUTS = ("atoms", "flows", "ions")


@dataclass(frozen=True)
class SOGConfig:
    """Options of :class:`~sog_longrange.SOGLongRange`.

    Attributes
    ----------
    kernel : str or sequence of str
        What charges interact through: the potential that a sum of Gaussians begins as, such
        as "coulomb", "yukawa(kappa=0.2)" or "dispersion", whose values are positive and begin as
        those of free atoms, or another kernel, such as "ewald(smearing=1.0)". A class of your
        own is "package.module:Class". :func:`~sog_longrange.list_kernels` has all names with
        their options. Several potentials, as in "coulomb+dispersion" or in a sequence, are
        combined: channels are divided among them in equal blocks, in this order, and
        each channel has a kernel of its own; the first must be one of electric charges, if any
        is. With a single one, all channels share one kernel.
    num_channels : int
        Number of latent charges of each atom; a multiple of the number of combined potentials.
    couple_channels : bool
        Whether channels interact, by a learnable kernel of each pair that begins as zero; see
        :class:`~sog_longrange.CoupledGaussians`. This needs two channels or more.
    num_gaussians, min_width, max_width, learn_amplitudes, learn_widths
        See :class:`~sog_longrange.SumOfGaussians`; widths in Å.
    hidden_size : int
        Width of the perceptron of the charge readout; 0 leaves it out.
    readout : {"atoms", "flows", "ions"}
        What electric charges are made from. "atoms": of each atom's features. "flows": charges
        flow between neighbours in the host's graph, so that a fragment beyond the cutoff of
        all others is exactly neutral, see :class:`~sog_longrange.charges.flows.FlowingCharges`.
        "ions": flows, and a learned charge that each element brings with it, so that such a
        fragment has the sum of these. Flows need the cutoff and the edges of the host; channels
        that are not conserved have none.
    element_charges : str
        Charges of elements that "ions" begins with, in e, such as "Na=1,Cl=-1"; zero for elements
        that are left out.
    charge_constraint : {"auto", "none", "neutral", "total"}
        Whether latent charges are free, sum to zero, or sum to a given total charge, which is
        that of the first channel; then the other channels are neutral. "auto" is "total" where
        all training data have total charges, as the training commands of the adapters find out
        (see :meth:`resolve`), and "neutral" otherwise: data of bulk materials leave a common
        shift of all charges open, which surfaces and clusters would show. Of combined
        potentials, constraints hold for those whose charges are electric charges or whose energy
        at k = 0 is infinite unless they sum to zero: Coulomb, Yukawa and exponents up to 3.
        Channels of higher exponents, such as dispersion, stay free: nothing conserves their
        charges, and those of one sign attract. Where all channels are such, "auto" constrains
        none, and "neutral" and "total" all but those whose values are positive.
    charge_embedding : int
        Number of functions of the total charge that become an input of the features, with an
        energy of the charge state, see :class:`~sog_longrange.ChargeStates`; 0 leaves both out.
        Needed to tell the energies of one molecule at several charges apart.
    fractional_charge : bool
        Whether a total charge may be other than a whole number of e.
    latent_dipoles : bool
        Give each atom a latent dipole for each channel of charges, from the host model's vectors
        (features of l = 1), which interacts with charges and dipoles through the same kernel. The
        host must have such features.
    tolerance, backend, engine
        See :class:`~sog_longrange.LongRangeEnergy`.
    zero_mode : bool, optional
        Keep k = 0, in all channels; by default each initial potential decides for its own.

    Raises
    ------
    ConfigError
        If an option has a wrong type or value, or the chosen kernel has no use for it.
    """

    kernel: str | Sequence[str] = option(
        "coulomb", "initial potential of the sum of Gaussians or whole kernel, or several by +"
    )
    num_channels: int = option(
        1, "latent charges of each atom; a multiple of the number of combined potentials"
    )
    couple_channels: bool = option(
        False, "a learned kernel of each pair of channels, which begins as zero"
    )
    num_gaussians: int = option(12, "number of Gaussians")
    min_width: float = option(1.0, "lower bound of every width, Å")
    max_width: float = option(100.0, "widest initial Gaussian, Å")
    learn_amplitudes: bool = option(True, "train the amplitudes of the Gaussians")
    learn_widths: bool = option(True, "train the widths of the Gaussians")
    hidden_size: int = option(32, "width of the perceptron of the charge readout; 0 for none")
    readout: str = option(
        "atoms",
        "what electric charges are made from: atoms (of each atom's features), flows (charges "
        "flow between neighbours; fragments beyond the cutoff are neutral), ions (flows, and a "
        "learned charge of each element)",
    )
    element_charges: str = option(
        "", "charges that readout=ions begins with, such as Na=1,Cl=-1; zero for other elements"
    )
    charge_constraint: str = option(
        "auto",
        "auto, none, neutral, or total: latent charges are free, sum to zero, or to the "
        "total_charge of the data; auto is total where every frame has one, else neutral; those "
        "of dispersion and other integrable potentials stay free",
    )
    charge_embedding: int = option(
        0,
        "functions of the total_charge of the data that are inputs of the model, with an energy "
        "of the charge state; 0 for none",
    )
    fractional_charge: bool = option(False, "let total charges be other than whole numbers")
    latent_dipoles: bool = option(
        False, "give atoms latent dipoles too, from the vectors (l = 1) of the host model"
    )
    tolerance: float = option(1e-5, "relative accuracy of the reciprocal sum")
    zero_mode: bool | None = option(
        None, "keep k = 0 in all channels (default: each initial potential decides for its own)"
    )
    backend: str = option("auto", "what does the reciprocal sum: auto, dense, mesh or finufft")
    engine: str = option("auto", "compiled code for the mesh: auto, none, numba or triton")

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if name != "kernel":
                object.__setattr__(self, name, check_type(name, getattr(self, name), hint))
        # The same kernels are the same text, whatever was left out or abbreviated.
        text = "+".join(str(spec) for spec in parse_kernels(_check_text(self.kernel)))
        object.__setattr__(self, "kernel", text)
        check_choice("charge_constraint", self.charge_constraint, CHARGE_CONSTRAINTS)
        self._check_combined()
        self._check_readout()
        self._check_used()
        self._check_coupling()
        # A kernel is cheap to build and checks what it takes; so does an energy.
        self._check_channels(self.build_energy().kernel)
        check_readout(self.num_channels, self.hidden_size)
        check_charge_embedding(self.charge_embedding)

    @property
    def needs_total_charge(self) -> bool:
        """Whether the total charge of each structure is a required input."""
        return self.charge_constraint == "total" or self.charge_embedding > 0

    @cached_property
    def kernels(self) -> tuple[KernelSpec, ...]:
        """What `kernel` consists of, each by name and options."""
        return parse_kernels(self.kernel)

    @property
    def is_sum_of_gaussians(self) -> bool:
        """Whether the kernel is one, as structures with non-periodic directions need."""
        return self.kernels[0].is_potential

    @property
    def constrained_channels(self) -> tuple[int, ...]:
        """Channels that `charge_constraint` holds for; the first carries the total charge."""
        if self.charge_constraint == "none":
            return ()
        if self.charge_constraint == "auto" or self.conserved_channels:
            return self.conserved_channels
        return self.signed_channels

    @cached_property
    def conserved_channels(self) -> tuple[int, ...]:
        """Channels of electric charges, which chemistry conserves; dispersion's are none."""
        parts = [spec.build().conserved for spec in self.kernels]
        return tuple(i for i in range(self.num_channels) if parts[i // self.block])

    @cached_property
    def positive_channels(self) -> tuple[int, ...]:
        """Channels whose values are positive, such as square roots of dispersion coefficients."""
        parts = [spec.build().positive for spec in self.kernels]
        return tuple(i for i in range(self.num_channels) if parts[i // self.block])

    @property
    def signed_channels(self) -> tuple[int, ...]:
        """Channels whose values have either sign; others have no dipoles and no constraint."""
        return tuple(i for i in range(self.num_channels) if i not in self.positive_channels)

    @cached_property
    def far_channels(self) -> tuple[int, ...]:
        """Channels of which pairs within the cutoff are left to the network of the host."""
        parts = [spec.build().far_only for spec in self.kernels]
        return tuple(i for i in range(self.num_channels) if parts[i // self.block])

    @property
    def block(self) -> int:
        """Number of channels of each of the combined potentials."""
        return self.num_channels // len(self.kernels)

    def resolve(self, has_total_charges: bool) -> SOGConfig:
        """Decide what `charge_constraint="auto"` means for a set of training data.

        Parameters
        ----------
        has_total_charges : bool
            Whether every structure comes with its total charge.

        Returns
        -------
        SOGConfig
            With "total", "neutral", or where no channel conserves its charge "none"; unchanged
            unless the constraint is "auto".
        """
        if self.charge_constraint != "auto":
            return self
        constraint = "total" if has_total_charges else "neutral"
        constraint = constraint if self.constrained_channels else "none"
        return self.with_constraint(constraint, self.fractional_charge)

    def with_constraint(self, constraint: str, fractional: bool) -> SOGConfig:
        """Return these options with another charge constraint.

        Parameters
        ----------
        constraint : str
        fractional : bool
            Whether a total charge may be other than whole, where there is one.

        Returns
        -------
        SOGConfig
        """
        needed = constraint in ("total", "auto") or self.charge_embedding > 0
        fractional = fractional and needed
        return dataclasses.replace(self, charge_constraint=constraint, fractional_charge=fractional)

    @property
    def may_need_total_charge(self) -> bool:
        """Whether total charges matter, or will if "auto" is resolved to them."""
        is_open = self.charge_constraint == "auto" and bool(self.constrained_channels)
        return self.needs_total_charge or is_open

    @property
    def takes_total_charge(self) -> bool:
        """Whether latent charges sum to the total charge, also before "auto" is resolved.

        A charge embedding needs the total charge of every structure, so that "auto" is "total".
        """
        is_meant = self.charge_constraint == "auto" and self.charge_embedding > 0
        return self.charge_constraint == "total" or (is_meant and bool(self.constrained_channels))

    @property
    def _meant(self) -> SOGConfig:
        """What these options mean for a model that is built before any data are seen."""
        return self.resolve(self.charge_embedding > 0)

    @property
    def has_flows(self) -> bool:
        """Whether charges flow along the edges of the host."""
        return self.readout != "atoms"

    @property
    def needs_sites(self) -> bool:
        """Whether edges of the host or elements of the atoms matter, beside features."""
        return self.has_flows or bool(self.positive_channels) or bool(self.far_channels)

    def kind_of(self, channel: int) -> str:
        """Kind of the readout of a channel.

        Parameters
        ----------
        channel : int

        Returns
        -------
        str
            "positive", "atoms", "flows" or "ions".
        """
        if channel in self.positive_channels:
            return "positive"
        return self.readout if channel in self.conserved_channels else "atoms"

    def _check_readout(self) -> None:
        """Refuse readouts that the channels have no use for."""
        check_choice("readout", self.readout, READOUTS)
        charges = parse_element_charges(self.element_charges)
        text = format_element_charges(charges)
        object.__setattr__(self, "element_charges", text)
        if charges and self.readout != "ions":
            expected = f"left out with readout={self.readout!r}"
            raise ConfigError(explain("element_charges", expected, repr(text)))
        if self.has_flows and not self.conserved_channels:
            expected = "'atoms' where no channel has electric charges, which alone are conserved"
            raise ConfigError(explain("readout", expected, repr(self.readout)))

    def _check_combined(self) -> None:
        """Refuse kernels that cannot be combined as asked."""
        count = len(self.kernels)
        if count > 1 and not all(spec.is_potential for spec in self.kernels):
            expected = "a single kernel, or initial potentials of sums of Gaussians combined"
            raise ConfigError(explain("kernel", expected, repr(self.kernel)))
        if self.num_channels % count:
            expected = f"a multiple of {count}, the number of potentials in kernel={self.kernel!r}"
            raise ConfigError(explain("num_channels", expected, str(self.num_channels)))
        if self.conserved_channels and 0 not in self.conserved_channels:
            expected = (
                "a potential of electric charges first, where there is one: charges and dipoles "
                "of a model are those of the first channel"
            )
            raise ConfigError(explain("kernel", expected, repr(self.kernel)))
        if self.latent_dipoles and not self.signed_channels:
            expected = f"False with kernel={self.kernel!r}, of which no value has a sign"
            raise ConfigError(explain("latent_dipoles", expected, "True"))
        if self.charge_constraint in ("neutral", "total") and not self.constrained_channels:
            expected = f"'auto' or 'none' with kernel={self.kernel!r}, of which no value has a sign"
            raise ConfigError(explain("charge_constraint", expected, repr(self.charge_constraint)))

    def _check_coupling(self) -> None:
        """Refuse options with which channels could not be coupled."""
        if self.couple_channels and not self.learn_amplitudes:
            expected = "True with couple_channels=True, because couplings begin as zero"
            raise ConfigError(explain("learn_amplitudes", expected, "False"))

    def _check_channels(self, kernel: Kernel) -> None:
        if kernel.num_channels not in (1, self.num_channels):
            expected = f"{kernel.num_channels}, as many as the kernel {self.kernel} has"
            raise ConfigError(explain("num_channels", expected, str(self.num_channels)))

    def _check_used(self) -> None:
        """Refuse options that would be ignored."""
        for own in dataclasses.fields(self):
            value = getattr(self, own.name)
            if not self.is_sum_of_gaussians and own.name in OF_SUMS and value != own.default:
                expected = f"left out with kernel={self.kernel!r}, which is no sum of Gaussians"
                raise ConfigError(explain(own.name, expected, str(value)))
        may_need = self.needs_total_charge or self.charge_constraint == "auto"
        if self.fractional_charge and not may_need:
            expected = 'left out unless `charge_constraint` is "total" or `charge_embedding` is on'
            got = f"True with charge_constraint={self.charge_constraint!r}"
            raise ConfigError(explain("fractional_charge", expected, got))

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> SOGConfig:
        """Build a configuration from a mapping, refusing unknown keys.

        Parameters
        ----------
        options : mapping
            Names of attributes to values.

        Returns
        -------
        SOGConfig

        Raises
        ------
        ConfigError
            If a key is unknown; the message suggests the nearest one.
        """
        names = [own.name for own in dataclasses.fields(cls)]
        for key in options:
            check_choice("option", key, names)
        return cls(**options)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a dictionary that :meth:`from_dict` accepts."""
        return dataclasses.asdict(self)

    def differences(self, other: SOGConfig) -> str:
        """Describe the options that give another model than those of another configuration.

        How the same numbers are computed, by which backend and engine, may differ.

        Parameters
        ----------
        other : SOGConfig

        Returns
        -------
        str
            Like "min_width 1.0 here, 0.5 there"; empty if there are none.
        """
        ours, theirs = self._meant.to_dict(), other._meant.to_dict()
        return ", ".join(
            f"{name} {value} here, {theirs[name]} there"
            for name, value in ours.items()
            if value != theirs[name] and name not in HOW
        )

    def build_kernel(self) -> Kernel:
        """Return a new kernel with these options."""
        if not self.is_sum_of_gaussians:
            return self.kernels[0].build_kernel()
        shared = len(self.kernels) == 1
        potentials = [spec.build_potential() for spec in self.kernels]
        initial = potentials[0] if shared else [x for x in potentials for _ in range(self.block)]
        kind = CoupledGaussians if self.couple_channels else SumOfGaussians
        return kind(
            initial,
            num_channels=1 if shared and not self.couple_channels else self.num_channels,
            num_gaussians=self.num_gaussians,
            min_width=self.min_width,
            max_width=self.max_width,
            learn_amplitudes=self.learn_amplitudes,
            learn_widths=self.learn_widths,
            zero_mode=self.zero_mode,
        )

    def build_energy(self) -> LongRangeEnergy:
        """Return a new energy, with a new kernel, with these options."""
        return LongRangeEnergy(
            self.build_kernel(),
            tolerance=self.tolerance,
            backend=self.backend,
            engine=self.engine,
        )


def _check_text(kernel: object) -> str | list[str]:
    """Check that kernels are given as text."""
    parts = [kernel] if isinstance(kernel, str) or not isinstance(kernel, Sequence) else kernel
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts):
        got = f"{kernel!r} of type {type(kernel).__name__}"
        raise ConfigError(explain("kernel", "str or a sequence of str", got))
    return texts
