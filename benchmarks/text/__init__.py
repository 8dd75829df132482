"""Texts that stand for real traffic: intents of customers' messages, and named entities in messages.

The intents (`tasks.py`) run behind the commands of `benchmarks.glue`; the entities, which are answers a token, behind
`python -m benchmarks.text`.
"""
