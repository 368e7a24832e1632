"""Adapter for NequIP and Allegro: planned, not part of this version."""
