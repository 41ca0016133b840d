"""`fairchem-crack check`: what training would do, seen from its data, student and teacher, and every problem at once.

Each section examines one thing and returns a line to print. Problems are collected; a section is left out where an
earlier one could not make what it needs. Nothing is written, and the teacher is loaded once. The modules, each importing
only those above it: `context` (what the sections share), `fields`, `inputs`, `models`, `sample`, `energies`, `losses` (the
sections), `command`.
"""
