"""The demo: its data, made here, and its summary."""
