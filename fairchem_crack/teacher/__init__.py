"""The frozen model, and its outputs on disk."""
