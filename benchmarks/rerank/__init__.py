"""Reranking: a text against the names of its labels, candidates that leave early beside what people turn today."""
