"""`python -m benchmarks.text`."""

from benchmarks.text.cli import main

main()
