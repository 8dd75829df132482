"""`python -m benchmarks.positions`."""

from benchmarks.positions.cli import main

main()
