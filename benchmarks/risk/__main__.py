"""`python -m benchmarks.risk`."""

from benchmarks.risk.cli import main

main()
