"""The commands of `fairchem-crack` that take fairchem's flags, and those of the demo; the others have rooms of their own.

Thin: options in, library code, messages out. `flags` reads what is given, `spelling` finds what is misspelt.
"""
