"""`python -m benchmarks.anything`."""

from benchmarks.anything.cli import main

main()
