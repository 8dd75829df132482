"""A weight-shared encoder: one layer that is applied N times, distilled from MiniLM."""
