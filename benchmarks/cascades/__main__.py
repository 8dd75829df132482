"""`python -m benchmarks.cascades`."""

from benchmarks.cascades.cli import main

main()
