# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Distil on your own ASE database
# From an ASE database to a distilled student, with `fairchem-crack init`: five commands. It takes some three minutes on
# one CPU core.
#
# Run it in the environment of fairchem and this package (`pip install jupytext`, then open this file as a notebook in
# Jupyter), or as a script: `python own_data.py`.

# %% tags=["parameters"]
SYSTEMS, VALIDATION = 80, 40  # in the databases
COPIES, EPOCHS = 4, 8  # new systems of each; of the training on all

# %%
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ase.build import add_adsorbate, fcc100, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.optimize import BFGS

from fairchem_crack.calculator import StudentCalculator
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
# ## 1. A database
# Yours would be here already. This one has O and H on surfaces of four metals, their atoms displaced at random, with
# the adsorption energies and forces of EMT. What a database for distillation needs:
#
# - structures that a teacher knows: here those of the demo's EquiformerV2, which was trained on adsorption energies of
#   EMT;
# - energies and forces of a calculator in each row, in eV and eV/Å. Where they are missing, the teacher's can stand in;
# - tags as in OC20 (0 fixed, 1 surface, 2 adsorbate) and the fixed atoms as a constraint, where there are any;
# - a second database of other systems, by which the best checkpoint is chosen.


# %%
def relaxed(atoms):
    """The same atoms, at rest in EMT."""
    atoms.calc = EMT()
    BFGS(atoms, logfile=None).run(fmax=0.03, steps=100)
    return atoms


slabs = {}  # with their energies
for metal in ("Cu", "Ni", "Ag", "Pt"):
    for make in (fcc111, fcc100):
        slab = make(metal, (2, 2, 3), vacuum=7.0)
        slab.pbc = True
        slab.set_tags(np.where(slab.get_tags() == 3, 0, 1))  # ase.build numbers layers from the top
        slab.set_constraint(FixAtoms(mask=slab.get_tags() == 0))
        slabs[metal, make.__name__] = relaxed(slab), slab.get_potential_energy()

hydrogen = relaxed(molecule("H2")).get_potential_energy() / 2  # references of the gas phase, as in OC20
gas = {"H": hydrogen, "O": relaxed(molecule("H2O")).get_potential_energy() - 2 * hydrogen}


def draw(random):
    """A labelled system, without forces above 5 eV/Å."""
    while True:
        slab, clean_energy = slabs[list(slabs)[random.integers(len(slabs))]]
        symbol = random.choice(list(gas))
        atoms = slab.copy()
        add_adsorbate(atoms, symbol, random.uniform(1.0, 2.0), random.choice(["ontop", "bridge"]))
        atoms.set_tags([*slab.get_tags(), 2])
        free = atoms.get_tags() > 0
        atoms.positions[free] += random.normal(scale=0.08, size=(free.sum(), 3))
        atoms.calc = EMT()
        forces = atoms.get_forces(apply_constraint=False)
        if abs(forces).max() < 5:
            energy = atoms.get_potential_energy() - clean_energy - gas[symbol]
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
            return atoms


for name, systems, seed in (("train.db", SYSTEMS, 0), ("val.db", VALIDATION, 1)):
    random = np.random.default_rng(seed)
    with connect(name) as database:
        for _ in range(systems):
            database.write(draw(random))

# %% [markdown]
# ## 2. A first YAML
# `init` looks at the data and the teacher, and writes a YAML with comments: format, normalizers, the terms that teacher
# and student have embeddings for, batch size and schedule. It is meant to be read and changed.

# %%
sh("fairchem-crack configs --copy configs oc20/demo/painn_crack.yml")  # for the teacher's checkpoint
teacher = "configs/oc20/demo/teacher_equiformer_v2.pt"
sh(f"fairchem-crack init --dataset train.db --val val.db --student painn --teacher {teacher} --output my_student.yml")
print(Path("my_student.yml").read_text())

# %% [markdown]
# ## 3. Check
# `check` makes one step and writes nothing. It lists all problems at once; here there are none. The value and the share
# of each term of the loss are worth a look: a term that outweighs the others by far gets a smaller coefficient.

