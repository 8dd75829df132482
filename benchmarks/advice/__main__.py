"""`python -m benchmarks.advice`."""

from benchmarks.advice.cli import main

main()
