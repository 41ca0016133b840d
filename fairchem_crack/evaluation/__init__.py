"""Any checkpoint: errors, relaxations, speed, reports."""
