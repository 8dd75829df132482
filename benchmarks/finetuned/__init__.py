"""Exits for fine-tuned classifiers: the demo of `ponder advise`, and measurements on real tasks."""
