"""`fairchem-crack check`: what training would do, seen from its data, student and teacher, and every problem at once.

Each section examines one thing and returns a line to print. What it finds wrong is collected; what it needs and an earlier
section could not make leaves it out. Nothing is written, and the teacher is loaded once. The modules, each importing only
those above it: `context` (what the sections share), `fields`, `inputs`, `models`, `sample`, `losses` (the sections),
`command`.
"""
