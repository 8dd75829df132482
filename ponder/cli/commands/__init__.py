"""The commands, a file each: `run` declares arguments and options, and its docstring is the help.

A command reads files, calls one function of a room, and prints its result. `ponder.cli.app` lists
this folder, so that a new file is a new command.
"""
