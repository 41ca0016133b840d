# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The demo explained
# A small `make demo`, step by step: a PaiNN trained on labels only, the same PaiNN distilled from an EquiformerV2, and
# both against the teacher. It takes some four minutes on one CPU core.
#
# Run it in the environment of fairchem and this package (`pip install jupytext`, then open this file as a notebook in
# Jupyter), or as a script: `python demo_explained.py`.

# %% tags=["parameters"]
SYSTEMS = 100  # with labels
COPIES = 4  # new ones of each, by each of two strategies
EPOCHS = 44  # on the labels only
VALIDATION = 40  # systems in each validation split

# %%
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ase.visualize.plot import plot_atoms
from fairchem.core import OCPCalculator
from fairchem.core.common.relaxation.ase_utils import batch_to_atoms
from fairchem.core.datasets import LmdbDataset, data_list_collater

from fairchem_crack.evaluation.report.curves import read_curves

# %% [markdown]
# All files go to a new directory. Commands run as in a terminal, with one thread and without progress bars.

# %%
logging.disable(logging.WARNING)  # fairchem logs a page for each model that it loads
warnings.simplefilter("ignore")
os.chdir(tempfile.mkdtemp(prefix="crack-"))
os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1", TQDM_DISABLE="1")
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def sh(command):
    """Run a command as in a terminal."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(["bash", "-o", "pipefail", "-c", command], **output)
    for line in process.stdout:
        print(line, end="")
    assert process.wait() == 0, command


# %% [markdown]
# ## 1. Data
# The demo stands in for OC20: adsorbates on metal slabs, with adsorption energies and forces of ASE's EMT potential, in
# OC20's format. `val_id` has the adsorbates and the surfaces of the training. `val_ood_both` has neither.

# %%
sh(f"fairchem-crack prepare-demo data/demo --train {SYSTEMS} --val {VALIDATION}")

# %%
batches = {}
for split in ("train", "val_id", "val_ood_both"):
    dataset = LmdbDataset({"src": f"data/demo/{split}"})
    batches[split] = data_list_collater([dataset[index] for index in range(len(dataset))], otf_graph=True)
    print(f"{split}: {len(dataset)} systems of {batches[split].natoms.float().mean():.0f} atoms")

figure, axes = plt.subplots(1, 3, figsize=(9, 3))
for axis, atoms in zip(axes, batch_to_atoms(batches["train"])):
    plot_atoms(atoms, axis, rotation="-80x,20y")
    axis.set_title(atoms.get_chemical_formula())
    axis.set_axis_off()
plt.show()

# %% [markdown]
# ## 2. A student on the labels only
# `configs/oc20/demo/painn.yml` is an ordinary YAML of fairchem with fairchem's own trainer. `fairchem-crack progress`
# makes a few lines of its log.

# %%
sh("fairchem-crack configs --copy configs oc20/demo/painn_generated.yml")

# %%
steps = EPOCHS * math.ceil(SYSTEMS / 16)  # in batches of 16
sh(
    "fairchem --mode train --config-yml configs/oc20/demo/painn.yml --cpu --seed 0 --run-dir runs --timestamp-id labels "
    f"--optim.max_epochs={EPOCHS} --optim.total_steps={steps} --optim.eval_every={math.ceil(steps / 4)} "
    "2>&1 | fairchem-crack progress"
)

# %% [markdown]
# ## 3. More structures, and the teacher's outputs for all
# The teacher is cheaper than the method that made the labels (for OC20, DFT): it can label structures that nobody has
# computed. Here it labels copies of each training system with the free atoms moved at random (`rattle`), and with the
# adsorbate at another place as well (`displace+rattle`). The same run keeps what the distillation compares, in a cache:
# the teacher's embeddings of atoms, its energies of atoms, and its pairs of neighbors.

# %%
sh(
    "fairchem-crack generate --config-yml configs/oc20/demo/painn_crack.yml --cpu --vectors --output generated "
    f"--strategies rattle={COPIES} displace+rattle={COPIES}"
)
generated = json.loads(Path("generated/generate.json").read_text())
print(generated["kept"], generated["systems"])

# %% [markdown]
# ## 4. The same student, distilled
# `painn_generated.yml` adds to `painn.yml` the trainer, the teacher, and four terms of the loss:
#
# | term | compares |
# |---|---|
# | `relations` | directions between the embeddings of neighboring atoms: the CRACK loss |
# | `node_embeddings`, `vector_embeddings` | each atom's embedding, after a linear projection to the teacher's size |
# | `atom_energies` | the contribution of each atom to the energy |
#
# The labels are the teacher's, since the copies have no others. For a fair comparison there are no more steps than
# before: with nine times the systems, a ninth of the epochs.

# %%
steps_per_epoch = math.ceil(generated["systems"] / 16)
epochs = max(1, steps // steps_per_epoch)
steps = epochs * steps_per_epoch
sh(
    "fairchem --mode train --config-yml configs/oc20/demo/painn_generated.yml --cpu --seed 0 --run-dir runs "
    "--timestamp-id distilled --dataset.train.src=generated/data --task.distill.teacher.cache=generated/cache "
    f"--optim.max_epochs={epochs} --optim.total_steps={steps} --optim.eval_every={math.ceil(steps / 4)} "
    "2>&1 | fairchem-crack progress"
)

# %% [markdown]
# ## 5. The losses
# Each term falls by itself. `relation_top1` is the fraction of relations that the student's embedding makes most
# similar to its counterpart of the teacher's: the number to watch for CRACK.

# %%
curves = {name: read_curves(Path("runs/logs/tensorboard") / name) for name in ("labels", "distilled")}
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for term in ("energy", "forces", "relations", "node_embeddings", "vector_embeddings", "atom_energies"):
    curve = curves["distilled"][f"train/loss_{term}"]
    smooth = np.convolve(curve.values, np.ones(9) / 9, "valid") if len(curve.values) > 9 else curve.values
    left.semilogy(curve.steps[-len(smooth) :], smooth / smooth[0], label=term)
left.set(xlabel="step", ylabel="loss term / its value at the start", title="distilled: every term falls")
left.legend(fontsize=8, ncols=2)
top1 = curves["distilled"]["train/relation_top1"]
right.plot(top1.steps, top1.values, color="#1d3557")
right.set(xlabel="step", ylabel="relation_top1", title="relations that match the teacher's")
plt.show()

# %% [markdown]
# ## 6. Parity
# The predictions for systems that none of the models has seen. On `val_ood_both` adsorbates and surfaces are new.

# %%
models = {
    "labels only": "runs/checkpoints/labels/best_checkpoint.pt",
    "distilled": "runs/checkpoints/distilled/best_checkpoint.pt",
    "teacher": "configs/oc20/demo/teacher_equiformer_v2.pt",
}
colors = {"labels only": "#7d8794", "distilled": "#d1495b", "teacher": "#1d3557"}
figure, axes = plt.subplots(2, 2, figsize=(8, 7.6), layout="constrained")
for name, checkpoint in models.items():
    trainer = OCPCalculator(checkpoint_path=checkpoint, cpu=True).trainer
    for row, split in zip(axes, ("val_id", "val_ood_both")):
        batch = batches[split]
        predicted = trainer.predict(batch.clone(), per_image=False, disable_tqdm=True)
        free = batch.fixed == 0
        for axis, labels, values in (
            (row[0], batch.y, predicted["energy"].view(-1)),
            (row[1], batch.force[free].view(-1), predicted["forces"][free].view(-1)),
        ):
            error = (values - labels).abs().mean()
            axis.scatter(labels, values, s=9, color=colors[name], alpha=0.6, label=f"{name}: MAE {error:.3f}")
for row, split in zip(axes, ("val_id", "val_ood_both")):
    for axis, what in zip(row, ("energy [eV]", "force component [eV/Å]")):
        axis.axline((0, 0), slope=1, color="black", linewidth=0.6)
        axis.set(xlabel=f"EMT, {what}", ylabel="model", title=split)
        axis.legend(fontsize=8)
figure.savefig("demo_explained.png", dpi=100)
plt.show()

# %% [markdown]
# The distilled student is closer to the diagonal than the other, on the new adsorbates and surfaces too, where both are
# still far from the teacher: some 300 steps are few. It has the same size, takes the same time, and has seen no more
# batches.
#
# ## 7. The table
# `evaluate` computes fairchem's own metrics, intervals by a bootstrap over the systems, and the part of the gap between
# the student on labels only and the teacher that distillation has closed.

# %%
sh(
    "fairchem-crack evaluate --cpu --batch-sizes 32 --checkpoint runs/checkpoints/distilled/best_checkpoint.pt "
    "--undistilled runs/checkpoints/labels/best_checkpoint.pt --teacher configs/oc20/demo/teacher_equiformer_v2.pt "
    "--data val_id=data/demo/val_id val_ood_both=data/demo/val_ood_both"
)

# %% [markdown]
# `make demo` does this with 300 systems, nine copies of each and four times the steps: its table is in the README. How
# much of the gain the structures bring and how much the terms is in the pages `generate` and `accuracy` of the
# documentation.
#
# Next: `own_data.py`, with a database of your own.
