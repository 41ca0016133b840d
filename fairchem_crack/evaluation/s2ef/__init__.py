"""Energies and forces of any checkpoint on labelled data, and their tables."""
