"""Infrared absorption of liquid water from dipoles along molecular dynamics.

A dipole of the liquid is the sum of those of its molecules about their centres of mass, so that
no image of an atom is ambiguous; charge that a model lets flow between molecules is left out.
"""

from __future__ import annotations

from pathlib import Path

import measures
import numpy as np
from ase import Atoms
from collect import Results

from sog_longrange import infrared_spectrum

FEMTOSECONDS = 2.0  # between dipoles
RESOLUTION, HIGHEST = 25.0, 4500.0  # 1/cm
LINES = {"bend": (1250.0, 1900.0), "stretch": (3000.0, 4200.0)}  # 1/cm, where a line is
COLOURS = {"exact": "k", "les": "tab:orange", "sog": "tab:blue"}
WORDS = {"exact": "exact force field", "les": "LES", "sog": "SOG (recommended preset)"}


def dipole(
    atoms: Atoms, charges: np.ndarray, members: np.ndarray, own: np.ndarray | None = None
) -> np.ndarray:
    """Sum of the dipoles of molecules about their centres of mass, in e Å.

    Parameters
    ----------
    atoms : whose molecules are whole.
    charges : in e, shape (n_atoms,).
    members : number of the molecule of each atom.
    own : dipoles of the atoms themselves, shape (n_atoms, 3), in e Å.
    """
    masses = atoms.get_masses()[:, None]
    centres = measures.sums(masses * atoms.positions, members) / measures.sums(masses, members)
    total = charges @ (atoms.positions - centres[members])
    return total if own is None else total + own.sum(0)


class Dipoles:
    """Looks at the dipole of a running simulation; models without charges have none.

    Parameters
    ----------
    frame : the structure at the start.
    """

    def __init__(self, frame: Atoms) -> None:
        self.members, self.series = measures.fragments(frame), []

    def __call__(self, atoms: Atoms) -> None:
        """Keep the dipole by the charges of the last calculation."""
        results = atoms.calc.results
        if results.get("charges") is None:
            return
        own = results.get("latent_dipoles")
        own = None if own is None else own[:, :, 0]
        self.series.append(dipole(atoms, results["charges"], self.members, own))


def spectrum(series: list[np.ndarray], atoms: Atoms, kelvin: float, interval: float) -> dict:
    """Wave numbers in 1/cm, absorption n(w) alpha(w) in 1/cm, and the lines.

    Parameters
    ----------
    series : dipoles in e Å.
    atoms : for the volume.
    kelvin : temperature.
    interval : time between dipoles in fs.
    """
    found = infrared_spectrum(series, interval, temperature=kelvin, resolution=RESOLUTION)
    kept = found.wave_numbers <= HIGHEST
    waves = found.wave_numbers[kept]
    absorption = 1e8 * found.cross_section[kept] / atoms.get_volume()
    return {
        "waves": waves.round(1).tolist(),
        "absorption": absorption.round(1).tolist(),
        **{name: line(waves, absorption, *window) for name, window in LINES.items()},
    }


def line(waves: np.ndarray, absorption: np.ndarray, low: float, high: float) -> float:
    """Mean wave number of a line in a window, weighted by the square of the absorption."""
    inside = (waves >= low) & (waves <= high)
    return float(np.average(waves[inside], weights=absorption[inside] ** 2))


def draw(results: Results, system: str, path: Path) -> bool:
    """Draw the spectra of the exact force field and of the models; False without any."""
    import matplotlib.pyplot as plt

    rows = [row for row in results.rows if row["system"] == system and _spectra(row)]
    spectra = {row["column"]: _spectra(row)["model"] for row in rows if row["column"] in COLOURS}
    if not spectra:
        return False
    spectra = {"exact": _spectra(rows[0])["truth"], **spectra}
    figure, ax = plt.subplots(figsize=(8.0, 3.6), layout="constrained")
    for name, own in spectra.items():
        ax.plot(own["waves"], own["absorption"], color=COLOURS[name], label=WORDS[name])
    ax.set(xlim=(0.0, HIGHEST), xlabel="wave number (1/cm)", ylabel="n(ω) α(ω) (1/cm)")
    ax.set_ylim(bottom=0.0)
    ax.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True


def _spectra(row: dict) -> dict:
    found = row.get("dynamics", {}).get("infrared", {})
    return found if "model" in found else {}
