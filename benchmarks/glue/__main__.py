"""`python -m benchmarks.glue`."""

from benchmarks.glue.cli import main

main()
