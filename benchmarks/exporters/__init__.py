"""What `transformers.exporters` makes of a single step, and of a model whose rows exit."""
