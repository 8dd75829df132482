"""LoopBench: looped models on small tasks, and every way to halt them, per row and per position."""
