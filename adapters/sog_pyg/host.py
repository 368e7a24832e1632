"""The versions of PyTorch Geometric that the adapter works with."""

from __future__ import annotations

from sog_longrange.hosts import SupportedVersions

SUPPORTED = SupportedVersions("torch-geometric", oldest="2.6", limit="2.9")
