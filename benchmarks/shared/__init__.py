"""A weight-shared encoder whose weights can be had here: one layer, applied again and again, taught by MiniLM."""
