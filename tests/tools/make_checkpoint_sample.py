"""Write a sample of the training checkpoints that this format has, for later versions to read.

    python tests/tools/make_checkpoint_sample.py            # tests/samples/checkpoint_format_FORMAT.pt

It is the tests' distilled training after 3 of 6 steps. The last line is the loss of the next step, for
tests/integration/test_samples.py.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from conftest import distill_config, run_fairchem, write_data, write_teacher  # noqa: E402

from fairchem_crack.training.projection_state import FORMAT  # noqa: E402

STEPS = 3


def write_sample(file: Path) -> float:
    """Write the checkpoint and return the value of `node_embeddings` in the step after it. All its paths are relative.

    Raises:
        FileExistsError: a sample is kept as it was written.
    """
    if file.exists():
        raise FileExistsError(f"{file}: already there. Samples are kept.")
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        try:
            config = distill_config(write_data(Path()), write_teacher(Path("teacher.pt")))
            config["optim"].update(checkpoint_every=1, eval_every=10)
            run = run_fairchem(Path(), config, stop_at=STEPS + 1)
            shutil.copyfile(run.checkpoints / "checkpoint.pt", file)
        finally:
            os.chdir(here)
    return run.steps[STEPS]["loss_node_embeddings"]


if __name__ == "__main__":
    target = TESTS / "samples" / f"checkpoint_format_{FORMAT}.pt"
    print(f"format {FORMAT}: node_embeddings {write_sample(target):.5f} in step {STEPS + 1}")
