"""Cascades of a student and a fine-tuned encoder beside exits, int8 and a blind mix, each under the same promise."""
