"""How rows run: the one loop, the rows that it asks, the unroll, and the losses of training."""

__all__: list[str] = []
