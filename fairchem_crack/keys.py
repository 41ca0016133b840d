"""The names, shapes and units of everything this package adds to a batch, a log or a checkpoint.

One letter per dimension, everywhere: N atoms and B systems of the batch, E edges, P unordered pairs, D teacher width,
D_s student width.
"""

from __future__ import annotations

from typing import Final

# Keys of the distillation terms in `loss_functions`: what of the student is matched with the teacher.
RELATIONS: Final = "relations"  # (P, D) unit relational vectors, from the (N, D) invariant node embeddings
NODE_EMBEDDINGS: Final = "node_embeddings"  # (N, D) invariant node embedding, dimensionless
DISTILLATION_TERMS: Final = (RELATIONS, NODE_EMBEDDINGS)

# Fields of a batch that a teacher cache adds to it. PyG shifts a field whose name has "index" by the atoms before it.
TEACHER_EMBEDDING: Final = "teacher_node_embedding"  # (N, D) float16 or float32
TEACHER_PAIRS: Final = "teacher_pair_index"  # (2, P) long, i < j

# Names under which a training step is logged. A term's unweighted value is logged as `loss_<its key>`.
LOSS_PREFIX: Final = "loss_"
RELATION_TOP1: Final = "relation_top1"  # fraction of relations nearest to their own teacher relation, of 2P
RELATION_COSINE: Final = "relation_cosine"  # mean s_e . t_e
RELATION_ENTROPY: Final = "relation_entropy"  # nats, mean over anchors of the softmax's entropy; at most log 2P
NUM_PAIRS: Final = "pairs"  # P that entered the loss
NUM_DEGENERATE: Final = "degenerate_pairs"  # pairs left out because they have no direction

# The one key that a training checkpoint has beyond a stock one, and its entries.
CHECKPOINT_KEY: Final = "crack_distill"
PROJECTION: Final = "projection"  # state_dict of the projection module
PROJECTION_OPTIMIZER: Final = "projection_optimizer"  # state_dict of its optimizer
TEACHER_FINGERPRINT: Final = "teacher_fingerprint"  # str, see teacher.Teacher.fingerprint
DISTILL_CONFIG: Final = "config"  # dict, the `task.distill` block and the distillation terms
