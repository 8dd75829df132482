"""`python -m benchmarks.finetuned`."""

from benchmarks.finetuned.cli import main

main()
