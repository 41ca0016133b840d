"""Which of fairchem's elementwise losses takes tensors of which shape. Standard library only."""

from __future__ import annotations

from typing import Final, Optional

from fairchem_crack import keys

# What a term compares, by the letters of `keys`: a row for each system (B), atom (N) or other thing, and its columns.
Shape = tuple[str, str]
SYSTEM_SCALARS: Final[Shape] = ("B", "1")
ATOM_SCALARS: Final[Shape] = ("N", "1")
ATOM_VECTORS: Final[Shape] = ("N", "3")
SHAPES: dict[str, Shape] = {  # of the distillation terms, and of those that `terms.register_term` adds with one
    keys.NODE_EMBEDDINGS: ("N", "D"),
    keys.VECTOR_EMBEDDINGS: ("N D_v", "3"),
    keys.RELATION_VECTORS: ("P", "D"),
    keys.RELATION_LENGTHS: ("P", "1"),
    keys.SYSTEM_EMBEDDING: ("B", "D"),
    keys.ATOM_ENERGIES: ATOM_SCALARS,
    keys.TEACHER_ENERGY: SYSTEM_SCALARS,
    keys.TEACHER_FORCES: ATOM_VECTORS,
    keys.ENERGY_GRADIENT: ATOM_VECTORS,
    keys.FORCE_JACOBIAN: ATOM_VECTORS,
    keys.EMBEDDING_RESPONSE: ("N", "D"),
    keys.FORCE_RESPONSE: ATOM_VECTORS,
}
OF_VECTORS = ("l2mae", "l2norm")  # the length of a difference: of more than one column
OF_SYSTEMS = ("per_atom_mae",)  # divides by the number of atoms: one number for each system


def loss_misfit(fn: str, shape: Optional[Shape], compared: str) -> Optional[str]:
    """Why a loss of fairchem does not take what is compared, and which ones do; fairchem ends in an empty AssertionError.

    Args:
        fn: the name of the loss. One that is not in this table, for example one of your own, takes everything.
        shape: of the two tensors; None where it is not known.
        compared: what they are, for the message.

    Returns:
        None for a loss that fits.
    """
    if shape is None:
        return None
    rows, columns = shape
    if fn in OF_VECTORS and columns == "1":
        reason = "takes the length of vectors"
    elif fn in OF_SYSTEMS and shape != SYSTEM_SCALARS:
        reason = "takes one number of each system, and divides it by the number of atoms"
    else:
        return None
    fitting = "`mae`, `mse` or `per_atom_mae`" if shape == SYSTEM_SCALARS else "`mae` or `mse`"
    fitting = fitting if columns == "1" else "`mae`, `mse` or `l2mae`"
    return f"`{fn}` {reason}; `{compared}` has the shape ({rows}, {columns}). Take {fitting}."
