"""Evaluation of `ponder advise`: its choice and promise on test texts, and redraws of the race."""
