"""`python -m benchmarks.quantised`."""

from benchmarks.quantised.cli import main

main()
