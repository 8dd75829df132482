"""`python -m benchmarks.tagger`."""

from benchmarks.tagger.cli import main

main()
