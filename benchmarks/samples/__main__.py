"""`python -m benchmarks.samples`."""

from benchmarks.samples.cli import main

main()
