"""A kernel of the tests' own, outside of the package."""

from dataclasses import dataclass

from sog_longrange import InitialPotential


@dataclass(frozen=True)
class DampedDispersion(InitialPotential):
    """-strength / (r^6 + radius^6), dispersion that ends at short distances.

    Parameters
    ----------
    strength : float
        In eV Å^6/e^2.
    radius : float
        Distance in Å at which half of 1/r^6 is left.
    """

    strength: float = 20.0
    radius: float = 3.0
    zero_mode = True

    def radial(self, r):
        return -self.strength / (r**6 + self.radius**6)
