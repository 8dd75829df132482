"""`python -m benchmarks.rerank`."""

from benchmarks.rerank.cli import main

main()
