"""Integrations with partner libraries, one package each; importing this one imports none of them."""
