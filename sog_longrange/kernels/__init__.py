"""Interaction kernels: functions K(r) with their Fourier transforms."""
