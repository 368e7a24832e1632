"""Sums over atoms, periodic images and wave vectors."""
