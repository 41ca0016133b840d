"""An epoch in blocks with a shuffle buffer: what a cold epoch costs, and what it does to the demo's errors."""
