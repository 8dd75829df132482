"""`python -m benchmarks.exporters`."""

from benchmarks.exporters.trial import main

main()
