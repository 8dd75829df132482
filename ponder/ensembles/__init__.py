"""Ensembles whose members are asked in blocks: forests, votes, boosting, samples."""

from ponder.ensembles.ensemble import Ensemble, EnsembleAnswers
from ponder.ensembles.vote_stopper import VoteStopper

__all__ = ["Ensemble", "EnsembleAnswers", "VoteStopper"]
