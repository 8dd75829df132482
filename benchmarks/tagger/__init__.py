"""Tokens of a fine-tuned tagger: exits per token do not pay in a stack, a gate on "no entity here" does."""
