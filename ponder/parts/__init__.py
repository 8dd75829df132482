"""The parts of a model: steps, heads, readouts, what its outputs mean, and where its lengths lie."""

__all__: list[str] = []
