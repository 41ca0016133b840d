# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A foundation model as the teacher
# A teacher need not be a model of fairchem 1.10. SevenNet, MACE, Nequix, CHGNet, Orb and UMA run in an environment of
# their own, label your structures into a cache, and the student trains from the cache in this environment. There are
# two:
#
# | environment | has | does |
# |---|---|---|
# | of the teacher | the teacher's package, numpy, ASE, and this package without its dependencies | labels |
# | of the student, this one | fairchem 1.10, this package | trains, and everything after it |
#
# SevenNet-0, for example, in an empty environment, where `CLONE` is the clone of this project:
#
#     pip install sevenn && pip install --no-deps CLONE
#     python -m fairchem_crack.teacher.label --teacher sevennet:7net-0 --data train.db --output caches/7net
#
# This notebook needs no second environment: its teacher is a calculator of ASE, EMT, in a module of our own. Every
# command is the same with SevenNet, but for the name of the teacher and the Python that runs it. It takes some two
# minutes on one CPU core.

# %% tags=["parameters"]
SYSTEMS, VALIDATION = 120, 40  # structures without labels
EPOCHS = 60

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
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.db import connect

from fairchem_crack.calculator import StudentCalculator

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
# ## 1. Structures
# They need no labels. Here: rattled and strained fcc alloys of six metals, eight atoms each.

# %%
METALS = ("Ni", "Cu", "Pd", "Ag", "Pt", "Au")


def draw(random):
    """An alloy of two metals, near its equilibrium."""
    pair = random.choice(METALS, 2, replace=False)
    symbols = random.choice(pair, 8)
    volume = np.mean([bulk(symbol).get_volume() for symbol in symbols])
    atoms = bulk("Cu", a=(4 * volume) ** (1 / 3)).repeat(2)
    atoms.symbols = symbols
    atoms.set_cell(atoms.cell @ (np.eye(3) + random.normal(scale=0.02, size=(3, 3))), scale_atoms=True)
    atoms.rattle(0.1, rng=random)
    return atoms


random = np.random.default_rng(0)
for name, systems in (("train.db", SYSTEMS), ("val.db", VALIDATION)):
    with connect(name) as database:
        for _ in range(systems):
            database.write(draw(random))

# %% [markdown]
# ## 2. The teacher
# `--teacher` is the name of a known model, as `sevennet:7net-0`, or `module:function` of your own. A function that
# returns an ASE calculator gives energies and forces. The known models give their embeddings, atom energies and
# neighbors as well; a `Labeller` of your own can, too (page `teachers` of the documentation).

# %%
Path("my_teacher.py").write_text("""\
from ase.calculators.emt import EMT


def teacher():
    return EMT()
""")
label = "python -m fairchem_crack.teacher.label --teacher my_teacher:teacher"
sh(f"{label} --data train.db --check")

# %% [markdown]
# `--check` turns, moves and repeats a few systems and compares: a teacher that fails it would teach its own faults.
# Then it labels all.

# %%
sh(f"{label} --data train.db --output caches/train")
sh(f"{label} --data val.db --output caches/val")

# %% [markdown]
# ## 3. A student for this cache
# `init` finds no labels in the data, and writes `labels: teacher`. The validation data have none either: `--val-cache`
# gives them the teacher's.
#
# EMT counts energies from the bulk metals. Those of a foundation model are total energies, mostly a sum of what each
# atom has in any surroundings: for them `init` also fits a reference to each element, so that the student learns what
# is left.

# %%
sh(
    "fairchem-crack init --dataset train.db --val val.db --student painn --teacher caches/train --val-cache caches/val "
    "--output my_student.yml"
)
print(Path("my_student.yml").read_text())

# %%
sh("fairchem-crack check --config-yml my_student.yml --cpu")

# %%
sh(
    "fairchem --mode train --config-yml my_student.yml --cpu --seed 0 --run-dir runs --timestamp-id student "
    f"--optim.max_epochs={EPOCHS} 2>&1 | fairchem-crack progress"
)

# %% [markdown]
# ## 4. How well does it follow the teacher?
# On new structures, which neither has seen: energies per atom, and forces.

# %%
student = StudentCalculator("runs/checkpoints/student/best_checkpoint.pt")
energies, forces = [], []
for _ in range(VALIDATION):
    atoms = draw(random)
    compared = []
    for calculator in (EMT(), student):
        atoms.calc = calculator
        compared.append((atoms.get_potential_energy() / len(atoms), atoms.get_forces()))
    energies.append([energy for energy, _ in compared])
    forces.append(np.stack([force.ravel() for _, force in compared]))
energies, forces = np.array(energies).T, np.concatenate(forces, axis=1)

figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
for axis, (teacher, student_values), what in (
    (axes[0], energies, "energy [eV/atom]"),
    (axes[1], forces, "force component [eV/Å]"),
):
    axis.axline((teacher[0], teacher[0]), slope=1, color="black", linewidth=0.6)
    axis.scatter(teacher, student_values, s=9, color="#d1495b", alpha=0.6)
    error = np.abs(student_values - teacher).mean()
    axis.set(xlabel=f"teacher, {what}", ylabel="student")
    axis.set_title(f"MAE {error:.3f}, standard deviation of the teacher's {teacher.std():.2f}", fontsize=10)
figure.savefig("foundation_teacher.png", dpi=100)
plt.show()

# %% [markdown]
# EMT is fast itself: a student of it saves nothing. With a foundation model the student is the fast one. How close
# students of SevenNet-0 come to it, and how fast they are, is measured in `docs/benchmarks/foundation.md`; there the
# cache has embeddings, and `init` adds the terms that compare them.
#
# Next: what such a student is for, in `screening_and_md.py`.
