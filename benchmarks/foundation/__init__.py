"""Students of a foundation potential: real chemistry, from packages of the registry only."""

from pathlib import Path

EXPERIMENTS = Path(__file__).with_name("experiments.yml")
NAME = "foundation"  # of the table, the page and its rows
BEST = "relations_atoms"  # the method whose students meet DFT and run simulations, beside the undistilled ones
