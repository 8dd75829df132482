"""Cascades of a student and a fine-tuned encoder, compared with exits, int8 and a blind mix."""