# %%
sh("fairchem-crack check --config-yml my_student.yml --cpu")

# %% [markdown]
# ## 4. More structures
# The teacher can label structures that have no labels. `generate` makes copies of each system with the free atoms moved
# at random, runs the teacher on all, and writes a database and the cache of the teacher's outputs. The training then
# never runs the teacher. (Without more structures, `cache-teacher` does the same for the database as it is.)

# %%
sh(
    "fairchem-crack generate --config-yml my_student.yml --cpu --vectors --format ase_db --output generated "
    f"--strategies rattle={COPIES} > generate.log"
)

# %% [markdown]
# ## 5. Train
# The command is fairchem's, and so are the YAMLs: each takes `my_student.yml` and changes a few lines. One trains on the
# labels only, for the comparison, the other is distilled on the database of `generate`. Both take the same number of
# steps, and fewer than the 100 epochs of `init`.

# %%
Path("labels.yml").write_text(f"""\
includes: [my_student.yml]
optim: {{max_epochs: {EPOCHS * (1 + COPIES)}}}
loss_functions:
  - energy: {{fn: mae, coefficient: 4}}
  - forces: {{fn: l2mae, coefficient: 100}}
""")
Path("distilled.yml").write_text(f"""\
includes: [my_student.yml]
dataset:
  train: {{src: generated/data}}
task:
  distill:
    labels: teacher
    teacher: {{cache: generated/cache}}
optim:
  max_epochs: {EPOCHS}
  scheduler_params: {{warmup_epochs: 0.5}}
""")
for name in ("labels", "distilled"):
    sh(
        f"fairchem --mode train --config-yml {name}.yml --cpu --seed 0 --run-dir runs --timestamp-id {name} "
        "2>&1 | fairchem-crack progress"
    )

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for name, color in (("labels", "#7d8794"), ("distilled", "#d1495b")):
    curves = read_curves(Path("runs/logs/tensorboard") / name)
    for axis, what, unit in ((axes[0], "energy", "eV"), (axes[1], "forces", "eV/Å")):
        for part, line in (("train", ":"), ("val", "o-")):
            curve = curves[f"{part}/{what}_mae"]
            axis.semilogy(curve.steps, curve.values, line, color=color, label=f"{name}, {part}", linewidth=1.2, markersize=4)
        axis.set(xlabel="step", ylabel=f"{what} MAE [{unit}]", title=what)
axes[0].legend(fontsize=8)
figure.savefig("own_data.png", dpi=100)
plt.show()

# %% [markdown]
# Dotted lines are errors on the batches of the training, lines with points those of the validations. The student on
# labels only learns the few systems that it has by heart: in the training its errors become much smaller than in the
# validation. The distilled student has seen more structures, and has to reproduce the teacher's embeddings as well: the two
# errors stay closer, and the validation ends lower.
#
# ## 6. Evaluate
# `--undistilled` and `--teacher` give the part of the gap that is closed.

# %%
sh(
    "fairchem-crack evaluate --cpu --batch-sizes 32 --checkpoint runs/checkpoints/distilled/best_checkpoint.pt "
    f"--undistilled runs/checkpoints/labels/best_checkpoint.pt --teacher {teacher} --data val=val.db"
)

# %% [markdown]
# ## 7. Use it
# The checkpoint is an ordinary one of fairchem. `StudentCalculator` runs it in ASE faster than `OCPCalculator` does.

# %%
atoms = draw(np.random.default_rng(2))
atoms.calc = StudentCalculator("runs/checkpoints/distilled/best_checkpoint.pt")
optimizer = BFGS(atoms, logfile=None)
converged = optimizer.run(fmax=0.05, steps=100)
print(f"{atoms.symbols}: {atoms.get_potential_energy():.2f} eV, converged: {converged}, {optimizer.nsteps} steps")

# %% [markdown]
# Next: a teacher that fairchem 1.10 does not know, in `foundation_teacher.py`.
