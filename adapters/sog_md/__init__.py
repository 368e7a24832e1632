"""Molecular dynamics engines that run models with a long range."""
