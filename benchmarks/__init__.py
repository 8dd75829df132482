"""Benchmarks of `ponder`: GLUE, the graded tasks, and the backbones that they run on."""
