"""`fairchem-crack report`: what a distillation has reached, as one HTML page and the pictures in it.

The modules, each importing only those above it: `request` (the options), `systems` (the data), `predict` (the
models' outputs), `numbers` and `relations` (what follows), `curves` (the training's log), `collect` (all of these),
`figures` and `embedding_figures` (pictures), `sections` (which of them go where), `page` (HTML), `command`.
"""
