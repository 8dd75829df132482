"""`python -m benchmarks.puzzles`."""

from benchmarks.puzzles.cli import main

main()
