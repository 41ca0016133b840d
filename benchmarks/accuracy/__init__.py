"""Accuracy of distilled students: methods, students, seeds."""
