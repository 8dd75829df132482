"""PonderNet's own experiment: the parity task, with ACT beside it."""
