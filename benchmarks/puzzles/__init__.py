"""Puzzles that looped solvers answer by running longer: where depth matters, and when to stop."""
