"""What a trajectory tells: scores of every step, and of the exits under every threshold."""

__all__: list[str] = []
