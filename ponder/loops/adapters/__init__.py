"""Looped models of the literature as steps, heads and policies of a `ponder.loops.Loop`.

Each file is an example, too: another model takes as many lines.
"""
