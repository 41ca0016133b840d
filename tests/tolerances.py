"""How far numbers may differ, by the reason that they differ; relative where no unit is given.

A pair of tolerances is given whole, `assert_close(a, b, **FLOAT32)`. A tolerance that belongs to one statement stays in its
test, beside its reason: the spread of a statistic, the digits of a printed figure, the share of one threshold among many.
"""

from __future__ import annotations

import torch

# ---- numbers of a run or a model, in float32
# The same operations on the same numbers: a run that resumed, a checkpoint that was loaded. Of errors also in eV and eV/A.
REPEATED = 1e-6
# The same sums in another order: other batches, ranks or threads, a total of terms.
REORDERED = 1e-5
# The pure forward beside fairchem's module; forces of either are off by up to 4e-6 from those in float64.
PURE_ENERGY = 1e-6
PURE_FORCES = 5e-6
# Errors on a split whose systems were batched or read otherwise: PaiNN's choice among equal distances depends on the batch.
REBATCHED = 1e-4
# The learning rate of a step, from its formula.
LEARNING_RATE = 1e-6
# The first loss after a resume from a checkpoint of another version, whose weights were converted.
CONVERTED = 1e-3
# What a model predicts for a system in a batch and by itself, eV and eV/A.
PREDICTION = 1e-4
# The energy of a system that was relaxed in a batch and by itself, eV: forces differ as above, in every step.
RELAXED_ENERGY = 1e-3
# Gap closed, from errors in float32: a ratio of their differences.
GAP_CLOSED = 5e-3
# An energy minus references, eV: of hundreds of eV in float32. Losses of such energies are off by twice as much.
TOTAL_ENERGY = 1e-3

# ---- labels, beside ASE's in float64
ENERGY = 1e-5  # eV: as float32
FORCE = 1e-4  # eV/A: of positions as float32, in stiff systems
SOFT_FORCE = 1e-5  # eV/A: near equilibrium
POSITION = 1e-6  # A: as float32
LABEL = 1e-3  # eV and eV/A: EMT is steep, so that rounding of positions to float32 shows
REFERENCE = 1e-3  # eV: of a ridge regression, whose penalty moves it by as much

# ---- tensors: entries, and how near zero is zero
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}
FLOAT32_SMALL = {"rtol": 1e-5, "atol": 1e-6}  # entries of order 0.1
FLOAT32_TINY = {"rtol": 1e-5, "atol": 1e-7}  # of order 0.01
FLOAT32_LARGE = {"rtol": 1e-5, "atol": 1e-4}  # of order 10: sums over a system
FLOAT32_DIFFERENCE = {"rtol": 1e-4, "atol": 1e-4}  # of two large numbers
FLOAT32_STEEP = {"rtol": 1e-3, "atol": 1e-3}  # the loss's gradient at low temperatures: float32 embeddings, exact in float64
SPHERE = {"rtol": 1e-3, "atol": 1e-4}  # spherical harmonics fitted to values on a sphere, or in random frames
RANDOM_FRAMES = {"rtol": 1e-2, "atol": 1e-3}  # energies of EquiformerV2 and eSCN, whose edges have random frames
EXPONENTIALS = {torch.float32: 2e-5, torch.float64: 1e-8}  # the CRACK loss, beside a double loop in float64
FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}
FLOAT64_EXPONENTIALS = {"rtol": 1e-10, "atol": 1e-10}  # logarithms of sums of exponentials

# ---- float64 beside an oracle
ORACLE = 1e-9  # written as a double loop, or a closed formula
SUM_OF_FLOAT64 = 1e-12
EV_FLOAT64 = 1e-9  # eV: the same calculator twice
CELL_FLOAT64 = 1e-9  # fractions of a cell
LENGTH_FLOAT64 = 1e-9  # A
RANKS_LOSS = {"rtol": 1e-9, "atol": 1e-12}  # of all ranks, beside that of one process
RANKS_GRADIENT = {"rtol": 1e-6, "atol": 1e-12}  # its gradients, on each rank

# ---- figures
QUANTILE = 1e-4  # of the t distribution, beside a table's five digits
