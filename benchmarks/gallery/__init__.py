"""The figures of README and documentation, from committed results and from the library itself; nothing is measured."""
