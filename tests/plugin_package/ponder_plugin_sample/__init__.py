"""A package of plug-ins, as another project would ship it; `tests/test_plugins_installed.py` installs it."""
