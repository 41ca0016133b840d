"""Whether molecular dynamics with a model can be trusted: how long it lasts, how it drifts, what it samples."""
