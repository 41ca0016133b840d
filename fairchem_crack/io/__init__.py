"""From files to systems: datasets as fairchem opens them, and their systems as ASE's Atoms."""
