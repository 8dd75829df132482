"""Benchmarks of `ponder`: a folder each, and beside them what several share."""
