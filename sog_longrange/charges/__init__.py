"""Latent charges of atoms: readout, constraint, charge states."""
