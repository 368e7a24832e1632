"""Typed, frozen options of the long-range part, the same for every host framework."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from .charges.charge_states import check_charge_embedding
from .charges.readout import check_readout
from .energy import LongRangeEnergy
from .errors import ConfigError, explain
from .kernels.coupled import CoupledGaussians
from .kernels.ewald import Ewald
from .kernels.gaussians import SumOfGaussians
from .kernels.initial import Start, coulomb, power_law, yukawa

KERNELS = ("coulomb", "power_law", "yukawa", "ewald")
SUMS = ("coulomb", "power_law", "yukawa")
USED_BY = {
    "exponent": ("power_law",),
    "kappa": ("yukawa",),
    "strength": ("power_law", "yukawa"),
    "smearing": ("ewald",),
    "zero_mode": SUMS,
    "share_kernel": SUMS,
    "couple_channels": SUMS,
    "num_gaussians": SUMS,
    "min_width": SUMS,
    "max_width": SUMS,
    "learn_amplitudes": SUMS,
    "learn_widths": SUMS,
}
HOW = ("backend", "engine")
DIPOLE_BACKENDS = ("auto", "mesh")
ELECTRIC = ("coulomb", "yukawa", "power_law")
CHARGE_CONSTRAINTS = ("auto", "none", "neutral", "total")


@dataclass(frozen=True)
class SOGConfig:
    """Options of :class:`~sog_longrange.SOGLongRange`.

    Attributes
    ----------
    kernel : {"coulomb", "power_law", "yukawa", "ewald"} or laws joined by "+"
        Law that the sum of Gaussians starts as, or the fixed Ewald kernel. With laws joined
        as in "coulomb+power_law" channels are divided among them in equal blocks, in this
        order; a law may be there more than once, for a larger share. The first channel is that of
        the electric charges, so that Coulomb, or else Yukawa, comes first. This needs
        ``share_kernel=False``.
    exponent, kappa, strength : float, optional
        Parameters of the start: exponent of the power law, which has no default,
        inverse screening length of the Yukawa law in 1/Å, and the strength of either in
        eV Å^exponent/e^2 (by default 1 and that of Coulomb). With a negative strength
        like charges attract, as in dispersion. Where both laws are joined, it is that of
        the power law.
    smearing : float
        Width in Å of the Gaussian charges of the Ewald kernel.
    num_channels : int
        Number of latent charges of each atom; a multiple of the number of joined laws.
    share_kernel : bool
        Whether all channels share one sum of Gaussians.
    couple_channels : bool
        Whether channels meet, by a learnable law of each pair that begins as zero; see
        :class:`~sog_longrange.CoupledGaussians`. This needs two channels or more and
        ``share_kernel=False``.
    num_gaussians, min_width, max_width, learn_amplitudes, learn_widths
        See :class:`~sog_longrange.SumOfGaussians`; widths in Å.
    hidden_size : int
        Width of the perceptron of the charge readout; 0 leaves it out.
    charge_constraint : {"auto", "none", "neutral", "total"}
        Whether latent charges are free, sum to zero, or sum to a given total charge, which is
        that of the first channel; then the other channels are neutral. "auto" is "total" where
        all training data have total charges, as the training commands of the adapters find out
        (see :meth:`resolve`), and "neutral" otherwise: data of bulk materials leave a common
        shift of all charges open, which surfaces and clusters would show. Of joined laws,
        constraints hold for those whose charges are electric charges or whose energy at
        k = 0 is infinite unless they sum to zero: Coulomb, Yukawa and exponents up to 3.
        Channels of higher exponents, such as dispersion, stay free: nothing conserves their
        charges, and those of one sign attract. Where all channels have such an exponent,
        "auto" constrains none.
    charge_embedding : int
        Number of functions of the total charge that become an input of the features, with an
        energy of the charge state, see :class:`~sog_longrange.ChargeStates`; 0 leaves both out.
        Needed to tell the energies of one molecule at several charges apart.
    fractional_charge : bool
        Whether a total charge may be other than a whole number of e.
    latent_dipoles : bool
        Give each atom a latent dipole for each channel, from the host model's vectors (features
        of l = 1), which interacts with charges and dipoles through the same kernel. The host
        must have such features; `backend` is "auto" or "mesh".
    tolerance, backend, engine
        See :class:`~sog_longrange.LongRangeEnergy`.
    zero_mode : bool, optional
        Keep k = 0, in all channels; by default each law decides for its own.
    remove_self : bool
        Remove the interaction of each charge with itself.

    Raises
    ------
    ConfigError
        If an option has a wrong type or value, or the chosen kernel has no use for it.
    """

    kernel: str = "coulomb"
    exponent: float | None = None
    kappa: float = 0.1
    strength: float | None = None
    smearing: float = 1.0
    num_channels: int = 1
    share_kernel: bool = True
    couple_channels: bool = False
    num_gaussians: int = 12
    min_width: float = 1.0
    max_width: float = 100.0
    learn_amplitudes: bool = True
    learn_widths: bool = True
    hidden_size: int = 32
    charge_constraint: str = "auto"
    charge_embedding: int = 0
    fractional_charge: bool = False
    latent_dipoles: bool = False
    tolerance: float = 1e-5
    zero_mode: bool | None = None
    remove_self: bool = True
    backend: str = "auto"
    engine: str = "auto"

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _coerce(name, getattr(self, name), hint))
        self._check_laws()
        _check_choice("charge_constraint", self.charge_constraint, CHARGE_CONSTRAINTS)
        self._check_used()
        self._check_coupling()
        # A kernel is cheap to build and knows what it takes; so does an energy.
        self.build_energy()
        check_readout(self.num_channels, self.hidden_size)
        check_charge_embedding(self.charge_embedding)

    @property
    def needs_total_charge(self) -> bool:
        """Whether the total charge of each structure is a required input."""
        return self.charge_constraint == "total" or self.charge_embedding > 0

    @property
    def _laws(self) -> list[str]:
        return self.kernel.split("+")

    @property
    def constrained_channels(self) -> tuple[int, ...]:
        """Channels that `charge_constraint` holds for; the first carries the total charge."""
        if self.charge_constraint == "none":
            return ()
        if len(set(self._laws)) == 1 and self.charge_constraint != "auto":
            return tuple(range(self.num_channels))
        return self.conserved_channels

    @property
    def conserved_channels(self) -> tuple[int, ...]:
        """Channels of electric charges, which chemistry conserves; dispersion's are none."""
        laws = self._laws
        block = self.num_channels // len(laws)
        bound = [i for i, law in enumerate(laws) if self._is_conserved(law)]
        return tuple(i * block + j for i in bound for j in range(block))

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

    def _is_conserved(self, law: str) -> bool:
        return law == "ewald" or self._start(law).conserved

    def _check_laws(self) -> None:
        """Refuse laws that are unknown or cannot be joined as asked."""
        laws = self._laws
        for law in laws:
            _check_choice("kernel", law, KERNELS)
        if len(laws) == 1:
            return
        if "ewald" in laws:
            expected = f'"ewald" alone or {", ".join(SUMS)} joined by "+"'
            raise ConfigError(explain("kernel", expected, repr(self.kernel)))
        if self.share_kernel:
            expected = f"False with kernel={self.kernel!r}, where channels have laws of their own"
            raise ConfigError(explain("share_kernel", expected, "True"))
        electric = next(law for law in ELECTRIC if law in laws)
        if laws[0] != electric:
            expected = (
                f"with {electric!r} first: charges and dipoles are those of the first channel"
            )
            raise ConfigError(explain("kernel", expected, repr(self.kernel)))
        if self.num_channels % len(laws):
            expected = f"a multiple of {len(laws)}, the number of laws in kernel={self.kernel!r}"
            raise ConfigError(explain("num_channels", expected, str(self.num_channels)))

    def _check_coupling(self) -> None:
        """Refuse options with which channels could not be coupled."""
        if not self.couple_channels:
            return
        if self.share_kernel:
            expected = "False with couple_channels=True, where each pair of channels has a law"
            raise ConfigError(explain("share_kernel", expected, "True"))
        if not self.learn_amplitudes:
            expected = "True with couple_channels=True, because couplings begin as zero"
            raise ConfigError(explain("learn_amplitudes", expected, "False"))

    def _check_used(self) -> None:
        """Refuse options that would be ignored."""
        for field in dataclasses.fields(self):
            kernels = USED_BY.get(field.name, KERNELS)
            used = any(law in kernels for law in self._laws)
            if not used and getattr(self, field.name) != field.default:
                expected = f"left out unless `kernel` is one of {', '.join(kernels)}"
                got = f"{getattr(self, field.name)} with kernel={self.kernel!r}"
                raise ConfigError(explain(field.name, expected, got))
        may_need = self.needs_total_charge or self.charge_constraint == "auto"
        if self.fractional_charge and not may_need:
            expected = 'left out unless `charge_constraint` is "total" or `charge_embedding` is on'
            got = f"True with charge_constraint={self.charge_constraint!r}"
            raise ConfigError(explain("fractional_charge", expected, got))
        if self.latent_dipoles and self.backend not in DIPOLE_BACKENDS:
            expected = '"auto" or "mesh" with latent_dipoles=True'
            raise ConfigError(explain("backend", expected, repr(self.backend)))

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
        names = [field.name for field in dataclasses.fields(cls)]
        for key in options:
            _check_choice("option", key, names)
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

    def build_kernel(self) -> SumOfGaussians | Ewald:
        """Return a new kernel with these options."""
        if self.kernel == "ewald":
            return Ewald(self.smearing)
        laws = self._laws
        block = self.num_channels // len(laws)
        starts = [self._start(law) for law in laws for _ in range(block)]
        kind = CoupledGaussians if self.couple_channels else SumOfGaussians
        return kind(
            starts if len(laws) > 1 else self._start(self.kernel),
            num_channels=1 if self.share_kernel else self.num_channels,
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
            remove_self=self.remove_self,
            backend=self.backend,
            engine=self.engine,
        )

    def _start(self, law: str) -> Start:
        if law == "coulomb":
            return coulomb()
        strength = {} if self.strength is None else {"strength": self.strength}
        if law == "yukawa":
            # One number cannot be the strength of 1/r and of another power.
            return yukawa(self.kappa, **({} if "power_law" in self._laws else strength))
        if self.exponent is None:
            raise ConfigError(explain("exponent", 'given for kernel="power_law"', "None"))
        return power_law(self.exponent, **strength)


def _coerce(name: str, value: object, hint: object) -> object:
    """Check the type of an option; integers may stand for floats."""
    allowed: tuple[type, ...] = getattr(hint, "__args__", None) or (hint,)  # type: ignore[assignment]
    if type(value) is int and float in allowed:
        return float(value)
    if type(value) not in allowed:
        names = " or ".join("None" if t is type(None) else t.__name__ for t in allowed)
        raise ConfigError(explain(name, names, f"{value!r} of type {type(value).__name__}"))
    return value


def _check_choice(name: str, value: str, choices: tuple[str, ...] | list[str]) -> None:
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1)
    remedy = f"Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(explain(name, "one of " + ", ".join(choices), repr(value), remedy))
