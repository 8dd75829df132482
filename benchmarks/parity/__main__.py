"""`python -m benchmarks.parity`."""

from benchmarks.parity.cli import main

main()
