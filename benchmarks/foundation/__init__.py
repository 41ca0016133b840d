"""Students of foundation potentials: real chemistry, from packages of the registry only."""

from pathlib import Path
from typing import NamedTuple

EXPERIMENTS = Path(__file__).with_name("experiments.yml")
NAME = "foundation"  # of the table; of the page and its rows with the first teacher
BEST = "relations_atoms"  # the method whose students meet DFT and run simulations, beside the undistilled ones


class Potential(NamedTuple):
    """A teacher of the benchmark.

    Attributes:
        title: of its page.
        text: what it is.
        coefficients: where those of the terms come from.
        experiments: its YAML.
        page: the name of its page and of the directory of its rows.
    """

    title: str
    text: str
    coefficients: str
    experiments: Path
    page: str


POTENTIALS = {
    "sevennet": Potential(
        "SevenNet-0",
        "SevenNet-0 (`sevenn`, `7net-0`; its weights are in the package)",
        "The coefficients of PaiNN's single terms and of `relations_atoms` were tuned here ([below](#coefficients)). Those "
        "of `all`, and all of GemNet-dT, were found on the demo's data, with another teacher.",
        EXPERIMENTS,
        NAME,
    ),
    "nequix": Potential(
        "Nequix-OAM-1",
        "Nequix-OAM-1 (`nequix[torch]`; its weights, of 0.7M parameters, are in its public repository)",
        "All coefficients are those of the [benchmark with SevenNet-0](foundation.md), on the same systems: nothing was "
        "tuned for this teacher. What other weights of all terms together give is [below](#coefficients).",
        EXPERIMENTS.with_name("nequix.yml"),
        f"{NAME}_nequix",
    ),
    "chgnet": Potential(
        "CHGNet",
        "CHGNet 0.3.0 (`chgnet`; its weights are in the package)",
        "All coefficients are those of the [benchmark with SevenNet-0](foundation.md), on the same systems: nothing was "
        "tuned for this teacher, which has no l=1 embedding. What other weights of all terms together give is "
        "[below](#coefficients).",
        EXPERIMENTS.with_name("chgnet.yml"),
        f"{NAME}_chgnet",
    ),
}
