"""Looped models of the literature as steps, heads and policies of a `ponder.loops.Loop`; a file each, to be read.

Each is an example as much as a part: a model of one's own takes as many lines.
"""
