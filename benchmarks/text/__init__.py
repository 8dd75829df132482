"""Texts that stand for real traffic: intents of customers' messages, which run behind the commands of other folders."""
