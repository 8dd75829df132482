"""Private helpers that every room may use."""
