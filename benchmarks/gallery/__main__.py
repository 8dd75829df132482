"""`python -m benchmarks.gallery`."""

from benchmarks.gallery.cli import main

main()
