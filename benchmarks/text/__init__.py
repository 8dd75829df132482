"""Texts that stand for real traffic: intents of customers' messages, behind the same commands as GLUE."""
