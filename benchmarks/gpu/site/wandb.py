"""In the place of wandb, which fairchem imports whatever the logger: 20 MB of no use on a machine without network."""
