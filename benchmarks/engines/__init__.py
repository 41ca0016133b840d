"""Molecular dynamics of one student in several engines: results and steps per second, side by side."""
