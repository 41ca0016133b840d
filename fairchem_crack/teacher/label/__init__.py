"""Label systems with a teacher of another framework, in its own environment, into a teacher cache.

    python -m fairchem_crack.teacher.label --teacher sevennet:7net-0 --data train.db --output caches/7net

It takes numpy and ASE, and the teacher's framework; no torch, no fairchem. docs/teachers.md shows the whole way.
"""

from fairchem_crack.teacher.label.protocol import Labeller, Outputs, pairs_of

__all__ = ["Labeller", "Outputs", "pairs_of"]
