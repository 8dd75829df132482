"""`python -m benchmarks.shared`."""

from benchmarks.shared.cli import main

main()
