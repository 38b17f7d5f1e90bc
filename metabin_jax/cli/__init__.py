"""The command line: one tree of parsers, from which the help is generated, and what each command prints.

Commands parse, call one function of another room and print. Nothing imports this room.
"""

from metabin_jax.cli.tree import main

__all__ = ["main"]
