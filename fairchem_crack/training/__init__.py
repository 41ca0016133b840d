"""The trainer, and what a step of distillation has beyond the student's own."""
