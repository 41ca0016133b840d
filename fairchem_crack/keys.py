"""The names, shapes and units of everything this package adds to a batch, a log or a checkpoint.

One letter per dimension, everywhere: N atoms and B systems of the batch, E edges, P unordered pairs, D teacher width,
D_s student width, D_v channels of the teacher's embeddings of l >= 1, L the largest degree l that a model has.
"""

from __future__ import annotations

from typing import Final

# Keys of the distillation terms in `loss_functions`: what of the student is matched with the teacher.
RELATIONS: Final = "relations"  # (P, D) unit relational vectors, from the (N, D) invariant node embeddings
NODE_EMBEDDINGS: Final = "node_embeddings"  # (N, D) invariant node embedding, dimensionless
VECTOR_EMBEDDINGS: Final = "vector_embeddings"  # (N, 3, D_v) l=1 node embedding, components x, y, z, dimensionless
RELATION_VECTORS: Final = "relation_vectors"  # (P, D) relations, or differences of node embeddings that are not scaled
RELATION_LENGTHS: Final = "relation_lengths"  # (P, 1) |z_i - z_j| of node embeddings, divided by its mean over the pairs
SYSTEM_EMBEDDING: Final = "system_embedding"  # (B, D) mean node embedding of a system's atoms
NODE_CONTRAST: Final = "node_contrast"  # (N, D) unit node embeddings, each among those of the batch
ATOM_ENERGIES: Final = "atom_energies"  # (N, 1) contributions to the energy, in the student's normalised unit
TEACHER_ENERGY: Final = "teacher_energy"  # (B, 1) energy, in the student's normalised unit
TEACHER_FORCES: Final = "teacher_forces"  # (N_free, 3) forces, in the student's normalised unit
ENERGY_GRADIENT: Final = "energy_gradient"  # (N_free, 3) minus d E / d x, in the student's normalised unit of forces
FORCE_JACOBIAN: Final = "force_jacobian"  # (N, 3) a random row of d F / d x of each system, in that unit per A
EMBEDDING_RESPONSE: Final = "embedding_response"  # (N, D) change of the node embedding along a displacement, per A
FORCE_RESPONSE: Final = "force_response"  # (N_free, 3) change of the forces along it, in the student's normalised unit per A
RESPONSES: Final = (EMBEDDING_RESPONSE, FORCE_RESPONSE)  # to one displacement, by one more run of a model
OF_PAIRS: Final = (RELATIONS, RELATION_VECTORS, RELATION_LENGTHS)  # terms of the atom pairs of the relation graph
DISTILLATION_TERMS: Final = [  # and those that `terms.register_term` adds
    *(RELATIONS, NODE_EMBEDDINGS, VECTOR_EMBEDDINGS, NODE_CONTRAST, RELATION_VECTORS, RELATION_LENGTHS, SYSTEM_EMBEDDING),
    *(ATOM_ENERGIES, TEACHER_ENERGY, TEACHER_FORCES, ENERGY_GRADIENT, FORCE_JACOBIAN, EMBEDDING_RESPONSE, FORCE_RESPONSE),
]

# Fields that can be requested of a teacher: those of `teacher.TeacherOutputs` and of a teacher cache. ATOM_ENERGIES,
# FORCE_JACOBIAN, EMBEDDING_RESPONSE and FORCE_RESPONSE are called as their terms; they are in eV, eV/A^2, 1/A and eV/A^2.
NODE_EMBEDDING: Final = "node_embedding"  # (N, D) dimensionless
VECTOR_EMBEDDING: Final = "vector_embedding"  # (N, 3, D_v) dimensionless
HIGHER_EMBEDDING: Final = "higher_embedding"  # (N, (L + 1)^2 - 4, D_v) degrees l = 2 to L, dimensionless
ENERGY: Final = "energy"  # (B,) eV
FORCES: Final = "forces"  # (N, 3) eV/A

# Fields of a system that `fairchem-crack generate` writes: whether its label of a property is the teacher's.
OF_TEACHER: Final = {ENERGY: "energy_of_teacher", FORCES: "forces_of_teacher"}

# Fields of a batch that a teacher cache adds to it. PyG shifts a field whose name has "index" by the atoms before it.
TEACHER_PREFIX: Final = "teacher_"  # before the name of a field of the cache
TEACHER_PAIRS: Final = "teacher_pair_index"  # (2, P) long, i < j

# Fields that `batches.to_device` adds to a batch of a training, which the host knows before it is on the GPU.
FREE_ROWS: Final = "free_rows"  # (N_free,) long, atoms that are not fixed
MOVABLE_ROWS: Final = "movable_rows"  # (N',) long, atoms of systems that have a free atom
PBC_DIFFER: Final = "pbc_differ"  # bool, whether two systems have different periodic boundaries

# Names under which a training step is logged. A term's unweighted value is logged as `loss_<its key>`.
LOSS_PREFIX: Final = "loss_"
RELATION_TOP1: Final = "relation_top1"  # fraction of relations nearest to their own teacher relation, of 2P
RELATION_COSINE: Final = "relation_cosine"  # mean s_e . t_e
RELATION_ENTROPY: Final = "relation_entropy"  # nats, mean over anchors of the softmax's entropy; at most log 2P
NUM_PAIRS: Final = "pairs"  # P that entered the loss
NUM_DEGENERATE: Final = "degenerate_pairs"  # pairs left out because they have no direction

# The one key that a checkpoint has beyond a stock one, and its entries. Those of a checkpoint for inference, which has no
# step of fairchem's:
CHECKPOINT_KEY: Final = "crack_distill"
STEP: Final = "step"  # int, of the training that wrote it
EPOCH: Final = "epoch"  # float, likewise
# Those of a training checkpoint:
STATE_FORMAT: Final = "format"  # int, see projection_state; 1 where there is none
PROJECTION: Final = "projection"  # state_dict of the node embeddings' projection; empty where no term needs it
VECTOR_PROJECTION: Final = "vector_projection"  # state_dict of the l=1 embeddings'
HIGHER_PROJECTION: Final = "higher_projection"  # state_dict of the higher degrees'
PROJECTION_OPTIMIZER: Final = "projection_optimizer"  # state_dict of their optimizer
CHANNEL_STATISTICS: Final = "channel_statistics"  # dict, by which the teacher's embeddings are standardised
TEACHER_FINGERPRINT: Final = "teacher_fingerprint"  # str, see teacher.Teacher.fingerprint
TEACHER_SETTINGS: Final = "teacher_settings"  # dict of plain values, see teacher.Teacher.settings
DISTILL_CONFIG: Final = "config"  # dict of plain values, what decides the result, see `identity`
