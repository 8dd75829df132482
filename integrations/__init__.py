"""Exits in other libraries: Transformers, Sentence Transformers, Ray."""
