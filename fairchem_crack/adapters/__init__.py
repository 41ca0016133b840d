"""Where each architecture keeps what is distilled: a small adapter for each, with forward hooks on the unmodified model."""

from fairchem_crack.adapters import cartesian, gemnet, invariant, spherical  # noqa: F401, they register their adapters
from fairchem_crack.adapters.base import Features, architecture, attach_features, register_features

__all__ = ["Features", "architecture", "attach_features", "register_features"]
