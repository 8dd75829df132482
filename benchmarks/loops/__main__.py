"""`python -m benchmarks.loops`."""

from benchmarks.loops.cli import main

main()
