# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Screening and molecular dynamics with the student
# What a distilled student is for: relaxing many structures, and running dynamics. This notebook trains a small one
# first. It takes some four minutes on one CPU core; with a checkpoint of `make demo` or of your own, start at part 2.
#
# Run it in the environment of fairchem and this package (`pip install jupytext`, then open this file as a notebook in
# Jupyter), or as a script: `python screening_and_md.py`.

# %% tags=["parameters"]
SYSTEMS, COPIES, EPOCHS = 60, 4, 12  # of the training
SURFACES = 24  # to screen
STEPS = 200  # at most, of a relaxation
PICOSECONDS = 0.5  # of each run of dynamics

# %%
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ase import units
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from ase.optimize import LBFGS
from fairchem.core import OCPCalculator
from scipy.stats import spearmanr

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
# ## 1. A student
# As in `demo_explained.py`, smaller: systems of the demo, copies labelled by the EquiformerV2 teacher, a PaiNN
# distilled on all.

# %%
sh(f"fairchem-crack prepare-demo data/demo --train {SYSTEMS} --val 10")
sh("fairchem-crack configs --copy configs oc20/demo/painn_generated.yml")
sh(
    "fairchem-crack generate --config-yml configs/oc20/demo/painn_crack.yml --cpu --vectors --output generated "
    f"--strategies rattle={COPIES} displace+rattle={COPIES} > generate.log"
)
steps = EPOCHS * -(-json.loads(Path("generated/generate.json").read_text())["systems"] // 16)
sh(
    "fairchem --mode train --config-yml configs/oc20/demo/painn_generated.yml --cpu --seed 0 --run-dir runs "
    "--timestamp-id student --dataset.train.src=generated/data --task.distill.teacher.cache=generated/cache "
    f"--optim.max_epochs={EPOCHS} --optim.total_steps={steps} --optim.eval_every={steps} 2>&1 | fairchem-crack progress"
)

# %% [markdown]
# ## 2. Two calculators
# `StudentCalculator` runs the student in ASE without fairchem's overhead for each call. The teacher has fairchem's own
# calculator, for the comparison.

# %%
checkpoint, teacher_file = "runs/checkpoints/student/best_checkpoint.pt", "configs/oc20/demo/teacher_equiformer_v2.pt"
student = StudentCalculator(checkpoint)
teacher = OCPCalculator(checkpoint_path=teacher_file, cpu=True)

# %% [markdown]
# ## 3. Screening
# On which surface does an adsorbate bind most strongly? Surfaces of pure metals and of ordered alloys, each with H, N
# or O. Every structure is relaxed by the student; then EMT, which made the labels, relaxes it too. The student's energy
# is the adsorption energy. For EMT it is a difference of totals, of which the constants of an adsorbate do not matter
# for a ranking.
#
# Surfaces of mainly Pd or Au are left out: the demo keeps them from its training data, as another domain. With them, a
# student trained for less long ranked H the wrong way round: trust a screening where the student has seen data.

# %%
LATTICE_CONSTANTS = {"Al": 4.05, "Ni": 3.52, "Cu": 3.61, "Pd": 3.89, "Ag": 4.09, "Pt": 3.92, "Au": 4.08}  # Å
ADSORBATES = ("H", "N", "O")


def clean(major, minor):
    """A (111) surface of `major`, a quarter of each layer `minor`."""
    constant = 0.75 * LATTICE_CONSTANTS[major] + 0.25 * LATTICE_CONSTANTS[minor]
    slab = fcc111(major, (2, 2, 3), a=constant, vacuum=7.0)
    slab.pbc = True
    for layer in (1, 2, 3):  # shifted from layer to layer
        slab.symbols[np.flatnonzero(slab.get_tags() == layer)[layer % 4]] = minor
    slab.set_tags(np.where(slab.get_tags() == 3, 0, 1))  # ase.build numbers layers from the top
    slab.set_constraint(FixAtoms(mask=slab.get_tags() == 0))
    return slab


def relax(atoms, calculator):
    """The relaxed copy, and its energy in eV."""
    atoms = atoms.copy()
    atoms.calc = calculator
    LBFGS(atoms, logfile=None, maxstep=0.1).run(fmax=0.05, steps=STEPS)
    return atoms, atoms.get_potential_energy()


random = np.random.default_rng(0)
structures = []
for _ in range(SURFACES):
    slab = clean(random.choice(["Al", "Ni", "Cu", "Ag", "Pt"]), random.choice([*LATTICE_CONSTANTS]))
    atoms = slab.copy()
    add_adsorbate(atoms, random.choice(ADSORBATES), 1.3, "fcc")
    atoms.set_tags([*slab.get_tags(), 2])
    structures.append((slab, atoms))

# %%
seconds, energies = {"student": 0.0, "teacher": 0.0}, {"student": [], "teacher": [], "EMT": []}
for slab, atoms in structures:
    for name, calculator in (("student", student), ("teacher", teacher)):
        start = time.process_time()
        energies[name].append(relax(atoms, calculator)[1])
        seconds[name] += time.process_time() - start
    energies["EMT"].append(relax(atoms, EMT())[1] - relax(slab, EMT())[1])
print({name: f"{total / SURFACES:.2f} s of CPU for a relaxation" for name, total in seconds.items()})

# %%
adsorbates = np.array([str(atoms.symbols[-1]) for _, atoms in structures])
figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained", sharey=True)
for axis, name in zip(axes, ("student", "teacher")):
    ranks = []
    for adsorbate, color in zip(ADSORBATES, ("#7d8794", "#1d3557", "#d1495b")):
        chosen = adsorbates == adsorbate
        reference = np.array(energies["EMT"])[chosen]
        predicted = np.array(energies[name])[chosen]
        if chosen.sum() > 2:
            ranks.append(f"{adsorbate} {spearmanr(reference, predicted)[0]:.2f}")
        reference += np.median(predicted - reference)  # the constant of the adsorbate
        axis.scatter(predicted, reference, color=color, label=adsorbate, s=25)
    middle = np.median(energies[name])
    axis.axline((middle, middle), slope=1, color="black", linewidth=0.6)
    axis.set(xlabel=f"relaxed by the {name} [eV]", title="rank correlation " + ", ".join(ranks))
axes[0].set_ylabel("relaxed by EMT, shifted for each adsorbate [eV]")
axes[0].legend()
figure.savefig("screening_and_md.png", dpi=100)
plt.show()

# %% [markdown]
# Each point is a surface. A model that ranks as EMT does has the points of each color on the line. The teacher is close
# to that. This small student, trained for two minutes, ranks O and N much as EMT does, and H, whose energies differ
# least, only roughly. Its relaxations take about a tenth of the teacher's time: it can relax all candidates, and the
# teacher only the best of them.

# %% [markdown]
# ## 4. Dynamics at constant energy
# PaiNN predicts forces directly, not as the gradient of the energy, and so need not conserve energy. How much it drifts
# shows at constant energy, here beside EMT, which conserves it.

# %%
start = relax(structures[0][1], student)[0]
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
for name, calculator, color in (("student", student, "#d1495b"), ("EMT", EMT(), "#7d8794")):
    moving = start.copy()
    moving.calc = calculator
    MaxwellBoltzmannDistribution(moving, temperature_K=300, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(moving, timestep=1 * units.fs)
    totals = []
    dynamics.attach(lambda moving=moving, totals=totals: totals.append(moving.get_total_energy()))
    dynamics.run(int(1000 * PICOSECONDS))
    axis.plot(1000 * (np.array(totals) - totals[0]) / len(moving), color=color, label=name)
axis.set(xlabel="time [fs]", ylabel="total energy, change [meV/atom]")
axis.legend()
plt.show()

# %% [markdown]
# ## 5. How long do runs last?
# Low errors on given structures do not make a simulation stable. `stability` runs dynamics from several systems at
# several temperatures, until a bound is exceeded (temperature, force, distance), and beside the teacher if it is given
# one.

# %%
sh(
    f"fairchem-crack stability --checkpoint {checkpoint} --data data/demo/val_id --starts 3 --temperatures 300 600 "
    f"--ps {PICOSECONDS} --drift-ps {PICOSECONDS / 2} --cpu 2> stability.log"
)

# %% [markdown]
# Where runs end early, `fairchem-crack explore` trains the student on frames of its own dynamics that the teacher has
# labelled. A student in LAMMPS, OpenMM and torch-sim: page `engines` of the documentation.
