"""Adsorption energies on many surfaces, by students and teacher."""
