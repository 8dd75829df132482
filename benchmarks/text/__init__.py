"""Intents of customers' messages as tasks, which the commands of other folders use."""
