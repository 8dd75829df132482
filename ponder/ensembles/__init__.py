"""Ensembles whose members are asked in blocks: forests, votes, boosting, samples."""

from ponder.ensembles.ensemble import Ensemble, EnsembleAnswers

__all__ = ["Ensemble", "EnsembleAnswers"]
