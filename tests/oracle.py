"""The CRACK loss as the paper writes it: a double loop over all 2P directed relations, NumPy float64."""

from dataclasses import astuple, dataclass

import numpy as np


@dataclass
class Crack:
    loss: float
    top1: float
    cosine: float
    entropy: float


def relation(embedding, i, j):
    unit_i, unit_j = (embedding[atom] / np.linalg.norm(embedding[atom]) for atom in (i, j))
    return (unit_i - unit_j) / np.linalg.norm(unit_i - unit_j)


def crack(student, teacher, pairs, *, anchor="student", **options):
    if anchor == "symmetric":
        sides = [crack(student, teacher, pairs, anchor=side, **options) for side in ("student", "teacher")]
        return Crack(*np.mean([astuple(side) for side in sides], axis=0))
    student, teacher = np.asarray(student, dtype=np.float64), np.asarray(teacher, dtype=np.float64)
    directed = [(int(i), int(j)) for i, j in pairs.T] + [(int(j), int(i)) for i, j in pairs.T]
    s = [relation(student, i, j) for i, j in directed]
    t = [relation(teacher, i, j) for i, j in directed]
    if anchor == "student":
        losses, hits, entropies = _contrast(directed, s, t, t, **options)
    else:
        losses, hits, entropies = _contrast(directed, t, s, t, **options)
    cosines = [s_e @ t_e for s_e, t_e in zip(s, t)]
    return Crack(np.mean(losses), np.mean(hits), np.mean(cosines), np.mean(entropies))


def _contrast(
    directed, anchors, candidates, t, *, temperature=0.15, negatives="batch", systems=None, false_negative_threshold=None
):
    """False negatives are sought among other pairs' relations: e and its reverse are always candidates of e."""
    losses, hits, entropies = [], [], []
    for e, pair in enumerate(directed):
        logits = []
        for f, other in enumerate(directed):
            if negatives == "system" and systems[other[0]] != systems[pair[0]]:
                continue
            is_other = set(other) != set(pair)
            if false_negative_threshold is not None and is_other and abs(t[e] @ t[f]) > false_negative_threshold:
                continue
            logits.append(anchors[e] @ candidates[f] / temperature)
        own, logits = anchors[e] @ candidates[e] / temperature, np.array(logits)
        log_sum = logits.max() + np.log(np.exp(logits - logits.max()).sum())
        losses.append(log_sum - own)
        hits.append(own == logits.max())
        entropies.append(np.sum(np.exp(logits - log_sum) * (log_sum - logits)))
    return losses, hits, entropies


def crack_gradient(student, *arguments, step=1e-6, **options):
    """Central finite differences of `crack` in the student's embedding."""
    student = np.asarray(student, dtype=np.float64)
    gradient = np.zeros_like(student)
    for entry in np.ndindex(*student.shape):
        shift = np.zeros_like(student)
        shift[entry] = step
        above, below = (crack(student + sign * shift, *arguments, **options).loss for sign in (1, -1))
        gradient[entry] = (above - below) / (2 * step)
    return gradient
