"""Reranking: candidates with early exits, compared with cut pools and cut encoders."""
