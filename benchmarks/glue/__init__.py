"""GLUE: its tasks, their data from a folder or from the hub, and their metrics."""
