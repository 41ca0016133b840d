"""Model cards of checkpoints."""
