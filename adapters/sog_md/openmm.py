"""OpenMM: potentials of models with a long range, found by openmm-ml.

``MLPotential("sog-mace", modelPath="my.model").createSystem(topology)`` in a program that imports
`openmmml` and nothing of this package. Every program that does so imports this module, which
therefore loads torch and ASE only where a potential is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from openmmml.mlpotential import MLPotentialImpl, MLPotentialImplFactory

if TYPE_CHECKING:
    import openmm

OPTIONS = ("charge", "device", "externalField", "returnEnergyType")
"""Keywords of `createSystem` that these potentials take."""

_OF_OTHERS = ("mlLongRange", "linkAtomDistances")  # Those of mechanical embedding.


class SOGPotentialFactory(MLPotentialImplFactory):
    """Makes potentials of files of models; openmm-ml calls it by an entry point."""

    def createImpl(  # noqa: N802
        self,
        name: str,
        modelPath: str | Sequence[str] | None = None,
        **args: object,  # noqa: N803
    ) -> SOGPotential:
        """Make a potential.

        Parameters
        ----------
        name : str
            `sog`, `sog-mace` or `sog-nequip`, which do the same: the file tells the host.
        modelPath : str, or sequence of str
            File of a model, or those of a committee, for
            :func:`~sog_longrange.ase_support.open_calculator`.
        **args
            None.

        Returns
        -------
        SOGPotential

        Raises
        ------
        InputError
            If there is no file, or another argument.
        """
        from sog_longrange.errors import InputError, explain

        if modelPath is None:
            raise InputError(explain("modelPath", "the file of a trained model", "none"))
        if args:
            got = ", ".join(sorted(args))
            remedy = "createSystem takes the others."
            raise InputError(explain("MLPotential", "given `modelPath` alone", got, remedy))
        return SOGPotential(modelPath)


class SOGPotential(MLPotentialImpl):
    """Potential of one model or a committee.

    Parameters
    ----------
    paths : str, or sequence of str
    """

    def __init__(self, paths: str | Sequence[str]) -> None:
        self.paths = paths

    def addForces(  # noqa: N802
        self,
        topology: openmm.app.Topology,
        system: openmm.System,
        atoms: Iterable[int] | None,
        forceGroup: int,  # noqa: N803
        **args: Any,
    ) -> None:
        """Add the potential to a system; openmm-ml calls it in `createSystem`.

        Parameters
        ----------
        topology : openmm.app.Topology
            With the elements of all atoms. It is periodic along all axes, with reduced box
            vectors, or along none, without box vectors.
        system : openmm.System
        atoms : iterable of int, optional
            The atoms that the model describes, by default all.
        forceGroup : int
        **args
            `charge`, the total charge of these atoms in e, for models that take one;
            `externalField`, 3 floats in V/Å, a uniform field on open structures;
            `returnEnergyType`, "energy" (default), the total energy as it was trained, or
            "interaction_energy", which is smaller by the energies of isolated atoms;
            `device`, by default CUDA's where there is one.

        Raises
        ------
        InputError
            If an argument is not known or malformed, a file is missing, the topology lacks an
            element or the model does not know it, or needs a total charge.
        MissingLibraryError
            If the host of the model is not installed.
        """
        from .openmm_force import make_force, read_atoms

        self._check(args)
        chosen = None if atoms is None else [int(index) for index in atoms]
        given = read_atoms(topology, system, chosen, args.get("charge"), args.get("externalField"))
        kind = args.get("returnEnergyType", "energy")
        force = make_force(self.paths, str(self._getTorchDevice(args)), given, kind)
        force.setForceGroup(forceGroup)
        if chosen is not None:
            force.setParticles(chosen)
        system.addForce(force)

    def getMLLongRange(self) -> bool:  # noqa: N802
        """Tell openmm-ml that periodic images of the atoms of a model interact in the model."""
        return True

    @staticmethod
    def _check(args: dict[str, Any]) -> None:
        """Refuse keywords that nothing takes, as openmm-ml does not."""
        from sog_longrange.errors import InputError, explain

        unknown = sorted(set(args) - {*OPTIONS, *_OF_OTHERS})
        if unknown:
            expected = f"given no others than {', '.join(OPTIONS)}"
            remedy = ""
            if "pbc" in unknown:
                remedy = (
                    "OpenMM is periodic along all axes or none, as the box vectors of the "
                    "topology say; slabs can run in LAMMPS and i-PI."
                )
            raise InputError(explain("createSystem", expected, ", ".join(unknown), remedy))
