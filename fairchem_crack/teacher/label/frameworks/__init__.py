"""One module for each framework: `load(model, device)` returns its Labeller. Imported where the framework is installed."""
