"""Whole data sets and streams through a model: reading, batching, predicting, compiling."""

__all__: list[str] = []
