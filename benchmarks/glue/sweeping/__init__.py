"""Sweeps: suites, what is left to do, where it is done, and the loop that does it."""
