"""The command line: one tree of parsers, which generates the help, and what each command prints.

A command parses, calls one function of another room and prints. No other room imports this one.
"""

from metabin_jax.cli.tree import main

__all__ = ["main"]
